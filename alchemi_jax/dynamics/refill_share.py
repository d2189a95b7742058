"""Which share of the systems in a batch should be finished before others enter."""

import numpy as np
from jaxtyping import Shaped


#: Bounds of the share later on, and its value if systems end together.
LEAST, MOST, WAVE = 0.05, 0.7, 0.9


def best_share(refill: float, steps: Shaped[np.ndarray, " systems"], places: int) -> float:
    """The share of systems that should be finished before others enter, for the least cost per system.

    Args:
        refill: cost of a refill, in steps of the batch.
        steps: number of steps that each system took.
        places: systems in flight.

    There are two candidates. If systems finish at all times, places become idle one after another. If a
    refill happens when a share x is idle, 1 - x/2 of the places are busy on average: a system costs steps /
    (1 - x/2) of the time of a place, and refill / x for refills. The sum is least at x = q / (1 + q/2) with
    q² = 2 refill / steps. But systems that take nearly the same number of steps, and began together, end
    together: then it is best to wait for nearly all of them. Both are tried on a sample of past systems.
    """
    q = float(np.sqrt(2 * refill / max(steps.mean(), 1e-12)))
    steady = min(max(q / (1 + q / 2), LEAST), MOST)
    sample = np.random.default_rng(0).choice(steps, 5 * places)
    return min((steady, WAVE), key=lambda share: _cost(share, refill, sample, places))


def _cost(share: float, refill: float, steps: Shaped[np.ndarray, " sample"], places: int) -> float:
    """Cost per system in steps of the batch, refills included, for a sample of numbers of steps."""
    left, taken = np.array(steps[:places], float), places
    enough, spent, refills = int(np.ceil(share * places)), 0.0, 0
    while True:
        first = np.partition(left, enough - 1)[enough - 1]
        spent += first
        left -= first
        idle = np.flatnonzero(left <= 0)
        if taken + len(idle) > len(steps):
            return (spent + refill * refills) / (taken - places + len(idle))
        left[idle] = steps[taken : taken + len(idle)]
        taken, refills = taken + len(idle), refills + 1


__all__ = ["LEAST", "MOST", "WAVE", "best_share"]
