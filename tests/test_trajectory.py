"""Trajectory: pieces of a store are the pieces of what was written; and show, convert of the command line."""

import re
import sys

import ase.io
import jax
import numpy as np
import pytest
import zarr
from conftest import cluster, crystal, zoo

from alchemi_jax import Batch
from alchemi_jax.cli.main import main
from alchemi_jax.dynamics import FIRE, NVE, ConvergenceHook, NVTLangevin
from alchemi_jax.dynamics.hooks import ConvergedSnapshotHook, SnapshotHook
from alchemi_jax.dynamics.sinks import ZarrData
from alchemi_jax.io.trajectory import Trajectory
from alchemi_jax.models import HarmonicModel
from alchemi_jax.systems.levels import level_fields
from alchemi_jax.units import GPA


# What is compared exactly are copies.
pytestmark = pytest.mark.cheap_xla


def same(a, b):
    a, b = a.take(), b.take()
    for name, _ in level_fields(a):
        jax.tree.map(np.testing.assert_array_equal, getattr(a, name), getattr(b, name))
    assert [(m.name, m.info.keys()) for m in a.meta] == [(m.name, m.info.keys()) for m in b.meta]


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """Random subsets of a batch of many sizes, 12 writes in small chunks, two of them with nothing."""
    path = tmp_path_factory.mktemp("trajectory") / "x.zarr"
    structures = list(zoo().values())
    for i, atoms in enumerate(structures):
        atoms.set_array("site", np.arange(len(atoms)) + 10 * i)
        atoms.info["title"] = f"structure {i}"
    batch, rng, frames = Batch.from_ase(structures, system_capacity=8), np.random.default_rng(0), []
    sink = ZarrData(path, chunk_bytes=300)
    sink.open()
    for k in range(12):
        batch = batch.replace(
            positions=rng.normal(size=batch.positions.shape),
            energy=rng.normal(size=8),
            steps_taken=np.full(8, 5 * k, np.int32),
        )
        mask = (rng.random(8) < 0.6) & (k not in (3, 7))
        sink.write(batch, mask)
        if mask.any():
            frames.append(batch.take(mask))
        if k == 6:
            # Appending goes on with the numbers.
            sink.close()
            sink = ZarrData(path)
            sink.open()
    sink.close()
    return path, frames


def test_frames_are_the_writes(written):
    path, frames = written
    traj = Trajectory(path)
    assert len(traj) == traj.n_frames == len(frames) == 10
    assert traj.n_rows == sum(f.num_systems for f in frames)
    for i, (frame, found) in enumerate(zip(frames, traj, strict=True)):
        same(found, frame)
        same(traj[i - len(frames)], frame)
    for piece in (slice(None), slice(2, 5), slice(None, None, 3), slice(None, None, -1), slice(-2, None)):
        same(traj.to_batch(piece), Batch.concatenate(frames[piece]))
        wanted = [len(a) for f in frames[piece] for a in f.to_ase()]
        assert [len(a) for a in traj.to_ase(piece)] == wanted
    assert traj.to_ase(slice(5, 5)) == []
    with pytest.raises(IndexError, match="has 10 frames, there is no frame 10"):
        traj[10]
    with pytest.raises(IndexError, match="none of them"):
        traj[5:5]


def test_fields_by_slice_are_numpy_slices(written):
    path, _ = written
    traj, whole = Trajectory(path), Batch.concatenate(written[1]).take()
    assert {"positions", "energy", "site", "steps_taken"} <= set(traj.fields)
    assert "batch_idx" not in traj.fields
    index = np.array([3, 1, -1, 3])
    for name in ("energy", "positions", "site", "stress", "fixed"):
        field, wanted = traj[name], whole[name]
        assert (field.shape, field.dtype, field.ndim, len(field)) == (
            wanted.shape,
            wanted.dtype,
            wanted.ndim,
            len(wanted),
        )
        for key in (
            slice(None), slice(3, 9), slice(-4, None), slice(None, None, 3), slice(None, None, -2),
            slice(9, 3), 0, -1, index, np.arange(len(wanted)) % 3 == 0, np.zeros(0, int), ...,
        ):  # fmt: skip
            np.testing.assert_array_equal(field[key], wanted[key])
        np.testing.assert_array_equal(np.asarray(field), wanted)
    np.testing.assert_array_equal(traj["positions"][4:20, 1], whole.positions[4:20, 1])
    np.testing.assert_array_equal(traj["positions"][index, ..., 2], whole.positions[index, ..., 2])
    assert repr(traj["energy"]) == f"Field('energy', per system, float64[{len(whole.energy)}])"
    with pytest.raises(KeyError, match="has no field 'enrgy'; it has positions"):
        traj["enrgy"]
    with pytest.raises(IndexError, match="there is no row 999"):
        traj["energy"][999]
    with pytest.raises(IndexError, match="the mask has 1"):
        traj["energy"][[True]]
    for odd in (1.5, "x", None, [1.5], [[0]], {}):
        with pytest.raises(TypeError, match="rows are chosen by whole numbers, a slice or a mask, not by"):
            traj["energy"][odd]
        with pytest.raises((TypeError, KeyError), match=r"frames are chosen by|has no field 'x'"):
            traj[odd]
    for odd in (999, -999):
        with pytest.raises(IndexError, match=f"there is no row {odd}"):
            traj["energy"][[0, odd, 3]]


