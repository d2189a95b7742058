"""Peers on the GPU: `python -m benchmarks.gpu_peers torchsim|nvalchemi SIZE`, for `benchmarks.gpu`."""

import json
import sys
from collections.abc import Callable
from typing import Any

import torch

from benchmarks import structures
from benchmarks.structures import CUTOFF, EPSILON, SIGMA


DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _told(
    peer: str, workload: str, dtype: str, systems: int, atoms: int, steps: int, run: Callable[[], Any]
) -> None:
    from benchmarks.workloads import timed

    def synchronized() -> None:
        run()
        if DEVICE.type == "cuda":
            torch.cuda.synchronize()

    (figures,) = timed(synchronized, repeats=1)
    row = {"what": workload, "peer": peer, "dtype": dtype, "systems": systems, **figures}
    row |= {"systems_per_s": systems / figures["s"], "atom_steps_per_s": atoms * steps / figures["s"]}
    print(json.dumps({**row, "of": peer}), flush=True)


def torchsim(size: int) -> None:
    import torch_sim as ts
    from torch_sim.models.lennard_jones import LennardJonesModel

    def model(cutoff: float, dtype: torch.dtype) -> Any:
        return LennardJonesModel(
            sigma=SIGMA, epsilon=EPSILON, cutoff=cutoff, device=DEVICE, dtype=dtype, compute_forces=True,
            compute_stress=False,
        )  # fmt: skip

    # Fewer steps than ours: it takes minutes, and a rate does not depend on it.
    steps = max(50 // size, 6)
    for name in ("float32", "float64"):
        dtype = getattr(torch, name)
        atoms = structures.crystals(max(32 // size, 2))[0]
        state, lj = ts.io.atoms_to_state(atoms, DEVICE, dtype), model(CUTOFF, dtype)

        def integrate() -> Any:
            options = {"n_steps": steps, "temperature": 30.0, "timestep": 0.004, "autobatcher": False}
            nve = ts.integrators.nve
            return ts.integrate(system=state.clone(), model=lj, integrator=nve, **options)  # noqa: B023

        _told("torchsim", "W2", name, len(atoms), sum(map(len, atoms)), steps, integrate)
    clusters = structures.perturbed_clusters(max(256 // size, 2))
    # It does not reach the bound within 50 steps, so that this is a rate of steps.
    for a in clusters:
        # It needs a cell.
        a.set_cell([200, 200, 200])
    state, lj = ts.io.atoms_to_state(clusters, DEVICE, torch.float32), model(50.0, torch.float32)
    done = ts.generate_force_convergence_fn(force_tol=0.005, include_cell_forces=False)

    def relax() -> Any:
        return ts.optimize(
            system=state.clone(), model=lj, optimizer=ts.optimizers.fire, convergence_fn=done, max_steps=50,
            steps_between_swaps=1, autobatcher=False,
        )  # fmt: skip

    _told("torchsim", "W1, 50 steps", "float32", len(clusters), 13 * len(clusters), 50, relax)


def nvalchemi(size: int) -> None:
    try:
        from nvalchemi.data import AtomicData, Batch
        from nvalchemi.dynamics import FIRE, NVE
        from nvalchemi.dynamics.base import ConvergenceHook, DynamicsStage
        from nvalchemi.models.lj import LennardJonesModelWrapper
    except ImportError as e:
        print(json.dumps({"what": "not installed here", "error": str(e)}), flush=True)
        return

    def data(atoms: Any, velocities: Any) -> Any:
        n, real = len(atoms), torch.float32
        more = {}
        if atoms.pbc.any():
            more = {
                "cell": torch.tensor(atoms.cell.array, dtype=real)[None],
                "pbc": torch.tensor([[True] * 3]),
            }
        made = AtomicData(
            positions=torch.tensor(atoms.positions, dtype=real),
            atomic_numbers=torch.full((n,), 18),
            forces=torch.zeros(n, 3, dtype=real),
            energy=torch.zeros(1, 1, dtype=real),
            **more,
        )
        v = torch.zeros(n, 3, dtype=real) if velocities is None else torch.tensor(velocities, dtype=real)
        made.add_node_property("velocities", v)
        return made

    steps = max(200 // size, 2)
    crystals = structures.crystals(max(32 // size, 2))
    clusters = structures.perturbed_clusters(max(256 // size, 2))
    made = {"W2": list(zip(*crystals, strict=True)), "W1": [(a, None) for a in clusters]}
    for workload, systems in made.items():
        model = LennardJonesModelWrapper(
            epsilon=EPSILON, sigma=SIGMA, cutoff=CUTOFF if workload == "W2" else 50.0
        )

        def run() -> Any:
            batch = Batch.from_data_list([data(*s) for s in systems]).to(DEVICE)  # noqa: B023
            options = {"model": model, "device_type": DEVICE.type}  # noqa: B023
            if workload == "W1":  # noqa: B023
                hook = ConvergenceHook.from_forces(0.005)
                engine = FIRE(dt=1.0, n_steps=500, convergence_hook=hook, **options)
            else:
                engine = NVE(dt=4.0, n_steps=steps, **options)
            for hook in model.make_neighbor_hooks():  # noqa: B023
                engine.register_hook(hook, stage=DynamicsStage.BEFORE_COMPUTE)
            return engine.run(batch)

        _told("nvalchemi", workload, "float32", len(systems), sum(len(a) for a, _ in systems), steps, run)


if __name__ == "__main__":
    {"torchsim": torchsim, "nvalchemi": nvalchemi}[sys.argv[1]](int(sys.argv[2]))
