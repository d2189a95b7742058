"""ExtXYZ and AseTrajectory: what goes in comes out, for us and ASE, and files are whole after every write."""

import errno
import gc
import os
import subprocess
import sys
import time
import warnings
from pathlib import Path

import ase.io
import numpy as np
import pytest
from ase import Atoms
from ase.constraints import FixAtoms, FixBondLength, FixBondLengths, FixCartesian
from conftest import cluster, crystal, zoo

from alchemi_jax import AtomicData, Batch, HostBatch
from alchemi_jax.dynamics import NVE
from alchemi_jax.dynamics.hooks import SnapshotHook
from alchemi_jax.dynamics.sinks import AseTrajectory, ExtXYZ, ZarrData
from alchemi_jax.io.encoding import is_same
from alchemi_jax.models import HarmonicModel
from alchemi_jax.systems.levels import level_fields


# What is compared exactly are copies.
pytestmark = pytest.mark.cheap_xla


KINDS = {"extxyz": ExtXYZ, "traj": AseTrajectory}
#: Of a float in the file.
DIGITS = {"extxyz": 1e-8, "traj": 1e-15}


@pytest.fixture(params=KINDS)
def kind(request):
    return request.param


def rich(seed=0):
    """A batch with everything, two of its systems without results."""
    rng = np.random.default_rng(seed)
    structures = []
    for i, atoms in enumerate(zoo().values()):
        n = len(atoms)
        atoms.set_velocities(rng.normal(0, 0.01, (n, 3)))
        atoms.set_masses(rng.uniform(1, 50, n))
        atoms.set_array("site", rng.integers(0, 5, n))
        atoms.set_array("field", rng.normal(size=(n, 3)))
        atoms.set_array("label", np.array([f"atom{k}" for k in range(n)]))
        atoms.info |= {"title": f"structure {i}", "weights": np.arange(3.0), "nested": {"a": [1, 2]}}
        atoms.info |= {"charge": -1.0, "spin": 2.0} if i == 0 else {}
        if i % 2:
            atoms.set_constraint(FixAtoms(indices=[0]))
        structures.append(atoms)
    batch = Batch.from_ase(structures, system_capacity=8)
    some = np.arange(8) < 6
    symmetric = rng.normal(size=(8, 3, 3))
    return batch.replace(
        energy=np.where(some, rng.normal(size=8), np.nan),
        forces=np.where(
            some[np.minimum(batch.batch_idx, 7)][:, None], rng.normal(size=batch.forces.shape), np.nan
        ),
        stress=np.where(some[:, None, None], symmetric + symmetric.swapaxes(1, 2), np.nan),
        system_id=np.arange(100, 108, dtype=np.int32),
        status=rng.integers(0, 3, 8).astype(np.int32),
        converged=rng.random(8) < 0.5,
        failed=rng.random(8) < 0.5,
        steps_taken=rng.integers(0, 999, 8).astype(np.int32),
        stage_steps=rng.integers(0, 99, 8).astype(np.int32),
        target_temperature=np.where(some, 300.0, np.nan),
        outcome=np.array([0, 1, 2, 3, 4, 4, 0, 1], np.int32),
        reason=np.array([0, 0, 0, 17, 1, 0, 0, 0], np.int32),
        time=np.where(some, rng.uniform(0, 99, 8), np.nan),
    ).with_reasons({3: "Guard: too far", 4: "its energy is not finite"})


def assert_near(a, b, digits):
    a, b = a.take(), b.take()
    for name, _ in level_fields(a):
        if name.endswith("_extras"):
            assert getattr(a, name).keys() == getattr(b, name).keys()
            pairs = [(v, getattr(b, name)[k]) for k, v in getattr(a, name).items()]
        else:
            pairs = [(getattr(a, name), getattr(b, name))]
        for x, y in pairs:
            # Velocities are momenta in the file.
            np.testing.assert_allclose(x, y, rtol=1e-12, atol=2 * digits, err_msg=name)
    assert [m.name for m in a.meta] == [m.name for m in b.meta]
    for m, n in zip(a.meta, b.meta, strict=True):
        assert m.info.keys() == n.info.keys()
        assert m.reason == n.reason
        assert m.info["title"] == n.info["title"]
        assert m.info["nested"] == n.info["nested"]
        np.testing.assert_array_equal(m.info["weights"], n.info["weights"])