def test_one_system_through_its_frames(written):
    path, frames = written
    traj = Trajectory(path)
    for system_id in traj.system_ids:
        series = traj.system(int(system_id))
        mine = [(k, f, int(np.flatnonzero(f.system_id == system_id)[0])) for k, f in enumerate(frames)
                if system_id in f.system_id]  # fmt: skip
        assert len(series) == series.n_frames == len(mine)
        assert series.frames.tolist() == [k for k, *_ in mine]
        np.testing.assert_array_equal(series.energy, [f.energy[i] for _, f, i in mine])
        np.testing.assert_array_equal(series.steps_taken, [f.steps_taken[i] for _, f, i in mine])
        np.testing.assert_array_equal(series.positions, [f.positions[f.batch_idx == i] for _, f, i in mine])
        assert series.site.shape == series.positions.shape[:2]
        same(series.to_batch(), Batch.concatenate([f.take([i]) for _, f, i in mine]))
        assert len(series.to_ase(slice(0, 2))) == min(2, len(mine))
        assert series.name == mine[0][1].name_of(mine[0][2])
        assert "positions" in dir(series)
    with pytest.raises(KeyError, match="no system 77; its ids are from 0 to 7"):
        traj.system(77)
    with pytest.raises(AttributeError, match="has no 'colour'"):
        _ = series.colour


def test_an_id_of_two_systems_is_refused(tmp_path):
    sink = ZarrData(tmp_path / "x.zarr")
    sink.write(Batch.from_ase(cluster(0, 3)))
    sink.write(Batch.from_ase(cluster(0, 4)))
    with pytest.raises(ValueError, match="systems of 3 and of 4 atoms under the id 0"):
        Trajectory(tmp_path / "x.zarr").system(0)


def test_it_loads_what_is_asked_for_alone(written, monkeypatch):
    """Of a frame the chunks that hold it, not the others."""
    path, _ = written
    traj, seen = Trajectory(path), []
    get = zarr.storage.LocalStore.get

    async def watched(self, key, *args, **kwargs):
        seen.append(key)
        return await get(self, key, *args, **kwargs)

    monkeypatch.setattr(zarr.storage.LocalStore, "get", watched)
    _ = traj["positions"][0:2]
    chunks = [key for key in seen if key.startswith("positions/c")]
    assert 1 <= len(chunks) <= 2
    assert len(list((path / "positions").iterdir())) > 20


def test_it_follows_a_run_by_refresh(tmp_path):
    path, batch = tmp_path / "x.zarr", Batch.from_ase([cluster(0, 5), cluster(1, 3)])
    sink = ZarrData(path)
    sink.open()
    traj = Trajectory(path)
    assert (len(traj), traj.fields, traj.n_rows) == (0, [], 0)
    assert "0 frames of 0 systems" in repr(traj)
    for k in range(3):
        sink.write(batch)
        sink.read()
        assert len(traj) == k, "what it showed stays"
        if k:
            assert traj["energy"].shape == (2 * k,)
        assert len(traj.refresh()) == k + 1
    sink.close()
    with pytest.raises(ValueError, match="does not exist"):
        Trajectory(tmp_path / "y.zarr")


def test_a_frame_of_a_converged_snapshot_are_those_that_converged_then(lj, tmp_path):
    batch = Batch.from_ase([cluster(i, 5) for i in range(4)])
    hooks = [ConvergenceHook.from_fmax(0.05), ConvergedSnapshotHook(ZarrData(tmp_path / "x.zarr"))]
    out = FIRE(model=lj, n_steps=400, hooks=hooks).run(batch).take()
    traj = Trajectory(tmp_path / "x.zarr")
    assert traj.n_rows == out.converged.sum() == 4
    assert traj.n_frames == len(np.unique(out.steps_taken))
    for frame in traj:
        assert len(np.unique(frame.take().steps_taken)) == 1


