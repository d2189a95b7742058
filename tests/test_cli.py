"""The command line: the main job, its files, its exit codes, and one clear sentence for bad input."""

import csv
import re
from pathlib import Path

import ase.io
import jax
import numpy as np
import pytest
from ase import Atoms
from cli_folders import same_folders
from conftest import cluster, crystal

from alchemi_jax import samples
from alchemi_jax.cli.main import main
from alchemi_jax.cli.signals import Signals
from alchemi_jax.dynamics.sinks import ZarrData


@pytest.fixture(scope="module")
def relaxed(tmp_path_factory):
    """The main job on two files, one of them with more than one structure."""
    folder = tmp_path_factory.mktemp("relax")
    ase.io.write(folder / "a.extxyz", [cluster(0, 7), cluster(1, 5)])
    ase.io.write(folder / "b.cif", crystal(0, 1))
    files = [str(folder / "a.extxyz"), str(folder / "b.cif")]
    code = main(["relax", *files, "--fmax", "0.005", "--out", str(folder / "out")])
    return folder, files, code


def test_relax_writes_everything(relaxed):
    folder, files, code = relaxed
    assert code == 0
    out = folder / "out"
    structures = ase.io.read(out / "relaxed.extxyz", ":")
    assert [len(a) for a in structures] == [7, 5, 4]
    assert [a.info["source_file"] for a in structures] == [files[0], files[0], files[1]]
    assert [a.info["source_index"] for a in structures] == [0, 1, 0]
    for atoms in structures:
        assert atoms.info["converged"]
        assert np.linalg.norm(atoms.get_forces(), axis=1).max() <= 0.005
    assert structures[2].get_stress().shape == (6,)
    stored = ZarrData(out / "relaxed.zarr").to_ase()
    for a, b in zip(stored, structures, strict=True):
        np.testing.assert_allclose(a.positions, b.positions, atol=1e-7)
    with open(out / "log.csv") as f:
        rows = list(csv.DictReader(f))
    assert list(rows[0]) == ["step", "system_id", "status", "energy", "fmax", "temperature", "steps_taken"]
    for i, atoms in enumerate(structures):
        mine = [r for r in rows if int(r["system_id"]) == i]
        assert [int(r["steps_taken"]) for r in mine] == list(range(atoms.info["steps"] + 1))
        assert float(mine[-1]["energy"]) == pytest.approx(atoms.get_potential_energy(), abs=1e-7)
        assert float(mine[-1]["fmax"]) <= 0.005
    assert (out / "convergence.png").read_bytes().startswith(b"\x89PNG")


def test_results_are_not_overwritten_unasked(relaxed, capsys):
    folder, files, _ = relaxed
    arguments = ["relax", files[0], "--steps", "2", "--out", str(folder / "out")]
    before = (folder / "out" / "relaxed.extxyz").read_bytes()
    assert main(arguments) == 2
    assert re.search(r"out holds results of other settings: fmax was .*--overwrite", capsys.readouterr().err)
    assert (folder / "out" / "relaxed.extxyz").read_bytes() == before
    code = main([*arguments, "--overwrite"])
    assert code == 3
    captured = capsys.readouterr()
    assert re.search(
        r"a\.extxyz, structure 1: did not converge, fmax [0-9.]+ eV/Å after 2 steps", captured.err
    )
    assert re.search(r"out of steps +2", captured.out)
    assert len(ase.io.read(folder / "out" / "relaxed.extxyz", ":")) == 2


def test_a_failing_structure_is_named_and_the_others_go_on(tmp_path, capsys):
    broken = Atoms("Ar3", positions=[[0, 0, 0], [0, 0, 0], [0, 0, 4]])
    ase.io.write(tmp_path / "x.extxyz", [cluster(0, 5), broken])
    assert main(["relax", str(tmp_path / "x.extxyz"), "--out", str(tmp_path / "o")]) == 3
    captured = capsys.readouterr()
    assert "structure 1: failed: its forces are not finite" in captured.err
    assert re.search(r"converged +1\n", captured.out)
    kept = ase.io.read(tmp_path / "o" / "relaxed.extxyz", ":")
    assert [a.info["converged"] for a in kept] == [True, False]
    np.testing.assert_allclose(kept[1].positions, broken.positions)


