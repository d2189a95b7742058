"""DynamicsStage: the nine places of a step where hooks are called."""

from enum import Enum


class DynamicsStage(Enum):
    """The stages of a step at which hooks are called, in this order.

    ```
    BEFORE_STEP
      BEFORE_PRE_UPDATE    pre_update: what the algorithm does before   AFTER_PRE_UPDATE
                           the forces are renewed (kick, drift)
      BEFORE_COMPUTE       compute: neighbor list, energy, forces,      AFTER_COMPUTE
                           stress where it is needed
      BEFORE_POST_UPDATE   post_update: what comes after (second kick)  AFTER_POST_UPDATE
    AFTER_STEP             convergence is decided here, then budgets are counted
    ON_CONVERGE            only in a step in which a system newly converged
    ```

    `ctx.step_count` is the number of completed steps throughout: zero in the first step, at every
    stage of it. A hook of frequency f is called where `step_count % f == 0`. `init` evaluates the
    model once: traced hooks of BEFORE_COMPUTE and AFTER_COMPUTE shape that evaluation, too.
    """

    BEFORE_STEP = 0
    BEFORE_PRE_UPDATE = 1
    AFTER_PRE_UPDATE = 2
    BEFORE_COMPUTE = 3
    AFTER_COMPUTE = 4
    BEFORE_POST_UPDATE = 5
    AFTER_POST_UPDATE = 6
    AFTER_STEP = 7
    ON_CONVERGE = 8


#: A step from beginning to end: stages, and between them the names of the engine's methods (with an
#: underscore before) that do the work. The one place that knows the order.
STEP: tuple[DynamicsStage | str, ...] = (
    DynamicsStage.BEFORE_STEP,
    DynamicsStage.BEFORE_PRE_UPDATE,
    "pre_update",
    DynamicsStage.AFTER_PRE_UPDATE,
    DynamicsStage.BEFORE_COMPUTE,
    "compute",
    DynamicsStage.AFTER_COMPUTE,
    DynamicsStage.BEFORE_POST_UPDATE,
    "post_update",
    DynamicsStage.AFTER_POST_UPDATE,
    "barrier",
    DynamicsStage.AFTER_STEP,
    "budgets",
    DynamicsStage.ON_CONVERGE,
)


__all__ = ["STEP", "DynamicsStage"]
