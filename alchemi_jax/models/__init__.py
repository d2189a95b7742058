"""Models: potentials that give energies, forces and stress of a batch."""

from typing import TYPE_CHECKING

from alchemi_jax._lazy import lazy_index


if TYPE_CHECKING:
    from alchemi_jax.models.ase import ASEModel as ASEModel
    from alchemi_jax.models.base import AbstractModel as AbstractModel
    from alchemi_jax.models.base import Results as Results
    from alchemi_jax.models.base import SumModel as SumModel
    from alchemi_jax.models.bond_order import AbstractBondOrder as AbstractBondOrder
    from alchemi_jax.models.chgnet import CHGNet as CHGNet
    from alchemi_jax.models.committee import CommitteeModel as CommitteeModel
    from alchemi_jax.models.eam import EAM as EAM
    from alchemi_jax.models.embedded import AbstractEmbedded as AbstractEmbedded
    from alchemi_jax.models.emt import EMT as EMT
    from alchemi_jax.models.evaluation import evaluate as evaluate
    from alchemi_jax.models.ewald import Ewald as Ewald
    from alchemi_jax.models.flax import FlaxModel as FlaxModel
    from alchemi_jax.models.function import FunctionModel as FunctionModel
    from alchemi_jax.models.function import GraphFunctionModel as GraphFunctionModel
    from alchemi_jax.models.graph import AbstractGraphModel as AbstractGraphModel
    from alchemi_jax.models.graph import Graph as Graph
    from alchemi_jax.models.harmonic import HarmonicModel as HarmonicModel
    from alchemi_jax.models.invariant import InvariantNetwork as InvariantNetwork
    from alchemi_jax.models.nnx import split_nnx as split_nnx
    from alchemi_jax.models.pair import AbstractPair as AbstractPair
    from alchemi_jax.models.pair import LennardJones as LennardJones
    from alchemi_jax.models.pair import Morse as Morse
    from alchemi_jax.models.registry import ModelEntry as ModelEntry
    from alchemi_jax.models.registry import load as load
    from alchemi_jax.models.repulsive import ZBL as ZBL
    from alchemi_jax.models.repulsive import Buckingham as Buckingham
    from alchemi_jax.models.repulsive import SoftSphere as SoftSphere
    from alchemi_jax.models.stillinger_weber import StillingerWeber as StillingerWeber
    from alchemi_jax.models.tersoff import Tersoff as Tersoff
    from alchemi_jax.models.trained import save as save
    from alchemi_jax.neighbors.requirements import Requirements as Requirements
else:
    __all__, __getattr__, __dir__ = lazy_index(__name__)
