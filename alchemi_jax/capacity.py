"""Sizes of padded arrays: a few sizes an octave, so that similar batches share compiled code."""


def round_up(n: int, per_octave: int = 8, least: int = 1) -> int:
    """The smallest size >= n of a grid with `per_octave` sizes between a power of two and the next.

    At most 1/per_octave of the array is padding: 3,328 stays 3,328, 3,329 becomes 3,584.
    """
    n = max(int(n), least)
    step = max(1, (1 << (n.bit_length() - 1)) // per_octave)
    return -(-n // step) * step
