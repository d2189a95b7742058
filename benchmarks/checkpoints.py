"""`python -m benchmarks.checkpoints`: what a checkpoint of W2 costs, and how long it takes to go on from one.

W2 is 32 crystals of 256 atoms (see performance.md). Milliseconds: how long the loop waits for one checkpoint,
and the CPU time of the process for one, the part in the background included; the share of a run that saves
once a minute; and the time of `run(resume=...)` from the call to the first step, in a process that has
compiled the loop.
"""

import argparse
import contextlib
import json
import shutil
import statistics
import tempfile
import time
from pathlib import Path

from alchemi_jax.dynamics import NVE, saver
from alchemi_jax.dynamics.hooks import CheckpointHook
from benchmarks import structures
from benchmarks.workloads import argon, moving


def measure(dtype: str, systems: int, checkpoints: int) -> dict[str, float]:
    """The figures."""
    batch = moving(structures.crystals(systems), dtype)
    waits: list[float] = []
    save = saver.Saver.save

    def timed_save(*given, **more):
        begun = time.perf_counter()
        save(*given, **more)
        waits.append(1e3 * (time.perf_counter() - begun))

    folder = Path(tempfile.mkdtemp())
    steps = 40 * checkpoints

    def run(hooks=(), resume=None) -> tuple[float, float]:
        engine = NVE(argon(), dt=4.0, n_steps=steps, hooks=list(hooks))
        wall, cpu = time.perf_counter(), time.process_time()
        engine.run(batch, resume=resume)
        return time.perf_counter() - wall, time.process_time() - cpu

    saver.Saver.save = timed_save  # pyright: ignore
    try:
        run()
        _, plain = run()
        # The first checkpoint imports orbax.
        run([CheckpointHook(folder / "a", frequency=steps, every_seconds=None)], folder / "a")
        waits.clear()
        _, saved = run([CheckpointHook(folder / "b", frequency=40, every_seconds=None)], folder / "b")
        begun = time.perf_counter()
        stop = CheckpointHook(folder / "b", every_seconds=None, should_stop=lambda: True)
        engine = NVE(argon(), dt=4.0, n_steps=steps + 40, hooks=[stop])
        with contextlib.suppress(KeyboardInterrupt):
            engine.run(batch, resume=folder / "b")
        resumed = time.perf_counter() - begun - waits[-1] / 1e3
    finally:
        saver.Saver.save = save
        shutil.rmtree(folder)
    each = 1e3 * (saved - plain) / (len(waits) - 1)
    return {
        "waits_ms": statistics.median(waits[:-1]),
        "waits_most_ms": max(waits[:-1]),
        "cpu_ms": each,
        "share_at_60_s": each / 60e3,
        "resume_s": resumed,
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dtypes", default="float32")
    parser.add_argument("--systems", type=int, default=32)
    parser.add_argument("--checkpoints", type=int, default=10)
    given = parser.parse_args()
    for dtype in given.dtypes.split(","):
        if dtype == "float64":
            import jax

            jax.config.update("jax_enable_x64", True)
        figures = measure(dtype, given.systems, given.checkpoints)
        print(dtype, json.dumps({name: round(x, 5) for name, x in figures.items()}), flush=True)
