"""Batched atomistic dynamics in JAX, with hooks that are pure transforms."""

from typing import TYPE_CHECKING

from alchemi_jax._lazy import lazy_index
from alchemi_jax._version import __version__ as __version__


if TYPE_CHECKING:
    from alchemi_jax import analysis as analysis
    from alchemi_jax import distributed as distributed
    from alchemi_jax import dynamics as dynamics
    from alchemi_jax import hooks as hooks
    from alchemi_jax import models as models
    from alchemi_jax import observables as observables
    from alchemi_jax import samples as samples
    from alchemi_jax import units as units
    from alchemi_jax.dynamics.devices.devices import use_cores as use_cores
    from alchemi_jax.io.trajectory import Trajectory as Trajectory
    from alchemi_jax.systems.atoms import AtomicData as AtomicData
    from alchemi_jax.systems.batch import Batch as Batch
    from alchemi_jax.systems.host import HostBatch as HostBatch
    from alchemi_jax.systems.outcome import Outcome as Outcome
else:
    __all__, __getattr__, __dir__ = lazy_index(__name__)
