"""W6 and W7: CHGNet on 32 rattled rutile cells of 24 atoms, as a model alone and in a relaxation."""

from typing import Any

import equinox as eqx
import jax
import numpy as np

from alchemi_jax import Batch
from alchemi_jax.dynamics import FIRE, NVE, ConvergenceHook
from alchemi_jax.models import CHGNet
from alchemi_jax.neighbors import allocate, update
from benchmarks.crystals import rutile_cells
from benchmarks.structures import clock


#: ASE's FIRE for unit masses.
FIRE_DT, FMAX = 1.018, 0.05


def w6(dtype: str, repeats: int, systems: int = 32) -> dict[str, Any]:
    """Energy, forces and stress of all cells, list and edges included; and what a loop adds to the model.

    `loop_over_model`: time of a step of NVE over that of the model alone, forces only, in turn.
    """
    batch, model = Batch.from_ase(rutile_cells(systems), dtype=dtype), CHGNet.load()
    neighbors = allocate(batch, model.requirements)
    full = eqx.filter_jit(lambda b, n: model.evaluate(b, update(b, n), stress=True))
    alone = eqx.filter_jit(lambda b, n: model.evaluate(b, n))
    engine, steps = NVE(model=model, dt=1.0), 5
    state = engine.advance(engine.init(batch), steps)
    # Lists of the same capacity, so that both compute the same rows.
    lists = state.neighbors
    seconds: dict[str, list[float]] = {"s": [], "model": [], "loop": []}
    first = _time(lambda: full(batch, neighbors))
    _time(lambda: alone(state.batch, lists))
    for _ in range(repeats):
        seconds["s"].append(_time(lambda: full(batch, neighbors)))
        seconds["model"].append(_time(lambda: alone(state.batch, lists)))
        seconds["loop"].append(_time(lambda: engine.advance(state, steps).batch.positions) / steps)
    taken = float(np.median(seconds["s"]))
    return {
        "peer": "alchemi_jax",
        "workload": "W6",
        "dtype": dtype,
        "first_s": first,
        "s": taken,
        "s_min": min(seconds["s"]),
        "s_max": max(seconds["s"]),
        "systems_per_s": systems / taken,
        "atom_steps_per_s": batch.num_atoms / taken,
        "edges": int(neighbors.edges.needed),
        "triplets": int(neighbors.edges.triplets.needed),
        "loop_over_model": float(np.median(np.array(seconds["loop"]) / np.array(seconds["model"]))),
    }


def w7(dtype: str, repeats: int, systems: int = 32) -> dict[str, Any]:
    """The cells relaxed by FIRE to 0.05 eV/Å, fixed cell: a whole `run`."""
    batch = Batch.from_ase(rutile_cells(systems), dtype=dtype)
    engine = FIRE(model=CHGNet.load(), dt=FIRE_DT, n_steps=500, hooks=[ConvergenceHook.from_fmax(FMAX)])
    ended: list[Batch] = []

    def relax() -> Any:
        ended.append(engine.run(batch))
        return ended[-1].positions

    first = _time(relax)
    taken = [_time(relax) for _ in range(repeats)]
    out = ended[-1].to_host()
    s = float(np.median(taken))
    return {
        "peer": "alchemi_jax",
        "workload": "W7",
        "dtype": dtype,
        "first_s": first,
        "s": s,
        "s_min": min(taken),
        "s_max": max(taken),
        "systems_per_s": systems / s,
        "atom_steps_per_s": batch.num_atoms * float(out.steps_taken.mean()) / s,
        "steps_mean": float(out.steps_taken.mean()),
        "converged": int(out.converged.sum()),
        "energy_mean": float(out.energy.mean()) / 24,
    }


def _time(run: Any) -> float:
    begun = clock()
    jax.block_until_ready(run())
    return clock() - begun
