"""Outcome: how the run of a system ended."""

from enum import IntEnum
from typing import Any

import numpy as np
from jaxtyping import Int


class Outcome(IntEnum):
    """How the run of a system ended, as `batch.outcome` has it. Every outcome but RUNNING is final."""

    RUNNING = 0
    """Not finished: steps are left, or the run was interrupted."""
    CONVERGED = 1
    """Finished; the last relaxation of the system met its criteria."""
    OUT_OF_STEPS = 2
    """The budget of steps is used up: the normal end of molecular dynamics."""
    STOPPED = 3
    """Stopped by a hook (`ctx.stop`); `reason` says why."""
    FAILED = 4
    """A field was not finite, or a hook called `ctx.fail`; the system is in its last finite state. `reason`
    says which."""

    @property
    def text(self) -> str:
        """The outcome as text, such as "out of steps"."""
        return self.name.lower().replace("_", " ")

    def describe(self, reason: str = "") -> str:
        """The outcome as text, with the reason if there is one: "failed: its energy is not finite"."""
        return f"{self.text}: {reason}" if reason else self.text


#: Outcomes by their texts in stores and files.
BY_TEXT = {outcome.text: outcome for outcome in Outcome}


def outcome_from_flags(converged: Any, failed: Any) -> Int[np.ndarray, "*systems"]:
    """Outcomes from flags, for files that were written without outcomes."""
    known = np.where(np.asarray(converged), Outcome.CONVERGED, Outcome.RUNNING)
    return np.where(np.asarray(failed), Outcome.FAILED, known).astype(np.int32)


__all__ = ["BY_TEXT", "Outcome", "outcome_from_flags"]
