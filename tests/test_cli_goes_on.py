"""With what in a folder of results a command goes on, what it refuses, and what kills leave. Nothing is
compiled."""

import dataclasses
import itertools
import json
import os
import shutil
import time
from pathlib import Path

import ase.io
import numpy as np
import pytest
from ase import Atoms
from ase.constraints import FixAtoms

from alchemi_jax.cli.finished import FinishedSystems, read_finished
from alchemi_jax.cli.folder import CHECKPOINTS, find_store, is_ours
from alchemi_jax.cli.inputs import Structure, change, content_hash, structures_of
from alchemi_jax.cli.main import main
from alchemi_jax.cli.read import read
from alchemi_jax.cli.results import Results
from alchemi_jax.cli.run import RESULTS
from alchemi_jax.cli.signals import Signals
from alchemi_jax.cli.stream import Ended
from alchemi_jax.cli.swap import swap
from alchemi_jax.dynamics.sinks import ZarrData
from alchemi_jax.systems.atoms import AtomicData
from alchemi_jax.systems.batch import Batch
from alchemi_jax.systems.outcome import Outcome


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """With a file of three structures, and in it."""
    monkeypatch.chdir(tmp_path)
    ase.io.write("in.extxyz", STRUCTURES)
    return tmp_path


STRUCTURES = [Atoms("Ar2", [[0, 0, 0], [0, 0, z]]) for z in (3.7, 3.8, 3.9)]


# -- structures are known by their content -----------------------------------------------------------


def test_the_hash_is_of_all_that_a_run_takes_from_a_structure():
    base = AtomicData(positions=np.arange(6.0).reshape(2, 3), numbers=[18, 18], info={"label": "a"})
    others = [
        {"positions": base.positions + 1e-13},
        {"numbers": [18, 10]},
        {"cell": np.eye(3)},
        {"masses": [1.0, 2.0]},
        {"velocities": np.full((2, 3), 1e-9)},
        {"fixed": [True, False]},
        {"fixed_components": np.eye(3, dtype=bool)[:2]},
        {"charge": 1.0},
        {"spin": 2.0},
        {"info": {"label": "b"}},
        {"atom_extras": {"tags": np.array([0, 1])}},
        {"system_extras": {"weight": np.array(1.0)}},
        {"constraints": (FixAtoms([0]),)},
    ]
    hashes = [content_hash(dataclasses.replace(base, **other)) for other in others]
    assert len({content_hash(base), *hashes}) == len(others) + 1
    moved = dataclasses.replace(base, name="x", info={"source_file": "y", "source_index": 3, "label": "a"})
    assert content_hash(moved) == content_hash(base)
    # What is no number or text counts by its type: what it prints is another thing in another process.
    odd = [content_hash(dataclasses.replace(base, info={"x": object()})) for _ in range(2)]
    assert odd[0] == odd[1]


def test_files_may_be_named_otherwise(folder):
    (folder / "d").mkdir()
    shutil.copy("in.extxyz", "d/other.extxyz")
    first, second = (structures_of(read([name])) for name in ("in.extxyz", "d/other.extxyz"))
    assert change(first, second) is None
    assert first != second


@pytest.mark.parametrize(
    ("now", "sentence"),
    [
        ("abc", None),
        ("aXc", "the content of f, structure 1 has changed since"),
        ("ab", "f, structure 2 is missing"),
        ("bc", "f, structure 0 is missing"),
        ("abcd", "f, structure 3 is new"),
        ("aXbc", "f, structure 1 is new"),
        ("acb", "f, structure 1 stands where f, structure 1 stood"),
        ("abcc", "f, structure 3 is new"),
        ("", "f, structure 0 is missing"),
    ],
)
def test_what_has_changed_is_named(now, sentence):
    before, given = ([Structure("f", i, sha) for i, sha in enumerate(hashes)] for hashes in ("abc", now))
    assert change(before, given) == sentence


# -- commands on folders of all kinds ----------------------------------------------------------------


