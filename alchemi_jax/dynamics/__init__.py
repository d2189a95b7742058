"""Dynamics: engines, their hooks, and sinks for what they make."""

from typing import TYPE_CHECKING

from alchemi_jax._lazy import lazy_index


if TYPE_CHECKING:
    from alchemi_jax.dynamics.api import integrate_all as integrate_all
    from alchemi_jax.dynamics.api import relax_all as relax_all
    from alchemi_jax.dynamics.cluster.connect import connect as connect
    from alchemi_jax.dynamics.cluster.run import run_on_cluster as run_on_cluster
    from alchemi_jax.dynamics.engine import AbstractDynamics as AbstractDynamics
    from alchemi_jax.dynamics.engine import DynamicsStage as DynamicsStage
    from alchemi_jax.dynamics.engine import DynamicsState as DynamicsState
    from alchemi_jax.dynamics.engine import FusedStage as FusedStage
    from alchemi_jax.dynamics.footprint import max_batch as max_batch
    from alchemi_jax.dynamics.hooks import ConvergenceHook as ConvergenceHook
    from alchemi_jax.dynamics.implicit import implicit_relax as implicit_relax
    from alchemi_jax.dynamics.integrators import NPH as NPH
    from alchemi_jax.dynamics.integrators import NPT as NPT
    from alchemi_jax.dynamics.integrators import NVE as NVE
    from alchemi_jax.dynamics.integrators import NVTBussi as NVTBussi
    from alchemi_jax.dynamics.integrators import NVTLangevin as NVTLangevin
    from alchemi_jax.dynamics.integrators import NVTNoseHoover as NVTNoseHoover
    from alchemi_jax.dynamics.optimizers import BFGS as BFGS
    from alchemi_jax.dynamics.optimizers import FIRE as FIRE
    from alchemi_jax.dynamics.optimizers import FIRE2 as FIRE2
    from alchemi_jax.dynamics.optimizers import LBFGS as LBFGS
    from alchemi_jax.dynamics.optimizers import FIRE2VariableCell as FIRE2VariableCell
    from alchemi_jax.dynamics.optimizers import FIREVariableCell as FIREVariableCell
    from alchemi_jax.dynamics.optimizers import GradientDescent as GradientDescent
    from alchemi_jax.dynamics.optimizers import OptaxOptimizer as OptaxOptimizer
    from alchemi_jax.dynamics.parameter_sweep import sweep as sweep
    from alchemi_jax.dynamics.rescue import Rescue as Rescue
    from alchemi_jax.dynamics.sampler import Sampler as Sampler
    from alchemi_jax.dynamics.velocities import initialize_velocities as initialize_velocities
    from alchemi_jax.dynamics.velocities import remove_com_motion as remove_com_motion
else:
    __all__, __getattr__, __dir__ = lazy_index(__name__)
