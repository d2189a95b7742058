"""The public path of `alchemi_jax.systems.observables`."""

from alchemi_jax.systems.observables import degrees_of_freedom as degrees_of_freedom
from alchemi_jax.systems.observables import density as density
from alchemi_jax.systems.observables import enthalpy as enthalpy
from alchemi_jax.systems.observables import fmax as fmax
from alchemi_jax.systems.observables import force_norms as force_norms
from alchemi_jax.systems.observables import kinetic_energy as kinetic_energy
from alchemi_jax.systems.observables import kinetic_stress as kinetic_stress
from alchemi_jax.systems.observables import kinetic_tensor as kinetic_tensor
from alchemi_jax.systems.observables import momentum as momentum
from alchemi_jax.systems.observables import moves_as_whole as moves_as_whole
from alchemi_jax.systems.observables import pressure as pressure
from alchemi_jax.systems.observables import stress as stress
from alchemi_jax.systems.observables import temperature as temperature
from alchemi_jax.systems.observables import volume as volume


__all__ = [
    "degrees_of_freedom",
    "density",
    "enthalpy",
    "fmax",
    "force_norms",
    "kinetic_energy",
    "kinetic_stress",
    "kinetic_tensor",
    "momentum",
    "moves_as_whole",
    "pressure",
    "stress",
    "temperature",
    "volume",
]
