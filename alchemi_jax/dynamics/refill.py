"""In-flight refilling: a batch of fixed shapes through which any number of systems goes.

The driver takes steps until enough systems are finished. These leave for the sink; what is left moves
together, the next systems of the stream take the room, and the driver goes on. A system that enters begins
with what `init` would give it: fresh rows of the algorithm's state and of the hooks' memories, and one
evaluation. The others are moved as they are, their neighbor lists with them: no bit of their steps changes.
"""

from __future__ import annotations

import dataclasses
import time
from collections import deque
from typing import TYPE_CHECKING, Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from alchemi_jax import neighbors as nl
from alchemi_jax.batch import Batch, Metadata
from alchemi_jax.dynamics import prepare
from alchemi_jax.dynamics.admission import evaluated, fresh_rows
from alchemi_jax.dynamics.driver import _ALWAYS, _compiled, _Report, _report, _Run, with_budget
from alchemi_jax.dynamics.sampler import Sampler, Stream
from alchemi_jax.dynamics.sinks import HostMemory, Sink
from alchemi_jax.dynamics.state import DynamicsState
from alchemi_jax.hooks.registry import noted
from alchemi_jax.levels import atom_rows, level_fields, select, swapped
from alchemi_jax.mistakes import name_of
from alchemi_jax.segments import to_atoms


if TYPE_CHECKING:
    from alchemi_jax.dynamics.base import AbstractDynamics

#: Of the systems in flight this part is finished when a run is refilled for the first time.
FIRST_SHARE = 0.4
#: Bounds of that part later on, and what it is where systems end together.
LEAST, MOST, WAVE = 0.05, 0.7, 0.9
#: What a system brings; all else is begun afresh, or said by its place.
_BROUGHT = (
    *("positions", "numbers", "masses", "velocities", "fixed"),
    *("cell", "pbc", "charge", "spin", "system_id", "atom_extras", "system_extras"),
)


@dataclasses.dataclass
class Traffic:
    """What a refilled run did.

    Attributes:
        systems: that went through, `refills` and `steps` of the batch.
        occupancy: mean part of the system places with an unfinished system, over all steps.
        seconds: in all; `host_seconds` of them no compiled step was under way.
    """

    systems: int = 0
    refills: int = 0
    steps: int = 0
    occupancy: float = 0.0
    seconds: float = 0.0
    host_seconds: float = 0.0


class Move(eqx.Module):
    """Where the rows of the new batch come from: `kept` [systems] ones from these rows of the old one,
    `systems` [systems] and `atoms` [atoms]. Arrays of numpy or tracers."""

    kept: Any
    systems: Any
    atoms: Any


def run(
    engine: AbstractDynamics, sampler: Sampler, sink: Sink | None, n_steps: int | None, key: Array | None
) -> Any:
    """See `AbstractDynamics.run`."""
    engine = with_budget(engine, n_steps)
    _check(engine)
    own = HostMemory()
    out = own if sink is None else sink
    stream = Stream(sampler, engine.model, lambda batch: prepare.check(engine, batch))
    try:
        with engine:
            _opened(out)
            try:
                sampler.traffic = _Refilled(engine, stream, out, key).run()
            except BaseException:
                out.close()
                raise
            out.close()
    finally:
        stream.close()
    if sink is not None:
        return sink
    if not len(own):
        raise ValueError(f"no system of {sampler!r} fits: {len(sampler.skipped)} were left out.")
    host = own.read().take()
    host = host.take(np.argsort(np.asarray(host.system_id), kind="stable"))
    return Batch.from_fields({name: getattr(host, name) for name, _ in level_fields(host)}, host.meta)


def _opened(sink: Sink) -> None:
    try:
        sink.open()
    except Exception as e:
        e.add_note(f"raised in sink {sink!r} before the first step")
        raise


def _check(engine: AbstractDynamics) -> None:
    for part in engine.parts:
        for f in dataclasses.fields(part):
            value = getattr(part, f.name)
            if isinstance(value, jax.Array) and value.ndim:
                raise ValueError(
                    f"{name_of(part)}.{f.name} has one value per system, but with a sampler systems come "
                    "and go: give one number, or set what differs by a hook."
                )
    for group in engine.groups:
        for hook in group.hooks:
            if getattr(hook, "needs_fixed_systems", False):
                raise ValueError(
                    f"{name_of(hook)} relates systems of a batch to one another, but with a sampler they "
                    "come and go: run it on a batch."
                )


