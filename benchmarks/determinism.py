"""What changes bits: NVE of six crystals of argon in variants, and digests of the first one after 200 steps.

`python -m benchmarks.determinism` prints a line per dtype and variant: equal digests are equal bits. Run it
in several environments (versions of jax, numbers of cores by `taskset`) to compare them.
"""

import hashlib
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from alchemi_jax import Batch
from alchemi_jax.dynamics import NVE, Sampler, sweep
from alchemi_jax.dynamics.hooks import CallbackHook
from alchemi_jax.systems.host import HostBatch
from alchemi_jax.systems.levels import unsafe_replace
from benchmarks import structures
from benchmarks.workloads import argon, moving


STEPS = 200


def _digest(positions: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(positions).tobytes()).hexdigest()[:12]


def _first(batch: Batch) -> str:
    """Of the crystal with system_id 0."""
    host = batch.take()
    row = int(np.flatnonzero(host.system_id == 0)[0])
    return _digest(host.positions[host.batch_idx == row])


def _variants(engine: NVE, batch: Batch) -> dict[str, Callable[[], Batch]]:
    """The ways to take the same steps."""
    host, largest = batch.to_host(), batch.largest
    atoms, systems = batch.atom_capacity, batch.system_capacity
    one, shuffled = host.take(np.array([0])), host.take(np.array([3, 4, 0, 1, 5, 2]))
    large = moving(structures.crystals(1, 7), host.positions.dtype.name).to_host()
    mixed = HostBatch.concatenate([one, unsafe_replace(large, system_id=np.array([9], np.int32))])
    look = CallbackHook(lambda ctx: None, frequency=7)

    def built_by(builder: str) -> Callable[[], Batch]:
        return lambda: engine.advance(engine.init(batch, builder=builder), STEPS).batch

    def lane() -> Batch:
        _, states = sweep(engine, batch, dt=[4.0, 3.0], with_states=True)
        return jax.tree.map(lambda x: x[0], states.batch.replace(meta=None))

    return {
        "run": lambda: engine.run(batch),
        "run again": lambda: engine.run(batch),
        "observed": lambda: engine.with_hooks(look).run(batch),
        "other rows": lambda: engine.run(Batch.from_host(shuffled, largest=largest)),
        "twice the places": lambda: engine.run(
            Batch.from_host(host, 2 * atoms, 2 * systems, largest=largest)
        ),
        "alone": lambda: engine.run(Batch.from_host(one)),
        "beside a large one": lambda: engine.run(Batch.from_host(mixed)),
        "refilled": lambda: engine.run(sampler=Sampler(batch, max_systems=2)),
        "loop, jitted": lambda: jax.jit(lambda s: engine.loop(s, STEPS))(engine.init(batch)).batch,
        "step by step": lambda: _stepped(engine, batch),
        "a lane of a sweep": lane,
        "list by brute force": built_by("brute force"),
        "list by cells": built_by("cell list"),
    }


def main() -> None:
    """Prints a line per dtype and variant."""
    print(f"jax {jax.__version__}, {jax.devices()[0].device_kind}")
    for dtype in ("float32", "float64"):
        if dtype == "float64":
            jax.config.update("jax_enable_x64", True)
        batch = moving(structures.crystals(6, 3), dtype)
        variants: dict[str, Any] = _variants(NVE(model=argon(), dt=4.0, n_steps=STEPS), batch)
        for name, run in variants.items():
            print(f"{dtype}  {name:22}{_first(run())}", flush=True)


def _stepped(engine: NVE, batch: Batch) -> Batch:
    step = jax.jit(lambda state: engine.step(state))
    state = engine.init(batch)
    for _ in range(STEPS):
        state = step(state)
    return state.batch


if __name__ == "__main__":
    main()
