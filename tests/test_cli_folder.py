"""What `--overwrite` touches, and what a full disk leaves. Nothing here is compiled."""

import errno
import json
import os

import ase.io
import pytest
from ase import Atoms

from alchemi_jax import Batch
from alchemi_jax.cli.begin import RUN
from alchemi_jax.cli.cache import cache_folder, use_cache
from alchemi_jax.cli.folder import check_target, find_store, is_ours
from alchemi_jax.cli.main import main
from alchemi_jax.cli.outcome import UsageError
from alchemi_jax.cli.record import Record, read_record, write_settings
from alchemi_jax.cli.results import Results
from alchemi_jax.cli.settings import Pipeline
from alchemi_jax.cli.write import whole_file, write_structures
from alchemi_jax.dynamics.sinks import ZarrData
from alchemi_jax.folders import user_cache


NAMES = ("relaxed.zarr", "relaxed.extxyz", "log.csv", "convergence.png")


@pytest.fixture
def batch():
    return Batch.from_ase([Atoms("Ar"), Atoms("Ar2", [[0, 0, 0], [0, 0, 4]])])


def fill(folder, batch, mark):
    """Results as a run leaves them."""
    folder.mkdir(exist_ok=True)
    ZarrData(folder / "relaxed.zarr").write(batch)
    write_structures(folder / "relaxed.extxyz", batch)
    (folder / "log.csv").write_text(f"step,system_id,status,energy\n{mark}\n")
    (folder / "convergence.png").write_bytes(b"\x89PNG Software\0alchemi-jax" + mark.encode())


def test_new_results_take_the_place_of_old_ones_when_they_are_whole(tmp_path, batch):
    out = tmp_path / "o"
    fill(out, batch, "old")
    (out / "notes.txt").write_text("mine")
    results = Results(str(out), NAMES)
    with pytest.raises(UsageError, match=r"relaxed\.zarr exists: .*--overwrite"):
        results.check(False, [])
    results.check(True, [])
    results.begin()
    assert results.at == out / "unfinished"
    assert "old" in (out / "log.csv").read_text()
    fill(results.at, batch.take() if hasattr(batch, "take") else batch, "new")
    (results.at / "convergence.png").unlink()
    results.finish()
    assert "new" in (out / "log.csv").read_text()
    assert sorted(p.name for p in out.iterdir()) == ["log.csv", "notes.txt", "relaxed.extxyz", "relaxed.zarr"]
    assert len(ZarrData(out / "relaxed.zarr")) == 2


def test_what_is_not_ours_is_not_touched(tmp_path, batch):
    out = tmp_path / "o"
    fill(out, batch, "old")
    assert all(is_ours(out / name) for name in NAMES)
    for name, content in {
        "log.csv": "time,value\n1,2\n",
        "relaxed.extxyz": "1\nmine\nAr 0 0 0\n",
        "convergence.png": "\x89PNG Software Matplotlib",
    }.items():
        other = tmp_path / name
        other.write_text(content)
        assert not is_ours(other)
        before = (out / name).read_bytes()
        (out / name).write_text(content)
        with pytest.raises(UsageError, match=f"{name} was not written by this program"):
            Results(str(out), NAMES).check(True, [])
        (out / name).write_bytes(before)
    # A store with somebody's file in it; links; inputs.
    (out / "relaxed.zarr" / "notes.txt").write_text("mine")
    with pytest.raises(UsageError, match=r"relaxed\.zarr was not written"):
        Results(str(out), NAMES).check(True, [])
    (out / "relaxed.zarr" / "notes.txt").unlink()
    (tmp_path / "other").symlink_to(out / "relaxed.extxyz")
    for name in ("o/../o/relaxed.extxyz", "o/relaxed.extxyz@-1", "o", "other"):
        with pytest.raises(UsageError, match=r"is an input of this run"):
            Results(str(out), NAMES).check(True, [str(tmp_path / name)])
    os.rename(out / "log.csv", tmp_path / "elsewhere.csv")
    (out / "log.csv").symlink_to(tmp_path / "elsewhere.csv")
    with pytest.raises(UsageError, match=r"log\.csv is a link"):
        Results(str(out), NAMES).check(True, [])
    (tmp_path / "link").symlink_to(out)
    with pytest.raises(UsageError, match="link is a link"):
        Results(str(tmp_path / "link"), NAMES).check(True, [])


