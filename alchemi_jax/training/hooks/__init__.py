"""Hooks for training. Those of both workflows are in `alchemi_jax.dynamics.hooks`."""

from typing import TYPE_CHECKING

from alchemi_jax._lazy import lazy_index


if TYPE_CHECKING:
    from alchemi_jax.dynamics.hooks.checkpoint import CheckpointHook as CheckpointHook
    from alchemi_jax.dynamics.hooks.logging import LoggingHook as LoggingHook
    from alchemi_jax.dynamics.hooks.observe import CallbackHook as CallbackHook
    from alchemi_jax.dynamics.hooks.observe import ObservableHook as ObservableHook
    from alchemi_jax.dynamics.hooks.observe import ProgressHook as ProgressHook
    from alchemi_jax.dynamics.hooks.timing import ProfilerHook as ProfilerHook
    from alchemi_jax.dynamics.hooks.timing import StageTimingHook as StageTimingHook
    from alchemi_jax.training.hooks.gradients import ClipGradientsHook as ClipGradientsHook
    from alchemi_jax.training.hooks.gradients import EMAHook as EMAHook
    from alchemi_jax.training.hooks.gradients import SkipNonFiniteHook as SkipNonFiniteHook
    from alchemi_jax.training.hooks.schedule import ScheduleHook as ScheduleHook
    from alchemi_jax.training.hooks.validation import BestCheckpointHook as BestCheckpointHook
    from alchemi_jax.training.hooks.validation import EarlyStoppingHook as EarlyStoppingHook
    from alchemi_jax.training.hooks.validation import ValidationHook as ValidationHook
else:
    __all__, __getattr__, __dir__ = lazy_index(__name__)
