"""MLIPModel: MACE, NequIP, ViSNet and eSEN as InstaDeep's package mlip saves them."""

import hashlib
import json
import os
import zipfile
from importlib import import_module
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from alchemi_jax.models.entries import ENTRIES
from alchemi_jax.models.foreign import Opaque, foreign_code
from alchemi_jax.models.graph import AbstractGraphModel, Graph
from alchemi_jax.parameters import positive_length
from alchemi_jax.systems.batch import Batch


INSTALL = ENTRIES["mlip"].install
_SETTINGS = "hyperparams.json"
_NETWORKS = ("Mace", "Nequip", "Visnet", "Esen")


class MLIPModel(AbstractGraphModel):
    """A network of the package mlip: `MLIPModel.read("mace.zip")`, written by `save_model_to_zip`.

    The network computes the energy of each atom; forces and stress come from here. mlip itself divides by
    the signed volume of the cell, so its stress has the other sign in left-handed cells.

    Args:
        parameters: of the network, a pytree of arrays; leaves.
        network: the flax module.
        numbers: atomic numbers that it knows.
        cutoff: Å. skin: Å, added to the cutoff of the neighbor list.
        heads: number of output heads, one per data set; the extra `head` of a structure selects one, 0 by
            default.
        charges: total charges that it knows, if it uses them.

    Raises:
        ValueError: from `check`, for an element, a charge or a head that it does not know.
    """

    parameters: Any = eqx.field(repr=False)
    network: Opaque = eqx.field(static=True)
    numbers: tuple[int, ...] = eqx.field(static=True)
    cutoff: float = eqx.field(static=True, converter=positive_length("cutoff"))
    skin: float = eqx.field(static=True, converter=positive_length("skin", zero=True), default=0.6)
    heads: int = eqx.field(static=True, default=1)
    charges: tuple[int, ...] | None = eqx.field(static=True, default=None)

    @property
    def elements(self) -> tuple[int, ...]:
        return self.numbers

    @classmethod
    def read(cls, path: str | os.PathLike, skin: float = 0.6) -> "MLIPModel":
        """Reads an archive that `mlip.models.model_io.save_model_to_zip` wrote. Its settings say which
        network it is.

        Raises:
            ImportError: if the package is missing, with the command that installs it.
            ValueError: naming the file, if the package cannot read it, or for a network with experts or with
                Coulomb interactions, which are not treated.
        """
        path = Path(path)
        config, version = _settings(path)
        with foreign_code(), jax.enable_x64(False):
            try:
                models, models_v1 = import_module("mlip.models"), import_module("mlip.models_v1")
                load_model: Any = import_module("mlip.models.model_io").load_model_from_zip
            except ImportError as e:
                raise ImportError(f"MLIPModel needs mlip ({e}): {INSTALL}") from None
            places = [models_v1, models] if version.startswith("0.1.") else [models, models_v1]
            kinds = [getattr(place, name) for place in places for name in _NETWORKS if hasattr(place, name)]
            # Files do not say which network they hold, but every field of its settings.
            kind = max(kinds, key=lambda kind: _likeness(set(config), set(kind.Config.model_fields)))
            try:
                field = load_model(kind, path)
            except Exception as e:
                text = " ".join(str(e).split())[:200]
                raise ValueError(
                    f"{path} looks like a {kind.__name__} of mlip, which cannot read it: "
                    f"{type(e).__name__} {text}."
                ) from None
            network, info = field.predictor.mlip_network, field.dataset_info
        far = info.long_range_cutoff_angstrom is not None or getattr(field.config, "use_coulomb_term", False)
        for what, found in (("Coulomb interactions", far), ("experts", network.is_moe_model)):
            if found:
                raise ValueError(f"{path} is a network with {what}, which are not treated here.")
        used = getattr(field.config, "use_total_charge_embedding", False)
        several = isinstance(info.atomic_energies_map, list)
        heads = max(
            getattr(field.config, "num_readout_heads", 1), len(info.atomic_energies_map) if several else 1
        )
        return cls(
            parameters=field.params["params"]["mlip_network"],
            network=Opaque(network, path.name, hashlib.sha256(path.read_bytes()).hexdigest()),
            numbers=tuple(sorted(info.allowed_atomic_numbers)),
            cutoff=info.graph_cutoff_angstrom,
            skin=skin,
            heads=heads,
            charges=tuple(info.available_total_charges) if used else None,
        )

    def node_energies(self, graph: Graph) -> Float[Array, " atoms"]:
        network = self.network.value
        variables = {"params": self.parameters}
        with foreign_code():
            given = self._graph(graph)
            if hasattr(network, "calculate"):
                out = network.apply(variables, given, method="calculate")
            else:
                out = network.apply(variables, given)
            energies = jnp.asarray(out.nodes.features["energy"])
        return energies.reshape(-1)[:-1].astype(graph.vectors.dtype)

    def _graph(self, graph: Graph) -> Any:
        """The graph of mlip. What is a receiver here is a sender there: the vectors are the same, and so is
        the order, by senders. One atom more, in one more system, takes the padding."""
        theirs: Any = import_module("mlip.graph")
        n, systems = len(graph.numbers), len(graph.n_nodes)
        own = jnp.concatenate([graph.node_system, jnp.asarray([systems], graph.node_system.dtype)])
        edge_counts = jnp.bincount(own[graph.receivers], length=systems + 1)
        numbers = jnp.where(graph.node_mask, graph.numbers, self.numbers[0])

        def add(values: Array, last: Any) -> Array:
            return jnp.concatenate([values, jnp.asarray(last, values.dtype)[None]])

        def per_system(values: Array) -> Array:
            return add(jnp.round(values).astype(jnp.int32), 0)

        dtype = graph.vectors.dtype
        return theirs.Graph(
            nodes=theirs.GraphNodes(
                positions=jnp.zeros((n + 1, 3), dtype), atomic_numbers=add(numbers, self.numbers[0])
            ),
            edges=theirs.GraphEdges(shifts=None, displ_fun=jax.tree_util.Partial(_third, graph.vectors)),
            globals=theirs.GraphGlobals(
                cell=add(graph.cell, np.zeros((3, 3))),
                weight=jnp.ones(systems + 1, dtype),
                charge=per_system(graph.charge),
                spin_multiplicity=per_system(graph.spin),
                dataset_idx=add(graph.head, 0) if self.heads > 1 else None,
            ),
            n_node=add(graph.n_nodes, n + 1 - graph.n_nodes.sum()),
            n_edge=edge_counts,
            senders=graph.receivers,
            receivers=graph.senders,
            ordering=theirs.EdgeOrdering.SENDER,
        )

    def check(self, batch: Batch) -> None:
        super().check(batch)
        n = batch.num_systems
        heads = np.asarray(batch.system_extras.get("head", np.zeros(n)))[:n]
        odd = np.flatnonzero((heads < 0) | (heads >= self.heads))
        if odd.size:
            raise ValueError(
                f"{batch.name_of(int(odd[0]))} has head {heads[odd[0]]:g}; {self.network.name} has "
                f"{self.heads}, counted from 0."
            )
        charges = np.asarray(batch.charge)[:n]
        odd = np.flatnonzero(~np.isin(charges, self.charges or ()))
        if odd.size and self.charges is not None:
            raise ValueError(
                f"{batch.name_of(int(odd[0]))} has charge {charges[odd[0]]:g}; {self.network.name} knows "
                f"{', '.join(map(str, self.charges))}."
            )


def _third(vectors: Array, senders: Array, receivers: Array, cell: Array) -> Array:
    """Vectors that are known, in place of a displacement function of mlip."""
    return vectors


def _settings(path: Path) -> tuple[dict[str, Any], str]:
    """Settings of the network, and the version of mlip that wrote them."""
    try:
        with zipfile.ZipFile(path) as archive:
            content = json.loads(archive.read(_SETTINGS))
        return dict(content["config"]), str(content.get("version", "0.1."))
    except (zipfile.BadZipFile, KeyError, ValueError, TypeError) as e:
        text = " ".join(str(e).split())
        raise ValueError(f"{path} is no archive of mlip with {_SETTINGS}: {text}.") from None


def _likeness(a: set[str], b: set[str]) -> float:
    return len(a & b) / max(len(a | b), 1)


__all__ = ["INSTALL", "MLIPModel"]
