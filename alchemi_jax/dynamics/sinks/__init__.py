"""Sinks: where systems go that leave a run. They know `Batch` and nothing of dynamics."""

from alchemi_jax.dynamics.sinks.base import Sink as Sink
from alchemi_jax.dynamics.sinks.memory import HostMemory as HostMemory
from alchemi_jax.dynamics.sinks.zarr import ZarrData as ZarrData
