"""DeviceBuffer: a sink on the device; SystemBuffer: its traced form."""

from __future__ import annotations

import dataclasses
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int

from alchemi_jax.io.sinks.base import Sink, SinkFull, check_batch, check_same_format, format_of, systems_mask
from alchemi_jax.io.sinks.saved import batch_from_tree, batch_tree
from alchemi_jax.parameters import natural
from alchemi_jax.systems.batch import Batch
from alchemi_jax.systems.fields import AbstractBatch
from alchemi_jax.systems.host import HostBatch
from alchemi_jax.systems.levels import level_fields
from alchemi_jax.systems.metadata import Metadata, SystemMeta
from alchemi_jax.transforms import is_traced


class SystemBuffer(eqx.Module):
    """A buffer of fixed size for systems, as a pytree: `write` is pure, for jit, vmap, scan and while_loop.

    Systems are in `batch` from row 0 on, in order of writing, without gaps. A write that does not fit
    completely only sets `overflow`, and later writes are not stored either: the buffer has the first writes,
    each complete. Names, `info` and constraints (`batch.meta`) are not arrays and are not kept.

    Attributes:
        batch: the systems, padded to the capacities.
        overflow: whether a write did not fit.
        missed: number of systems that were not stored.
    """

    batch: Batch
    overflow: Bool[Array, ""]
    missed: Int[Array, ""]

    @classmethod
    def like(cls, batch: AbstractBatch, systems: int, atoms: int) -> SystemBuffer:
        """An empty buffer for systems with the dtype and the extras of a batch.

        Args:
            batch: an example; its systems are not stored.
            systems, atoms: largest numbers of systems and atoms.
        """
        systems = natural("systems of SystemBuffer.like")(systems)
        atoms = natural("atoms of SystemBuffer.like")(atoms)
        room = {"atom": atoms, "system": systems}
        fields = {}
        for name, level in level_fields(Batch):
            fill = systems if name == "batch_idx" else Batch.__dataclass_fields__[name].metadata["fill"]
            fields[name] = jax.tree.map(
                lambda x, n=room[level], fill=fill: jnp.full((n, *x.shape[1:]), fill, x.dtype),
                getattr(batch, name),
            )
        # One system may fill the buffer.
        return cls(Batch(**fields, largest=atoms), jnp.asarray(False), jnp.asarray(0, jnp.int32))

    def write(self, batch: Batch, mask: Any = None) -> SystemBuffer:
        """The buffer with systems of a batch appended: all, or those for which `mask` [systems] is True.

        Raises:
            ValueError: if dtype or extras differ from those of the buffer.
        """
        if format_of(batch) != format_of(self.batch):
            raise ValueError(
                "The buffer was made for batches of another dtype or with other extras: "
                f"{format_of(self.batch)}, not {format_of(batch)}."
            )
        room = self.batch
        which = batch.system_mask if mask is None else batch.system_mask & jnp.asarray(mask)
        sizes = jnp.where(which, batch.atoms_per_system, 0)
        n_systems, n_atoms = room.system_mask.sum(), room.atoms_per_system.sum()
        systems, atoms = n_systems + which.sum(), n_atoms + sizes.sum()
        fits = (systems <= room.system_capacity) & (atoms <= room.atom_capacity) & ~self.overflow
        go = which & fits
        # The new row of each system and each atom; those that are not stored are beyond the end.
        row = jnp.where(go, n_systems + jnp.cumsum(which) - 1, room.system_capacity).astype(jnp.int32)
        first = (n_atoms + jnp.cumsum(sizes) - sizes).astype(jnp.int32)
        shift = first - batch.first_atom
        of = jnp.minimum(batch.batch_idx, batch.system_capacity - 1)
        place = jnp.arange(batch.atom_capacity, dtype=jnp.int32) + shift[of]
        atom = jnp.where(batch.atom_mask & go[of], place, room.atom_capacity)
        new = dataclasses.replace(batch, batch_idx=row[of], first_atom=first)
        fields = {}
        for name, level in level_fields(room):
            target = row if level == "system" else atom
            fields[name] = jax.tree.map(
                lambda old, x, target=target: old.at[target].set(jnp.asarray(x, old.dtype), mode="drop"),
                getattr(room, name),
                getattr(new, name),
            )
        fields["first_atom"] = jnp.where(
            jnp.arange(room.system_capacity) < jnp.where(fits, systems, n_systems),
            fields["first_atom"],
            jnp.where(fits, atoms, n_atoms).astype(jnp.int32),
        )
        missed = self.missed + jnp.where(fits, 0, which.sum()).astype(jnp.int32)
        overflow = self.overflow | (~fits & which.any())
        return SystemBuffer(dataclasses.replace(room, **fields), overflow, missed)

    def zero(self) -> SystemBuffer:
        """An empty buffer with the same capacities."""
        return SystemBuffer.like(self.batch, self.batch.system_capacity, self.batch.atom_capacity)

    def read(self) -> HostBatch:
        """The systems.

        Raises:
            SinkFull: if a write did not fit, so that systems are missing. `buffer.batch` has the stored ones.
            ValueError: under a transform, or if there are no systems.
        """
        if is_traced(self.overflow) or np.ndim(self.overflow):
            raise ValueError("SystemBuffer.read is for the host: under jit or vmap use buffer.batch.")
        if self.overflow:
            raise SinkFull(
                f"{self!r} is full: {int(self.missed)} systems found no room; give it a larger one, or "
                "drain it earlier. `buffer.batch` has those that did."
            )
        host = self.batch.to_host()
        if not len(host):
            raise ValueError("SystemBuffer is empty: nothing was written to it.")
        return host

    def __repr__(self) -> str:
        room = f"room for {self.batch.system_capacity} systems, {self.batch.atom_capacity} atoms"
        if is_traced(self.overflow) or np.ndim(self.overflow):
            return f"SystemBuffer({room})"
        return f"SystemBuffer({self.batch.num_systems} systems, {self.batch.num_atoms} atoms; {room})"