@pytest.fixture
def engine(monkeypatch):
    """A run that finishes the structures with the ids in `ends`, and leaves what a run leaves."""
    import alchemi_jax.cli.run

    class Engine:
        ends: tuple = (0, 1, 2)
        calls = 0

        def __call__(self, plan, at, signals, *, begun, left, hooks, checkpoint_every):
            self.calls += 1
            steps = plan.settings.stages[-1].n_steps
            host = Batch.from_data_list(plan.data).to_host()
            n = np.full(len(host), steps, np.int32)
            host = host.replace(
                steps_taken=n, stage_steps=n, status=np.ones_like(n), outcome=n * 0 + Outcome.OUT_OF_STEPS
            )
            begun(0)
            (at / CHECKPOINTS / str(self.calls)).mkdir(parents=True, exist_ok=True)
            (at / "log.csv").write_text("step,system_id,status,energy,fmax,temperature\n0,0,0,1,1,1\n")
            ZarrData(at / "finished.zarr").write(host, np.isin(host.system_id, self.ends))
            if hooks:
                ZarrData(at / "trajectory.zarr").write(host)
            interrupted = len(self.ends) < len(host)
            if interrupted:
                signals.number = 2
            return Ended(interrupted, 0.0, 0.0)

    stand_in = Engine()
    monkeypatch.setattr(alchemi_jax.cli.run, "stream", stand_in)
    return stand_in


def call(*arguments):
    """Exit code of a command with signals of its own."""
    return main([*arguments], Signals())


MD = ("md", "in.extxyz", "--temperature", "9", "--steps", "50", "--out", "o")
RELAX = ("relax", "in.extxyz", "--steps", "50", "--out", "o")


@pytest.mark.parametrize("command", [MD, RELAX])
def test_a_complete_folder_is_shown_again(folder, engine, capsys, command):
    code = call(*command)
    first, before = capsys.readouterr().out, content(folder / "o")
    assert call(*command) == code == (0 if command is MD else 3)
    again = capsys.readouterr().out
    assert "3 of them done before" in again
    assert table(again) == table(first)
    assert (engine.calls, content(folder / "o")) == (1, before)


@pytest.mark.parametrize("command", [MD, RELAX])
def test_what_is_missing_of_a_complete_folder_is_named_or_made_again(folder, engine, capsys, command):
    code = call(*command)
    made = {MD: ("final.extxyz", "summary.png"), RELAX: ("relaxed.zarr", "relaxed.extxyz", "convergence.png")}
    for name in made[command]:
        remove = shutil.rmtree if name.endswith("zarr") else os.unlink
        remove(folder / "o" / name)
    assert call(*command) == code
    assert set(made[command]) <= set(os.listdir("o"))
    if command is RELAX:
        # A store of which a part is missing.
        shutil.rmtree("o/relaxed.zarr/positions")
        assert call(*command) == code
        assert len(ZarrData("o/relaxed.zarr").read()) == 3
        os.unlink("o/relaxed.zarr/zarr.json")
        assert call(*command) == 2
        assert "o/relaxed.zarr cannot be read, and is not known as a store" in capsys.readouterr().err
        shutil.rmtree("o/relaxed.zarr")
        assert call(*command) == code
    os.rename("o/settings.json", "aside")
    capsys.readouterr()
    assert call(*command) == 2
    assert (
        "exists, and settings.json beside it, which says what it is of, is missing" in capsys.readouterr().err
    )
    os.rename("aside", "o/settings.json")
    for name in ("finished.zarr", "log.csv", "trajectory.zarr")[: 3 if command is MD else 2]:
        os.rename(f"o/{name}", "aside")
        assert call(*command) == 2
        error = capsys.readouterr().err
        assert f"o/{name} is missing, and the run in o was complete: put it back as the run left it" in error
        os.rename("aside", f"o/{name}")
    assert (call(*command), engine.calls) == (code, 1)


def table(text):
    return [line for line in text.splitlines() if line.startswith("  ") and "running" not in line]


def content(path):
    """Every file with its bytes and the time of its last change."""
    return {
        p.relative_to(path): (p.read_bytes(), p.stat().st_mtime_ns) for p in path.rglob("*") if p.is_file()
    }