def bad_inputs(folder):
    """name -> (arguments, what the sentence says)."""
    (folder / "empty.extxyz").touch()
    (folder / "text.extxyz").write_text("this is no structure\n")
    nan = cluster(0, 3)
    nan.positions[1, 2] = np.nan
    ase.io.write(folder / "nan.extxyz", [cluster(0, 3), nan])
    flat = crystal(0, 1)
    flat.cell[2] = flat.cell[1]
    ase.io.write(folder / "flat.extxyz", flat)
    ase.io.write(folder / "helium.extxyz", Atoms("ArHe", positions=[[0, 0, 0], [0, 0, 4]]))
    ase.io.write(folder / "good.extxyz", cluster(0, 3))
    (folder / "file").write_text("in the way")
    good = str(folder / "good.extxyz")
    return {
        "missing": (["nowhere.cif"], r"nowhere\.cif does not exist"),
        "empty": ([str(folder / "empty.extxyz")], r"empty\.extxyz is empty"),
        "unreadable": ([str(folder / "text.extxyz")], r"text\.extxyz cannot be read by ASE: "),
        "nan": ([str(folder / "nan.extxyz")], r"nan\.extxyz:1: positions of atom 1 is not finite"),
        "no volume": ([str(folder / "flat.extxyz")], r"flat\.extxyz:0: cell has no volume"),
        "element": ([str(folder / "helium.extxyz")], r"helium\.extxyz:0: LennardJones has no epsilon for He"),
        "unwritable": ([good, "--out", str(folder / "file" / "out")], r"file/out cannot be written"),
        "model": ([good, "--model", "magic"], r"--model 'magic' is unknown: it can be ase, chgnet"),
        "parameter": ([good, "--model", "lj:epsilon=1,sigma=x"], r"'x' is no number"),
        "missing parameter": ([good, "--model", "morse:depth=1"], r"--model morse needs width, r0"),
    }


def test_bad_input_is_one_sentence_and_exit_code_2(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, (arguments, sentence) in bad_inputs(tmp_path).items():
        assert main(["relax", *arguments]) == 2, name
        error = capsys.readouterr().err
        assert re.search(sentence, error), (name, error)
        assert error.startswith("alchemi-jax relax: error: "), name
        assert error.count("\n") == 1, (name, error)
        assert not (tmp_path / "alchemi-relaxed").exists(), name


def test_wrong_usage_is_exit_code_2(capsys):
    for arguments in ([], ["relaxx"], ["relax", "--fmax", "small"], ["relax", "--dtype", "float16"]):
        assert main(arguments) == 2
    capsys.readouterr()


def test_models_by_name(tmp_path):
    ase.io.write(tmp_path / "he.extxyz", Atoms("He3", positions=cluster(0, 3).positions))
    for i, model in enumerate(("lj:epsilon=0.01,sigma=3.4,cutoff=9", "morse:depth=0.01,width=1.5,r0=3.8")):
        out = str(tmp_path / str(i))
        assert main(["relax", str(tmp_path / "he.extxyz"), "--model", model, "--out", out]) == 0


@pytest.mark.cheap_xla
def test_interrupt_keeps_what_was_reached(tmp_path, capsys, monkeypatch):
    """A signal that is noticed between two segments: finished structures, and those under way. The same
    command goes on within the structure, and leaves what one call would have left."""
    monkeypatch.chdir(tmp_path)
    asked = []
    should_stop = Signals.should_stop

    def noticed(self):
        asked.append(1)
        if len(asked) == 4:
            self.number = 2
        return should_stop(self)

    ase.io.write("x.extxyz", [Atoms("Ar"), cluster(0, 13)])
    relax = ["relax", "x.extxyz", "--fmax", "1e-30", "--steps", "300"]
    assert main([*relax, "--out", "whole"], Signals()) == 3
    monkeypatch.setattr(Signals, "should_stop", noticed)
    capsys.readouterr()
    assert main([*relax, "--out", "o"], Signals()) == 130
    captured = capsys.readouterr()
    assert "interrupted   1" in captured.out
    assert "1 of 2 structures are finished, in o; the same command goes on with the others." in captured.err
    kept = ase.io.read("o/relaxed.extxyz", ":")
    assert [a.info["outcome"] for a in kept] == ["converged", "running"]
    assert 0 < kept[1].info["steps"] < 300
    assert len(ZarrData("o/relaxed.zarr")) == 1
    assert main([*relax, "--out", "o"], Signals()) == 3
    assert "going on with what was saved" in capsys.readouterr().out
    same_folders(Path("whole"), Path("o"))


def test_info(capsys):
    """Versions, devices, precision; and the canaries find nothing wrong with this JAX."""
    assert main(["info"]) == 0
    text = capsys.readouterr().out
    for part in (
        "alchemi-jax",
        f"jax               {jax.__version__}",
        "devices",
        "precision",
        "passes the checks",
    ):
        assert part in text


def test_the_sample_set_is_what_its_script_makes():
    from alchemi_jax.samples.make import sample_set

    made = sample_set()
    paths = {p.stem: p for p in samples.paths()}
    assert set(paths) == set(made)
    sizes, elements = [], set()
    for name, structures in made.items():
        stored = ase.io.read(paths[name], ":")
        assert len(stored) == len(structures)
        for a, b in zip(stored, structures, strict=True):
            np.testing.assert_allclose(a.positions, b.positions, atol=1e-6)
            assert a.get_chemical_formula() == b.get_chemical_formula()
            sizes.append(len(a))
            elements |= set(a.symbols)
    assert len(sizes) >= 24
    assert (min(sizes), max(sizes)) == (7, 256)
    assert elements == {"Ne", "Ar", "Kr", "Xe"}
