"""The public path of `alchemi_jax.systems.levels`."""

from alchemi_jax.systems.levels import Data as Data
from alchemi_jax.systems.levels import Level as Level
from alchemi_jax.systems.levels import PerAtom as PerAtom
from alchemi_jax.systems.levels import PerSystem as PerSystem
from alchemi_jax.systems.levels import atom_rows as atom_rows
from alchemi_jax.systems.levels import check_levels as check_levels
from alchemi_jax.systems.levels import level_fields as level_fields
from alchemi_jax.systems.levels import map_by_level as map_by_level
from alchemi_jax.systems.levels import per_atom as per_atom
from alchemi_jax.systems.levels import per_system as per_system
from alchemi_jax.systems.levels import select as select
from alchemi_jax.systems.levels import unsafe_make as unsafe_make
from alchemi_jax.systems.levels import unsafe_replace as unsafe_replace
from alchemi_jax.systems.levels import without_arrays as without_arrays


__all__ = [
    "Data",
    "Level",
    "PerAtom",
    "PerSystem",
    "atom_rows",
    "check_levels",
    "level_fields",
    "map_by_level",
    "per_atom",
    "per_system",
    "select",
    "unsafe_make",
    "unsafe_replace",
    "without_arrays",
]
