"""Integrators: molecular dynamics."""

from typing import TYPE_CHECKING

from alchemi_jax._lazy import lazy_index


if TYPE_CHECKING:
    from alchemi_jax.dynamics.integrators.bussi import NVTBussi as NVTBussi
    from alchemi_jax.dynamics.integrators.constant_pressure import NPH as NPH
    from alchemi_jax.dynamics.integrators.constant_pressure import NPT as NPT
    from alchemi_jax.dynamics.integrators.langevin import NVTLangevin as NVTLangevin
    from alchemi_jax.dynamics.integrators.nose_hoover import NVTNoseHoover as NVTNoseHoover
    from alchemi_jax.dynamics.integrators.nve import NVE as NVE
else:
    __all__, __getattr__, __dir__ = lazy_index(__name__)
