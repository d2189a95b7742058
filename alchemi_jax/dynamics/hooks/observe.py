"""Hooks that hand things to people: ObservableHook, ProgressHook, CallbackHook."""

import warnings
from collections.abc import Callable, Hashable, Mapping
from enum import Enum
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Shaped

from alchemi_jax.dynamics.hooks.shown import Shown, completed_steps
from alchemi_jax.dynamics.stage import DynamicsStage
from alchemi_jax.hooks import HookContext, RecordingHook
from alchemi_jax.parameters import as_flag, function
from alchemi_jax.systems.observables import fmax


class ObservableHook(RecordingHook):
    """Records functions of the batch and keeps them as arrays. Recording, at AFTER_STEP by default.

    After a run `hook.table` is a dictionary: "step" [rows], of the run, "active", "system_id" and
    "steps_taken" (completed steps of the state in the row) [rows, systems] and each observable [rows,
    systems, ...]. "active" marks the systems that a row is valid for: those that move and whose own number of
    steps is due. Another run adds rows; `clear` removes them. Costs the functions and the memory of their
    results.

    Args:
        observables: name -> traced function of the context. Functions of `alchemi_jax.observables`, which
            take a batch, can be given as they are.
        frequency: number of steps of a system from one record to the next.
        stage: stage at which rows are recorded.
        stress: whether an observable reads the stress (the pressure does): it is then evaluated in every
            step, which costs about 60 % more than forces alone. Otherwise it is NaN during the run.
        final: whether `run` also records the state that it ends with, unless all of it was recorded; with
            `stage=DynamicsStage.BEFORE_STEP` rows are then of 0, f, 2f, ... and all steps, as in ASE.
    """

    own_steps = True

    def __init__(
        self,
        observables: Mapping[str, Callable[[Any], Shaped[Array, "..."]]],
        frequency: int = 1,
        stage: Enum = DynamicsStage.AFTER_STEP,
        stress: bool = False,
        final: bool = False,
    ):
        if not isinstance(observables, Mapping) or not observables:
            raise TypeError(
                f"observables of ObservableHook must be a dict, name -> function, not {observables!r}."
            )
        taken = {"step", "active", "system_id"} & set(observables)
        if taken:
            raise ValueError(f"ObservableHook has a column {taken.pop()!r} of its own.")
        for name, observable in observables.items():
            function(f"observables[{name!r}] of ObservableHook")(observable)
        self.observables = dict(observables)
        self.frequency = frequency
        self.stage = stage
        self.needs_stress = as_flag("stress of ObservableHook")(stress)
        self.final = as_flag("final")(final)
        self._shown = Shown()
        self._parts: list[dict[str, np.ndarray]] = []

    def __repr__(self) -> str:
        return f"ObservableHook({', '.join(self.observables)}, frequency={self.frequency})"

    def trace_key(self) -> Hashable:
        return tuple(self.observables.items())

    def record(self, ctx: HookContext) -> dict[str, Shaped[Array, "..."]]:
        row = {
            "step": jnp.asarray(ctx.step_count, jnp.int32),
            "active": jnp.asarray(ctx.active_mask),
            "system_id": ctx.batch.system_id,
            "steps_taken": completed_steps(ctx, self.stage),
        }
        for name, observable in self.observables.items():
            ours = getattr(observable, "__module__", None) == "alchemi_jax.systems.observables"
            row[name] = jnp.asarray(observable(ctx.batch if ours else ctx))
        return row

    def write(self, rows: dict[str, np.ndarray]) -> None:
        self._parts.append(rows)
        if self.final:
            active = np.asarray(rows["active"])
            self._shown.note(rows["system_id"][active], rows["steps_taken"][active])

    def write_final(self, rows: dict[str, np.ndarray], systems: Bool[np.ndarray, " systems"]) -> None:
        """Keep the last state of systems, unless the last row has it."""
        new = systems & self._shown.is_new(rows["system_id"][0], rows["steps_taken"][0])
        if new.any():
            self.write({**rows, "active": new[None]})

    @property
    def table(self) -> dict[str, np.ndarray]:
        """All rows so far."""
        if not self._parts:
            return {}
        return {name: np.concatenate([p[name] for p in self._parts]) for name in self._parts[0]}

    def clear(self) -> None:
        """Removes all rows."""
        self._parts.clear()

    def state(self) -> dict[str, Any]:
        """The rows so far, and the last step of each system that was recorded."""
        if len(self._parts) > 1 and len({_shapes(part) for part in self._parts}) == 1:
            self._parts = [self.table]
        parts = [{name: np.asarray(values) for name, values in part.items()} for part in self._parts]
        return {"parts": parts, "shown": self._shown.state()}

    def set_state(self, state: dict[str, Any] | None) -> None:
        """Replace the rows by those of a state."""
        parts = [] if state is None else state["parts"]
        self._parts = [{name: np.asarray(values) for name, values in part.items()} for part in parts]
        self._shown.set_state(None if state is None else state["shown"])


