"""finished.zarr in a folder of results: systems in the order in which they finish.

A system that was given more steps is there once for each of its ends; the last one counts.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Int

from alchemi_jax.cli.outcome import INSTEAD, UsageError, one_line
from alchemi_jax.cli.settings import Pipeline, Relax
from alchemi_jax.dynamics.sinks import ZarrData
from alchemi_jax.io.parts import own_path, parts_there
from alchemi_jax.io.sinks.joined import StoredParts
from alchemi_jax.io.sinks.stored import StoredSystems
from alchemi_jax.systems.host import HostBatch
from alchemi_jax.systems.outcome import Outcome


FINISHED = "finished.zarr"


def last_rows(system_id: Int[np.ndarray, " rows"]) -> Int[np.ndarray, " systems"]:
    """The last row of each system, in the order of their ids."""
    _, first = np.unique(system_id[::-1], return_index=True)
    return len(system_id) - 1 - first


def read_finished(at: Path, own: bool = False) -> HostBatch | None:
    """The finished systems of a folder in the order of the input, each in its last state; None without any.

    Args:
        own: whether only those that this process runs.

    Raises:
        UsageError: if the store is damaged.
    """
    path = at / FINISHED
    # A process that has not begun has no part yet.
    parts = [own_path(path)] if own else [path, *parts_there(path)]
    there = [part for part in parts if (part / "zarr.json").exists()]
    if not there:
        return None
    try:
        stored = StoredParts(path, there) if len(there) > 1 else StoredSystems(there[0])
        if not stored.n_systems:
            return None
        _, ids, n = stored.field("system_id")
        return stored.batch(last_rows(np.asarray(ids[:n])))
    except (OSError, ValueError) as e:
        raise UsageError(f"{one_line(e).rstrip('.')}: {INSTEAD}.") from None


def is_readable(path: Path) -> bool:
    """Whether a store has all that was written."""
    try:
        return len(ZarrData(path, "r").read()) >= 0
    except (OSError, ValueError):
        return False


def is_done(host: HostBatch, settings: Pipeline) -> Bool[np.ndarray, " systems"]:
    """Which finished systems stay as they are: those that have all steps of these settings, converged in the
    last stage, or failed."""
    last = settings.stages[-1]
    done = (host.outcome >= Outcome.STOPPED) | (host.stage_steps >= last.n_steps)
    return done | (host.outcome == Outcome.CONVERGED) if isinstance(last, Relax) else done


class FinishedSystems(ZarrData):
    """The store of finished systems of a run.

    Args:
        at: the folder of results.
        begun: called with what the store holds when the run opens it, which is what the run goes on from.

    Attributes:
        count: called with the ids of the systems that come.
    """

    def __init__(self, at: Path, begun: Callable[[HostBatch | None], Any]):
        super().__init__(at / FINISHED)
        self._at, self._begun = at, begun
        self.count: Callable[[np.ndarray], Any] = lambda ids: None

    def open(self) -> None:
        is_open = self._stays_open
        super().open()
        if not is_open:
            self._begun(read_finished(self._at, own=True))

    def write(self, batch: Any, mask: Any = None) -> None:
        super().write(batch, mask)
        self.count(np.asarray(batch.to_host().system_id)[slice(None) if mask is None else np.asarray(mask)])
