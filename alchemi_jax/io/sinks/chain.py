"""SinkChain: several sinks that are filled one after another."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Int

from alchemi_jax.io.sinks.base import Sink, SinkFull, check_batch, systems_mask
from alchemi_jax.systems.batch import Batch
from alchemi_jax.systems.host import HostBatch


class SinkChain(Sink):
    """Sinks in order of priority: systems go to the first one that has room for them.

    If a sink has no room for a whole write, the remaining systems go to the next sink. `read` gives first the
    systems that were in the sinks before, then all others in the order of writing.

    Args:
        sinks: for example `[DeviceBuffer(512, 8192), HostMemory(10_000), ZarrData("rest.zarr")]`.
    """

    def __init__(self, sinks: Sequence[Any]):
        if not isinstance(sinks, Iterable) or isinstance(sinks, str):
            raise ValueError(f"sinks of SinkChain must be a list of sinks, not {sinks!r}.")
        self.sinks: tuple[Sink, ...] = tuple(sinks)
        if not self.sinks:
            raise ValueError("sinks of SinkChain must have at least one sink, the list is empty.")
        wrong = [s for s in self.sinks if not isinstance(s, Sink)]
        if wrong:
            what = f"the class {wrong[0].__name__}" if isinstance(wrong[0], type) else repr(wrong[0])
            raise ValueError(f"sinks of SinkChain must be sinks; {what} is none.")
        if len({id(s) for s in self.sinks}) < len(self.sinks):
            raise ValueError("sinks of SinkChain has a sink twice: each must be another one.")
        #: (index of a sink, number of systems that it received), in order of writing.
        self._log: list[tuple[int, int]] = []

    def write(self, batch: Batch | HostBatch, mask: Any = None) -> None:
        check_batch(self, batch)
        which = systems_mask(batch, mask)
        sizes = np.asarray(batch.atoms_per_system)[which]
        parts, done = [], 0
        for index, sink in enumerate(self.sinks):
            fit = sink.room_for(sizes[done:]) if done < len(sizes) else 0
            if fit:
                parts.append((index, done, done + fit))
                done += fit
        if done < len(sizes):
            raise SinkFull(
                f"{self!r} is full: of {len(sizes)} systems to write {done} fit; drain it, or put a sink "
                "without a capacity, such as ZarrData, at its end."
            )
        order = np.cumsum(which) - 1
        for index, begin, end in parts:
            self.sinks[index].write(batch, which & (order >= begin) & (order < end))
            if self._log and self._log[-1][0] == index:
                self._log[-1] = (index, self._log[-1][1] + end - begin)
            else:
                self._log.append((index, end - begin))

    def room_for(self, atoms_per_system: Int[np.ndarray, " systems"]) -> int:
        done = 0
        for sink in self.sinks:
            if done < len(atoms_per_system):
                done += sink.room_for(atoms_per_system[done:])
        return done

    def read(self) -> HostBatch:
        counts = [len(s) for s in self.sinks]
        if not sum(counts):
            raise ValueError(f"{self!r} is empty: nothing was written to it.")
        everything = HostBatch.concatenate([s.read() for s, n in zip(self.sinks, counts, strict=True) if n])
        owners = np.repeat([i for i, _ in self._log], [n for _, n in self._log]).astype(int)
        # A sink may have had systems before, or have been emptied since; the logged systems are its last.
        rows, first = np.zeros(len(owners), int), 0
        before, kept = [], np.ones(len(owners), bool)
        for i, n in enumerate(counts):
            mine = np.flatnonzero(owners == i)
            logged = min(n, len(mine))
            kept[mine[: len(mine) - logged]] = False
            rows[mine[len(mine) - logged :]] = first + n - logged + np.arange(logged)
            before.append(first + np.arange(n - logged))
            first += n
        return everything.take(np.concatenate([*before, rows[kept]]))

    def zero(self) -> None:
        for sink in self.sinks:
            sink.zero()
        self._log = []

    def state(self) -> Any:
        """The states of the sinks, and the order of writing."""
        return {"sinks": [s.state() for s in self.sinks], "log": [list(entry) for entry in self._log]}

    def set_state(self, state: Any) -> None:
        """Set the state of each sink.

        Raises:
            ValueError: if the state is of a chain of another length; and what the sinks raise.
        """
        states = [None] * len(self.sinks) if state is None else state["sinks"]
        if len(states) != len(self.sinks):
            raise ValueError(
                f"{self!r} has {len(self.sinks)} sinks, that of the checkpoint {len(states)}: give the same."
            )
        for sink, of_sink in zip(self.sinks, states, strict=True):
            sink.set_state(of_sink)
        self._log = [] if state is None else [(int(i), int(n)) for i, n in state["log"]]

    def open(self) -> None:
        opened = []
        try:
            for sink in self.sinks:
                sink.open()
                opened.append(sink)
        except BaseException:
            for sink in opened:
                sink.close()
            raise

    def close(self) -> None:
        """Close all sinks, even if closing one of them fails; then raise the first error."""
        errors = []
        for sink in self.sinks:
            try:
                sink.close()
            except Exception as e:
                errors.append(e)
        if errors:
            raise errors[0]

    def __len__(self) -> int:
        return sum(len(s) for s in self.sinks)

    def __repr__(self) -> str:
        return f"SinkChain([{', '.join(map(repr, self.sinks))}])"