@pytest.mark.parametrize("command", [MD, RELAX])
def test_what_was_interrupted_goes_on(folder, engine, capsys, command):
    engine.ends = (0,)
    assert call(*command) == 130
    said = capsys.readouterr().err.splitlines()[-1]
    assert said == (
        f"alchemi-jax {command[0]}: interrupted: 1 of 3 structures are finished, in o; the same command goes "
        "on with the others."
    )
    engine.ends = (1, 2)
    assert call(*command, "--max-systems", "2") == 130
    assert engine.calls == 2
    assert len(ZarrData("o/finished.zarr")) == 3


def test_more_steps_go_on_and_fewer_do_not(folder, engine, capsys):
    assert call(*MD) == 0
    assert call(*MD, "--steps", "49") == 2
    assert "o was begun with 50 steps, and steps that were taken are kept: not 49" in capsys.readouterr().err
    assert call(*MD, "--steps", "80") == 0
    assert engine.calls == 2
    assert "finished      3 of 3" in capsys.readouterr().out
    # Each structure is in the store once for each of its ends, and the last one counts.
    assert len(ZarrData("o/finished.zarr")) == 6
    assert [a.info["steps"] for a in ase.io.read("o/final.extxyz", ":")] == [80] * 3
    assert json.loads(Path("o/settings.json").read_text())["stages"][0]["n_steps"] == 80
    assert call("show", "o") == 0
    assert "3 out of steps" in capsys.readouterr().out
    # The first number is too small now.
    assert call(*MD) == 2
    Path("p.toml").write_text(
        'files = ["in.extxyz"]\nout = "p"\n[[stages]]\nkind = "relax"\nn_steps = 5\n'
        '[[stages]]\nkind = "md"\nn_steps = 5\ntemperature = 9.0\n'
    )
    assert call("run", "p.toml") == 3
    assert call("run", "p.toml", "stages.0.n_steps=6") == 2
    assert "p was begun with 5 steps in stage 0, where only the last can have more: not 6" in (
        capsys.readouterr().err
    )
    assert call("run", "p.toml", "stages.1.n_steps=6") == 3


OTHERS = {
    MD: {
        "--temperature 8": "temperature was 9.0 and is 8.0",
        "--ensemble nve": "ensemble was nvt and is nve, temperature was 9.0 and is not given",
        "--dt 2": "dt was 1.0 and is 2.0",
        "--friction 0.5": "friction was not given and is 0.5",
        "--seed 1": "seed was 0 and is 1",
        "--save-every 7": "save_every was 100 and is 7",
    },
    RELAX: {
        "--fmax 0.5": "fmax was 0.01 and is 0.5",
        "--dt 2 --log-every 9 --fmax 1 --dtype float32": "dtype was float64 and is float32, log_every was 1 "
        "and is 9, fmax was 0.01 and is 1.0, and 1 more differ",
        "--optimizer fire2": "optimizer was fire and is fire2",
        "--cell": "relax_cell was False and is True",
        "--pressure 1 --cell": "relax_cell was False and is True, pressure was 0.0 and is 1.0",
        "--smax 1 --cell": "relax_cell was False and is True, smax was 0.0006 and is 1.0",
    },
}


@pytest.mark.parametrize("command", OTHERS)
def test_other_flags_are_told_and_nothing_is_written(folder, engine, capsys, command):
    """Of an interrupted run and of a complete one: nothing of two runs is ever in one folder."""
    cases = OTHERS[command] | {
        "--dtype float32": "dtype was float64 and is float32",
        "--model lj:epsilon=0.02,sigma=3": "model was lj and is lj:epsilon=0.02,sigma=3",
        "--log-every 3": f"log_every was {1 if command is RELAX else 10} and is 3",
        "--constraints drop": "constraints was refuse and is drop",
    }
    for ends in ((0,), (0, 1, 2)):
        engine.ends = ends
        call(*command)
        before, calls = content(folder / "o"), engine.calls
        capsys.readouterr()
        for flags, sentence in cases.items():
            without = [word for word in command if word not in ("--temperature", "9")]
            given = without if "nve" in flags else command
            assert call(*given, *flags.split()) == 2, flags
            error = capsys.readouterr().err
            expected = f"o holds results of other settings: {sentence}: give another out, or --overwrite."
            assert expected in error, (flags, error)
        assert call(*command, "--steps", "20") == 2
        assert "o was begun with 50 steps" in capsys.readouterr().err
        assert (content(folder / "o"), engine.calls) == (before, calls)


