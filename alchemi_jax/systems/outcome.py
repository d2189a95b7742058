"""Outcome: how the run of a system ended."""

from enum import IntEnum
from typing import Any

import numpy as np


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

    def describe(self, reason: str = "") -> str:
        """In words with the reason, if there is one: "failed: energy is not finite"."""
        return f"{self.text}: {reason}" if reason else self.text


#: By the words that stores and files have.
BY_TEXT = {outcome.text: outcome for outcome in Outcome}


def outcome_from_flags(converged: Any, failed: Any) -> np.ndarray:
    """[systems] outcomes as far as the flags tell: of files that were written without outcomes."""
    known = np.where(np.asarray(converged), Outcome.CONVERGED, Outcome.RUNNING)
    return np.where(np.asarray(failed), Outcome.FAILED, known).astype(np.int32)
