"""`view()`: what is handed to 3Dmol.js."""

import json
import re
import sys

import numpy as np
import pytest
from conftest import cluster, crystal

from alchemi_jax import Batch, Trajectory
from alchemi_jax.dynamics import NVE
from alchemi_jax.dynamics.hooks import SnapshotHook
from alchemi_jax.dynamics.sinks import ZarrData


def test_without_the_viewer_one_sentence_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "py3Dmol", None)
    with pytest.raises(ImportError, match=r"^view needs py3Dmol: pip install py3Dmol\.$"):
        Batch.from_ase(cluster(0)).view()


def test_a_batch_shows_each_system_in_a_field_of_its_own():
    pytest.importorskip("py3Dmol")
    structures = [cluster(0, 4), crystal(0, 1), *[cluster(i, 5) for i in range(9)]]
    page = Batch.from_ase(structures).view().write_html()
    models = [json.loads(m) for m in re.findall(r'addModel\((".*?"),"xyz"\)', page)]
    assert len(models) == 9
    for text, atoms in zip(models, structures, strict=False):
        lines = text.splitlines()
        assert lines[0] == str(len(atoms))
        found = np.array([line.split()[1:] for line in lines[2:]], float)
        np.testing.assert_allclose(found, atoms.positions, atol=1e-4)
        assert [line.split()[0] for line in lines[2:]] == atoms.get_chemical_symbols()
    assert "rows: 3, cols: 3" in page
    assert page.count("addLine") == 12  # the cell of the crystal
    assert Batch.from_ase(structures).view(1).write_html().count("addModel(") == 1


def test_a_trajectory_shows_a_system_as_it_moves(lj, tmp_path):
    pytest.importorskip("py3Dmol")
    look = SnapshotHook(ZarrData(tmp_path / "t.zarr"))
    NVE(model=lj, dt=4.0, n_steps=6, hooks=[look]).run(Batch.from_ase([cluster(0, 4), cluster(1, 5)]))
    traj = Trajectory(tmp_path / "t.zarr")
    page = traj.view(1, slice(None, None, 2), interval=80).write_html()
    (text,) = (json.loads(m) for m in re.findall(r'addModelsAsFrames\((".*?"),"xyz"\)', page))
    path = traj.system(1).positions[::2]
    found = np.array([line.split()[1:] for line in text.splitlines() if line[:2] == "Ar"], float)
    np.testing.assert_allclose(found, path.reshape(-1, 3), atol=1e-4)
    assert '"interval": 80' in page
    assert len(traj.view().write_html()) > 500


@pytest.mark.parametrize("none", [[], np.zeros(2, bool)])
def test_no_systems_are_not_shown(none):
    batch = Batch.from_ase([cluster(0, 4), cluster(1, 5)])
    with pytest.raises(IndexError, match=r"^the batch has 2 systems, none of them in "):
        batch.view(none)


def test_no_frames_are_not_shown(lj, tmp_path):
    look = SnapshotHook(ZarrData(tmp_path / "t.zarr"))
    NVE(model=lj, dt=4.0, n_steps=2, hooks=[look]).run(Batch.from_ase(cluster(0, 4)))
    with pytest.raises(IndexError, match=r"has 2 frames, none of them in slice\(9, None, None\)\.$"):
        Trajectory(tmp_path / "t.zarr").view(frames=slice(9, None))
    assert Trajectory(tmp_path / "t.zarr").system(0).to_ase(slice(9, None)) == []
