"""How a command ends, and how systems did."""

from pathlib import Path

import numpy as np

from alchemi_jax.systems.batch import Batch
from alchemi_jax.systems.host import HostBatch
from alchemi_jax.systems.outcome import Outcome


#: 0: all is well. 2: bad usage or unreadable input. 3: ran, but some systems did not converge or failed.
OK, USAGE, INCOMPLETE, INTERRUPTED = 0, 2, 3, 130


class UsageError(Exception):
    """What the user can put right, in one sentence."""


def write_structures(path: Path, batch: Batch | HostBatch) -> None:
    """Extended XYZ of all systems; their `info` says how each of them ended."""
    from alchemi_jax.io.sinks.extxyz import structures_text

    structures = []
    for system in batch:
        atoms = system.to_ase()
        atoms.info.update(
            converged=bool(system.converged),
            failed=bool(system.failed),
            outcome=system.outcome_text,
            steps=int(system.steps_taken),
        )
        structures.append(atoms)
    path.write_text(structures_text(structures))


def count_outcomes(outcomes: np.ndarray) -> dict[Outcome, int]:
    """How many systems ended in each way, ways without systems left out.

    Args:
        outcomes: [systems], as `batch.outcome`.
    """
    counts = {outcome: int(np.sum(outcomes == outcome)) for outcome in Outcome}
    return {outcome: n for outcome, n in counts.items() if n}
