"""Sinks under the path of the user guide; they are in `alchemi_jax.io.sinks`."""

from typing import TYPE_CHECKING

from alchemi_jax._lazy import lazy_index


if TYPE_CHECKING:
    from alchemi_jax.io.sinks import AseTrajectory as AseTrajectory
    from alchemi_jax.io.sinks import DeviceBuffer as DeviceBuffer
    from alchemi_jax.io.sinks import ExtXYZ as ExtXYZ
    from alchemi_jax.io.sinks import HostMemory as HostMemory
    from alchemi_jax.io.sinks import Sink as Sink
    from alchemi_jax.io.sinks import SinkChain as SinkChain
    from alchemi_jax.io.sinks import SinkFull as SinkFull
    from alchemi_jax.io.sinks import SystemBuffer as SystemBuffer
    from alchemi_jax.io.sinks import ZarrData as ZarrData
else:
    __all__, __getattr__, __dir__ = lazy_index(__name__)
