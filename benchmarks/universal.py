"""W6 and W7: CHGNet on 32 rattled rutile cells of 24 atoms, as a model alone and in a relaxation."""

from typing import Any

import equinox as eqx
import jax

from alchemi_jax import Batch
from alchemi_jax.dynamics import FIRE, NVE, ConvergenceHook
from alchemi_jax.models import CHGNet
from alchemi_jax.neighbors import allocate, update
from benchmarks.crystals import rutile_cells
from benchmarks.timing import report, timed


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
    figures, model_alone, loop = timed(
        lambda: jax.block_until_ready(full(batch, neighbors)),
        lambda: jax.block_until_ready(alone(state.batch, lists)),
        lambda: jax.block_until_ready(engine.advance(state, steps).batch.positions),
        repeats=repeats,
    )
    more = {
        "edges": int(neighbors.edges.needed),
        "triplets": int(neighbors.edges.triplets.needed),
        "loop_over_model": loop["s"] / steps / model_alone["s"],
    }
    return report("W6", dtype, systems, batch.num_atoms, figures, **more)


def w7(dtype: str, repeats: int, systems: int = 32) -> dict[str, Any]:
    """The cells relaxed by FIRE to 0.05 eV/Å, fixed cell: a whole `run`."""
    batch = Batch.from_ase(rutile_cells(systems), dtype=dtype)
    engine = FIRE(model=CHGNet.load(), dt=FIRE_DT, n_steps=500, hooks=[ConvergenceHook.from_fmax(FMAX)])
    ended: list[Batch] = []

    def relax() -> None:
        ended[:] = [jax.block_until_ready(engine.run(batch))]

    (figures,) = timed(relax, repeats=repeats)
    out = ended[0].to_host()
    more = {
        "steps_mean": float(out.steps_taken.mean()),
        "converged": int(out.converged.sum()),
        "energy_mean": float(out.energy.mean()) / 24,
    }
    return report("W7", dtype, systems, 24 * out.steps_taken.sum(), figures, **more)