def test_what_goes_in_comes_out(tmp_path, kind):
    sink, batch = KINDS[kind](tmp_path / "deep" / f"x.{kind}"), rich()
    assert len(sink) == 0
    assert sink.to_ase() == []
    sink.write(batch)
    sink.write(batch, np.zeros(8, bool))
    sink.write(batch, np.arange(8) >= 5)
    assert len(sink) == 11
    assert not sink.is_full
    wanted = Batch.concatenate([batch, batch.take(np.arange(5, 8))])
    assert_near(sink.read(), wanted, DIGITS[kind])
    assert sink.read(np.float32).dtype == np.float32
    for atoms, other in zip(sink.to_ase(), wanted.to_ase(), strict=True):
        assert [type(c) for c in atoms.constraints] == [type(c) for c in other.constraints]
        assert atoms.arrays.keys() == other.arrays.keys()
        assert atoms.arrays["label"].tolist() == other.arrays["label"].tolist()
    assert_near(sink.drain(), wanted, DIGITS[kind])
    assert len(sink) == 0
    sink.write(batch)
    assert len(sink) == 8


def test_ase_reads_it_with_results_and_bookkeeping(tmp_path, kind):
    batch = rich()
    KINDS[kind](tmp_path / f"x.{kind}").write(batch)
    host = batch.take()
    for i, atoms in enumerate(ase.io.read(tmp_path / f"x.{kind}", ":")):
        assert atoms.info["system_id"] == 100 + i
        assert atoms.info["steps_taken"] == host.steps_taken[i]
        assert atoms.info["status"] == host.status[i]
        assert bool(atoms.info["converged"]) == host.converged[i]
        if i < 6:
            assert atoms.get_potential_energy() == pytest.approx(host.energy[i], abs=1e-12)
            np.testing.assert_allclose(atoms.get_stress(voigt=False), host.stress[i], atol=1e-8)
            mine = host.forces[host.batch_idx == i]
            np.testing.assert_allclose(atoms.get_forces(apply_constraint=False), mine, atol=1e-8)
        else:
            assert atoms.calc is None


def test_results_of_the_same_name_do_not_collide(tmp_path, kind):
    """Structures that carry numbers under the names of results: the results of the run stand."""
    atoms = cluster(0, 4)
    atoms.info["energy"] = -7.0
    batch = Batch.from_ase(atoms)
    batch = batch.replace(energy=np.array([1.5]), forces=np.zeros(batch.forces.shape))
    sink = KINDS[kind](tmp_path / "x")
    sink.write(batch)
    again = sink.read().take()
    assert again.energy.tolist() == [1.5]
    assert not again.forces.any()


def test_info_that_no_file_holds_is_stored_as_text_and_said(tmp_path, kind):
    atoms = cluster(0, 2)
    atoms.info |= {"odd": object, "deep": {"x": [np.arange(2), np.float64(3)], "y": (True,)}}
    sink = KINDS[kind](tmp_path / "x")
    with pytest.warns(UserWarning, match=r"system 0 .*: info\['odd'\] holds a type"):
        sink.write(Batch.from_ase(atoms))
    info = sink.to_ase()[0].info
    assert info["odd"] == str(object)
    assert is_same(info["deep"], atoms.info["deep"])
    # Others see a plain form.
    assert ase.io.read(tmp_path / "x", format=kind).info["deep"] == {"x": [[0, 1], 3.0], "y": [True]}


