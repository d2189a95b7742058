"""Hooks of `train`: the best model of the validations, and the progress bar."""

import sys
import time
from typing import Any

import equinox as eqx
import jax
import numpy as np
from tqdm import tqdm

from alchemi_jax.training.stage import TrainingStage


#: Seconds between looks, and between lines in a file.
_LOOK, _DRAW, _DRAW_IN_FILE = 0.3, 0.2, 30.0


class BestModel:
    """Keeps the parameters with the lowest loss of the validations, in memory and in checkpoints. Host.

    Attributes:
        loss, step: of that validation; infinite and -1 before the first.
    """

    stage = TrainingStage.AFTER_VALIDATION
    frequency = 1
    reads_batch = False

    def __init__(self) -> None:
        self.loss, self.step = float("inf"), -1
        self._leaves: list[np.ndarray] = []

    def __call__(self, ctx: Any, stage: Any) -> None:
        loss = float(ctx.loss)
        if loss < self.loss:
            self.loss, self.step = loss, int(ctx.step_count)
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
        return {"loss": repr(self.loss), "step": self.step, "leaves": self._leaves}

    def set_state(self, state: dict[str, Any] | None) -> None:
        """Go back to a state."""
        self.loss = float("inf") if state is None else float(state["loss"])
        self.step = -1 if state is None else int(state["step"])
        self._leaves = [] if state is None else [np.asarray(x) for x in state["leaves"]]

    def __repr__(self) -> str:
        return "BestModel()"


def _is_trained(trainer: Any) -> Any:
    """A tree like the model, true at what is trained."""
    trained, _ = trainer.split()
    return jax.tree.map(lambda x: x is not None, trained, is_leaf=lambda x: x is None)


class TrainWatch:
    """The progress bar. A host hook that looks about every third of a second.

    Args:
        total: number of steps.

    Attributes:
        begun: the step at which this call began.
    """

    reads_batch = False
    stage = None

    def __init__(self, total: int):
        self.frequency, self.total = 1, total
        self.begun = 0
        self._looked: tuple[int, float] | None = None
        self._validated = ""
        on_terminal = sys.stderr.isatty()
        self.bar = tqdm(
            total=total,
            dynamic_ncols=True,
            bar_format="{percentage:3.0f}%|{bar:24}| {n_fmt}/{total_fmt} steps, {remaining} left{postfix}",
            mininterval=_DRAW if on_terminal else _DRAW_IN_FILE,
            smoothing=0.1,
        )
        self.bar.set_postfix_str("compiling", refresh=on_terminal)

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
        now = time.perf_counter()
        # Waits for the step.
        loss = float(ctx.loss)
        if self._looked is None:
            # The time so far was compiling, which says nothing about the time that is left.
            self.bar.start_t = self.bar.last_print_t = time.time()
        elif step > self._looked[0]:
            each = (now - self._looked[1]) / (step - self._looked[0])
            self.frequency = int(np.clip(int(_LOOK / max(each, 1e-9)), 1, 10 * self.frequency))
        self._looked = step, now
        self.bar.set_postfix_str(f"loss {loss:.2e}{self._validated}", refresh=False)
        self.bar.update(step - self.bar.n)

    def show(self, step: int) -> None:
        """Show that so many steps are done."""
        self.bar.n = step

    def close(self) -> None:
        """Leave the bar as it is."""
        self.bar.set_postfix_str("", refresh=False)
        self.bar.close()


def _errors(ctx: Any) -> str:
    shown = {"energy": ("meV/atom", 1000.0), "forces": ("meV/Å", 1000.0)}
    parts = []
    for name, (unit, factor) in shown.items():
        if ctx.errors and name in ctx.errors:
            parts.append(f"{factor * float(ctx.errors[name].mae):.3g} {unit}")
    return ", ".join(parts) or f"{float(ctx.loss):.2e}"
