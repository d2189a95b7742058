"""Requirements: what a model needs of a neighbor list."""

import dataclasses

from alchemi_jax.parameters import positive_length


@dataclasses.dataclass(frozen=True)
class Requirements:
    """What a model needs of a neighbor list; never a capacity, which the driver finds and grows.

    Attributes:
        cutoff: Å, the distance up to which pairs are listed; None: no list.
        skin: Å added to the cutoff, so that the list is not built in every step.
        edges: whether to make `neighbors.edges`, the pairs within the cutoff as an `EdgeList`.
        reverse_edges: whether to make `neighbors.edges.reverse`, too.
    """

    cutoff: float | None
    skin: float = 1.0
    edges: bool = False
    reverse_edges: bool = False

    def __post_init__(self):
        if self.cutoff is not None:
            positive_length("cutoff")(self.cutoff)
        positive_length("skin", zero=True)(self.skin)
        if self.reverse_edges and not self.edges:
            object.__setattr__(self, "edges", True)


__all__ = ["Requirements"]