class _Refilled:
    """A refilled run: the driver's, and what it needs to know of the batch to refill it."""

    def __init__(self, engine: AbstractDynamics, stream: Stream, sink: Sink, key: Array | None):
        self.engine, self.stream, self.sink = engine, stream, sink
        self.compiled = engine.on_device()
        self.traffic = Traffic()
        self.steps_taken = 0.0
        #: Steps of the systems that left last: so many that more would say little more.
        self.recent: deque[int] = deque(maxlen=10 * stream.sampler.max_systems)
        self.begun = time.perf_counter()
        most = stream.sampler.max_systems
        first = stream.take(most, stream.max_atoms, stream.sampler.max_pairs or np.inf)
        self.driver: _Run | None = None
        if first is None:
            return
        host, self.pairs = first
        places = most if stream.more else len(host.atoms_per_system)
        # A leading axis says whether a hook's memory is of atoms or of systems.
        atoms = max(stream.max_atoms, places + 1)
        fields = {name: getattr(host, name) for name, _ in level_fields(host)}
        batch = Batch.from_fields(fields, host.meta, atoms, places)
        batch = dataclasses.replace(batch, largest=max(batch.largest, stream.largest))
        needs = stream.needs
        if needs is not None and len(needs.images) < places:
            needs = None
        self.sizes = np.asarray(host.atoms_per_system)
        state = prepare.init(engine, batch, key, None, waiting=needs)
        self.driver = _Run(engine, state)

    def run(self) -> Traffic:
        driver, traffic = self.driver, self.traffic
        if driver is None:
            return traffic
        share = self.stream.sampler.refill_share or FIRST_SHARE
        stepping, judged = 0.0, 0
        while True:
            resident, step, begun = len(self.sizes), driver.report.step, time.perf_counter()
            few = resident - max(1, int(np.ceil(share * resident))) if self.stream.more else 0
            driver.advance(_ALWAYS, few)
            driver.drain()
            walked, stepped = driver.report.step - step, time.perf_counter()
            traffic.steps += walked
            stepping += stepped - begun
            going = self._turn_over()
            refilling = time.perf_counter() - stepped
            if not going:
                break
            if self.stream.sampler.refill_share is None and walked and traffic.systems > 2 * judged:
                judged = traffic.systems
                # Both of this turn: in earlier ones something was compiled.
                refill = refilling / ((stepped - begun) / walked)
                share = best_share(refill, np.array(self.recent), driver.state.batch.system_capacity)
        traffic.seconds = time.perf_counter() - self.begun
        traffic.host_seconds = traffic.seconds - stepping
        places = driver.state.batch.system_capacity * max(traffic.steps, 1)
        traffic.occupancy = self.steps_taken / places
        return traffic

    def _turn_over(self) -> bool:
        """Finished systems leave, others enter. False if none is left."""
        driver, stream = self.driver, self.stream
        assert driver is not None
        n = len(self.sizes)
        batch = prepare.verdict(self.engine, driver.state).replace(meta=driver.meta)
        host = jax.device_get(batch)
        left = np.zeros(batch.system_capacity, bool)
        left[:n] = host.status[:n] >= self.engine.exit_status
        self.traffic.systems += int(left.sum())
        steps = host.steps_taken[left]
        self.steps_taken += float(steps.sum())
        self.recent.extend(steps.tolist())
        with noted(self.sink, f"taking finished systems after step {driver.report.step}"):
            self.sink.write(host, left)
        stay = np.flatnonzero(~left[:n])
        entering = stream.take(
            batch.system_capacity - len(stay),
            stream.max_atoms - int(self.sizes[stay].sum()),
            (stream.sampler.max_pairs or np.inf) - float(self.pairs[stay].sum()),
        )
        if entering is None and not len(stay):
            return False
        self._enter(stay, entering)
        return True

    def _enter(self, stay: np.ndarray, entering: tuple[Batch, np.ndarray] | None) -> None:
        driver = self.driver
        assert driver is not None
        state = driver.state
        host, pairs = entering if entering is not None else (None, np.zeros(0, int))
        move, sizes = _move(state.batch, self.sizes, stay, host)
        incoming = _laid_out(state.batch, sizes, len(stay), host, self.stream.largest)
        meta = [driver.meta[i] for i in stay.tolist()] if driver.meta is not None else []
        if host is not None and host.meta is not None:
            meta += host.meta
        held = state.neighbors
        while True:
            after, numbers = _refilled(self.compiled, swapped(state, records=()), incoming, move, held)
            report = _Report(numbers)
            if held is None or not report.overflow:
                break
            # Only the sizes differ: the list is made anew from its references.
            assert after.neighbors is not None
            held = _resized(state, held, nl.grow(held.sizes, np.asarray(after.neighbors.needs)))
        driver.meta = Metadata(meta)
        driver.put(after.replace(records=state.records), report)
        self.sizes, self.pairs = sizes, np.concatenate([self.pairs[stay], pairs])
        self.traffic.refills += 1
        if report.failed:
            prepare.warn_failed(driver._with_meta(), None)