#: The new buffer reuses the memory of the old one.
_write = jax.jit(SystemBuffer.write, donate_argnums=0)


class DeviceBuffer(Sink):
    """A sink in arrays of fixed size on the device, for use as the first sink of a `SinkChain`.

    Inside jit, vmap or a loop use its traced form, `SystemBuffer`.

    Args:
        systems, atoms: largest numbers of systems and atoms. Memory is allocated when the first system is
            written.
    """

    def __init__(self, systems: int, atoms: int):
        self.systems = natural("systems of DeviceBuffer")(systems)
        self.atoms = natural("atoms of DeviceBuffer")(atoms)
        self._buffer: SystemBuffer | None = None
        self._meta: list[SystemMeta | None] = []
        self._n_atoms = 0
        #: Whether there are constraints of systems without names.
        self._lost = False

    def write(self, batch: Batch | HostBatch, mask: Any = None) -> None:
        check_batch(self, batch)
        which = systems_mask(batch, mask)
        sizes = np.asarray(batch.atoms_per_system)[which]
        if not len(sizes):
            return
        if self._buffer is None:
            self._buffer = SystemBuffer.like(batch, self.systems, self.atoms)
        check_same_format(self, format_of(self._buffer.batch), format_of(batch))
        self._refuse_overflow(sizes, f"{self.systems} systems and {self.atoms} atoms")
        rows = np.flatnonzero(which)
        self._lost |= not batch.meta and batch.meta.constrained
        self._meta += batch.meta.of_rows(rows) or [None] * len(rows)
        if isinstance(batch, HostBatch):
            # Padded to one of a few sizes, so that few sizes are compiled.
            batch = Batch.from_host(batch)
            which = np.pad(which, (0, batch.system_capacity - len(which)))
        # `largest` is not used, but a different value would recompile.
        self._buffer = _write(self._buffer, batch.replace(largest=batch.atom_capacity), which)
        self._n_atoms += int(sizes.sum())

    def room_for(self, atoms_per_system: Int[np.ndarray, " systems"]) -> int:
        fit = np.cumsum(atoms_per_system) <= self.atoms - self._n_atoms
        return min(int(fit.sum()), self.systems - len(self))

    def read(self) -> HostBatch:
        if self._buffer is None or not len(self):
            raise ValueError("DeviceBuffer is empty: nothing was written to it.")
        known = [m for m in self._meta if m is not None]
        return self._buffer.read().with_meta(Metadata(known if len(known) == len(self) else (), self._lost))

    def zero(self) -> None:
        # The next system may have another format.
        self._buffer, self._meta, self._n_atoms, self._lost = None, [], 0, False

    def state(self) -> Any:
        """The systems themselves."""
        return {"systems": len(self), "batch": batch_tree(self.read() if len(self) else None)}

    def set_state(self, state: Any) -> None:
        """Replace the systems by those of a state.

        Raises:
            SinkFull: if they do not fit.
        """
        self.zero()
        batch = None if state is None else batch_from_tree(state["batch"])
        if batch is not None:
            self.write(batch)

    def __len__(self) -> int:
        return len(self._meta)

    def __repr__(self) -> str:
        return f"DeviceBuffer({len(self)} of {self.systems} systems, {self._n_atoms} of {self.atoms} atoms)"