def test_other_structures_are_told_and_nothing_is_written(folder, engine, capsys):
    engine.ends = (0,)
    assert call(*MD) == 130
    before = content(folder / "o")
    other = STRUCTURES[1].copy()
    other.positions[0, 0] += 1e-6
    cases = {
        "the content of in.extxyz, structure 1 has changed since": [STRUCTURES[0], other, STRUCTURES[2]],
        "in.extxyz, structure 2 is missing": STRUCTURES[:2],
        "in.extxyz, structure 3 is new": [*STRUCTURES, other],
        "in.extxyz, structure 0 stands where in.extxyz, structure 0 stood": STRUCTURES[::-1],
    }
    capsys.readouterr()
    for sentence, structures in cases.items():
        ase.io.write("in.extxyz", structures)
        assert call(*MD) == 2
        error = capsys.readouterr().err
        assert f"o holds results of other structures: {sentence}: give another out, or --overwrite." in error
        assert error.count("\n") == 1
    assert content(folder / "o") == before
    ase.io.write("moved.extxyz", STRUCTURES)
    assert call("md", "moved.extxyz", *MD[2:]) == 130


def test_a_folder_of_another_command_or_without_checkpoints(folder, engine, capsys):
    engine.ends = (0,)
    assert call(*RELAX) == 130
    capsys.readouterr()
    Path("p.toml").write_text('files = ["in.extxyz"]\nout = "o"\n[[stages]]\nkind = "relax"\nn_steps = 50\n')
    assert call("run", "p.toml", "log_every=1") == 2
    assert "o holds results of alchemi-jax relax: give another out" in capsys.readouterr().err
    shutil.rmtree("o/checkpoints")
    assert call(*RELAX) == 2
    assert "o/checkpoints is missing or empty, so that its structures cannot go on" in capsys.readouterr().err
    # As an earlier version left it.
    os.unlink("o/inputs.json")
    assert call(*RELAX) == 2
    assert "o was begun by an earlier version, without checkpoints" in capsys.readouterr().err
    Path("o/settings.json").write_text("{")
    assert call(*RELAX) == 2
    assert "o/settings.json cannot be read" in capsys.readouterr().err
    assert len(ZarrData("o/finished.zarr")) == 1


def test_a_complete_folder_of_an_earlier_version_is_shown(folder, engine, capsys):
    assert call(*MD) == 0
    os.unlink("o/inputs.json")
    settings = json.loads(Path("o/settings.json").read_text())
    Path("o/settings.json").write_text(
        json.dumps({k: v for k, v in settings.items() if k not in ("complete", "command")})
    )
    shutil.rmtree("o/checkpoints")
    assert call(*MD) == 0
    captured = capsys.readouterr()
    assert "they are not compared" in captured.err
    assert "3 of them done before" in captured.out
    assert call(*MD, "--steps", "60") == 2
    assert engine.calls == 1


def test_overwriting_goes_on_with_what_it_began(folder, engine, capsys):
    assert call(*MD) == 0
    old = content(folder / "o")
    engine.ends = (0,)
    more = (*MD, "--seed", "1", "--overwrite")
    assert call(*more) == 130
    assert "in o/unfinished, and the older results in o are kept; the same command goes on" in (
        capsys.readouterr().err
    )
    assert content(folder / "o").items() >= old.items()
    engine.ends = (1, 2)
    assert call(*more) == 130
    assert engine.calls == 3
    assert len(ZarrData("o/unfinished/finished.zarr")) == 3
    # Of other settings it begins again, and takes the place of the old results at the end.
    engine.ends = (0, 1, 2)
    assert call(*MD, "--seed", "2", "--overwrite") == 0
    assert sorted(p.name for p in Path("o").iterdir()) == sorted(
        [
            "finished.zarr",
            "trajectory.zarr",
            "log.csv",
            "settings.json",
            "inputs.json",
            "checkpoints",
            "final.extxyz",
            "summary.png",
        ]
    )
    assert json.loads(Path("o/settings.json").read_text())["seed"] == 2
    assert len(ZarrData("o/finished.zarr")) == 3
    assert call(*MD, "--seed", "2") == 0
    assert engine.calls == 4


