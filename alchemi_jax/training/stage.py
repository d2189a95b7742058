"""TrainingStage: the eighteen places of a training where hooks are called."""

from enum import Enum


class TrainingStage(Enum):
    """The stages of a training at which hooks are called, in this order.

    ```
    SETUP                        once, before everything else
    BEFORE_TRAINING
      BEFORE_EPOCH
        BEFORE_BATCH
          BEFORE_FORWARD         results of the model        AFTER_FORWARD
          BEFORE_LOSS            the loss                    AFTER_LOSS
          BEFORE_BACKWARD        DO_BACKWARD: gradients      AFTER_BACKWARD
          BEFORE_OPTIMIZER_STEP  DO_OPTIMIZER_STEP: updates  AFTER_OPTIMIZER_STEP
        AFTER_BATCH
      AFTER_EPOCH
      AFTER_VALIDATION           after each validation: after an epoch, some steps,
                                 or at the end
    AFTER_TRAINING
    ```

    Traced and recording hooks are called from BEFORE_BATCH to AFTER_BATCH, inside the compiled step; host
    hooks at all stages outside of it, and at BEFORE_BATCH and AFTER_BATCH. The stages from BEFORE_FORWARD to
    BEFORE_BACKWARD are inside the function that is differentiated. DO_BACKWARD and DO_OPTIMIZER_STEP are the
    functions `backward` and `update` of the Trainer; no hooks are called there.

    `ctx.step_count` is the number of completed steps: zero in the first, at every stage of it. A hook of
    frequency f is called where `step_count % f == 0`; at BEFORE_EPOCH and AFTER_EPOCH where
    `epoch % f == 0`; at SETUP, BEFORE_TRAINING, AFTER_TRAINING and AFTER_VALIDATION always.
    """

    SETUP = 0
    BEFORE_TRAINING = 1
    AFTER_TRAINING = 2
    BEFORE_EPOCH = 3
    AFTER_EPOCH = 4
    BEFORE_BATCH = 5
    AFTER_BATCH = 6
    BEFORE_FORWARD = 7
    AFTER_FORWARD = 8
    BEFORE_LOSS = 9
    AFTER_LOSS = 10
    BEFORE_BACKWARD = 11
    DO_BACKWARD = 12
    AFTER_BACKWARD = 13
    BEFORE_OPTIMIZER_STEP = 14
    DO_OPTIMIZER_STEP = 15
    AFTER_OPTIMIZER_STEP = 16
    AFTER_VALIDATION = 17

    @property
    def on_host(self) -> bool:
        """Whether host hooks are called at this stage."""
        return self in ON_HOST


_S = TrainingStage

#: Stages with one owner, a function of the Trainer, and its name.
OWNED = {_S.DO_BACKWARD: "backward", _S.DO_OPTIMIZER_STEP: "update"}
#: Stages of host hooks.
ON_HOST = (
    _S.SETUP,
    _S.BEFORE_TRAINING,
    _S.AFTER_TRAINING,
    _S.BEFORE_EPOCH,
    _S.AFTER_EPOCH,
    _S.BEFORE_BATCH,
    _S.AFTER_BATCH,
    _S.AFTER_VALIDATION,
)
#: Stages of traced hooks, inside the compiled step.
IN_STEP = tuple(
    stage
    for stage in _S
    if stage not in OWNED and (stage not in ON_HOST or stage in (_S.BEFORE_BATCH, _S.AFTER_BATCH))
)
#: Fields of the context that a traced hook may change; those of all other stages observe.
MAY_CHANGE: dict[TrainingStage, tuple[str, ...]] = {
    _S.AFTER_LOSS: ("loss",),
    _S.AFTER_BACKWARD: ("gradients", "skipped"),
    _S.BEFORE_OPTIMIZER_STEP: ("gradients", "optimizer", "skipped"),
    _S.AFTER_OPTIMIZER_STEP: ("updates", "skipped"),
}
#: From here on a step that is skipped calls no hooks.
AFTER_UPDATE = (_S.AFTER_OPTIMIZER_STEP, _S.AFTER_BATCH)


__all__ = ["AFTER_UPDATE", "IN_STEP", "MAY_CHANGE", "ON_HOST", "OWNED", "TrainingStage"]
