"""Runs over the workers of a Dask cluster: cluster_program.py CASE FOLDER [kills].

`test_cluster.py` runs them, each case in a process of its own. "threads" has one worker in a thread of this
process, so that little is compiled; "kills" has processes, and ends them at random moments.
"""

import json
import os
import random
import re
import signal
import sys
import threading
import time
import types
import warnings
from pathlib import Path
from typing import Any

import distributed
import jax
import numpy as np
import pytest
from ase import Atoms
from ase.build import molecule
from ase.io import read, write
from cheap_xla import cheap_xla

from alchemi_jax.cli.main import main
from alchemi_jax.cli.signals import Signals
from alchemi_jax.dynamics import (
    FIRE,
    NVE,
    ConvergenceHook,
    Sampler,
    connect,
    integrate_all,
    relax_all,
    run_on_cluster,
)
from alchemi_jax.dynamics.cluster import connect as connecting
from alchemi_jax.dynamics.cluster import tasks, worker
from alchemi_jax.dynamics.hooks import CallbackHook, CheckpointHook, LoggingHook, SnapshotHook
from alchemi_jax.dynamics.interrupt import Interrupted
from alchemi_jax.dynamics.sinks import HostMemory, ZarrData
from alchemi_jax.dynamics.stage import DynamicsStage
from alchemi_jax.hooks import TracedHook
from alchemi_jax.models import HarmonicModel


MODEL = None
#: On 0.10.1 paths are the same bit for bit wherever a system is computed.
BITWISE = jax.__version__ == "0.10.1"


def structures(n=12):
    rng, found = np.random.default_rng(0), []
    for i in range(n):
        atoms = molecule(("H2O", "NH3", "CO2")[i % 3])
        atoms.rattle(0.1, rng=rng)
        atoms.info["number"] = i
        found.append(atoms)
    return found


def assert_same(a, b):
    order = [np.argsort(x.system_id) for x in (a, b)]
    a, b = a.take(order[0]), b.take(order[1])
    np.testing.assert_array_equal(a.system_id, b.system_id)
    for name in ("positions", "velocities", "energy", "forces", "outcome", "steps_taken", "status"):
        if BITWISE:
            np.testing.assert_array_equal(a[name], b[name], err_msg=name)
        else:
            np.testing.assert_allclose(a[name], b[name], rtol=1e-9, atol=1e-11, err_msg=name)
    assert [m.info for m in a.meta] == [m.info for m in b.meta]


def rows(path):
    """The lines of a log, in the order of systems and steps."""
    return sorted(
        path.read_text().splitlines()[1:], key=lambda line: [int(x) for x in line.split(",")[1::-1]]
    )


class Spy:
    """The systems of each task, and what to do instead of computing one."""

    def __init__(self, instead=lambda host, compute: compute()):
        self.tasks, self.instead, self.real = [], instead, worker._compute

    @property
    def systems(self):
        return [i for task in self.tasks for i in task]

    def __enter__(self):
        worker._compute = self
        return self

    def __exit__(self, *exc):
        worker._compute = self.real

    def __call__(self, engine, host, room):
        self.tasks.append(host.system_id.tolist())
        return self.instead(host, lambda: self.real(engine, host, room))


# -- one worker, in a thread of this process -----------------------------------------------------------


def threads(folder):
    with distributed.Client(
        processes=False, n_workers=1, threads_per_worker=1, dashboard_address="127.0.0.1:0"
    ) as client:
        relaxations_are_those_of_one_process(client)
        hooks_write_here_and_once(client, folder)
        a_run_goes_on(client, folder)
        a_system_that_kills_its_workers_fails_alone(client)
        what_goes_wrong_on_a_worker_is_told(client)
        what_is_refused(client, folder)
        the_command_line(client, folder)


def relaxations_are_those_of_one_process(client):
    options = {"fmax": 0.01, "n_steps": 300, "max_systems": 4}
    with Spy() as spy:
        out = relax_all(MODEL, structures(), client=client, **options)
    assert_same(out.to_host(), relax_all(MODEL, structures(), **options).to_host())
    assert sorted(spy.systems) == list(range(12))
    # A generator has no length, and tasks of one batch each are as good.
    with Spy() as spy:
        again = relax_all(MODEL, iter(structures()), client=client, policy="first come", **options)
    assert_same(out.to_host(), again.to_host())
    assert len(spy.tasks[0]) == 4


