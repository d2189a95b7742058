"""Models: potentials that turn a batch into energies, forces and stress."""

from alchemi_jax.models.base import AbstractModel as AbstractModel
from alchemi_jax.models.base import Results as Results
from alchemi_jax.models.flax import FlaxModel as FlaxModel
from alchemi_jax.models.harmonic import HarmonicModel as HarmonicModel
from alchemi_jax.models.pair import AbstractPair as AbstractPair
from alchemi_jax.models.pair import LennardJones as LennardJones
from alchemi_jax.models.pair import Morse as Morse