def test_the_folder_is_locked_by_relax_too(folder, engine, capsys):
    assert call(*RELAX) == 3
    with Results("o", RESULTS) as mine:
        mine.hold()
        for arguments in (RELAX, MD, (*RELAX, "--overwrite")):
            assert call(*arguments) == 2
            assert "o is being written by another run" in capsys.readouterr().err


# -- what killed processes leave -----------------------------------------------------------------------


class Killed(BaseException):
    """The process is dead from here on: nothing that it does reaches the disk."""


@pytest.fixture
def kill(monkeypatch):
    """`kill(n)`: from its n-th change of a file on nothing of what is called reaches the disk."""
    count = itertools.count()
    at = [10**9]

    def counted(change):
        def call(*args, **kwargs):
            if next(count) >= at[0]:
                raise Killed
            return change(*args, **kwargs)

        return call

    for name in ("rename", "replace", "unlink", "rmdir", "mkdir"):
        monkeypatch.setattr(os, name, counted(getattr(os, name)))

    def kill(n):
        nonlocal count
        count, at[0] = itertools.count(), n

    return kill


def begin_swap(out):
    """Old results, and new ones in `unfinished`."""
    for at, mark in ((out, "old"), (out / "unfinished", "new")):
        for store in ("finished.zarr", "trajectory.zarr"):
            (at / store / "energy" / "c").mkdir(parents=True)
            (at / store / "zarr.json").write_text(mark)
            (at / store / "energy" / "c" / "0").write_text(mark)
        (at / "log.csv").write_text(mark)
    shutil.rmtree(out / "unfinished" / "trajectory.zarr")
    (out / "summary.png").write_text("old")
    (out / "unfinished" / "final.extxyz").write_text("new")
    (out / "mine.txt").write_text("mine")


def test_a_swap_that_is_killed_at_any_point_is_repaired(tmp_path, kill):
    """Also if the repair is killed, at any point."""
    whole, names, tries = None, {}, 0
    for n, m in itertools.product(range(60), (0, 2, 5, 1000)):
        out = tmp_path / f"{n}-{m}"
        begin_swap(out)
        new = ["finished.zarr", "log.csv", "final.extxyz"]
        old = ["finished.zarr", "log.csv", "trajectory.zarr", "summary.png"]
        kill(n)
        ended = True
        try:
            swap(out, new, old)
        except Killed:
            ended = False
        kill(m)
        results = Results(str(out), RESULTS)
        try:
            results.hold()
        except Killed:
            tries += 1
        kill(10**9)
        results.__exit__()
        with Results(str(out), RESULTS) as again:
            again.hold()
        names = {str(p): v[0] for p, v in content(out).items()}
        begun = not (out / "unfinished").exists()
        if begun:
            whole = whole or names
            assert names == whole
            assert set(names.values()) == {b"new", b"mine"}
        else:
            # Killed before the list of names was there: nothing was touched.
            assert names["log.csv"] == b"old"
            assert names["unfinished/log.csv"] == b"new"
        shutil.rmtree(out)
        if ended:
            break
    assert whole is not None
    assert tries > 20


def test_readers_repair_a_swap(folder, engine, kill, capsys):
    assert call(*MD) == 0
    assert call(*MD, "--seed", "1", "--overwrite", "--save-every", "0") == 0
    assert find_store("o") == Path("o/finished.zarr")
    # Killed in the swap: the new results have a longer log.
    shutil.copytree("o", "o/unfinished")
    Path("o/unfinished/swap.json").write_text(json.dumps({"new": ["finished.zarr"], "old": ["log.csv"]}))
    # As `show` and `convert` look for it.
    assert find_store("o") == Path("o/finished.zarr")
    assert not Path("o/unfinished/swap.json").exists()
    assert not Path("o/log.csv").exists()
    Path("o/unfinished/swap.json").write_text("{")
    capsys.readouterr()
    assert call("show", "o") == 2
    assert "o/unfinished/swap.json is damaged" in capsys.readouterr().err


