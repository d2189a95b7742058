"""What commands make of settings, and of logs: engines, means, drift, pictures. Nothing here is compiled."""

import types

import matplotlib as mpl
import numpy as np
import pytest
from ase import Atoms

from alchemi_jax import Batch
from alchemi_jax.cli.engines import engine_of, log_of
from alchemi_jax.cli.flags import parse
from alchemi_jax.cli.table import Table, means, picture
from alchemi_jax.cli.watch import Watch
from alchemi_jax.dynamics import FIRE2, LBFGS, NVE, FIREVariableCell
from alchemi_jax.dynamics.hooks import ConvergenceHook


def settings(command, *flags):
    return parse(command, list(flags)).settings


def thresholds(engine):
    hook = next(h for h in engine.hooks if isinstance(h, ConvergenceHook))
    return {c["key"]: float(c["threshold"]) for c in hook.criteria}


def test_engines_of_flags(lj):
    engine = engine_of(settings("relax", "--cell", "--pressure", "1.5", "--smax", "1e-3", "--dt", "2"), lj)
    assert type(engine) is FIREVariableCell
    assert (float(engine.scalar_pressure), float(engine.dt)) == (1.5, 2.0)
    engine = engine_of(settings("relax", "--optimizer", "fire2", "--steps", "7"), lj)
    assert (type(engine), int(engine.n_steps)) == (FIRE2, 7)
    assert type(engine_of(settings("relax", "--optimizer", "lbfgs"), lj)) is LBFGS
    engine = engine_of(settings("md", "--ensemble", "nve", "--temperature", "9", "--relax", "0.1"), lj)
    assert type(engine.parts[1]) is NVE
    assert float(engine.parts[1].temperature) == 9, "of the velocities after the relaxation"
    engine = engine_of(settings("md", "--ensemble", "nve", "--temperature", "9"), lj)
    assert engine.temperature is None, "structures that move keep their velocities"


def test_columns_of_the_log(tmp_path):
    def columns(*arguments):
        return log_of(settings(*arguments), tmp_path / "log.csv").columns

    nve = columns("md", "--ensemble", "nve")
    assert {"time", "total_energy"} <= set(nve)
    assert "pressure" not in nve
    npt = columns("md", "--ensemble", "npt", "--temperature", "9", "--pressure", "0")
    assert {"time", "total_energy", "volume", "density", "pressure"} <= set(npt)
    assert "volume" in columns("relax", "--cell")
    assert not {"time", "volume"} & set(columns("relax"))


@pytest.fixture
def log(tmp_path):
    """Two systems of 2 and 4 atoms, whose total energies rise by 1 and fall by 4 meV/atom/ps."""
    rng = np.random.default_rng(0)
    lines = ["step,system_id,status,energy,fmax,temperature,time,total_energy"]
    for step in range(0, 400, 2):
        for system, atoms, slope in ((0, 2, 1e-3), (1, 4, -4e-3)):
            time = (step + 1) * 2e-3
            total = atoms * (0.5 + slope * time)
            row = [step, system, 0, total - 1, 0.1, 20 + rng.normal(), time, total]
            lines.append(",".join(map(repr, map(float, row))))
    (tmp_path / "log.csv").write_text("\n".join(lines) + "\n")
    return Table.read(tmp_path / "log.csv")


def test_means_and_drift(log):
    stage = settings("md", "--ensemble", "nve").stages[0]
    found = dict(means(log, 0, stage, {0: 2, 1: 4}))
    assert found["drift"] == "-1.5 meV/atom/ps, at most 4 (system 1)"
    assert found["total energy"].startswith("0.49")
    assert found["temperature"].endswith("K")
    stage = settings("md", "--temperature", "9").stages[0]
    assert "drift" not in dict(means(log, 0, stage, {0: 2, 1: 4}))


def test_the_picture_has_time_and_a_legend(log, tmp_path):
    stages = settings("md", "--temperature", "19").stages
    with mpl.rc_context({"svg.fonttype": "none"}):
        picture(log, {0: 2, 1: 4}, tmp_path / "x.svg", "title", stages)
    text = (tmp_path / "x.svg").read_text()
    for part in ("time (ps)", "system 0", "system 1", "set: 19 K", "total energy", "alchemi-jax"):
        assert part in text, part


def test_the_bar_counts_steps_of_all_systems():
    """Also those of an earlier call; what this call did is counted apart."""
    host = Batch.from_ase([Atoms("Ar"), Atoms("Ar2", [[0, 0, 0], [0, 0, 4]]), Atoms("Ar")]).to_host()
    steps = np.array([30, 100, 100], np.int32)
    host = host.replace(status=np.array([0, 1, 1], np.int32), stage_steps=steps, steps_taken=steps)
    workflow = types.SimpleNamespace(exit_status=1)
    watch = Watch(settings("md", "--temperature", "9", "--steps", "100"), 4)
    watch.begin(host.take([2]), np.array([True]))
    assert (watch.bar.total, watch.bar.n) == (400, 100)
    watch(types.SimpleNamespace(step_count=10, workflow=workflow, batch=host.take([0, 1])), None)
    assert watch.bar.n == 100 + 100 + 30
    assert watch.finished == 2
    later = host.replace(steps_taken=np.array([80, 100, 100], np.int32))
    assert watch.atom_steps(later) == 51 + 2
    watch.close()
