"""`alchemi-jax run` and `md`: what comes out, what a second call does, and what wrong input says."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import ase.io
import numpy as np
import pytest
from cli_folders import same_folders, same_stores
from conftest import cluster

from alchemi_jax.cli.main import main
from alchemi_jax.cli.signals import Signals
from alchemi_jax.cli.table import Table
from alchemi_jax.dynamics.sinks import ZarrData
from alchemi_jax.io.trajectory import Trajectory


SIZES = (3, 5, 2, 4, 6, 3, 5)
FILE = """
model = "lj"
max_systems = 3
log_every = 2
save_every = 5
[[stages]]
kind = "relax"
fmax = 0.05
[[stages]]
kind = "md"
n_steps = 20
dt = 2.0
temperature = 20.0
friction = 0.02
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """With structures and a pipeline, and in it."""
    monkeypatch.chdir(tmp_path)
    ase.io.write("in.extxyz", [cluster(i, n) for i, n in enumerate(SIZES)])
    Path("p.toml").write_text(FILE)
    return tmp_path


def results(out):
    structures = ase.io.read(f"{out}/final.extxyz", ":")
    frames = Trajectory(f"{out}/trajectory.zarr")
    series = {i: frames.system(i).positions for i in frames.system_ids.tolist()}
    return structures, series, Table.read(Path(out) / "log.csv")


def test_a_pipeline_from_a_file(folder, capsys):
    assert main(["run", "p.toml", 'files=["in.extxyz"]', "out=o", "stages.1.n_steps=24"]) == 0
    text = capsys.readouterr().out
    assert (
        "Relax to 0.05 eV/Å, then 24 steps of 2 fs nvt at 20 K: 7 structures, 28 atoms, from 1 file." in text
    )
    assert "finished      7 of 7" in text
    assert re.search(r"temperature   \d+\.\d+ ± \d", text)
    assert re.search(r"energy        -\d\.\d+ ± \S+ eV/atom", text)
    structures, series, table = results("o")
    assert [len(a) for a in structures] == list(SIZES)
    assert [a.info["source_index"] for a in structures] == list(range(7))
    assert set(series) == set(range(7))
    assert Path("o/summary.png").stat().st_size > 10_000
    for i, atoms in enumerate(structures):
        rows = (table.system_id == i) & (table.status == 1)
        assert 11 <= rows.sum() <= 13
        assert atoms.info["steps"] >= 24
    # Once more: nothing is left to do, and nothing changes.
    before = (folder / "o" / "final.extxyz").read_bytes()
    assert main(["run", "p.toml", 'files=["in.extxyz"]', "out=o", "stages.1.n_steps=24"]) == 0
    assert "7 of them done before" in capsys.readouterr().out
    assert (folder / "o" / "final.extxyz").read_bytes() == before


@pytest.mark.cheap_xla
def test_what_was_interrupted_goes_on_to_the_same_results(folder, monkeypatch, capsys):
    """Killed between two finished systems, then saved within one: no frame and no row is twice there or
    missing."""
    command = ["run", "p.toml", 'files=["in.extxyz"]', "--checkpoint-every", "0.1"]
    assert main([*command, "out=whole"]) == 0
    from alchemi_jax.cli.finished import FinishedSystems

    write, calls = FinishedSystems.write, []

    def once(self, batch, mask=None):
        calls.append(1)
        if len(calls) > 1:
            raise KeyboardInterrupt
        write(self, batch, mask)

    asked, should_stop = [], Signals.should_stop

    def stop(self):
        asked.append(1)
        self.number = 15 if len(asked) == 2 else None
        return should_stop(self)

    monkeypatch.setattr(FinishedSystems, "write", once)
    assert main([*command, "out=parts"], Signals()) == 130
    assert "the same command goes on" in capsys.readouterr().err
    monkeypatch.setattr(FinishedSystems, "write", write)
    monkeypatch.setattr(Signals, "should_stop", stop)
    assert main([*command, "out=parts"], Signals()) == 143
    monkeypatch.setattr(Signals, "should_stop", should_stop)
    assert main([*command, "out=parts", "max_systems=4"], Signals()) == 0
    same_folders(Path("whole"), Path("parts"), order=False)
    assert (folder / "whole/final.extxyz").read_bytes() == (folder / "parts/final.extxyz").read_bytes()


