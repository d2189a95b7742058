"""How a command ends, and how systems did."""

from pathlib import Path

from alchemi_jax.systems.batch import Batch


#: 0: all is well. 2: bad usage or unreadable input. 3: ran, but some systems did not converge or failed.
OK, USAGE, INCOMPLETE, INTERRUPTED = 0, 2, 3, 130


class UsageError(Exception):
    """What the user can put right, in one sentence."""


def write_structures(path: Path, batch: Batch) -> None:
    """Extended XYZ of all systems; their `info` says how each of them did."""
    from ase.io import write

    host = batch.take()
    structures = host.to_ase()
    for i, atoms in enumerate(structures):
        atoms.info.update(
            converged=bool(host.converged[i]), failed=bool(host.failed[i]), steps=int(host.steps_taken[i])
        )
    write(path, structures, format="extxyz")
