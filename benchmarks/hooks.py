"""What hooks cost per step: 32 fcc crystals of 256 argon atoms, NVE of 4 fs, float32, one core.

`python -m benchmarks.hooks` runs all forms in turn, several rounds, and prints medians over a run
without hooks.
"""

import os
import statistics
import tempfile
import time
from pathlib import Path

import jax
import jax.numpy as jnp

from alchemi_jax.dynamics import NVE, DynamicsStage
from alchemi_jax.dynamics.hooks import CallbackHook, LoggingHook
from alchemi_jax.hooks import TracedHook
from alchemi_jax.models import LennardJones
from benchmarks import structures
from benchmarks.workloads import moving


STEPS, ROUNDS, NEVER = 200, 7, 10**9


class Light(TracedHook):
    """Touches the batch a little: keeps every force below a bound that none reaches."""

    stage: DynamicsStage = DynamicsStage.AFTER_COMPUTE
    frequency: int = 1

    def __call__(self, ctx, stage):
        return ctx.with_batch(forces=jnp.clip(ctx.batch.forces, -1e6, 1e6))


def measured(folder: Path, systems: int, steps: int, rounds: int) -> list[tuple[str, float, float]]:
    """Of each form its name, seconds a step (median), and the median over a run without hooks."""
    idle = [CallbackHook(lambda ctx: None, stage, NEVER) for stage in list(DynamicsStage)[:8]]
    forms = {
        "no hooks": [],
        "eight idle host hooks": idle,
        "LoggingHook(frequency=1)": [LoggingHook(log_path=folder / "1.csv")],
        "LoggingHook(frequency=10)": [LoggingHook(log_path=folder / "10.csv", frequency=10)],
        "four light traced hooks": [Light() for _ in range(4)],
    }
    model = LennardJones(epsilon=0.0104, sigma=3.40, cutoff=8.5)
    batch = moving(structures.crystals(systems), "float32")
    runs = {}
    for name, hooks in forms.items():
        engine = NVE(model=model, dt=4.0, hooks=hooks)
        state = engine.init(batch)
        # Step 0 is due for every hook: begin after it.
        runs[name] = (engine, engine.advance(state, 1), [])
        engine.advance(runs[name][1], steps)
    for _ in range(rounds):
        for engine, state, seconds in runs.values():
            begun = time.perf_counter()
            jax.block_until_ready(engine.advance(state, steps).batch.positions)
            seconds.append(time.perf_counter() - begun)
    base = runs["no hooks"][2]
    return [
        (
            name,
            statistics.median(seconds) / steps,
            statistics.median(a / b for a, b in zip(seconds, base, strict=True)),
        )
        for name, (_, _, seconds) in runs.items()
    ]


def main() -> None:
    """Prints the table."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    print(f"{'hooks':30}{'ms/step':>10}{'over none':>11}")
    for name, seconds, ratio in measured(Path(tempfile.mkdtemp()), 32, STEPS, ROUNDS):
        print(f"{name:30}{1e3 * seconds:10.3f}{100 * (ratio - 1):+10.1f}%")


if __name__ == "__main__":
    main()