def test_interrupted_before_anything_was_reached_nothing_is_left(tmp_path):
    results = Results(str(tmp_path / "o"), NAMES)
    results.begin()
    (results.at / "log.csv").write_text("step,system_id,status,energy\n")
    results.forget()
    assert not (tmp_path / "o").exists()
    results.begin()
    (results.at / "log.csv").write_text("step,system_id,status,energy\n0,0,0,1\n")
    results.forget()
    assert (tmp_path / "o" / "log.csv").exists()
    # A damaged store is no reason to hide the error that ended the run.
    (results.at / "log.csv").unlink()
    ZarrData(results.at / "relaxed.zarr").write(Batch.from_ase(Atoms("Ar")))
    group = results.at / "relaxed.zarr" / "zarr.json"
    group.write_text(group.read_text().replace('"systems": 1', '"systems": 0'))
    assert is_ours(results.at / "relaxed.zarr")
    results.forget()
    assert group.exists()


def test_overwriting_never_touches_the_input(tmp_path, batch, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    fill(tmp_path / "o", batch, "old")
    before = (tmp_path / "o" / "relaxed.extxyz").read_bytes()
    assert main(["relax", "o/relaxed.extxyz", "--out", "o", "--overwrite"]) == 2
    assert "is an input of this run" in capsys.readouterr().err
    assert (tmp_path / "o" / "relaxed.extxyz").read_bytes() == before


def test_folders_of_results_are_shown_and_converted(tmp_path, batch, capsys):
    out = tmp_path / "o"
    fill(out, batch, "x")
    assert find_store(str(out)) == out / "relaxed.zarr"
    assert main(["show", str(out)]) == 0
    assert "relaxed.zarr" in capsys.readouterr().out
    assert main(["convert", str(out), str(tmp_path / "a.extxyz"), "--system", "1"]) == 0
    assert [len(a) for a in ase.io.read(tmp_path / "a.extxyz", ":")] == [2]
    assert main(["convert", str(out), str(tmp_path / "b.extxyz"), "--system", "0,1", "--frames", "0"]) == 0
    assert len(ase.io.read(tmp_path / "b.extxyz", ":")) == 2
    for system, sentence in (("7", "has the systems 0 to 1"), ("x", "neither an id nor a list")):
        assert main(["convert", str(out), str(tmp_path / "c.extxyz"), "--system", system]) == 2
        assert sentence in capsys.readouterr().err
    (tmp_path / "none").mkdir()
    assert main(["show", str(tmp_path / "none")]) == 2
    assert "holds no results" in capsys.readouterr().err
    with pytest.raises(UsageError, match="which is read"):
        check_target(out / "relaxed.zarr" / "x.png", True, str(out))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.extxyz", "b.extxyz", "none", "o"]


def test_a_full_disk_is_one_sentence(tmp_path, monkeypatch, capsys):
    ase.io.write(tmp_path / "in.extxyz", Atoms("Ar"))

    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(tmp_path / "o" / "log.csv"))

    import alchemi_jax.cli.run

    monkeypatch.setattr(alchemi_jax.cli.run, "stream", full)
    assert main(["relax", str(tmp_path / "in.extxyz"), "--out", str(tmp_path / "o")]) == 2
    error = capsys.readouterr().err
    assert error.endswith("o/log.csv cannot be written: No space left on device.\n")
    assert error.count("\n") == 1


