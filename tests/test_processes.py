"""Runs that several processes share. What needs two of them is in `processes_program.py`."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import cluster

from alchemi_jax import Batch, Trajectory, distributed
from alchemi_jax.cli.main import main
from alchemi_jax.dynamics import processes
from alchemi_jax.dynamics.hooks import LoggingHook
from alchemi_jax.dynamics.sinks import ExtXYZ, ZarrData
from alchemi_jax.io.parts import check_parts, own_path, part_path, part_paths, whole_name
from alchemi_jax.launch import arguments_of_jax, find_launch
from alchemi_jax.messages import Session, World
from alchemi_jax.shared import others_ended, together


HERE = Path(__file__).parent


def run_two(folder, when):
    """Both processes; their return codes and what they said."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{found.getsockname()[1]}"
    flags = {**os.environ, "PYTHONPATH": f"{HERE}{os.pathsep}{HERE.parent}", "JAX_PLATFORMS": "cpu"}
    both = [
        subprocess.Popen(
            [sys.executable, str(HERE / "processes_program.py"), address, str(rank), str(folder), when],
            env=flags,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in (0, 1)
    ]
    said = [process.communicate() for process in both]
    return [process.returncode for process in both], said


def test_two_processes_one_of_which_is_killed(tmp_path):
    """The other one ends with it, and the same command goes on: the results are those of one process."""
    folder = tmp_path / "run"
    folder.mkdir()
    codes, said = run_two(folder, "killed")
    assert codes[1] == -9, said[1][1][-2000:]
    assert codes[0] not in (0, 1), said[0][1][-2000:]
    codes, said = run_two(folder, "again")
    assert codes == [0, 0], said[0][1][-3000:] + said[1][1][-3000:]
    assert [out.strip() for out, _ in said] == ["all is well"] * 2
    # Another number of processes is told.
    for path in ("saved", "traj.zarr", "log.csv"):
        with pytest.raises(ValueError, match=r"written by 2 processes, .* has 1 process: start 2"):
            check_parts(folder / path)
    with pytest.raises(ValueError, match="written by 2 processes"):
        ZarrData(folder / "traj.zarr").open()
    with pytest.raises(ValueError, match="written by 2 processes"):
        LoggingHook(log_path=folder / "log.csv").__enter__()


MPI = {"OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_SIZE": "4", "OMPI_COMM_WORLD_LOCAL_RANK": "1"}
HERE_ALL = {**MPI, "OMPI_COMM_WORLD_LOCAL_SIZE": "4"}
STEP = {"SLURM_JOB_ID": "7", "SLURM_STEP_NODELIST": "n[1-2]", "SLURM_PROCID": "3", "SLURM_LOCALID": "1"}
BY_HAND = {"JAX_COORDINATOR_ADDRESS": "n1:6000", "JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "1"}


@pytest.mark.parametrize(
    ("environment", "rank", "size", "address", "method", "by"),
    [
        (HERE_ALL, 1, 4, "127.0.0.1:", None, "mpirun"),
        ({**MPI, "OMPI_MCA_orte_hnp_uri": "1.0;tcp://10.0.0.1:5"}, 1, 4, None, "ompi", "mpirun"),
        ({**MPI, "JAX_COORDINATOR_ADDRESS": "n1:6000"}, 1, 4, "n1:6000", None, "mpirun"),
        ({"PMI_RANK": "0", "PMI_SIZE": "2", "MPI_LOCALNRANKS": "2"}, 0, 2, "127.0.0.1:", None, "mpirun"),
        ({**STEP, "SLURM_NTASKS": "4"}, 3, 4, None, "slurm", "srun"),
        # mpirun in a job of Slurm: its own ranks count.
        (
            {**STEP, "SLURM_NTASKS": "2", **MPI, "OMPI_COMM_WORLD_LOCAL_SIZE": "4"},
            1,
            4,
            "127",
            None,
            "mpirun",
        ),
        (BY_HAND, 1, 2, "n1:6000", None, "hand"),
    ],
)
def test_a_launch_is_known_from_its_environment(environment, rank, size, address, method, by):
    found = find_launch(environment=environment)
    assert (found.rank, found.size, found.method, found.by) == (rank, size, method, by)
    assert (found.address or "").startswith(address or "")
    assert arguments_of_jax(found)["process_id"] == rank


def test_without_a_launcher_there_is_one_process(monkeypatch):
    # A batch script of Slurm has most of its variables, but it is no step.
    script = {"SLURM_JOB_ID": "7", "SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NTASKS": "4"}
    assert find_launch(environment={}) is None
    assert find_launch(environment=script) is None
    for name in (*MPI, *STEP, *BY_HAND, "PMI_RANK"):
        monkeypatch.delenv(name, raising=False)
    assert distributed.initialize() == distributed.world() == (0, 1)
    assert distributed.gather("x") == ["x"]
    assert not others_ended()
    with together(), distributed.alone():
        pass


@pytest.mark.parametrize(
    ("given", "environment", "text"),
    [
        ({"size": 2, "rank": 0}, {}, "address .* missing"),
        ({"address": "n1:6000"}, {}, "no number of processes"),
        ({"address": "n1:6000", "size": 2, "rank": 2}, {}, "rank is from 0 to 1 with 2 processes, not 2"),
        ({"address": "n1", "size": 2, "rank": 1}, {}, "host:port, as in node1:6000, not 'n1'"),
        ({}, {**BY_HAND, "JAX_PROCESS_ID": "one"}, "JAX_PROCESS_ID is 'one', not a whole number"),
        ({}, {**MPI, "OMPI_COMM_WORLD_LOCAL_SIZE": "2"}, "on several hosts"),
    ],
)
def test_what_is_wrong_with_a_launch_is_told(given, environment, text, monkeypatch):
    monkeypatch.setattr("alchemi_jax.launch.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=text):
        find_launch(**given, environment=environment)


def test_a_stream_is_shared_fairly(monkeypatch):
    """Each system has one process, whatever follows it in the source; sorted sources are shared evenly."""
    for size in (2, 3, 8):
        shares = []
        for rank in range(size):
            monkeypatch.setattr(processes, "world", lambda rank=rank, size=size: World(rank, size))
            shares.append(processes.is_own(np.arange(24 * size)))
        assert (np.sum(shares, axis=0) == 1).all()
        assert {int(share.sum()) for share in shares} == {24}
        assert {int(np.flatnonzero(share).sum()) for share in shares} == {
            int(np.arange(24 * size).sum() / size)
        }


def test_parts_have_names_and_are_found(tmp_path, monkeypatch):
    assert part_path("a/traj.zarr", 0, 2) == Path("a/traj.0-of-2.zarr")
    assert part_path("checkpoints", 1, 12).name == "checkpoints.1-of-12"
    assert [whole_name(n) for n in ("t.0-of-2.zarr", "c.1-of-2", "t.zarr")] == ["t.zarr", "c", "t.zarr"]
    path = tmp_path / "log.csv"
    assert part_paths(path) == [path]
    assert own_path(path) == path
    monkeypatch.setattr("alchemi_jax.io.parts.world", lambda: World(1, 2))
    assert own_path(path) == tmp_path / "log.1-of-2.csv"
    # What lies in a part is plain.
    assert own_path(tmp_path / "saved.1-of-2" / "finished.zarr").name == "finished.zarr"
    part_path(path, 0, 2).touch()
    with pytest.raises(ValueError, match=r"log.1-of-2.csv is missing, one of 2 parts of .*log.csv"):
        part_paths(path)
    part_path(path, 1, 2).touch()
    # Other names that begin alike are none of them.
    (tmp_path / "log.1-of-2.txt").touch()
    (tmp_path / "log.csv.1-of-3").touch()
    assert [p.name for p in part_paths(path)] == ["log.0-of-2.csv", "log.1-of-2.csv"]
    check_parts(path)
    path.touch()
    with pytest.raises(ValueError, match="exists, and so do its parts of 2 processes"):
        part_paths(path)
    with pytest.raises(ValueError, match="written by 1 process, and this run has 2"):
        check_parts(path)
    path.unlink()
    part_path(path, 0, 3).touch()
    with pytest.raises(ValueError, match="parts of 2 and of 3 processes"):
        part_paths(path)


def test_parts_of_a_store_are_read_as_one(tmp_path):
    """Frames by their number, systems of a frame by their ids; also parts of different lengths, or empty."""
    host = Batch.from_ase([cluster(n, n) for n in (3, 5, 4)]).to_host()
    one, two, none = (ZarrData(tmp_path / f"t.{rank}-of-3.zarr") for rank in range(3))
    for sink, which in ((one, [2, 0]), (two, [1]), (one, [0])):
        sink.write(host.take(which))
    none.open()
    none.close()
    whole = ZarrData(tmp_path / "t.zarr")
    assert (len(whole), len(one), len(none)) == (4, 3, 0)
    frames = Trajectory(tmp_path / "t.zarr")
    assert [frame.system_id.tolist() for frame in frames] == [[0, 1, 2], [0]]
    assert np.array_equal(frames["positions"][:], np.concatenate([host.positions, host[0].positions]))
    assert np.array_equal(frames["positions"][-4:-1], frames["positions"][:][-4:-1])
    assert np.array_equal(frames.system(1).positions[0], host[1].positions)
    assert [atoms.info["name"] if "name" in atoms.info else len(atoms) for atoms in frames.to_ase()] == [
        3,
        5,
        4,
        3,
    ]
    assert whole.read().meta[1].name == host.meta[1].name
    with pytest.raises(KeyError, match="no field 'x'"):
        frames["x"]
    structures = ExtXYZ(tmp_path / "s.xyz")
    for rank in range(2):
        ExtXYZ(tmp_path / f"s.{rank}-of-2.xyz").write(host.take([rank]))
    assert len(structures) == 2
    assert structures.read().atoms_per_system.tolist() == [3, 5]


def test_errors_are_told_in_order():
    """What a process raises in the place of its own error if another one was first."""

    class Store:
        def __init__(self):
            self.values = {}

        def key_value_set(self, key, value):
            import jax

            if key in self.values:
                raise jax.errors.JaxRuntimeError("ALREADY_EXISTS")
            self.values[key] = value

        def key_value_dir_get(self, prefix):
            return [(k, v) for k, v in self.values.items() if k.startswith(prefix)]

    class Known(Session):
        store = Store()

    sessions = [Known(World(rank, 2), "hand") for rank in range(2)]
    first = sessions[0].tell(ValueError("no"), 0)
    assert (first.rank, first.kind, first.text) == (0, "ValueError", "no")
    assert sessions[1].tell(ValueError("no"), 0) == first
    sessions[1].look()
    assert str(sessions[1].error(first)) == "process 0 of 2 failed with ValueError: no"
    # Of an earlier run it says nothing.
    sessions[1].runs, sessions[1].ended = 1, None
    sessions[1].look()
    assert sessions[1].ended is None


@pytest.mark.parametrize(
    ("flags", "text"),
    [
        (["--processes", "two"], "--processes must be launched or a number of processes, not 'two'"),
        (["--processes", "2"], "goes with --rank R and --coordinator HOST:PORT"),
        (["--processes", "2", "--rank", "2", "--coordinator", "n1:6"], "rank is from 0 to 1"),
        (["--rank", "1"], "--rank and --coordinator go with it"),
        (["--processes", "launched"], "neither mpirun nor srun has started this process"),
    ],
)
def test_flags_of_processes(flags, text, capsys, monkeypatch, tmp_path):
    for name in (*MPI, *STEP, *BY_HAND, "PMI_RANK"):
        monkeypatch.delenv(name, raising=False)
    assert main(["relax", "--out", str(tmp_path / "out"), *flags]) == 2
    assert text in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
