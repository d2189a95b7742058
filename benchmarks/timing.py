"""Times of calls, and the figures of a workload that `python -m benchmarks` compares."""

import statistics
from collections.abc import Callable
from typing import Any

from benchmarks.structures import clock


def timed(*runs: Callable[[], Any], repeats: int) -> list[dict[str, float]]:
    """Of each run the first call apart, then median, least and most of the others, in seconds; in turn."""
    out, seconds = [], [[] for _ in runs]
    for run in runs:
        begun = clock()
        run()
        out.append({"first_s": clock() - begun})
    for _ in range(repeats):
        for run, taken in zip(runs, seconds, strict=True):
            begun = clock()
            run()
            taken.append(clock() - begun)
    for figures, taken in zip(out, seconds, strict=True):
        figures |= {"s": statistics.median(taken), "s_min": min(taken), "s_max": max(taken)}
    return out


def report(name: str, dtype: str, systems: int, atom_steps: float, figures: dict, **more: Any) -> dict:
    rates = {"systems_per_s": systems / figures["s"], "atom_steps_per_s": atom_steps / figures["s"]}
    return {"peer": "alchemi_jax", "workload": name, "dtype": dtype, **figures, **rates, **more}