def test_the_folder_of_compiled_programs(tmp_path, monkeypatch):
    import jax

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert user_cache() == tmp_path
    monkeypatch.setattr("alchemi_jax.cli.cache._cpu", lambda: "flags: avx512f")
    first = cache_folder()
    monkeypatch.setattr("alchemi_jax.cli.cache._cpu", lambda: "flags: avx2")
    assert first != cache_folder()
    assert jax.__version__ in first.name
    # A folder of the user's own is used.
    own = jax.config.jax_compilation_cache_dir
    if own:
        assert str(use_cache(True)) == own
    assert not (tmp_path / "alchemi-jax").exists()


def test_settings_of_a_run_are_ours(tmp_path):
    (tmp_path / "settings.json").write_text(json.dumps({"stages": [], "model": "lj"}))
    assert is_ours(tmp_path / "settings.json")
    (tmp_path / "settings.json").write_text("[]")
    assert not is_ours(tmp_path / "settings.json")


def md(steps):
    return {"stages": [{"kind": "md", "n_steps": steps, "temperature": 9.0}]}


def test_results_that_were_begun_before_a_setting_was_known_go_on(tmp_path):
    settings = Pipeline.model_validate(md(3))
    write_settings(tmp_path, Record(settings, {}))
    found = json.loads((tmp_path / "settings.json").read_text())
    for name in ("constraints", "command", "complete"):
        del found[name]
    (tmp_path / "settings.json").write_text(json.dumps(found))

    def check(settings):
        RUN.check_same(tmp_path, read_record(tmp_path), Record(settings, {}))

    check(settings)
    with pytest.raises(UsageError, match="other settings: constraints was refuse and is drop"):
        check(settings.model_copy(update={"constraints": "drop"}))
    with pytest.raises(UsageError, match=r"other settings: temperature was 9\.0 and is 8\.0"):
        check(Pipeline.model_validate({"stages": [md(3)["stages"][0] | {"temperature": 8.0}]}))


def test_two_runs_do_not_write_one_folder(tmp_path, batch):
    """The second one touches nothing, whenever it comes: the log and frames of the first would be cut."""
    out = tmp_path / "o"
    first, second = (Results(str(out), NAMES) for _ in range(2))
    for results in (first, second):
        results.check(False, [])
    with first:
        first.begin()
        for call in (second.begin, second.hold):
            with pytest.raises(
                UsageError, match=r"o is being written by another run \(.*since .*\): wait for its end, or"
            ):
                call()
        fill(first.at, batch, "first")
    with second, pytest.raises(UsageError, match=r"relaxed\.zarr has been written by another run meanwhile"):
        second.begin()
    assert "first" in (out / "log.csv").read_text()
    with Results(str(out), NAMES) as third:
        third.check(True, [])
        third.begin()
    assert third.at == out / "unfinished"


def test_a_file_is_whole_or_as_it_was(tmp_path):
    path = tmp_path / "x.csv"
    path.write_text("old")

    def fail():
        with whole_file(path) as part:
            part.write_text("ne")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(UsageError, match=r"x\.csv cannot be written: No space left"):
        fail()
    assert path.read_text() == "old"
    with whole_file(path) as part:
        part.write_text("new")
    assert (path.read_text(), list(tmp_path.iterdir())) == ("new", [path])


def test_a_file_that_a_killed_process_began_is_removed(tmp_path):
    """Not those of processes that live, and not of other files."""
    dead = next(n for n in range(2**22 - 1, 0, -1) if not os.path.exists(f"/proc/{n}"))
    left = tmp_path / f".part-{dead}-x.csv"
    others = [tmp_path / f".part-{os.getppid()}-x.csv", tmp_path / f".part-{dead}-y.csv", tmp_path / "x.csv"]
    for path in [left, *others]:
        path.touch()
    with whole_file(tmp_path / "x.csv") as part:
        part.write_text("new")
    assert sorted(tmp_path.iterdir()) == sorted(others)