def test_a_file_of_anybodys_is_read_and_continued(tmp_path, kind):
    path = tmp_path / f"x.{kind}"
    ase.io.write(path, [cluster(0, 5), crystal(0, 1)])
    sink = KINDS[kind](path)
    assert len(sink) == 2
    sink.write(Batch.from_ase(cluster(1, 3)))
    assert [len(a) for a in sink.to_ase()] == [5, 4, 3]
    assert [len(a) for a in ase.io.read(path, ":")] == [5, 4, 3]
    assert sink.read().take().system_id.tolist() == [0, 1, 0]


def test_an_open_sink_is_readable_by_others_and_goes_on(tmp_path, kind):
    path = tmp_path / f"x.{kind}"
    sink, batch = KINDS[kind](path), Batch.from_ase([cluster(0, 5), cluster(1, 3)])
    sink.open()
    assert len(sink) == 0
    for k in range(3):
        sink.write(batch)
        assert len(ase.io.read(path, ":")) == 2 * k + 2 == len(KINDS[kind](path, "r")) == len(sink)
        assert sink.read().num_systems == 2 * k + 2
    sink.close()
    engine = NVE(model=HarmonicModel(), dt=1.0, n_steps=4, hooks=[SnapshotHook(KINDS[kind](path))])
    engine.run(batch)
    found = KINDS[kind](path, mode="r").read().take()
    assert found.steps_taken.tolist() == [0] * 6 + [1, 1, 2, 2, 3, 3, 4, 4]
    assert np.isfinite(found.energy[6:]).all()


def test_modes_and_refusals(tmp_path, kind):
    make, path, batch = KINDS[kind], tmp_path / "x", Batch.from_ase(cluster(0, 3))
    with pytest.raises(ValueError, match="x does not exist"):
        make(path, mode="r").read()
    make(path, mode="x").write(batch)
    with pytest.raises(FileExistsError, match="x exists: give another path"):
        make(path, mode="x").write(batch)
    for act in (lambda s: s.write(batch), lambda s: s.zero()):
        with pytest.raises(ValueError, match="opened to read"):
            act(make(path, mode="r"))
    anew = make(path, mode="w")
    anew.write(batch)
    anew.close()
    anew.write(batch)
    assert len(make(path)) == 2
    (tmp_path / "text").write_text("not such a file\n")
    for mode in ("a", "w"):
        with pytest.raises(ValueError, match="text is not an"):
            make(tmp_path / "text", mode).open()
    with pytest.raises(ValueError, match="text is not an"):
        make(tmp_path / "text").zero()
    assert (tmp_path / "text").read_text() == "not such a file\n"
    with pytest.raises(OSError, match="cannot be written"):
        make(tmp_path / "text" / "below").open()
    with pytest.raises(ValueError, match="mode of"):
        make(path, mode="z")
    (tmp_path / "empty").touch()
    with pytest.raises(ValueError, match=r"empty is empty|empty is not"):
        make(tmp_path / "empty", "r").read()
    make(tmp_path / "empty").write(batch)
    assert len(make(tmp_path / "empty")) == 1


def test_arrays_that_are_no_columns_come_back(tmp_path):
    for values in (np.array(["a", "b c"]), np.zeros((2, 3, 3)), np.array([2**40 + 7, 3_000_000_001])):
        atoms = cluster(0, 2)
        atoms.set_array("odd", values)
        ExtXYZ(tmp_path / "x", "w").write(Batch.from_ase([atoms]))
        np.testing.assert_array_equal(ExtXYZ(tmp_path / "x").to_ase()[0].arrays["odd"], values)
        assert len(ase.io.read(tmp_path / "x", format="extxyz")) == 2


def test_fixed_atoms_come_back_beside_other_constraints(tmp_path, kind):
    atoms = cluster(0, 6)
    others = [FixCartesian([2], (False, False, True)), FixBondLength(4, 5)]
    atoms.set_constraint([FixAtoms([0, 1]), *others])
    sink = KINDS[kind](tmp_path / "x")
    sink.write(HostBatch.from_data_list([AtomicData.from_ase(atoms)]))
    found = sink.to_ase()[0].constraints
    assert [c.todict() for c in found if isinstance(c, FixAtoms)] == [FixAtoms([0, 1]).todict()]
    assert len(found) == 3
    assert next(c for c in found if isinstance(c, FixCartesian)).mask.tolist() == [False, False, True]
    assert any(isinstance(c, FixBondLengths) for c in found)