def test_overwriting_killed_in_its_swap_is_not_begun_again(folder, engine, monkeypatch, capsys):
    assert call(*MD) == 0
    import alchemi_jax.cli.swap

    finish = alchemi_jax.cli.swap.finish_swap

    def killed(out):
        raise Killed

    monkeypatch.setattr(alchemi_jax.cli.swap, "finish_swap", killed)
    more = (*MD, "--seed", "1", "--overwrite")
    with pytest.raises(Killed):
        call(*more)
    monkeypatch.setattr(alchemi_jax.cli.swap, "finish_swap", finish)
    assert call(*more) == 0
    assert "3 of them done before" in capsys.readouterr().out
    assert engine.calls == 2
    assert json.loads(Path("o/settings.json").read_text())["seed"] == 1


def test_what_killed_processes_left_is_removed_and_nothing_else(folder, engine, capsys):
    assert call(*RELAX) == 3
    ours = [".part-17-log.csv", ".part-17-settings.json", ".alchemi-jax"]
    others = [".part-17-mine.csv", ".part-log.csv", "log.csv.bak", ".old-17-notes"]
    for name in ours + others:
        Path("o", name).touch()
    ZarrData("o/.new-17-relaxed.zarr").write(Batch.from_ase([Atoms("Ar")]))
    os.rename("o/relaxed.zarr", "o/.old-17-relaxed.zarr")
    assert call(*RELAX) == 3
    names = {p.name for p in Path("o").iterdir()}
    assert not names & {*ours, ".new-17-relaxed.zarr", ".old-17-relaxed.zarr"}
    assert set(others) <= names
    assert len(ZarrData("o/relaxed.zarr")) == 3, "the only one is put back"


def test_folders_of_checkpoints_are_ours_if_nothing_else_is_in_them(tmp_path):
    at = tmp_path / CHECKPOINTS
    (at / "12").mkdir(parents=True)
    (at / "begin.json").touch()
    (at / "13.orbax-checkpoint-tmp-1").mkdir()
    assert is_ours(at)
    (at / "notes.txt").touch()
    assert not is_ours(at)


def test_a_killed_beginning_begins_again(folder, engine):
    """The list of structures is there, the settings are not yet."""
    Path("o").mkdir()
    Path("o/inputs.json").write_text('{"structures": [\n["x", 0, "a"]\n]}\n')
    assert call(*MD) == 0
    assert len(json.loads(Path("o/inputs.json").read_text())["structures"]) == 3


def test_finished_systems_are_counted_as_they_come(tmp_path):
    """Also where none comes, as when a run is interrupted; what the store held is told when it is opened."""
    begun, counted = [], []
    host = Batch.from_ase(STRUCTURES).to_host()
    for mask in (np.array([False, True, False]), None, np.zeros(3, bool)):
        sink = FinishedSystems(tmp_path, lambda found: begun.append(0 if found is None else len(found)))
        sink.count = lambda ids: counted.append(ids.tolist())
        sink.open()
        sink.write(host, mask)
        sink.close()
    assert begun == [0, 1, 3]
    assert counted == [[1], [0, 1, 2], []]
    found = read_finished(tmp_path)
    assert found.system_id.tolist() == [0, 1, 2]
    assert len(ZarrData(tmp_path / "finished.zarr")) == 4


# -- time ------------------------------------------------------------------------------------------------


def test_the_time_is_up_before_it_is(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    signals = Signals()
    with signals.limited(60.0):
        for now[0] in (101.0, 120.0, 135.0):
            assert not signals.should_stop()
        # The longest time between two questions was 19 s, and 3 s are kept for saving.
        now[0] = 139.0
        assert signals.should_stop()
    assert (signals.exit_code, signals.word) == (4, "the time is up")
    signals.number = 15
    assert (signals.exit_code, signals.word) == (143, "terminated")
    other = Signals()
    with other.limited(None):
        assert not other.should_stop()


def test_max_seconds_is_checked(folder, capsys):
    assert call(*MD, "--max-seconds", "0") == 2
    assert "--max-seconds must be positive, not '0'" in capsys.readouterr().err