class ProgressHook:
    """A progress bar, in a terminal or a notebook: systems finished, largest fmax, step. Host, at AFTER_STEP.

    In a training, with `stage=TrainingStage.AFTER_BATCH`, it shows steps, epoch and loss.

    Args:
        frequency: number of steps from one update to the next; each update ends a compiled segment.
        stage: stage at which it is updated.
        **options: for tqdm.
    """

    def __init__(self, frequency: int = 10, stage: Enum = DynamicsStage.AFTER_STEP, **options: Any):
        self.stage = stage
        self.frequency = frequency
        self.options = options
        self._bar: Any = None

    def __repr__(self) -> str:
        return f"ProgressHook(frequency={self.frequency})"

    def __call__(self, ctx: HookContext, stage: Any) -> None:
        batch = ctx.batch
        if not isinstance(stage, DynamicsStage):
            if self._bar is None:
                self._bar = _progress_bar()(**{"unit": "step", **self.options})
            self._bar.n = int(ctx.step_count) + 1
            loss = "" if ctx.loss is None else f", loss {float(ctx.loss):.4g}"
            self._bar.set_postfix_str(f"epoch {ctx.epoch}{loss}")
            return
        if self._bar is None:
            self._bar = _progress_bar()(total=batch.num_systems, unit="system", **self.options)
        finished = np.asarray(batch.status) >= ctx.workflow.exit_status
        self._bar.n = int(finished.sum())
        worst = np.max(np.asarray(fmax(batch))[~finished], initial=0.0)
        self._bar.set_postfix_str(f"step {ctx.step_count}, fmax {worst:.4f} eV/Å")

    def __enter__(self) -> "ProgressHook":
        return self

    def __exit__(self, *exc: Any) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None


class CallbackHook:
    """Calls a function of the context. Host; each call ends a compiled segment.

    Args:
        function: called as `function(ctx)`; what it returns is ignored.
        stage: stage at which it is called.
        frequency: number of steps from one call to the next.
    """

    def __init__(
        self,
        function: Callable[[HookContext], Any],
        stage: Enum = DynamicsStage.AFTER_STEP,
        frequency: int = 1,
    ):
        if not callable(function):
            raise TypeError(f"function of CallbackHook must be a function of the context, not {function!r}.")
        self.function = function
        self.stage = stage
        self.frequency = frequency

    def __call__(self, ctx: HookContext, stage: Any) -> None:
        self.function(ctx)

    def __repr__(self) -> str:
        name = getattr(self.function, "__name__", repr(self.function))
        return f"CallbackHook({name}, {self.stage.name}, frequency={self.frequency})"


def _shapes(rows: dict[str, np.ndarray]) -> tuple:
    return tuple((name, values.dtype, values.shape[1:]) for name, values in rows.items())


def _progress_bar() -> Any:
    from tqdm import TqdmWarning

    with warnings.catch_warnings():
        # In a notebook without ipywidgets the bar is a line of text.
        warnings.simplefilter("ignore", TqdmWarning)
        from tqdm.auto import tqdm

    return tqdm


__all__ = ["CallbackHook", "ObservableHook", "ProgressHook"]