def test_tables(written):
    path, frames = written
    traj = Trajectory(path)
    pandas = pytest.importorskip("pandas")
    table = traj.to_pandas()
    assert isinstance(table, pandas.DataFrame)
    assert len(table) == traj.n_rows
    np.testing.assert_array_equal(table["energy"], traj["energy"][:])
    assert table.groupby("frame").size().tolist() == [f.num_systems for f in frames]
    assert "stress" not in table
    pytest.importorskip("xarray")
    data = traj.to_xarray()
    assert data.sizes == {"row": traj.n_rows}
    assert {"frame", "system_id"} <= set(data.coords)


def test_tables_say_what_is_missing(written, monkeypatch):
    for name in ("pandas", "xarray"):
        monkeypatch.setitem(sys.modules, name, None)
        with pytest.raises(ImportError, match=f"to_{name} needs {name}: pip install {name}"):
            getattr(Trajectory(written[0]), f"to_{name}")()


def test_it_shows_itself(written):
    traj = Trajectory(written[0])
    assert repr(traj).endswith(f"x.zarr': 10 frames of 8 systems, {traj.n_rows} rows)")
    html = traj._repr_html_()
    assert "<td>8, 1 to 32 atoms each</td>" in html
    assert "positions" in html
    assert "SystemSeries('system 1 (Ar32)', id 1: " in repr(traj.system(1))


# -- the command line ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def dynamics(tmp_path_factory):
    """A short thermostatted run of crystals."""
    from alchemi_jax.models import LennardJones

    path = tmp_path_factory.mktemp("show") / "md.zarr"
    model = LennardJones(epsilon=0.0104, sigma=3.4, cutoff=6.0)
    hooks = [SnapshotHook(ZarrData(path), frequency=4)]
    engine = NVTLangevin(model=model, dt=4.0, temperature=40.0, friction=0.02, n_steps=120, hooks=hooks)
    engine.run(Batch.from_ase([crystal(i, 2) for i in range(3)]))
    return path


def test_show(dynamics, capsys):
    picture = dynamics.parent / "deep" / "md.png"
    assert main(["show", str(dynamics), "--out", str(picture), "--skip", "10"]) == 0
    text = capsys.readouterr().out
    traj = Trajectory(dynamics)
    energy = np.mean([traj.system(i).energy[10:].mean() for i in range(3)]) / 32
    assert float(re.search(r"potential energy +eV/atom +(\S+) ", text)[1]) == pytest.approx(energy, rel=1e-5)
    for quantity in ("total energy", "temperature", "fmax"):
        assert re.search(rf"^  {quantity} .*±", text, re.MULTILINE), quantity
    assert re.search(r"frames +30, 90 rows, steps 1 to 117", text)
    assert re.search(r"\n +2 +30 +-", text), "a line for each system"
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert main(["show", str(dynamics), "--out", str(picture)]) == 2
    assert "md.png exists" in capsys.readouterr().err
    assert main(["show", str(dynamics), "--out", str(picture), "--overwrite"]) == 0
    capsys.readouterr()


def test_show_of_what_has_neither_results_nor_motion(tmp_path, capsys):
    ZarrData(tmp_path / "x.zarr").write(Batch.from_ase([cluster(0, 5), cluster(1, 3)]))
    assert main(["show", str(tmp_path / "x.zarr")]) == 0
    text = capsys.readouterr().out
    assert "2, 3 to 5 atoms each" in text
    assert "no results in it" in text
    assert main(["show", str(tmp_path / "x.zarr"), "--out", str(tmp_path / "x.png")]) == 2
    assert "no results to draw" in capsys.readouterr().err


def test_show_knows_the_pressure_of_a_stress(tmp_path, capsys):
    """-tr(stress)/3 of atoms at rest: 1 GPa here; of one frame no error is known."""
    batch = Batch.from_ase([crystal(i, 1) for i in range(30)])
    stress = np.broadcast_to(-GPA * np.eye(3), (batch.system_capacity, 3, 3))
    ZarrData(tmp_path / "x.zarr").write(batch.replace(stress=stress))
    assert main(["show", str(tmp_path / "x.zarr"), "--out", str(tmp_path / "x.pdf")]) == 0
    text = capsys.readouterr().out
    assert re.search(r"^  pressure +GPa +1 +1 +\+0$", text, re.MULTILINE), text
    assert "±" not in text
    assert (tmp_path / "x.pdf").exists()


