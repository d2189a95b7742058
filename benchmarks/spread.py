"""`python -m benchmarks.spread`: relaxations of which some need many times more steps than most.

512 pieces of a copper icosahedron, 20 to 55 atoms with holes, EMT, FIRE to fmax 0.01 eV/Å, 64 in flight: in
fixed batches as they come, in such that shrink, refilled, and refilled with a batch that shrinks at the end.
Medians in turn after a first call, whose time (compiling) is kept apart.
"""

import argparse
import json

import jax
import numpy as np
from ase import Atoms
from ase.cluster import Icosahedron

from alchemi_jax import Batch
from alchemi_jax.dynamics import FIRE, ConvergenceHook, Sampler
from alchemi_jax.models import EMT
from benchmarks.timing import timed


def pieces(n: int) -> list[Atoms]:
    """Icosahedra of 55 copper atoms of which some are missing, with noise of 0.1 Å."""
    whole, out = Icosahedron("Cu", 3), []
    for i in range(n):
        rng = np.random.default_rng(7000 + i)
        kept = np.sort(rng.permutation(len(whole))[: int(rng.integers(20, 56))])
        noise = rng.normal(0, 0.1, (len(kept), 3))
        out.append(Atoms(f"Cu{len(kept)}", positions=whole.positions[kept] + noise))
    return out


def measured(systems: int, places: int, dtype: str, repeats: int) -> dict[str, dict]:
    """Of each way: seconds, systems/s, over the fixed batches, and what the traffic says."""
    atoms = pieces(systems)
    parts = [atoms[i : i + places] for i in range(0, systems, places)]
    room = max(sum(map(len, part)) for part in parts)
    batches = [
        Batch.from_ase(part, dtype=dtype, atom_capacity=room, system_capacity=places) for part in parts
    ]
    whole = Batch.from_ase(atoms, dtype=dtype)
    engine = FIRE(model=EMT(), n_steps=2000, hooks=[ConvergenceHook.from_fmax(0.01)])
    samplers = {}

    def fixed(shrink: bool) -> None:
        for batch in batches:
            jax.block_until_ready(engine.run(batch, shrink=shrink).positions)

    def refilled(shrink: bool) -> None:
        samplers[shrink] = Sampler(whole, max_systems=places, policy="best fit", shrink=shrink)
        jax.block_until_ready(engine.run(sampler=samplers[shrink]).positions)

    ways = {
        "fixed": lambda: fixed(False),
        "fixed, shrink": lambda: fixed(True),
        "refilled": lambda: refilled(False),
        "refilled, shrink": lambda: refilled(True),
    }
    out = dict(zip(ways, timed(*ways.values(), repeats=repeats), strict=True))
    steps = [np.asarray(engine.run(batch).take().steps_taken) for batch in batches]
    out["fixed"]["steps"] = int(sum(s.max() for s in steps))
    out["fixed"]["occupancy"] = float(sum(s.sum() for s in steps) / places / out["fixed"]["steps"])
    for name, shrink in (("refilled", False), ("refilled, shrink", True)):
        traffic = samplers[shrink].traffic
        out[name] |= {
            "steps": traffic.steps,
            "refills": traffic.refills,
            "occupancy": traffic.occupancy,
            "between_segments": traffic.host_seconds / traffic.seconds,
        }
    for figures in out.values():
        figures |= {"systems_per_s": systems / figures["s"], "over_fixed": out["fixed"]["s"] / figures["s"]}
    return out


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--systems", type=int, default=512)
    parser.add_argument("--places", type=int, default=64)
    parser.add_argument("--dtype", default="float32", choices=("float32", "float64"))
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    jax.config.update("jax_enable_x64", args.dtype == "float64")
    found = measured(args.systems, args.places, args.dtype, args.repeats)
    for name, figures in found.items():
        rounded = {k: float(f"{v:.4g}") for k, v in figures.items()}
        print(f"{name:18s} {json.dumps(rounded)}")


if __name__ == "__main__":
    main()