def best_share(refill: float, steps: np.ndarray, places: int) -> float:
    """The part of the systems that should be finished before others enter, so that a system costs least.

    Args:
        refill: what a refill costs, in steps of the batch.
        steps: that systems took, [systems].
        places: systems in flight.

    Two ways compete. If systems come and go at all times, places become idle one after another; with a
    part x idle at last, 1 - x/2 of them are busy on the average: a system costs steps / (1 - x/2) of a
    place's time, and refill / x of refills. The sum is least at x = q / (1 + q/2), q² = 2 refill / steps.
    But systems that take nearly the same number of steps, and began together, end together: then nearly all
    are worth waiting for. Which is cheaper is tried on systems drawn from those that were seen.
    """
    q = float(np.sqrt(2 * refill / max(steps.mean(), 1e-12)))
    steady = min(max(q / (1 + q / 2), LEAST), MOST)
    drawn = np.random.default_rng(0).choice(steps, 5 * places)
    return min((steady, WAVE), key=lambda share: _cost(share, refill, drawn, places))


def _cost(share: float, refill: float, steps: np.ndarray, places: int) -> float:
    """Steps, with refills counted as such, for a system of those that go through."""
    left, taken = np.array(steps[:places], float), places
    enough, spent, refills = int(np.ceil(share * places)), 0.0, 0
    while True:
        first = np.partition(left, enough - 1)[enough - 1]
        spent += first
        left -= first
        idle = np.flatnonzero(left <= 0)
        if taken + len(idle) > len(steps):
            return (spent + refill * refills) / (taken - places + len(idle))
        left[idle] = steps[taken : taken + len(idle)]
        taken, refills = taken + len(idle), refills + 1


def _resized(state: DynamicsState, held: nl.NeighborList, sizes: nl.ListSizes) -> nl.NeighborList:
    larger = nl.empty_list(state.batch, held.cutoff, held.skin, sizes)
    return dataclasses.replace(larger, **{name: getattr(held, name) for name in _REFERENCES})


_REFERENCES = ("ref_positions", "ref_cell", "ref_pbc", "ref_id", "builds")


def _move(old: Batch, sizes: np.ndarray, stay: np.ndarray, host: Batch | None) -> tuple[Move, np.ndarray]:
    """Rows that stay come first, in their order; also the sizes of all systems."""
    first, kept = np.cumsum(sizes) - sizes, sizes[stay]
    rows = atom_rows(first[stay], kept)
    systems = np.zeros(old.system_capacity, np.int32)
    systems[: len(stay)] = stay
    atoms = np.zeros(old.atom_capacity, np.int32)
    atoms[: len(rows)] = rows
    mask = np.arange(old.system_capacity) < len(stay)
    new = kept if host is None else np.concatenate([kept, np.asarray(host.atoms_per_system)])
    return Move(mask, systems, atoms), new