def hooks_write_here_and_once(client, folder):
    def run(name, **more):
        calls, frames = [], HostMemory()
        engine = NVE(
            model=MODEL,
            dt=0.5,
            n_steps=30,
            hooks=[
                LoggingHook(
                    log_path=folder / f"{name}.csv", frequency=7, stage=DynamicsStage.BEFORE_STEP, final=True
                ),
                SnapshotHook(frames, 10, finished=False, final=True),
                Seen(calls),
            ],
        )
        sampler = Sampler(structures(10), max_systems=4)
        if more:
            out = run_on_cluster(engine, sampler, sink=HostMemory(), **more)
        else:
            out = engine.run(sampler=sampler, sink=HostMemory())
        assert all(workflow is engine.parts[0] or type(workflow) is NVE for _, _, workflow in calls)
        return out.read(), frames.read(), sorted(call[:2] for call in calls)

    (a, frames_a, calls_a), (b, frames_b, calls_b) = run("here"), run("there", client=client)
    assert_same(a, b)
    assert rows(folder / "here.csv") == rows(folder / "there.csv")
    assert len(rows(folder / "here.csv")) == 10 * 6
    for name in ("positions", "steps_taken", "system_id"):
        order = [np.lexsort([f.steps_taken, f.system_id]) for f in (frames_a, frames_b)]
        x, y = frames_a.take(order[0])[name], frames_b.take(order[1])[name]
        np.testing.assert_allclose(x, y, rtol=0 if BITWISE else 1e-9, atol=0 if BITWISE else 1e-11)
    assert calls_a == calls_b


class Seen:
    """A host hook with a list, which stays in this process."""

    stage, frequency, follows_systems, own_steps = DynamicsStage.AFTER_STEP, 15, True, True

    def __init__(self, calls):
        self.calls = calls

    def __call__(self, ctx, stage):
        for i in np.flatnonzero(ctx.active_mask):
            self.calls.append((int(ctx.batch.system_id[i]), int(ctx.batch.steps_taken[i]), ctx.workflow))


def a_run_goes_on(client, folder):
    def run(stops, **more):
        checkpoints = CheckpointHook(folder / "resume", should_stop=stops)
        log = LoggingHook(log_path=folder / "resumed.csv", frequency=10)
        sink = ZarrData(folder / "resumed.zarr")
        key = more.pop("key", jax.random.key(1))
        return integrate_all(
            MODEL,
            more.pop("source", structures()),
            n_steps=more.pop("n_steps", 20),
            temperature=100.0,
            client=more.pop("client", client),
            hooks=[log, checkpoints],
            sink=sink,
            key=key,
            max_systems=4,
            resume=folder / "resume",
        )

    with Spy() as first:
        try:
            run(lambda: len(first.tasks) > 1)
        except Interrupted:
            pass
        else:
            raise AssertionError("the run was to be told to stop")
    done = ZarrData(folder / "resumed.zarr").read().system_id.tolist()
    assert 0 < len(done) < 12
    # As if it had been killed while it wrote what is not known to be done.
    extra = ZarrData(folder / "resumed.zarr").read().take([0])
    ZarrData(folder / "resumed.zarr").write(extra)
    with Spy() as second:
        out = run(lambda: False).read()
    assert not set(done) & set(second.systems), "finished systems are not computed again"
    assert sorted(out.system_id.tolist()) == list(range(12))
    again = integrate_all(
        MODEL, structures(), n_steps=20, temperature=100.0, key=jax.random.key(1), max_systems=4,
        hooks=[LoggingHook(log_path=folder / "plain.csv", frequency=10)],
    )  # fmt: skip
    assert_same(out, again.to_host())
    assert rows(folder / "plain.csv") == rows(folder / "resumed.csv")
    with Spy() as third:
        assert len(run(lambda: False)) == 12
    assert not third.tasks
    others = structures()
    others[3].positions += 0.01
    for told, more in (
        ("another key", {"key": jax.random.key(2)}),
        ("finished systems do not go on", {"n_steps": 30}),
        ("is not the system", {"source": others}),
        ("of a run with a cluster, this one has a stream", {"client": None}),
    ):
        refused(told, lambda more=more: run(lambda: False, **more))
    assert len(ZarrData(folder / "resumed.zarr")) == 12


