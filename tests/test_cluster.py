"""Runs over the workers of a Dask cluster.

What needs a cluster is in `cluster_program.py`, in processes of its own: what Dask leaves behind in threads
would be warnings in other tests.
"""

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from ase.build import molecule

from alchemi_jax import Batch
from alchemi_jax.cli.main import main
from alchemi_jax.dynamics import FIRE, ConvergenceHook, connect, relax_all
from alchemi_jax.dynamics.cluster.connect import check_client, local_workers
from alchemi_jax.dynamics.cluster.killed import split
from alchemi_jax.dynamics.cluster.pace import LEAST, SECONDS, Pace
from alchemi_jax.dynamics.cluster.pickling import Elsewhere, pack, strip, unpack, unpack_settings
from alchemi_jax.dynamics.hooks import CheckpointHook, LoggingHook, SnapshotHook
from alchemi_jax.dynamics.sinks import ZarrData
from alchemi_jax.models import HarmonicModel


HERE = Path(__file__).parent
MODEL = HarmonicModel(k=1.0)


def program(*arguments):
    pytest.importorskip("distributed")
    here = {**os.environ, "PYTHONPATH": f"{HERE}{os.pathsep}{HERE.parent}", "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, str(HERE / "cluster_program.py"), *map(str, arguments)]
    done = subprocess.run(command, env=here, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    assert done.stdout.split()[-3:] == ["all", "is", "well"], done.stdout[-2000:]


def test_runs_over_a_cluster(tmp_path):
    """The same paths, logs and frames as in one process; going on; failures by name; refusals."""
    program("threads", tmp_path)


def test_a_worker_is_killed(tmp_path):
    program("kills", tmp_path, 1)


@pytest.mark.long
def test_workers_are_killed_ten_times(tmp_path):
    program("kills", tmp_path, 10)


@pytest.mark.long
def test_a_system_that_kills_its_workers(tmp_path):
    program("poison", tmp_path)


def test_dask_is_not_imported_with_the_package():
    text = (
        "import sys, alchemi_jax, alchemi_jax.dynamics as d; d.relax_all; d.connect; d.run_on_cluster; "
        "import alchemi_jax.cli.stream; "
        "assert not {'dask', 'distributed'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", text], check=True)


def test_what_is_missing_or_wrong_is_said(monkeypatch, tmp_path, capsys):
    with pytest.raises(ValueError, match="a number of workers, as in local:4, not 'local:many'"):
        local_workers("local:many")
    assert local_workers("local:12") == 12
    assert local_workers("tcp://host:8786") is None
    for wrong in ("local:0", "local:", ""):
        assert main(["relax", "--cluster", wrong, "--out", str(tmp_path / "out")]) == 2
        assert "--cluster must be an address, as in tcp://host:8786, or local:N" in capsys.readouterr().err
    assert main(["md", "--cluster", "local:2", "--devices", "2", "--temperature", "9"]) == 2
    assert "--devices is for this machine: leave it or --cluster out" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "distributed", None)
    for call in (
        lambda: relax_all(MODEL, [molecule("H2O")], client="tcp://host:8786"),
        lambda: check_client(None),
        lambda: connect("local:2").__enter__(),
    ):
        with pytest.raises(ImportError, match=r"need Dask.*pip install -e '\.\[cluster\]'"):
            call()


def test_what_hooks_write_to_stays_here(tmp_path):
    hooks = [
        ConvergenceHook.from_fmax(0.01),
        LoggingHook(log_path=tmp_path / "log.csv"),
        SnapshotHook(ZarrData(tmp_path / "frames.zarr")),
        CheckpointHook(tmp_path / "checkpoints", should_stop=lambda: False),
    ]
    pytest.importorskip("cloudpickle")
    engine = FIRE(model=MODEL, n_steps=10, hooks=hooks)
    settings, rest = unpack_settings(pack(strip(engine), jax.random.key(7)))
    assert settings.x64
    settings.check()
    there, key = unpack(rest)
    assert jax.random.key_data(key).tolist() == jax.random.key_data(jax.random.key(7)).tolist()
    assert [type(h) for h in there.hooks] == [ConvergenceHook, LoggingHook, SnapshotHook]
    _, log, frames = there.hooks
    assert isinstance(log.writer, Elsewhere)
    assert isinstance(frames.sink, Elsewhere)
    assert engine.hooks.host[0].hook.sink is hooks[2].sink
    assert there.model.k.dtype == np.float64


def test_sizes_of_tasks():
    pace = Pace(refills=True)
    assert pace.batches(10.0, np.inf, 3) == 1, "small, until the speed is known"
    pace.note(10.0, 5.0)
    assert pace.batches(10.0, np.inf, 3) == max(LEAST, SECONDS / 5)
    pace.note(10.0, 0.1)
    assert pace.batches(10.0, np.inf, 3) == SECONDS / 0.1
    assert pace.batches(10.0, 60.0, 3) == 10, "so that all workers have something to do at the end"
    assert pace.batches(10.0, 2.0, 3) == 1
    slow = Pace(refills=False)
    slow.note(10.0, 3600.0)
    assert slow.batches(10.0, np.inf, 3) == 1
    host = Batch.from_ase([molecule("H2O") for _ in range(9)]).to_host()
    assert [len(part) for part in split(host)] == [3, 2, 2, 2]
    assert [i for part in split(host) for i in part.system_id.tolist()] == list(range(9))


def test_a_worker_that_dies_while_it_is_given_the_engine(monkeypatch):
    pytest.importorskip("distributed")
    from distributed.comm.core import CommClosedError

    from alchemi_jax.dynamics.cluster import tasks

    class Client:
        asked = 0

        def register_plugin(self, plugin):
            self.asked += 1
            if self.asked < 3:
                raise CommClosedError("in broadcast")
            return {"tcp://one": {"status": "OK"}}

    monkeypatch.setattr(tasks, "_LOOK", 0.01)
    given = SimpleNamespace(client=Client(), _check_scheduler=lambda: None)
    tasks.Tasks._register(given, None)
    assert given.client.asked == 3
    # One that stays so is an error.
    monkeypatch.setattr(tasks, "_REGISTER", 0.0)
    given.client = Client()
    with pytest.raises(RuntimeError, match="a worker cannot read the engine"):
        tasks.Tasks._register(given, None)
