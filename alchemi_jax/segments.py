"""The public path of `alchemi_jax.systems.segments`."""

from alchemi_jax.systems.segments import any_by_system as any_by_system
from alchemi_jax.systems.segments import any_of as any_of
from alchemi_jax.systems.segments import largest_of as largest_of
from alchemi_jax.systems.segments import max_by_system as max_by_system
from alchemi_jax.systems.segments import number_in_system as number_in_system
from alchemi_jax.systems.segments import row_index as row_index
from alchemi_jax.systems.segments import sum_by_system as sum_by_system
from alchemi_jax.systems.segments import to_atoms as to_atoms
from alchemi_jax.systems.segments import use_rows as use_rows


__all__ = [
    "any_by_system",
    "any_of",
    "largest_of",
    "max_by_system",
    "number_in_system",
    "row_index",
    "sum_by_system",
    "to_atoms",
    "use_rows",
]
