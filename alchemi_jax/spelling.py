"""The nearest known name, for messages. Imports nothing slow."""

from collections.abc import Iterable


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """ "; did you mean fmax?" for a name that is near a known one, otherwise nothing."""
    # Only now: it takes longer to import than all of this module.
    import difflib

    word = str(name)[:80]
    near = difflib.get_close_matches(word, list(known), n=3, cutoff=0.6)
    # Letters that changed places are the likeliest mistake.
    near.sort(key=lambda other: sorted(other) != sorted(word))
    return f"; did you mean {near[0]}?" if near else ""


__all__ = ["did_you_mean"]