def a_system_that_kills_its_workers_fails_alone(client):
    def die(host, compute):
        if 5 in host.system_id:
            raise distributed.KilledWorker("task", types.SimpleNamespace(address="tcp://there"), 0)
        return compute()

    with Spy(die) as spy, warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        out = relax_all(MODEL, structures(), client=client, fmax=0.01, n_steps=300, max_systems=4).to_host()
    assert [5] in spy.tasks
    (text,) = [str(w.message) for w in told if " failed " in str(w.message)]
    assert "system 5 (CO2) failed" in text
    assert "each worker of the cluster" in text
    assert out.failed.tolist() == [i == 5 for i in range(12)]
    assert "died" in out.outcome_text(5)
    assert (out.outcome[[i for i in range(12) if i != 5]] == 1).all()
    np.testing.assert_array_equal(out[5].positions, structures()[5].positions)


def what_goes_wrong_on_a_worker_is_told(client):
    def fail(host, compute):
        raise ValueError("something is wrong")

    def twice(host, compute):
        found = compute()
        return found[0].take([0] * len(host)), *found[1:]

    options = {"client": client, "fmax": 0.01, "n_steps": 300, "max_systems": 4}
    with Spy(fail):
        error = refused("something is wrong", lambda: relax_all(MODEL, structures(), **options))
    assert "raised on a worker, for system 1 (H3N)" in "".join(error.__notes__)
    sink = HostMemory()
    with Spy(twice):
        refused("each once", lambda: relax_all(MODEL, structures(), sink=sink, **options))
    assert not len(sink)
    # A result that is lost is asked for again.
    lost = []
    real = tasks.Tasks._submit

    def submit(self, task):
        real(self, task)
        if not lost:
            lost.append(task)
            self.client.cancel([future for future, _ in self.pending.values()], force=True)

    tasks.Tasks._submit = submit
    try:
        assert relax_all(MODEL, structures(), **options).converged.all()
    finally:
        tasks.Tasks._submit = real
    assert lost


def what_is_refused(client, folder):
    lock = threading.Lock()

    class Locked(Seen):
        def __init__(self):
            super().__init__([])
            self.lock = lock

    def engine(*hooks):
        return FIRE(model=MODEL, n_steps=10, hooks=[ConvergenceHook.from_fmax(0.01), *hooks])

    def run(engine, sampler=None, **more):
        return run_on_cluster(engine, sampler or Sampler(structures(2)), more.pop("client", client), **more)

    silent = CallbackHook(lambda ctx, stage: None, stage=DynamicsStage.AFTER_STEP)
    for told, call in (
        ("Locked cannot be pickled", lambda: run(engine(Locked()))),
        ("is not known to identify systems", lambda: run(engine(silent))),
        ("leave devices out", lambda: run(engine(), Sampler(structures(2), devices="all"))),
        ("counts steps", lambda: run(engine(CheckpointHook(folder / "c", frequency=5)))),
        ("must be a distributed.Client", lambda: run(engine(), client="tcp://host:8786")),
        ("takes a Sampler", lambda: run(engine(), structures(2))),
    ):
        refused(told, call)


def the_command_line(client, folder):
    """A relaxation; the second half after it was told to stop, and a complete one is not run again."""
    argon = [
        Atoms("Ar5", 3.8 * np.eye(5, 3) + np.random.default_rng(i).normal(0, 0.1, (5, 3))) for i in range(6)
    ]
    write(folder / "argon.extxyz", argon)
    out = folder / "relaxed"
    command = [
        "relax",
        str(folder / "argon.extxyz"),
        "--model",
        "lj",
        "--out",
        str(out),
        "--max-systems",
        "2",
    ]
    connecting._ANSWER = 0.5
    assert main([*command, "--cluster", "tcp://127.0.0.1:1"]) == 2
    assert not out.exists(), "nothing was begun"
    command += ["--cluster", client.scheduler.address]

    class Stops(Signals):
        def should_stop(self):
            self.is_out_of_time = len(spy.tasks) > 1
            return self.is_out_of_time

    with Spy() as spy:
        assert main(command, Stops()) == 4
        first = list(spy.systems)
        assert main(command) == 0
        assert len(spy.systems) - len(first) < 6
        assert main(command) == 0
    assert sorted(set(spy.systems)) == list(range(6))
    assert len(read(out / "relaxed.extxyz", ":")) == 6
    assert sorted(ZarrData(out / "finished.zarr").read().system_id.tolist()) == list(range(6))
    # Without a cluster it does not go on, and nothing is lost.
    assert main([*command[:-2], "--steps", "2000"]) == 2
    assert len(ZarrData(out / "finished.zarr")) == 6


