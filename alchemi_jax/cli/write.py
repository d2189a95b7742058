"""Files of results that are written as a whole."""

import contextlib
import glob
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from alchemi_jax.cli.outcome import KEPT, UsageError, os_reason
from alchemi_jax.io.replace import replacing
from alchemi_jax.systems.batch import Batch
from alchemi_jax.systems.host import HostBatch
from alchemi_jax.systems.outcome import Outcome


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A path to write to, which becomes the file when it is complete.

    Raises:
        UsageError: naming the file, if it cannot be written. What was there before is there still.
    """
    part = part_of(path)
    try:
        yield part
        os.replace(part, path)
    except OSError as e:
        raise UsageError(f"{path} cannot be written: {os_reason(e)}.") from None
    finally:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)


def part_of(path: Path) -> Path:
    """Where a file is written before it is complete. Those that killed processes have left are removed."""
    with contextlib.suppress(OSError):
        for left in path.parent.glob(f".part-*-{glob.escape(path.name)}"):
            process = left.name.removeprefix(".part-").partition("-")[0]
            ours = process.isdecimal() and left.name == f".part-{process}-{path.name}"
            if ours and not _lives(int(process)):
                left.unlink(missing_ok=True)
    # The end of the name says the format.
    return path.with_name(f".part-{os.getpid()}-{path.name}")


def _lives(process: int) -> bool:
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:
        return True
    return True


@contextlib.contextmanager
def after_the_run() -> Iterator[None]:
    """Around files that are made of a run that is saved: errors say that it is.

    Raises:
        UsageError: as inside, with what to do.
    """
    try:
        yield
    except UsageError as e:
        raise UsageError(f"{str(e).rstrip('.')}; {KEPT}.") from None


def write_structures(path: Path, systems: Batch | HostBatch | Iterable[Any]) -> None:
    """Extended XYZ of all systems; their `info` says how each of them ended. Replaced as a whole."""
    from alchemi_jax.io.sinks.extxyz import structures_text

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
    with whole_file(path) as part:
        part.write_text(structures_text(structures))


def write_store(path: Path, systems: HostBatch) -> None:
    """A store of these systems takes the place of the one that is there.

    Raises:
        UsageError: naming the store, if it cannot be written. What was there before is there still.
    """
    from alchemi_jax.io.sinks.zarr import ZarrData

    try:
        with replacing(path) as new:
            ZarrData(new, mode="w").write(systems)
    except (OSError, ValueError) as e:
        reason = os_reason(e) if isinstance(e, OSError) else str(e).rstrip(".")
        raise UsageError(f"{path} cannot be written: {reason}.") from None


def count_outcomes(outcomes: np.ndarray) -> dict[Outcome, int]:
    """How many systems ended in each way, ways without systems left out.

    Args:
        outcomes: [systems], as `batch.outcome`.
    """
    counts = {outcome: int(np.sum(outcomes == outcome)) for outcome in Outcome}
    return {outcome: n for outcome, n in counts.items() if n}
