"""LivePlotHook: a picture that follows the run."""

import os
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from alchemi_jax.dynamics.stage import DynamicsStage
from alchemi_jax.hooks import HookContext
from alchemi_jax.io.parts import own_path
from alchemi_jax.parameters import as_flag, as_path, number, optional
from alchemi_jax.systems.fields import AbstractBatch
from alchemi_jax.systems.observables import fmax


class LivePlotHook:
    """Draws an observable of every system against the step during the run. Host, at AFTER_STEP.

    In Jupyter the picture is updated in its cell; with `path` it is written as a PNG. It is drawn at most
    once in `seconds`, and at the end. Each call ends a compiled segment; a drawing takes about 0.1 s.

    Args:
        observable: function of the batch that gives [systems]; fmax (eV/Å) by default.
        label: text on the axis.
        path: path of a PNG.
        frequency: number of steps from one point to the next.
        seconds: least time between drawings, s.
        log: whether the axis is logarithmic.
    """

    def __init__(
        self,
        observable: Callable[[AbstractBatch], Any] = fmax,
        label: str = "fmax (eV/Å)",
        path: str | os.PathLike | None = None,
        frequency: int = 10,
        seconds: float = 2.0,
        log: bool = True,
    ):
        if not callable(observable):
            raise TypeError(f"observable of LivePlotHook must be a function, not {observable!r}.")
        if not isinstance(label, str):
            raise TypeError(f"label of LivePlotHook must be text, not {label!r}.")
        number("seconds of LivePlotHook", zero=True)(seconds)
        self.observable, self.label = observable, label
        self.log = as_flag("log of LivePlotHook")(log)
        self.path = optional(as_path("path of LivePlotHook"))(path)
        known = FigureCanvasAgg.get_supported_filetypes()
        if self.path is not None and self.path.suffix[1:].lower() not in known:
            raise ValueError(f"path of LivePlotHook must end in .png, .pdf, .svg or the like, not {path!r}.")
        self.stage = DynamicsStage.AFTER_STEP
        self.frequency = frequency
        self.seconds = seconds
        self._steps: list[int] = []
        self._values: list[np.ndarray] = []
        self._drawn = 0.0
        self._handle: Any = None

    def __call__(self, ctx: HookContext, stage: Any) -> None:
        values = np.asarray(self.observable(ctx.batch), float)
        if self._values and len(values) != len(self._values[-1]):
            self._steps, self._values = [], []
        self._steps.append(ctx.step_count)
        self._values.append(np.where(ctx.active_mask, values, np.nan))
        if time.monotonic() - self._drawn > self.seconds:
            self.draw()

    def draw(self) -> Figure:
        """The picture of all points so far."""
        figure = Figure(figsize=(6, 3.5), layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.subplots()
        if self._values:
            marker = "o" if len(self._steps) == 1 else None
            axes.plot(self._steps, np.array(self._values), lw=0.9, alpha=0.6, marker=marker)
        axes.set(xlabel="step", ylabel=self.label, yscale="log" if self.log else "linear")
        axes.spines[["top", "right"]].set_visible(False)
        if self.path is not None:
            figure.savefig(own_path(self.path), dpi=120)
        self._show(figure)
        self._drawn = time.monotonic()
        return figure

    def _show(self, figure: Figure) -> None:
        try:
            from IPython.core.getipython import get_ipython  # pyright: ignore
            from IPython.display import display  # pyright: ignore
        except ImportError:
            return
        if getattr(get_ipython(), "kernel", None) is None:
            return
        if self._handle is None:
            self._handle = display(figure, display_id=True)
        else:
            self._handle.update(figure)

    def state(self) -> dict[str, Any]:
        """The points so far."""
        return {"steps": np.array(self._steps, np.int64), "values": np.array(self._values, float)}

    def set_state(self, state: dict[str, Any] | None) -> None:
        """Replace the points by those of a state."""
        self._steps = [] if state is None else np.asarray(state["steps"]).tolist()
        self._values = [] if state is None else list(np.asarray(state["values"]))

    def __enter__(self) -> "LivePlotHook":
        if self.path is not None and not self.path.parent.is_dir():
            # Said before the first step, not at the first picture.
            raise FileNotFoundError(f"{self.path}: there is no folder {self.path.parent}.")
        return self

    def __exit__(self, *exc: Any) -> None:
        if self._values:
            self.draw()
        self._handle = None

    def __repr__(self) -> str:
        return f"LivePlotHook({self.label!r}, frequency={self.frequency})"


__all__ = ["LivePlotHook"]
