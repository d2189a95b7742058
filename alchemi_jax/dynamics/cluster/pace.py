"""How many systems a task gets."""

#: Seconds that a task is to take: what is lost with a worker, and long enough that the rest does not count.
SECONDS = 20.0
#: Batches in a task where systems finish at different times: at its end the batch is not full.
LEAST = 4


class Pace:
    """Chooses sizes of tasks from what the ones before took.

    Args:
        refills: whether systems finish at different times. seconds: that a task is to take.
    """

    def __init__(self, refills: bool, seconds: float = SECONDS):
        self.least, self.seconds = LEAST if refills else 1, seconds
        #: Cost in a second: of the best of the last tasks, since others may have compiled.
        self._speeds: list[float] = []

    def note(self, cost: float, seconds: float) -> None:
        """A task of this cost took so long."""
        self._speeds = [*self._speeds[-15:], cost / max(seconds, 1e-3)]

    def batches(self, cost: float, left: float, workers: int) -> int:
        """How many full batches the next task gets, at least one.

        Args:
            cost: of a batch. left: number of batches that are left, infinite if it is not known.
            workers: number of workers.
        """
        most = max(1.0, left / (2 * max(workers, 1)))
        if not self._speeds:
            # Small, so that the speed is known soon.
            return 1
        wanted = self.seconds * max(self._speeds) / max(cost, 1e-9)
        return int(max(1.0, min(max(wanted, self.least), most, 1e6)))


__all__ = ["LEAST", "SECONDS", "Pace"]
