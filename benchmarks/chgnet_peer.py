"""W6 and W7 by the chgnet package on torch, one core: a peer's script for `python -m benchmarks`.

`python -m benchmarks --workloads W6,W7 --dtypes float32 --peers PYTHON=benchmarks/chgnet_peer.py` where
PYTHON has chgnet 0.4.2 and torch. It needs no alchemi_jax. W6 is done one by one and as one batch, and the
faster is taken; W7 by chgnet's own StructOptimizer, on the first cells only.
"""

import argparse
import contextlib
import io
import json
import statistics
import sys
import warnings
from pathlib import Path


sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks.crystals import rutile_cells
from benchmarks.structures import clock


RELAXED = 4


def main() -> None:
    """Prints a line of JSON."""
    import torch  # pyright: ignore[reportMissingImports]
    from chgnet.model import StructOptimizer  # pyright: ignore[reportMissingImports]
    from chgnet.model.model import CHGNet  # pyright: ignore[reportMissingImports]
    from pymatgen.io.ase import AseAtomsAdaptor  # pyright: ignore[reportMissingImports]

    parser = argparse.ArgumentParser()
    parser.add_argument("--workload", default="W6")
    parser.add_argument("--dtype", default="float32", help="not used")
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    cells = rutile_cells()
    structures = [AseAtomsAdaptor.get_structure(a) for a in cells]
    with contextlib.redirect_stdout(io.StringIO()):
        model = CHGNet.load(use_device="cpu", verbose=False)
        relaxer = StructOptimizer(model=model, optimizer_class="FIRE", use_device="cpu")

    def evaluate(size: int) -> float:
        begun = clock()
        model.predict_structure(structures, task="efs", batch_size=size)
        return clock() - begun

    def relax() -> float:
        begun = clock()
        for structure in structures[:RELAXED]:
            relaxer.relax(structure, fmax=0.05, relax_cell=False, verbose=False)
        return clock() - begun

    if args.workload == "W6":
        first = evaluate(1)
        alone = [evaluate(1) for _ in range(args.repeats)]
        taken, count = min(alone, [evaluate(len(cells))], key=statistics.median), len(cells)
    else:
        taken, count = [relax() for _ in range(args.repeats)], RELAXED
        first = taken[0]
    s = statistics.median(taken)
    print(
        json.dumps(
            {
                "peer": "chgnet on torch",
                "workload": args.workload,
                "dtype": "float32",
                "first_s": first,
                "s": s,
                "systems_per_s": count / s,
                "atom_steps_per_s": 24 * count / s,
            }
        )
    )


if __name__ == "__main__":
    main()
