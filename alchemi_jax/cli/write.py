"""Files of results that are written as a whole."""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from alchemi_jax.systems.batch import Batch
from alchemi_jax.systems.host import HostBatch
from alchemi_jax.systems.outcome import Outcome


def write_structures(path: Path, systems: Batch | HostBatch | Iterable[Any]) -> None:
    """Extended XYZ of all systems; their `info` says how each of them ended. Replaced as a whole."""
    from ase.io import write

    structures = []
    for system in systems:
        atoms = system.to_ase()
        atoms.info.update(
            converged=bool(system.converged),
            failed=bool(system.failed),
            outcome=system.outcome_text,
            steps=int(system.steps_taken),
        )
        structures.append(atoms)
    part = path.with_name(f".part-{os.getpid()}-{path.name}")
    write(part, structures, format="extxyz")
    os.replace(part, path)


def count_outcomes(outcomes: np.ndarray) -> dict[Outcome, int]:
    """How many systems ended in each way, ways without systems left out.

    Args:
        outcomes: [systems], as `batch.outcome`.
    """
    counts = {outcome: int(np.sum(outcomes == outcome)) for outcome in Outcome}
    return {outcome: n for outcome, n in counts.items() if n}
