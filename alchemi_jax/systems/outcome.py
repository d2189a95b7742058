"""Outcome: how the run of a system ended."""

from enum import IntEnum


class Outcome(IntEnum):
    """How the run of a system ended, as `batch.outcome` has it. Every outcome but RUNNING is final."""

    RUNNING = 0
    """It is not finished: steps are left, or the run was interrupted."""
    CONVERGED = 1
    """It is finished, and the last relaxation that it went through met its criteria."""
    OUT_OF_STEPS = 2
    """Its budget of steps is used up; for molecular dynamics the normal end."""
    STOPPED = 3
    """A hook asked for it (`ctx.stop`); `reason` says which."""
    FAILED = 4
    """Something of it was not finite; it is in its last finite state. `reason` says what."""

    @property
    def text(self) -> str:
        """In words: "out of steps"."""
        return self.name.lower().replace("_", " ")
