"""Sinks: they store the systems that a run writes. They do not depend on dynamics."""

from typing import TYPE_CHECKING

from alchemi_jax._lazy import lazy_index


if TYPE_CHECKING:
    from alchemi_jax.io.sinks.ase import ExtXYZ as ExtXYZ
    from alchemi_jax.io.sinks.base import Sink as Sink
    from alchemi_jax.io.sinks.base import SinkFull as SinkFull
    from alchemi_jax.io.sinks.chain import SinkChain as SinkChain
    from alchemi_jax.io.sinks.device import DeviceBuffer as DeviceBuffer
    from alchemi_jax.io.sinks.device import SystemBuffer as SystemBuffer
    from alchemi_jax.io.sinks.memory import HostMemory as HostMemory
    from alchemi_jax.io.sinks.traj import AseTrajectory as AseTrajectory
    from alchemi_jax.io.sinks.zarr import ZarrData as ZarrData
else:
    __all__, __getattr__, __dir__ = lazy_index(__name__)
