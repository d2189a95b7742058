"""Neighbor lists: fixed capacity, a skin, an overflow flag; built and kept up to date on the device."""

from typing import TYPE_CHECKING

from alchemi_jax._lazy import lazy_index


if TYPE_CHECKING:
    from alchemi_jax.neighbors.allocation import allocate as allocate
    from alchemi_jax.neighbors.allocation import unbuilt_list as unbuilt_list
    from alchemi_jax.neighbors.allocation import update_with_room as update_with_room
    from alchemi_jax.neighbors.build import empty_list as empty_list
    from alchemi_jax.neighbors.build import enlarge as enlarge
    from alchemi_jax.neighbors.build import resized as resized
    from alchemi_jax.neighbors.edge_type import EdgeList as EdgeList
    from alchemi_jax.neighbors.edge_type import Triplets as Triplets
    from alchemi_jax.neighbors.edges import edge_capacity as edge_capacity
    from alchemi_jax.neighbors.edges import edge_list as edge_list
    from alchemi_jax.neighbors.limits import check_needs as check_needs
    from alchemi_jax.neighbors.limits import collapsed as collapsed
    from alchemi_jax.neighbors.limits import excess as excess
    from alchemi_jax.neighbors.limits import too_dense as too_dense
    from alchemi_jax.neighbors.list import FAR as FAR
    from alchemi_jax.neighbors.list import ListSizes as ListSizes
    from alchemi_jax.neighbors.list import NeighborList as NeighborList
    from alchemi_jax.neighbors.list import extended_coordinates as extended_coordinates
    from alchemi_jax.neighbors.list import extended_positions as extended_positions
    from alchemi_jax.neighbors.list import pair_vectors as pair_vectors
    from alchemi_jax.neighbors.needs import Needs as Needs
    from alchemi_jax.neighbors.requirements import Requirements as Requirements
    from alchemi_jax.neighbors.sizes import check_growth as check_growth
    from alchemi_jax.neighbors.sizes import fit_edges as fit_edges
    from alchemi_jax.neighbors.sizes import grow as grow
    from alchemi_jax.neighbors.sizes import guess_sizes as guess_sizes
    from alchemi_jax.neighbors.sizes import list_needs as list_needs
    from alchemi_jax.neighbors.upkeep import due as due
    from alchemi_jax.neighbors.upkeep import may_be_due as may_be_due
    from alchemi_jax.neighbors.upkeep import offsets_outdated as offsets_outdated
    from alchemi_jax.neighbors.upkeep import update as update
else:
    __all__, __getattr__, __dir__ = lazy_index(__name__)
