"""Hooks of `train`: the best model of the validations, and the progress bar."""

from typing import Any

import equinox as eqx
import jax
import numpy as np

from alchemi_jax.cli.watch import PacedWatch
from alchemi_jax.training.hooks.validation import LowestLoss
from alchemi_jax.training.stage import TrainingStage


class BestModel(LowestLoss):
    """Keeps the parameters with the lowest loss of the validations, in memory and in checkpoints. Host.

    Attributes:
        step: of that validation; -1 before the first.
    """

    def __init__(self) -> None:
        super().__init__()
        self.step = -1
        self._leaves: list[np.ndarray] = []

    def see(self, loss: float, ctx: Any) -> None:
        if loss < self.best:
            self.best, self.step = loss, int(ctx.step_count)
            trained = eqx.filter(ctx.model, _is_trained(ctx.workflow))
            self._leaves = [np.array(x) for x in jax.tree.leaves(trained)]

    def model(self, trainer: Any) -> Any:
        """The best model; None if no validation had a finite loss."""
        if not self._leaves:
            return None
        trained, frozen = trainer.split()
        leaves = [jax.numpy.asarray(x) for x in self._leaves]
        return eqx.combine(jax.tree.unflatten(jax.tree.structure(trained), leaves), frozen)

    def state(self) -> dict[str, Any]:
        """The parameters, with loss and step."""
        return super().state() | {"step": self.step, "leaves": self._leaves}

    def set_state(self, state: dict[str, Any] | None) -> None:
        super().set_state(state)
        self.step = -1 if state is None else int(state["step"])
        self._leaves = [] if state is None else [np.asarray(x) for x in state["leaves"]]

    def __repr__(self) -> str:
        return "BestModel()"


def _is_trained(trainer: Any) -> Any:
    """A tree like the model, true at what is trained."""
    trained, _ = trainer.split()
    return jax.tree.map(lambda x: x is not None, trained, is_leaf=lambda x: x is None)


class TrainWatch(PacedWatch):
    """Shows the steps, the loss and the last validation.

    Args:
        total: number of steps.

    Attributes:
        begun: the step at which this call began.
    """

    reads_batch = False
    stage = None

    def __init__(self, total: int):
        super().__init__(total, "steps, {remaining} left")
        self.begun = 0
        self._validated = ""

    def _runs_on_stage(self, stage: Any) -> bool:
        return stage in (
            TrainingStage.BEFORE_TRAINING,
            TrainingStage.AFTER_BATCH,
            TrainingStage.AFTER_VALIDATION,
        )

    def __call__(self, ctx: Any, stage: Any) -> None:
        if stage is TrainingStage.BEFORE_TRAINING:
            self.begun = self.bar.initial = self.bar.n = int(ctx.step_count)
        elif stage is TrainingStage.AFTER_VALIDATION:
            self._validated = f", on validation {_errors(ctx)}"
        else:
            self._look(int(ctx.step_count) + 1, ctx)

    def _look(self, step: int, ctx: Any) -> None:
        # Waits for the step.
        loss = float(ctx.loss)
        self.adapt(step)
        self.bar.set_postfix_str(f"loss {loss:.2e}{self._validated}", refresh=False)
        self.bar.update(step - self.bar.n)

    def show(self, step: int) -> None:
        """Show that so many steps are done."""
        self.bar.n = step


def _errors(ctx: Any) -> str:
    shown = {"energy": ("meV/atom", 1000.0), "forces": ("meV/Å", 1000.0)}
    parts = []
    for name, (unit, factor) in shown.items():
        if ctx.errors and name in ctx.errors:
            parts.append(f"{factor * float(ctx.errors[name].mae):.3g} {unit}")
    return ", ".join(parts) or f"{float(ctx.loss):.2e}"
