"""Hooks for dynamics."""

from typing import TYPE_CHECKING

from alchemi_jax._lazy import lazy_index


if TYPE_CHECKING:
    from alchemi_jax.dynamics.hooks.atoms import FreezeAtomsHook as FreezeAtomsHook
    from alchemi_jax.dynamics.hooks.atoms import WrapPeriodicHook as WrapPeriodicHook
    from alchemi_jax.dynamics.hooks.checkpoint import CheckpointHook as CheckpointHook
    from alchemi_jax.dynamics.hooks.convergence import ConvergenceHook as ConvergenceHook
    from alchemi_jax.dynamics.hooks.forces import BiasedPotentialHook as BiasedPotentialHook
    from alchemi_jax.dynamics.hooks.forces import MaxForceClampHook as MaxForceClampHook
    from alchemi_jax.dynamics.hooks.guard import GuardHook as GuardHook
    from alchemi_jax.dynamics.hooks.live import LivePlotHook as LivePlotHook
    from alchemi_jax.dynamics.hooks.logging import LoggingHook as LoggingHook
    from alchemi_jax.dynamics.hooks.monitors import EnergyDriftMonitorHook as EnergyDriftMonitorHook
    from alchemi_jax.dynamics.hooks.monitors import NaNDetectorHook as NaNDetectorHook
    from alchemi_jax.dynamics.hooks.observe import CallbackHook as CallbackHook
    from alchemi_jax.dynamics.hooks.observe import ObservableHook as ObservableHook
    from alchemi_jax.dynamics.hooks.observe import ProgressHook as ProgressHook
    from alchemi_jax.dynamics.hooks.snapshot import ConvergedSnapshotHook as ConvergedSnapshotHook
    from alchemi_jax.dynamics.hooks.snapshot import SnapshotHook as SnapshotHook
    from alchemi_jax.dynamics.hooks.temperature import PressureScheduleHook as PressureScheduleHook
    from alchemi_jax.dynamics.hooks.temperature import ReplicaExchangeHook as ReplicaExchangeHook
    from alchemi_jax.dynamics.hooks.temperature import TemperatureScheduleHook as TemperatureScheduleHook
    from alchemi_jax.dynamics.hooks.timing import ProfilerHook as ProfilerHook
    from alchemi_jax.dynamics.hooks.timing import StageTimingHook as StageTimingHook
    from alchemi_jax.dynamics.hooks.uncertainty import UncertaintyHook as UncertaintyHook
else:
    __all__, __getattr__, __dir__ = lazy_index(__name__)
