"""Sinks with a capacity: nothing is dropped, nothing is half there, and a chain is one long sink."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import cluster, zoo

from alchemi_jax import Batch
from alchemi_jax.dynamics import NVE, DynamicsStage
from alchemi_jax.dynamics.hooks import CallbackHook, SnapshotHook
from alchemi_jax.dynamics.sinks import (
    DeviceBuffer,
    HostMemory,
    Sink,
    SinkChain,
    SinkFull,
    SystemBuffer,
    ZarrData,
)
from alchemi_jax.models import HarmonicModel
from alchemi_jax.systems.levels import level_fields


# What is compared exactly are copies.
pytestmark = pytest.mark.cheap_xla


def batches(n, seed=0, extras=True, system_capacity=4):
    """Batches of clusters of 1 to 13 atoms with random results and extras."""
    rng = np.random.default_rng(seed)
    out = []
    for k in range(n):
        structures = []
        for i in range(4):
            atoms = cluster(10 * k + i, int(rng.integers(1, 14)))
            if extras:
                atoms.set_array("site", rng.integers(0, 9, len(atoms)))
            atoms.info["title"] = f"{k} {i}"
            structures.append(atoms)
        batch = Batch.from_ase(structures, atom_capacity=64, system_capacity=system_capacity)
        forces = rng.normal(size=batch.forces.shape)
        ids = np.where(np.asarray(batch.system_mask), 4 * k + np.arange(batch.system_capacity), -1)
        outcome = np.array([1, 2, 3, 4] + [0] * (batch.system_capacity - 4), np.int32)
        ended = batch.replace(outcome=outcome, reason=outcome - 1, time=outcome / 2)
        ended = ended.with_reasons({3: "its energy is not finite"})
        out.append(ended.replace(forces=forces, system_id=ids.astype(np.int32)))
    return out


def masks(n, seed=0):
    rng = np.random.default_rng(seed)
    return [None if rng.random() < 0.2 else rng.random(4) < rng.random() for _ in range(n)]


def assert_same(a, b, meta=True):
    a, b = a.take(), b.take()
    for name, _ in level_fields(a):
        x, y = getattr(a, name), getattr(b, name)
        jax.tree.map(np.testing.assert_array_equal, x, y)
    if meta:
        told = [[(m.name, m.info, m.reason) for m in x.meta] for x in (a, b)]
        assert told[0] == told[1]


def filled(sink, writes, which):
    for batch, mask in zip(writes, which, strict=True):
        sink.write(batch, mask)
    return sink


ALL = {
    "host": lambda p: HostMemory(),
    "bounded": lambda p: HostMemory(capacity=64),
    "device": lambda p: DeviceBuffer(64, 900),
    "zarr": lambda p: ZarrData(p / "x.zarr"),
    "chain": lambda p: SinkChain([DeviceBuffer(3, 30), HostMemory(5), ZarrData(p / "y.zarr")]),
}


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("kind", ALL)
def test_every_sink_is_the_same_sequence(tmp_path, kind, seed):
    writes, which = batches(6, seed), masks(6, seed)
    wanted = filled(HostMemory(), writes, which)
    sink = filled(ALL[kind](tmp_path), writes, which)
    assert len(sink) == len(wanted)
    assert not sink.is_full
    assert_same(sink.read(), wanted.read())
    assert_same(sink.drain(), wanted.read())
    assert len(sink) == 0
    assert sink.to_ase() == []
    with pytest.raises(ValueError, match=r"is empty|does not exist"):
        sink.read()
    # Emptied, it is as new, also for systems of another kind.
    plain = batches(2, 9, extras=False)
    assert_same(filled(sink, plain, [None, None]).read(), Batch.concatenate(plain))


@pytest.mark.parametrize("seed", range(4))
def test_a_full_sink_raises_and_stores_nothing_of_that_write(tmp_path, seed):
    """Random capacities: what is in it is always the writes that went through, each whole."""
    rng = np.random.default_rng(seed)
    systems, atoms = int(rng.integers(3, 12)), int(rng.integers(20, 80))
    sinks = [
        HostMemory(systems),
        DeviceBuffer(systems, atoms),
        SinkChain([HostMemory(1 + systems // 2), DeviceBuffer(2, atoms)]),
    ]
    for sink in sinks:
        wanted, refused = HostMemory(), 0
        for batch, mask in zip(batches(8, seed), masks(8, seed + 50), strict=True):
            sizes = np.asarray(batch.atoms_per_system)[slice(None) if mask is None else mask]
            if sink.room_for(sizes) == len(sizes):
                sink.write(batch, mask)
                wanted.write(batch, mask)
            else:
                refused += 1
                with pytest.raises(SinkFull, match=f"{re.escape(repr(sink))} is full: .* drain it"):
                    sink.write(batch, mask)
            assert len(sink) == len(wanted)
            if len(wanted):
                assert_same(sink.read(), wanted.read())
        assert refused
        sink.zero()
        assert not sink.is_full


def test_is_full():
    one, many = Batch.from_ase(cluster(0, 5)), batches(1, extras=False)[0]
    sink = HostMemory(2)
    sink.write(one)
    assert not sink.is_full
    sink.write(one)
    assert sink.is_full
    device = DeviceBuffer(9, 5)
    device.write(one)
    assert device.is_full, "no room for an atom"
    assert SinkChain([sink, device]).is_full
    assert not SinkChain([sink, HostMemory()]).is_full
    with pytest.raises(SinkFull, match=r"HostMemory\(2 of 2 systems\) is full: of 4 systems to write 0 fit"):
        sink.write(many)
    with pytest.raises(SinkFull, match=r"SinkChain.* of 4 systems to write 0 fit"):
        SinkChain([sink, device]).write(many)


def test_a_chain_splits_a_write_where_the_room_ends(tmp_path):
    (batch,) = batches(1, 3)
    first, second = HostMemory(3), ZarrData(tmp_path / "x.zarr")
    chain = SinkChain([first, second])
    chain.write(batch)
    assert (len(first), len(second)) == (3, 1)
    assert_same(chain.read(), batch)


def test_a_chain_keeps_the_order_of_writing_whatever_happens_to_its_sinks():
    """A sink that had systems before, one that is emptied in between, and room that opens again."""
    a, b, c, d = batches(4, 1)
    first, second = HostMemory(4), HostMemory()
    second.write(a)
    chain = SinkChain([first, second])
    chain.write(b)
    chain.write(c)
    assert_same(chain.read(), Batch.concatenate([a, b, c]))
    first.drain()
    assert_same(chain.read(), Batch.concatenate([a, c]))
    chain.write(d)
    assert (len(first), len(second)) == (4, 8)
    assert_same(chain.read(), Batch.concatenate([a, c, d]))


def test_a_small_system_may_overtake_none():
    """A large system that finds no room goes on to the next sink; order is kept all the same."""
    sizes = (5, 13, 2)
    writes = [Batch.from_ase(cluster(i, n)) for i, n in enumerate(sizes)]
    device, rest = DeviceBuffer(9, 8), HostMemory()
    chain = filled(SinkChain([device, rest]), writes, [None] * 3)
    assert (len(device), len(rest)) == (2, 1)
    assert chain.read().take().atoms_per_system.tolist() == list(sizes)


def test_refusals():
    (batch,) = batches(1)
    for make, sentence in (
        (lambda: HostMemory(0), "capacity of HostMemory must be a positive int, not 0"),
        (lambda: DeviceBuffer(0, 5), "systems of DeviceBuffer must be a positive int, not 0"),
        (lambda: SystemBuffer.like(batch, 1, 0), "atoms of SystemBuffer.like must be a positive int, not 0"),
        (lambda: SinkChain([]), "sinks of SinkChain must have at least one sink"),
        (lambda: SinkChain([HostMemory(), "x.zarr"]), "sinks of SinkChain must be sinks; 'x.zarr' is none"),
        (lambda: SinkChain([h := HostMemory(), h]), "a sink twice"),
        (lambda: HostMemory().write(batch, np.ones(3, bool)), r"mask has shape \(3,\).* 4 systems"),
    ):
        with pytest.raises(ValueError, match=sentence):
            make()
    for sink in (HostMemory(), DeviceBuffer(20, 200)):
        sink.write(batch)
        with pytest.raises(ValueError, match="holds float64 systems, the new ones are float32"):
            sink.write(Batch.from_ase(cluster(0), dtype=np.float32))
        with pytest.raises(ValueError, match=r"other extras than the new ones, .*: atom extra 'site'"):
            sink.write(Batch.from_ase(cluster(0)))
        assert len(sink) == 4

    class Own(Sink):
        def write(self, batch, mask=None): ...

        def read(self): ...

        def __len__(self):
            return 0

    with pytest.raises(NotImplementedError, match=r"Own defines no zero\(\)"):
        Own().zero()
    assert not Own().is_full


def test_a_full_sink_ends_the_run(lj):
    batch = Batch.from_ase([cluster(i, 4) for i in range(3)])
    sink = HostMemory(7)
    engine = NVE(model=HarmonicModel(), dt=1.0, n_steps=5, hooks=[SnapshotHook(sink)])
    with pytest.raises(SinkFull, match="of 3 systems to write 1 fit") as e:
        engine.run(batch)
    assert any("raised in hook SnapshotHook" in note for note in e.value.__notes__)
    assert len(sink) == 6


def test_the_zoo_comes_back_from_a_device():
    sink = DeviceBuffer(16, 200)
    batch = Batch.from_ase(zoo().values())
    sink.write(batch)
    assert_same(sink.read(), batch)


# -- the traced form -------------------------------------------------------------------------------


def traced_batches(n, seed):
    """Of one shape, without metadata."""
    return [b.replace(meta=None, largest=13) for b in batches(n, seed, system_capacity=5)]


def stacked(trees):
    return jax.tree.map(lambda *x: jnp.stack(x), *trees)


def expected(writes, which, systems, atoms):
    """What a buffer must hold: the first writes that all fit, and how many systems are missing."""
    sink, used, missed = HostMemory(), 0, 0
    for batch, mask in zip(writes, which, strict=True):
        sizes = np.asarray(batch.atoms_per_system)[: batch.num_systems][np.asarray(mask)[: batch.num_systems]]
        if missed or len(sink) + len(sizes) > systems or used + sizes.sum() > atoms:
            missed += len(sizes)
            continue
        sink.write(batch, np.asarray(mask) & np.asarray(batch.system_mask))
        used += sizes.sum()
    return sink, missed


@pytest.mark.parametrize("room", [(40, 600), (9, 600), (40, 60)], ids=["room", "few systems", "few atoms"])
def test_a_traced_buffer_in_a_scan_and_under_vmap(room):
    """Equal to writes to HostMemory one by one; beyond the room a flag, and never half a system."""
    lanes, n = 5, 6
    writes = [traced_batches(n, s) for s in range(lanes)]
    which = np.random.default_rng(0).random((lanes, n, 5)) < 0.6

    def fill(batches, masks):
        empty = SystemBuffer.like(jax.tree.map(lambda x: x[0], batches), *room)
        return jax.lax.scan(lambda b, x: (b.write(*x), None), empty, (batches, masks))[0]

    out = jax.jit(jax.vmap(fill))(stacked([stacked(w) for w in writes]), jnp.asarray(which))
    overflowed = 0
    for lane in range(lanes):
        buffer = jax.tree.map(lambda x, lane=lane: x[lane], out)
        wanted, missed = expected(writes[lane], which[lane], *room)
        assert int(buffer.missed) == missed
        assert bool(buffer.overflow) == (missed > 0)
        overflowed += missed > 0
        if len(wanted):
            assert_same(buffer.batch, wanted.read(), meta=False)
        if missed:
            with pytest.raises(SinkFull, match=f"{missed} systems found no room"):
                buffer.read()
        elif len(wanted):
            assert_same(buffer.read(), wanted.read(), meta=False)
        # Padding is what every Batch has there.
        held = buffer.batch
        assert (np.asarray(held.batch_idx)[held.num_atoms :] == held.system_capacity).all()
        assert (np.asarray(held.first_atom)[held.num_systems :] == held.num_atoms).all()
        assert (np.asarray(held.system_id)[held.num_systems :] == -1).all()
    assert (overflowed > 0) == (room != (40, 600))


def test_a_traced_buffer_in_a_while_loop():
    (batch,) = traced_batches(1, 0)

    @jax.jit
    def until_full(batch):
        empty = SystemBuffer.like(batch, 10, 200)
        return jax.lax.while_loop(lambda b: ~b.overflow, lambda b: b.write(batch), empty)

    out = until_full(batch)
    assert (out.batch.num_systems, int(out.missed)) == (8, 4)
    again = jax.jit(lambda b, x: b.zero().write(x))(out, batch)
    assert not again.overflow
    assert_same(again.read(), batch, meta=False)


def test_a_traced_buffer_refuses():
    batch = Batch.from_ase(cluster(0))
    buffer = SystemBuffer.like(batch, 2, 20)
    with pytest.raises(ValueError, match="SystemBuffer is empty"):
        buffer.read()
    with pytest.raises(ValueError, match="batches of another dtype or with other extras"):
        buffer.write(batches(1)[0])
    with pytest.raises(ValueError, match="for the host"):
        jax.jit(lambda b: b.read())(buffer)
    assert "0 systems, 0 atoms; room for 2 systems, 20 atoms" in repr(buffer)


def test_a_device_buffer_compiles_once_for_batches_of_one_shape(compilations):
    sink = DeviceBuffer(70, 950)
    with compilations() as count:
        for k, batch in enumerate(batches(4)):
            sink.write(batch, np.arange(4) != k)
    assert sum(name == "jit(write)" for name in count) == 1


def test_frames_are_those_of_the_moment(tmp_path, lj):
    """What a sink keeps is not what later steps make of the same memory."""
    seen, host, disk = [], HostMemory(), ZarrData(tmp_path / "x.zarr")
    device = DeviceBuffer(40, 400)
    copy = CallbackHook(
        lambda ctx: seen.append(np.array(ctx.batch.positions)), DynamicsStage.AFTER_STEP, frequency=3
    )
    hooks = [copy, *(SnapshotHook(sink, frequency=3) for sink in (host, disk, device))]
    NVE(model=lj, dt=2.0, n_steps=30, hooks=hooks).run(Batch.from_ase([cluster(i, 7) for i in range(2)]))
    assert len(seen) == 10
    for sink in (host, disk, device):
        np.testing.assert_array_equal(sink.read().take().positions, np.concatenate(seen))


def test_a_chain_opens_and_closes_all_its_sinks(tmp_path, lj):
    """In a run; also when one of them cannot be opened, or cannot be closed."""
    chain = SinkChain([HostMemory(5), ZarrData(tmp_path / "x.zarr")])
    batch = Batch.from_ase([cluster(i, 4) for i in range(3)])
    NVE(model=lj, dt=1.0, n_steps=4, hooks=[SnapshotHook(chain)]).run(batch)
    assert chain.read().take().steps_taken.tolist() == [1] * 3 + [2] * 3 + [3] * 3 + [4] * 3
    assert len(ZarrData(tmp_path / "x.zarr", mode="r")) == 7
    calls = []

    class Watched(HostMemory):
        def __init__(self, name, fails=()):
            super().__init__()
            self.name, self.fails = name, fails

        def open(self):
            calls.append(f"open {self.name}")
            if "open" in self.fails:
                raise OSError("no")

        def close(self):
            calls.append(f"close {self.name}")
            if "close" in self.fails:
                raise OSError(f"{self.name} does not close")

    with pytest.raises(OSError, match="no"):
        SinkChain([Watched("a"), Watched("b", ("open",)), Watched("c")]).open()
    assert calls == ["open a", "open b", "close a"]
    calls.clear()
    with pytest.raises(OSError, match="a does not close"):
        SinkChain([Watched("a", ("close",)), Watched("b", ("close",))]).close()
    assert calls == ["close a", "close b"]
