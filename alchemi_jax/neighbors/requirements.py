"""Requirements: what a model needs of a neighbor list."""

import dataclasses
from collections.abc import Iterable

from alchemi_jax.parameters import positive_length


@dataclasses.dataclass(frozen=True)
class Requirements:
    """What a model needs of a neighbor list. It has no capacities, which the driver chooses and enlarges.

    Attributes:
        cutoff: Å, the distance up to which pairs are listed; None: no list.
        skin: Å, added to the cutoff, so that the list is not built in every step.
        edges: whether to make `neighbors.edges`, the pairs within `edge_cutoff` as an `EdgeList`.
        reverse_edges: whether to make `edges.reverse`, too.
        edge_cutoff: Å, at most `cutoff`; by default `cutoff`.
        inner_cutoff: Å, at most `edge_cutoff`; if given, `edges.triplets` has the pairs of edges at one
            atom, both within this distance.
        per_atom: whether to make `edges.per_atom`, the edges of each atom as a row.
        long_cutoff: Å; if given, `neighbors.long_edges` has the pairs within this distance. `cutoff` becomes
            at least as large.
    """

    cutoff: float | None
    skin: float = 1.0
    edges: bool = False
    reverse_edges: bool = False
    edge_cutoff: float | None = None
    inner_cutoff: float | None = None
    per_atom: bool = False
    long_cutoff: float | None = None

    def __post_init__(self):
        for name in ("cutoff", "edge_cutoff", "inner_cutoff", "long_cutoff"):
            if getattr(self, name) is not None:
                positive_length(name)(getattr(self, name))
        positive_length("skin", zero=True)(self.skin)
        if self.cutoff is None and self._wants_edges:
            raise ValueError("Requirements: edges need a cutoff.")
        if self.cutoff is None:
            return
        if self._wants_edges:
            object.__setattr__(self, "edges", True)
        short = self.cutoff if self.edge_cutoff is None else self.edge_cutoff
        if short > self.cutoff:
            raise ValueError(f"edge_cutoff is at most the cutoff, {self.cutoff:g} Å, not {short:g} Å.")
        if self.inner_cutoff is not None and self.inner_cutoff > short:
            raise ValueError(
                f"inner_cutoff is at most that of the edges, {short:g} Å, not {self.inner_cutoff:g} Å."
            )
        if self.long_cutoff is not None and self.long_cutoff > self.cutoff:
            object.__setattr__(self, "cutoff", self.long_cutoff)
        object.__setattr__(self, "edge_cutoff", short if self.edges else None)

    @property
    def _wants_edges(self) -> bool:
        wanted = (self.reverse_edges, self.edge_cutoff, self.inner_cutoff, self.per_atom, self.long_cutoff)
        return any(w not in (None, False) for w in wanted)

    @classmethod
    def join(cls, parts: Iterable["Requirements"], skin: float) -> "Requirements":
        """What several models need together.

        Args:
            skin: Å, that of the list which they share.
        """
        parts = [p for p in parts if p.cutoff is not None]

        def largest(name: str) -> float | None:
            return max((v for v in (getattr(p, name) for p in parts) if v is not None), default=None)

        return cls(
            largest("cutoff"),
            skin,
            any(p.edges for p in parts),
            any(p.reverse_edges for p in parts),
            largest("edge_cutoff"),
            largest("inner_cutoff"),
            any(p.per_atom for p in parts),
            largest("long_cutoff"),
        )


__all__ = ["Requirements"]