def test_a_constraint_without_a_form_is_refused_by_name(tmp_path):
    class Odd:
        def adjust_forces(self, atoms, forces):
            pass

        def adjust_positions(self, atoms, new):
            pass

    data = AtomicData(positions=np.zeros((1, 3)), numbers=[18], constraints=(Odd(),), name="s7")
    host = HostBatch.from_data_list([data])
    for sink in (ExtXYZ(tmp_path / "x"), AseTrajectory(tmp_path / "t"), ZarrData(tmp_path / "z")):
        with pytest.raises(ValueError, match="s7: the constraint Odd cannot be stored"):
            sink.write(host)
        assert len(sink) == 0


def test_a_file_of_somebody_else_is_never_cut(tmp_path):
    """Without a final line break, with blank lines, or broken: nothing of it is lost."""
    path, mine = tmp_path / "mine.xyz", HostBatch.from_data_list([AtomicData.from_ase(cluster(1, 3))])
    ase.io.write(path, [cluster(0, 2), cluster(0, 5)], format="extxyz")
    text = path.read_text()
    for tail in ("", "\n", "\n\n \n"):
        path.write_text(text.rstrip("\n") + tail)
        sink = ExtXYZ(path)
        sink.open()
        sink.close()
        assert path.read_text() == text.rstrip("\n") + tail
        assert len(sink) == 2
        ExtXYZ(path).write(mine)
        assert path.read_text().startswith(text)
        assert [len(a) for a in ase.io.read(path, ":")] == [2, 5, 3]
    for broken in (text + "4\nplain\nAr 0 0 0\n", text + "4\npla", text + "4", text[:-60] + "\n"):
        path.write_text(broken)
        for act in (lambda: ExtXYZ(path).write(mine), lambda: ExtXYZ(path, "r").read()):
            with pytest.raises(ValueError, match=r"mine.xyz breaks off within the structure of line \d+"):
                act()
        assert path.read_text() == broken


def test_a_count_of_many_atoms_is_no_hang(tmp_path):
    (tmp_path / "x").write_text("1000000000000\n\nAr 0 0 0\n")
    with pytest.raises(ValueError, match="breaks off within the structure of line 1"):
        ExtXYZ(tmp_path / "x", "r").read()


def test_a_structure_that_broke_off_does_not_count(tmp_path, kind):
    """Every length at which a process may have been killed: whole structures are read, writing goes on."""
    path, batch = tmp_path / "x", Batch.from_ase([cluster(0, 2), cluster(1, 3)])
    sink = KINDS[kind](path)
    sink.write(batch, np.array([True, False]))
    one = path.read_bytes()
    sink.write(batch, np.array([False, True]))
    whole = path.read_bytes()
    for cut in range(len(one), len(whole), 7):
        # ASE counts a structure, in the head, after its bytes.
        path.write_bytes(one + whole[len(one) : cut])
        assert len(KINDS[kind](path)) == 1
        assert KINDS[kind](path).read().take().atoms_per_system.tolist() == [2]
        KINDS[kind](path).write(batch)
        assert [len(a) for a in ase.io.read(path, ":", format=kind)] == [2, 2, 3]