def refused(told, call):
    with pytest.raises(Exception, match=re.escape(told)) as error:
        call()
    return error.value


# -- processes -----------------------------------------------------------------------------------------


def kills(folder, wanted):
    """Workers are killed at random moments, and every system comes out once, as if none had been."""
    n, seed = 48 if wanted < 3 else 120, int(os.environ.get("SEED", time.time_ns() % 10**6))
    print("seed", seed, file=sys.stderr)
    steps, random_ = 6000, random.Random(seed)
    options = {"n_steps": steps, "ensemble": "nve", "dt": 0.2, "max_systems": 4}

    def hooks(name):
        sink = ZarrData(folder / f"frames-{name}.zarr")
        return [SnapshotHook(sink, steps // 2, finished=False)]

    # They come back in time, but there may be a time without any.
    warnings.filterwarnings("ignore", "no worker has joined")
    plain = integrate_all(MODEL, structures(n), hooks=hooks("plain"), **options).to_host()
    import dask

    with (
        dask.config.set({"distributed.scheduler.allowed-failures": wanted + 1}),
        connect("local:3" if wanted > 2 else "local:2") as client,
    ):
        killed, over = [], threading.Event()
        sink = ZarrData(folder / "finished.zarr")

        def kill():
            while len(killed) < wanted and not over.wait(random_.uniform(0.1, 2.0)):
                try:
                    pids = list(client.run(os.getpid, on_error="ignore").values())
                except Exception:
                    # One of those that were asked has just been killed.
                    continue
                if pids and (len(sink) or killed):
                    victim = random_.choice(pids)
                    os.kill(victim, signal.SIGKILL)
                    killed.append(victim)

        killer = threading.Thread(target=kill)
        killer.start()
        try:
            calls = 0
            while not calls or killer.is_alive():
                # Again until all kills were done: each run is as whole as the last one.
                sink.zero()
                done = hooks(f"cluster-{calls}")
                integrate_all(MODEL, structures(n), hooks=done, sink=sink, client=client, **options)
                found = sink.read()
                assert sorted(found.system_id.tolist()) == list(range(n)), found.system_id
                assert_same(found, plain)
                frames = done[0].sink.read()
                pairs = list(zip(frames.system_id.tolist(), frames.steps_taken.tolist(), strict=True))
                assert sorted(pairs) == sorted((i, s) for i in range(n) for s in (1, steps // 2 + 1)), pairs
                calls += 1
        finally:
            over.set()
            killer.join()
    assert len(killed) == wanted
    print(json.dumps({"kills": len(killed), "calls": calls}), file=sys.stderr)


class Poison(TracedHook):
    """Ends the process that computes system 5."""

    stage: Any = DynamicsStage.BEFORE_STEP
    frequency: int = 1

    def __call__(self, ctx, stage):
        jax.debug.callback(_die, (ctx.batch.system_id == 5) & (ctx.batch.numbers[ctx.batch.first_atom] > 0))
        return ctx


def _die(bad):
    if np.any(bad):
        os.kill(os.getpid(), signal.SIGKILL)


def poison(folder):
    """A system that kills whoever computes it fails by name, and the others come out."""
    import dask

    engine = NVE(model=MODEL, dt=0.2, n_steps=50, hooks=[Poison()])
    told = r"system 5 \(CO2\) failed before the first step: .* died"
    with (
        dask.config.set({"distributed.scheduler.allowed-failures": 0}),
        connect("local:2") as client,
        pytest.warns(RuntimeWarning, match=told),
    ):
        out = run_on_cluster(engine, Sampler(structures(8), max_systems=4), client).to_host()
    assert out.failed.tolist() == [i == 5 for i in range(8)]
    assert (out.steps_taken == np.where(np.arange(8) == 5, 0, 50)).all()


if __name__ == "__main__":
    warnings.simplefilter("error")
    # ASE 3.29 with numpy 2.5.
    warnings.filterwarnings("ignore", "Setting the shape on a NumPy array", DeprecationWarning)
    jax.config.update("jax_enable_x64", True)
    MODEL = HarmonicModel(k=1.0)
    case, at = sys.argv[1], Path(sys.argv[2])
    if case == "threads":
        # Both sides of each comparison are compiled alike.
        with cheap_xla():
            threads(at)
    elif case == "poison":
        poison(at)
    else:
        kills(at, int(sys.argv[3]))
    print("all is well")