@pytest.mark.parametrize("name", ["out.extxyz", "out.traj", "out.xyz", "out.json", "out.extxyz.gz"])
def test_convert(dynamics, tmp_path, capsys, name):
    out = tmp_path / name
    assert main(["convert", str(dynamics), str(out), "--frames=-4::2"]) == 0
    assert "6 structures of 2 frames written to" in capsys.readouterr().out
    found = ase.io.read(out, ":")
    wanted = Trajectory(dynamics).to_ase(slice(-4, None, 2))
    for a, b in zip(found, wanted, strict=True):
        np.testing.assert_allclose(a.positions, b.positions, atol=1e-7)
        assert a.get_potential_energy() == pytest.approx(b.get_potential_energy())
        np.testing.assert_allclose(a.get_velocities(), b.get_velocities(), atol=1e-7)
    if name != "out.json":
        assert [a.info["system_id"] for a in found] == [0, 1, 2, 0, 1, 2]
        assert found[-1].info["steps_taken"] == 113
    assert main(["convert", str(dynamics), str(out)]) == 2
    assert f"{name} exists" in capsys.readouterr().err
    assert len(ase.io.read(out, ":")) == 6
    assert main(["convert", str(dynamics), str(out), "--overwrite", "--frames", "0"]) == 0
    capsys.readouterr()
    assert len(ase.io.read(out, ":")) == 3
    assert [p.name for p in tmp_path.iterdir()] == [name], "nothing else is left"


def test_convert_of_one_structure(tmp_path, capsys):
    ZarrData(tmp_path / "x.zarr").write(Batch.from_ase(crystal(0, 1)))
    assert main(["convert", str(tmp_path / "x.zarr"), str(tmp_path / "out.cif")]) == 0
    assert len(ase.io.read(tmp_path / "out.cif")) == 4
    capsys.readouterr()


def test_bad_usage_is_one_sentence_and_exit_code_2(dynamics, tmp_path, capsys):
    zarr.open_group(tmp_path / "other.zarr", mode="w")
    sink = ZarrData(tmp_path / "empty.zarr")
    sink.open()
    sink.close()
    (tmp_path / "file").write_text("in the way")
    (tmp_path / "folder.extxyz").mkdir()
    out, good = str(tmp_path / "out.extxyz"), str(dynamics)
    cases = [
        (["show", str(tmp_path / "nowhere.zarr")], r"nowhere\.zarr does not exist"),
        (["show", str(tmp_path / "file")], "file is a file: give a folder"),
        (["show", str(tmp_path / "other.zarr")], "not one that ZarrData wrote"),
        (["show", str(tmp_path / "empty.zarr")], r"empty\.zarr holds no frames"),
        (["show", good, "--skip", "-1"], "--skip must be at least 0, not '-1'"),
        (["show", good, "--skip", "30"], "--skip 30 leaves nothing"),
        (["show", good, "--out", str(tmp_path / "file" / "x.png")], r"x\.png cannot be written"),
        (["show", good, "--out", str(tmp_path / "x.nothing")], r"x\.nothing cannot be written: "),
        (["convert", str(tmp_path / "nowhere.zarr"), out], r"nowhere\.zarr does not exist"),
        (["convert", good, str(tmp_path / "out.nothing")], r"out\.nothing: its name says no format"),
        (["convert", good, str(tmp_path / "POSCAR")], "holds one structure, and there are 90"),
        (["convert", good, out, "--frames", "x"], "--frames 'x' is neither"),
        (["convert", good, out, "--frames", "99"], "has 30 frames"),
        (["convert", good, out, "--frames", "40:50"], "leaves none of the 30 frames"),
        (["convert", good, str(tmp_path / "file" / "out.extxyz")], "cannot be written"),
        (["convert", good, str(tmp_path / "folder.extxyz"), "--overwrite"], "is a folder"),
    ]
    for arguments, sentence in cases:
        assert main(arguments) == 2, arguments
        error = capsys.readouterr().err
        assert re.search(sentence, error), (arguments, error)
        assert error.startswith(f"alchemi-jax {arguments[0]}: error: ")
        assert error.count("\n") == 1, error
    assert not (tmp_path / "out.extxyz").exists()


def test_a_run_that_goes_on_appends_frames(tmp_path):
    path, batch = tmp_path / "x.zarr", Batch.from_ase([cluster(i, 3) for i in range(2)])
    engine = NVE(model=HarmonicModel(), dt=1.0, hooks=[SnapshotHook(ZarrData(path))])
    state = engine.advance(engine.init(batch), 3)
    engine.advance(state, 2)
    traj = Trajectory(path)
    assert traj.system(1).steps_taken.tolist() == [1, 2, 3, 4, 5]
    assert traj.frame_of_row.tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]