@pytest.mark.long
def test_killed_at_any_moment_it_goes_on(folder):
    """kill -9, again and again; at the end the results are those of one call."""
    command = [sys.executable, "-m", "alchemi_jax.cli.main", "run", "p.toml", 'files=["in.extxyz"]']
    command += ["stages.1.n_steps=4000", "max_systems=1", "log_every=100"]
    assert subprocess.run([*command, "out=whole"], check=False, capture_output=True).returncode == 0
    for k in range(8):
        process = subprocess.Popen(
            [*command, "out=parts", "--checkpoint-every", "0.3"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        time.sleep(4 + 0.7 * k)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    assert subprocess.run([*command, "out=parts"], check=False, capture_output=True).returncode == 0
    same_folders(Path("whole"), Path("parts"))


def rows_of_log(out):
    """Numbers of the log without the status, by system and step."""
    rows = np.delete(np.genfromtxt(f"{out}/log.csv", delimiter=",", skip_header=1), 2, axis=1)
    return rows[np.lexsort((rows[:, 0], rows[:, 1]))]


@pytest.mark.cheap_xla
def test_more_steps_are_the_steps_of_a_longer_run(folder, capsys):
    md = [
        "md",
        "in.extxyz",
        "--temperature",
        "15",
        "--max-systems",
        "3",
        "--log-every",
        "2",
        "--save-every",
        "5",
    ]
    assert main([*md, "--steps", "40", "--out", "whole"]) == 0
    for steps in ("20", "40"):
        assert main([*md, "--steps", steps, "--out", "parts"]) == 0
    capsys.readouterr()
    # The states with which shorter runs ended say so.
    but = ("status", "outcome")
    same_stores(Path("whole/trajectory.zarr"), Path("parts/trajectory.zarr"), order=False, but=but)
    whole, parts = (rows_of_log(out) for out in ("whole", "parts"))
    np.testing.assert_array_equal(parts, whole)
    assert (folder / "whole/final.extxyz").read_bytes() == (folder / "parts/final.extxyz").read_bytes()
    assert len(ZarrData("parts/finished.zarr")) == 2 * len(SIZES)


def test_md_of_structures(folder, capsys):
    arguments = ["in.extxyz", "--steps", "30", "--ensemble", "nve", "--temperature", "15", "--out", "o"]
    assert main(["md", *arguments, "--log-every", "3", "--save-every", "0", "--max-systems", "2"]) == 0
    text = capsys.readouterr().out
    assert "30 steps of 1 fs nve at 15 K: 7 structures" in text
    assert not Path("o/trajectory.zarr").exists()
    table = Table.read(Path("o/log.csv"))
    first = table.temperature[np.unique(table.system_id, return_index=True)[1]]
    assert (first > 0).all(), "they got velocities"


def test_wrong_input_is_one_sentence(folder, capsys):
    cases = {
        ("run", "nowhere.toml"): r"nowhere\.toml does not exist",
        ("run", "in.extxyz"): r"in\.extxyz is no TOML: ",
        (
            "run",
            "p.toml",
            "stages.0.fmax=-1",
        ): r"p\.toml: stages\.0\.fmax must be positive, not -1\.$",
        ("run", "p.toml", "stages.1.ensemble=nph", "stages.1.pressure=0"): r"friction is not of ensemble nph",
        ("run", "p.toml", "stages.1.thermostat_time=3"): r"thermostat_time is not of ensemble nvt",
        ("run", "p.toml", "colour=3"): r"p\.toml: colour is unknown",
        ("run", "p.toml", "stages.7.fmax=1"): r"the file has no stages\.7\.fmax",
        ("run", "p.toml", "fmax"): r"'fmax' is no setting: write FIELD=VALUE",
        (
            "run",
            "p.toml",
            "max_atoms=2",
            'files=["in.extxyz"]',
        ): r"in\.extxyz:0 does not fit .*it has 3",
        ("run", "p.toml", "model=magic"): r"model 'magic' is unknown",
        ("md", "in.extxyz", "--ensemble", "nvt"): r"--temperature is missing: ensemble nvt needs it",
        ("md", "in.extxyz", "--ensemble", "npt", "--temperature", "9", "--pressure", "0"): "not periodic",
        ("md", "in.extxyz", "--steps", "0"): r"--steps must be at least 1, not '0'",
    }
    for arguments, sentence in cases.items():
        assert main([*arguments]) == 2, arguments
        error = capsys.readouterr().err.strip().splitlines()[-1]
        assert error.startswith(f"alchemi-jax {arguments[0]}: error: "), error
        assert re.search(sentence, error), (arguments, error)


def test_results_of_other_settings_are_not_touched(folder, capsys):
    quick = ["in.extxyz", "--temperature", "9", "--steps", "4", "--out", "o"]
    assert main(["md", *quick]) == 0
    assert main(["md", *quick, "--seed", "5"]) == 2
    assert "holds results of other settings: seed was 0 and is 5" in capsys.readouterr().err
    assert main(["md", *quick, "--seed", "5", "--overwrite"]) == 0
    (folder / "file").touch()
    assert main(["md", *quick[:-1], "file/o"]) == 2
    assert "file/o cannot be written" in capsys.readouterr().err
