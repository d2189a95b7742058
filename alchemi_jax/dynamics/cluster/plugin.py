"""What Dask gives to every worker, also to those that join later. Imports Dask, so functions import it."""

import os
from typing import Any

from distributed import WorkerPlugin

from alchemi_jax.dynamics.cluster import worker as on_worker


class BringEngine(WorkerPlugin):
    """The engine of a run, pickled, under the name of the run. It is dropped when the plugin is removed, and
    what still runs with it ends."""

    def __init__(self, run: str, work: bytes):
        self.run, self.work = run, work
        self.name = f"alchemi-jax {run}"

    def setup(self, worker: Any) -> None:
        """See Dask."""
        on_worker.bring(self.run, self.work)

    def teardown(self, worker: Any) -> None:
        """See Dask."""
        on_worker.drop(self.run)


class PinToCores(WorkerPlugin):
    """Each worker of a machine gets a core, in turn: threads of XLA do not fight each other.

    Args:
        cores: numbers of the cores.
    """

    name = "alchemi-jax cores"

    def __init__(self, cores: list[int]):
        self.cores = cores

    def setup(self, worker: Any) -> None:
        """See Dask."""
        if isinstance(worker.name, int):
            os.sched_setaffinity(0, {self.cores[worker.name % len(self.cores)]})


__all__ = ["BringEngine", "PinToCores"]