def _laid_out(old: Batch, sizes: np.ndarray, kept: int, host: Batch | None, largest: int) -> Batch:
    """The systems that enter at their places of the new batch; elsewhere what stands in padding.

    Arrays of numpy: compiled code takes them as they are.
    """
    n_systems, total = len(sizes), int(sizes.sum())
    length = {"atom": old.atom_capacity, "system": old.system_capacity}
    begin = {"atom": int(sizes[:kept].sum()), "system": kept}
    empty: dict[tuple, np.ndarray] = {}

    def placed(level: str, fill: Any, values: Any, like: Any) -> np.ndarray:
        if values is None:
            # One array for all that are alike.
            key = (level, fill, like.shape, like.dtype)
            if key not in empty:
                empty[key] = np.full(like.shape, fill, like.dtype)
            return empty[key]
        out = np.full((length[level], *like.shape[1:]), fill, like.dtype)
        out[begin[level] : begin[level] + len(values)] = values
        return out

    fields: dict[str, Any] = {}
    for f in dataclasses.fields(old):
        level = f.metadata.get("level")
        if level is None:
            continue
        like, fill = getattr(old, f.name), f.metadata["fill"]
        given = getattr(host, f.name) if host is not None and f.name in _BROUGHT else None
        if isinstance(like, dict):
            rows = {k: placed(level, fill, None if given is None else given[k], v) for k, v in like.items()}
            fields[f.name] = rows
        else:
            fields[f.name] = placed(level, fill, given, like)
    owner = np.full(old.atom_capacity, old.system_capacity, np.int32)
    owner[:total] = np.repeat(np.arange(n_systems, dtype=np.int32), sizes)
    starts = np.full(old.system_capacity, total, np.int32)
    starts[:n_systems] = np.cumsum(sizes) - sizes
    counts = np.zeros(old.system_capacity, np.int32)
    counts[:n_systems] = sizes
    fields |= {"batch_idx": owner, "first_atom": starts, "atoms_per_system": counts}
    return swapped(old, **fields, meta=None, largest=max(old.largest, largest))


@_compiled
def _refilled(
    engine: AbstractDynamics,
    state: DynamicsState,
    incoming: Batch,
    move: Move,
    lists: nl.NeighborList | None,
) -> tuple[DynamicsState, Array]:
    """The state with rows moved and others begun, and its report."""
    kept = move.kept
    atoms = to_atoms(incoming, kept) & incoming.atom_mask
    layout = {name: getattr(incoming, name) for name in ("batch_idx", "first_atom", "atoms_per_system")}
    moved = _rows(dataclasses.replace(state.batch, largest=incoming.largest), move)
    batch = select(atoms, kept, moved, prepare.begun(incoming))
    batch = batch.replace(**layout)
    arriving = ~kept & batch.system_mask

    def by_system(values: Array, fresh: Any) -> Array:
        return jnp.where(kept, values[move.systems], fresh)

    memory: list[Any] = list(state.memory)
    for group in engine.groups:
        for i, new in enumerate(group.hooks.init(batch), group.memory):
            memory[i] = fresh_rows(batch, ~kept, new, _moved_memory(state.batch, move, memory[i]))
    neighbors = None
    if lists is not None:
        references = dataclasses.replace(
            lists,
            ref_positions=lists.ref_positions[move.atoms],
            ref_cell=lists.ref_cell[move.systems],
            ref_pbc=lists.ref_pbc[move.systems],
            ref_id=by_system(lists.ref_id, -2),
        )
        neighbors = nl.resized(batch, references, lists.sizes)
    state = state.replace(
        batch=batch,
        neighbors=neighbors,
        memory=tuple(memory),
        newly_converged=jnp.zeros_like(kept),
        moved=by_system(state.moved, False),
        failed_at=by_system(state.failed_at, -1),
        came_from=by_system(state.came_from, -1),
    )
    state = evaluated(engine, state, arriving)
    fresh = engine.init_state(state.batch)
    integrator = select(atoms, kept, _rows(state.integrator, move), fresh)
    state = state.replace(integrator=integrator)
    return state, _report(engine, state)


def _rows(module: Any, move: Move) -> Any:
    """A Module whose fields declare levels, None or a tuple of these, with its rows moved."""
    if module is None:
        return None
    if isinstance(module, tuple):
        return tuple(_rows(part, move) for part in module)
    index = {"atom": move.atoms, "system": move.systems}
    changed = {
        name: jax.tree.map(lambda x, level=level: x[index[level]], getattr(module, name))
        for name, level in level_fields(module)
        if level != "shared"
    }
    return dataclasses.replace(module, **changed)


def _moved_memory(batch: Batch, move: Move, memory: Any) -> Any:
    """A hook's memory with its rows moved: by declared levels, else by the length of leading axes."""
    if isinstance(memory, eqx.Module) and any(level != "shared" for _, level in level_fields(memory)):
        return _rows(memory, move)

    def row(x: Array) -> Array:
        for length, index in ((batch.system_capacity, move.systems), (batch.atom_capacity, move.atoms)):
            if jnp.ndim(x) and jnp.shape(x)[0] == length:
                return x[index]
        return x

    return jax.tree.map(row, memory)
