"""Requirements: what a model needs of a neighbor list."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Requirements:
    """What a model needs of a neighbor list; never a capacity, which the driver finds and grows.

    Attributes:
        cutoff: Å, how far the list reaches; None: no list at all.
        skin: Å, how far it reaches further, so that it need not be built in every step.
        edges: whether `neighbors.edges` is there, the pairs within the cutoff as an `EdgeList`.
        reverse_edges: whether `neighbors.edges.reverse` is there, too.
    """

    cutoff: float | None
    skin: float = 1.0
    edges: bool = False
    reverse_edges: bool = False

    def __post_init__(self):
        if self.reverse_edges and not self.edges:
            object.__setattr__(self, "edges", True)
