"""The engine's base and its stages, under the path of the user guide."""

from alchemi_jax.dynamics.engine import AbstractDynamics as AbstractDynamics
from alchemi_jax.dynamics.stage import DynamicsStage as DynamicsStage
from alchemi_jax.dynamics.state import DynamicsState as DynamicsState


__all__ = ["AbstractDynamics", "DynamicsStage", "DynamicsState"]
