"""NequixModel: networks of the package nequix, from its .nqx files."""

import hashlib
import os
from importlib import import_module
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from alchemi_jax.models.entries import ENTRIES
from alchemi_jax.models.foreign import Opaque, foreign_code, join, split
from alchemi_jax.models.graph import AbstractGraphModel, Graph
from alchemi_jax.parameters import positive_length


INSTALL = ENTRIES["nequix"].install


class NequixModel(AbstractGraphModel):
    """A network of the package nequix: `NequixModel.read("nequix-mp-1.nqx")`.

    The package computes the energy of each atom; forces and stress come from here. Its metadata asks for
    CUDA builds of JAX and for wandb, which the network does not need: install it with
    `pip install e3nn-jax jraph && pip install --no-deps nequix`.

    Args:
        weights: arrays of the network; leaves.
        network: the network without them.
        numbers: atomic numbers in the order of its table.
        cutoff: Å. skin: Å, added to the cutoff of the neighbor list.

    Raises:
        ValueError: from `check`, for an element that is not in the table.

    Source: T. Koker, M. Kotak, T. Smidt, arXiv:2508.16067 (2025), doi:10.48550/arXiv.2508.16067.
    """

    weights: tuple[Array, ...] = eqx.field(repr=False)
    network: Opaque = eqx.field(static=True)
    numbers: tuple[int, ...] = eqx.field(static=True, repr=False)
    cutoff: float = eqx.field(static=True, converter=positive_length("cutoff"))
    skin: float = eqx.field(static=True, converter=positive_length("skin", zero=True), default=0.6)

    @property
    def elements(self) -> tuple[int, ...]:
        return self.numbers

    @classmethod
    def read(cls, path: str | os.PathLike, skin: float = 0.6) -> "NequixModel":
        """Reads a .nqx file.

        Raises:
            ImportError: if the package is missing, with the command that installs it.
            ValueError: naming the file, if the package cannot read it.
        """
        path = Path(path)
        with foreign_code():
            try:
                load_model: Any = import_module("nequix.model").load_model
            except ImportError as e:
                raise ImportError(f"NequixModel needs nequix ({e}): {INSTALL}") from None
            # Weights are kept in float32, and read into arrays of the default precision.
            with jax.enable_x64(False):
                try:
                    network, config = load_model(str(path))
                    numbers, cutoff = sorted(map(int, config["atomic_numbers"])), float(config["cutoff"])
                except (OSError, ImportError):
                    raise
                except Exception as e:
                    text = " ".join(str(e).split())[:200]
                    raise ValueError(f"{path} is no model of nequix: {type(e).__name__} {text}.") from None
        weights, rest = split(network, path.name, hashlib.sha256(path.read_bytes()).hexdigest())
        return cls(weights=tuple(weights), network=rest, numbers=tuple(numbers), cutoff=cutoff, skin=skin)

    def node_energies(self, graph: Graph) -> Float[Array, " atoms"]:
        network = join(self.network, self.weights)
        with foreign_code():
            energies = network.node_energies(graph.vectors, graph.species, graph.senders, graph.receivers)
        return jnp.asarray(energies[:, 0]).astype(graph.vectors.dtype)


__all__ = ["INSTALL", "NequixModel"]