def test_a_full_disk_leaves_the_file_as_it_was(tmp_path, kind):
    """The error names the path and the hook; structures of earlier writes are intact."""
    path, batch = tmp_path / "x", Batch.from_ase([cluster(i, 13) for i in range(4)])
    sink = KINDS[kind](path)
    sink.write(batch)
    text = f"""
import resource, signal, sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
from conftest import cluster
from alchemi_jax import Batch
from alchemi_jax.dynamics import NVE
from alchemi_jax.dynamics.hooks import SnapshotHook
from alchemi_jax.dynamics.sinks import AseTrajectory, ExtXYZ
from alchemi_jax.models import HarmonicModel
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
size = {path.stat().st_size}
resource.setrlimit(resource.RLIMIT_FSIZE, (8 * size, -1))
sink = {KINDS[kind].__name__}({str(path)!r})
batch = Batch.from_ase([cluster(i, 13) for i in range(4)])
try:
    NVE(model=HarmonicModel(), dt=1.0, n_steps=9, hooks=[SnapshotHook(sink)]).run(batch)
except OSError as e:
    print(e, *e.__notes__)
"""
    done = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, check=True)
    assert f"{path} cannot be written: {os.strerror(errno.EFBIG)}." in done.stdout
    assert "raised in hook SnapshotHook" in done.stdout
    whole, rest = divmod(len(sink), 4)
    assert rest == 0
    assert whole > 1
    assert sink.read().take().steps_taken.tolist() == [k for k in range(whole) for _ in range(4)]
    sink.write(batch)
    assert len(ase.io.read(path, ":", format=kind)) == 4 * whole + 4


@pytest.mark.parametrize("times", [2, pytest.param(20, marks=pytest.mark.long)])
def test_a_killed_process_leaves_a_whole_file(tmp_path, kind, times):
    text = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
from conftest import cluster
from alchemi_jax import Batch
from alchemi_jax.dynamics.sinks import AseTrajectory, ExtXYZ
sink = {KINDS[kind].__name__}(sys.argv[1])
sink.open()
n = 0
batches = [Batch.from_ase([cluster(n, 1 + n % 5)]) for n in range(10)]
while True:
    sink.write(batches[n % 10])
    n += 1
    print(n, flush=True)
"""
    rng = np.random.default_rng(times)
    for k in range(times):
        path = tmp_path / str(k)
        process = subprocess.Popen([sys.executable, "-c", text, str(path)], stdout=subprocess.PIPE, text=True)
        process.stdout.readline()
        time.sleep(rng.uniform(0, 0.1))
        process.kill()
        committed = int(["1", *process.stdout.read().split()][-1])
        process.wait()
        process.stdout.close()
        structures = KINDS[kind](path).to_ase()
        assert committed <= len(structures) <= committed + 1
        for n, atoms in enumerate(structures):
            wanted = cluster(n % 10, 1 + n % 10 % 5).positions
            np.testing.assert_allclose(atoms.positions, wanted, atol=1e-8)
        KINDS[kind](path).write(Batch.from_ase(cluster(0, 2)))
        assert len(KINDS[kind](path).to_ase()) == len(structures) + 1


@pytest.mark.parametrize("kind", [ExtXYZ, AseTrajectory, ZarrData])
def test_two_sinks_do_not_write_one_file_at_a_time(kind, tmp_path):
    """Each would overwrite what the other appends. Reading goes on, and one after the other is fine."""
    batch, path = Batch.from_ase([Atoms("Ar"), Atoms("Ar2", [[0, 0, 0], [3, 0, 0]])]), tmp_path / "x"
    first = kind(path)
    first.open()
    first.write(batch)
    for mode in ("a", "w"):
        second = kind(path, mode=mode)
        for call in (second.open, lambda second=second: second.write(batch)):
            with pytest.raises(ValueError, match=r"x is being written by another sink or log.* path of its"):
                call()
    assert len(first) == 2
    first.close()
    assert len(kind(path)) == 2
    second = kind(path)
    second.open()
    with pytest.raises(ValueError, match="is being written"):
        first.write(batch)
    second.write(batch)
    second.close()
    first.write(batch)
    assert len(first) == len(kind(path).read()) == 6


def test_a_sink_that_was_forgotten_open_keeps_nobody_out(tmp_path):
    batch = Batch.from_ase(Atoms("Ar"))
    for kind in (ExtXYZ, AseTrajectory):
        left = kind(tmp_path / kind.__name__)
        left.open()
        left.write(batch)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ResourceWarning)
            del left
            gc.collect()
        kind(tmp_path / kind.__name__).write(batch)
        assert len(kind(tmp_path / kind.__name__)) == 2
