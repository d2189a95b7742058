"""Each built-in hook against a hand calculation; observers change no bit; the order of all calls."""

import dataclasses
import gzip
import json

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import cluster, crystal

from alchemi_jax import Batch
from alchemi_jax.dynamics import FIRE, NVE, ConvergenceHook, DynamicsStage
from alchemi_jax.dynamics.hooks import (
    BiasedPotentialHook,
    CallbackHook,
    ConvergedSnapshotHook,
    EnergyDriftMonitorHook,
    FreezeAtomsHook,
    LivePlotHook,
    LoggingHook,
    MaxForceClampHook,
    NaNDetectorHook,
    ObservableHook,
    ProfilerHook,
    ProgressHook,
    SnapshotHook,
    StageTimingHook,
    WrapPeriodicHook,
    timing,
)
from alchemi_jax.dynamics.sinks import HostMemory
from alchemi_jax.hooks import RecordingHook, TracedHook
from alchemi_jax.models import HarmonicModel
from alchemi_jax.systems.observables import degrees_of_freedom, fmax, kinetic_energy, pressure, temperature
from alchemi_jax.systems.segments import sum_by_system


MODEL = HarmonicModel()
S = DynamicsStage


@pytest.fixture(scope="module")
def batch():
    return Batch.from_ase([cluster(0, 3), cluster(1, 2), cluster(2, 4)])


# -- the order of all calls ------------------------------------------------------------------------


def calls(kind, stages, frequency, log):
    """A hook of a kind that notes (step, stage) of its calls: at once, or in what it leaves behind."""

    def runs(self, stage):
        return stage in stages

    if kind == "host":

        class Host:
            stage = None

            def __init__(self):
                self.frequency = frequency

            def __call__(self, ctx, stage):
                log.append((ctx.step_count, stage))

        Host._runs_on_stage = runs
        return Host()
    if kind == "recording":

        class Recording(RecordingHook):
            def __init__(self, stage):
                self.stage, self.frequency = stage, frequency

            def record(self, ctx):
                return ctx.step_count

            def write(self, rows):
                log.extend((int(step), self.stage) for step in rows)

        return [Recording(stage) for stage in stages]

    class Traced(TracedHook):
        stage: None = None
        frequency: int = 1

        def init(self, batch):
            return jnp.zeros((len(S), 32), bool), jnp.zeros((), jnp.int32)

        def __call__(self, ctx, stage):
            seen, count = ctx.memory
            return ctx.with_memory((seen.at[stage.value, ctx.step_count].set(True), count + 1))

    Traced._runs_on_stage = runs
    return Traced(frequency=frequency)


# All frequencies at once, for single engines and pipelines: test_fused.
@pytest.mark.parametrize(
    "frequency", [pytest.param(1, marks=pytest.mark.long), 3, pytest.param(10, marks=pytest.mark.long)]
)
@pytest.mark.parametrize("kind", ["host", "recording", "traced"])
def test_every_kind_at_every_stage_at_every_frequency(batch, kind, frequency):
    """One run of 12 steps in which a system converges in each of the steps 3, 4 and 6."""

    class Converge(TracedHook):
        stage: DynamicsStage = S.AFTER_STEP
        frequency: int = 1

        def __call__(self, ctx, stage):
            when = jnp.array([3, 4, 6, -1])
            return ctx.with_batch(status=jnp.where(ctx.step_count == when, 1, ctx.batch.status))

    four = Batch.from_ase([cluster(i, 2) for i in range(4)])
    log = []
    hooks = calls(kind, tuple(S), frequency, log)
    hooks = hooks if isinstance(hooks, list) else [hooks]
    engine = NVE(model=MODEL, dt=1.0, n_steps=12, hooks=[Converge(), *hooks])
    state = engine.advance(engine.init(four), 12)
    if kind == "traced":
        seen, count = state.memory[1]
        log = [(int(step), S(int(stage))) for stage, step in zip(*np.nonzero(seen), strict=True)]
        assert int(count) == len(log), "no call twice"
    expected = [
        (step, stage)
        for step in range(0, 12, frequency)
        for stage in S
        if stage is not S.ON_CONVERGE or step in (3, 4, 6)
    ]
    if kind == "host":
        assert log == expected
    else:
        assert sorted(log, key=lambda c: (c[0], c[1].value)) == expected


# -- traced hooks ----------------------------------------------------------------------------------


def test_clamp(batch):
    state = NVE(model=MODEL, dt=1.0, hooks=[MaxForceClampHook(limit=1.5)]).init(batch)
    free = -np.asarray(batch.positions)
    norm = np.linalg.norm(free, axis=1, keepdims=True)
    expected = free * np.minimum(1, 1.5 / np.maximum(norm, 1e-300))
    np.testing.assert_allclose(state.batch.forces, expected, atol=1e-12)
    with pytest.raises(ValueError, match="limit must be positive"):
        MaxForceClampHook(limit=-1.0)


@pytest.mark.cheap_xla
@pytest.mark.parametrize(
    "atoms",
    [[0, 4], np.arange(9) % 4 == 0, lambda b: jnp.arange(b.atom_capacity) % 4 == 0],
    ids=["indices", "mask", "function"],
)
def test_freeze(batch, atoms):
    held = [0, 4] if isinstance(atoms, list) else [0, 4, 8]
    moving = batch.replace(velocities=jnp.ones_like(batch.velocities) * 0.01 * batch.atom_mask[:, None])
    out = NVE(model=MODEL, dt=1.0, n_steps=20, hooks=[FreezeAtomsHook(atoms)]).run(moving)
    before, after = np.asarray(batch.positions[:9]), np.asarray(out.positions[:9])
    np.testing.assert_array_equal(after[held], before[held])
    assert not np.asarray(out.velocities)[held].any()
    others = np.setdiff1d(np.arange(9), held)
    assert (np.abs(after - before)[others].max(1) > 1e-3).all()
    counts = np.bincount(np.repeat([0, 1, 2], [3, 2, 4])[held], minlength=3)
    assert degrees_of_freedom(out)[:3].tolist() == (3 * (np.array([3, 2, 4]) - counts)).tolist()


def test_freeze_refuses(batch):
    for atoms, message in (([99], "takes indices from 0"), (np.ones(2, bool), "is a mask of shape")):
        with pytest.raises(ValueError, match=message):
            NVE(model=MODEL, dt=1.0, hooks=[FreezeAtomsHook(atoms)]).init(batch)


def test_wrap(lj):
    """Atoms come into the cell, by lattice vectors; the path is the same."""
    atoms = crystal(0, 2)
    atoms.pbc = (True, True, False)
    atoms.set_velocities(np.random.default_rng(0).normal(0, 0.15, (32, 3)))
    start = Batch.from_ase(atoms)
    free = NVE(model=lj, dt=4.0, n_steps=40).run(start).take()
    out = NVE(model=lj, dt=4.0, n_steps=40, hooks=[WrapPeriodicHook(frequency=5)]).run(start).take()
    fractional = (out.positions - free.positions) / 10.52
    assert np.abs(fractional - np.round(fractional)).max() < 1e-6
    assert (np.abs(fractional) > 0.5).any()
    assert not np.round(fractional)[:, 2].any()
    np.testing.assert_allclose(out.energy, free.energy, rtol=1e-8)
    inside = NVE(model=lj, dt=1e-6, n_steps=1, hooks=[WrapPeriodicHook()]).run(start).take()
    assert (inside.positions[:, :2] >= -1e-9).all()
    assert (inside.positions[:, :2] < 10.52 + 1e-9).all()


def test_bias_restraint_on_a_distance(batch):
    """Energy and forces against the formula; the restrained distance relaxes to where both forces cancel."""

    def umbrella(b):
        r = b.positions[b.first_atom] - b.positions[b.first_atom + 1]
        return 5.0 * (jnp.sqrt(jnp.sum(r * r, axis=-1)) - 3.0) ** 2

    state = NVE(model=MODEL, dt=1.0, hooks=[BiasedPotentialHook(umbrella)]).init(batch)
    plain = NVE(model=MODEL, dt=1.0).init(batch)
    x = np.asarray(batch.positions)
    for system, first in enumerate([0, 3, 5]):
        d = x[first] - x[first + 1]
        r = np.linalg.norm(d)
        added = float(state.batch.energy[system] - plain.batch.energy[system])
        assert added == pytest.approx(5 * (r - 3) ** 2, rel=1e-10)
        change = np.asarray(state.batch.forces - plain.batch.forces)
        np.testing.assert_allclose(change[first], -10 * (r - 3) * d / r, atol=1e-10)
        np.testing.assert_allclose(change[first + 1], 10 * (r - 3) * d / r, atol=1e-10)
    hooks = [BiasedPotentialHook(umbrella), ConvergenceHook.from_fmax(1e-6)]
    out = FIRE(model=MODEL, dt=3.0, n_steps=3000, hooks=hooks).run(batch)
    y = np.asarray(out.positions)
    # Two atoms at -d/2 and d/2: 0.5 d = 10 (3 - d).
    assert np.linalg.norm(y[3] - y[4]) == pytest.approx(30 / 10.5, abs=1e-4)


def test_bias_adds_to_the_stress(lj):
    """Pressure as an energy: -p V adds -p to the diagonal."""
    p = 0.01

    def work(b):
        a, c, d = (b.cell[:, k] for k in range(3))
        return -p * jnp.abs(jnp.sum(a * jnp.cross(c, d), axis=-1))

    class Stressed(ConvergenceHook):
        pass

    hooks = [Stressed({"key": "stress", "threshold": 0.0}), BiasedPotentialHook(work)]
    start = Batch.from_ase(crystal(0, 1))
    plain = NVE(model=lj, dt=1.0, hooks=hooks[:1]).init(start).batch.stress[0]
    biased = NVE(model=lj, dt=1.0, hooks=hooks).init(start).batch.stress[0]
    np.testing.assert_allclose(biased - plain, -p * np.eye(3), atol=1e-12)


def test_metadynamics_by_memory(batch):
    """Hills where the system was: the bias at a place is the sum of the hills left before."""

    def coordinate(b):
        return b.positions[b.first_atom, 0]

    def hills(b, memory):
        centres, count = memory
        there = jnp.arange(centres.shape[0])[:, None] < count
        gauss = jnp.exp(-((coordinate(b)[None] - centres) ** 2) / (2 * 0.1**2))
        return 0.05 * jnp.where(there, gauss, 0).sum(axis=0)

    def deposit(b, memory):
        centres, count = memory
        return centres.at[count].set(coordinate(b)), count + 1

    memory = (jnp.zeros((16, batch.system_capacity)), jnp.zeros((), jnp.int32))
    hook = BiasedPotentialHook(hills, memory=memory, deposit=deposit, every=5)
    engine = NVE(model=MODEL, dt=2.0, hooks=[hook])
    state = engine.init(batch)
    path = []
    for _ in range(21):
        state = engine.advance(state, 1)
        path.append(np.asarray(coordinate(state.batch))[:3])
    centres, count = state.memory[0]
    assert int(count) == 5
    np.testing.assert_allclose(centres[:5, :3], np.array(path)[::5], rtol=1e-12)
    unbiased = sum_by_system(state.batch, (state.batch.positions**2).sum(-1)) / 2
    # The hill of step 20 was left after the last evaluation.
    expected = hills(state.batch, (centres, 4))
    np.testing.assert_allclose((state.batch.energy - unbiased)[:3], expected[:3], atol=1e-12)
    with pytest.raises(ValueError, match="deposit needs a memory"):
        BiasedPotentialHook(hills, deposit=deposit)


def test_nan_detector(batch):
    class Spoil(TracedHook):
        stage: DynamicsStage = S.AFTER_POST_UPDATE
        frequency: int = 1

        def __call__(self, ctx, stage):
            hit = (jnp.arange(ctx.batch.atom_capacity) == 4) & (ctx.step_count == 3)
            return ctx.with_batch(velocities=jnp.where(hit[:, None], jnp.nan, ctx.batch.velocities))

    engine = NVE(model=MODEL, dt=1.0, n_steps=8, hooks=[Spoil(), NaNDetectorHook()])
    with pytest.warns(RuntimeWarning, match=r"system 1 \(Ar2\) failed in step 3"):
        out = engine.run(batch).take()
    assert out.failed.tolist() == [False, True, False]
    assert out.steps_taken.tolist() == [8, 3, 8]
    three = NVE(model=MODEL, dt=1.0, n_steps=3).run(batch).take()
    np.testing.assert_allclose(out.positions[3:5], three.positions[3:5], rtol=1e-14)
    assert np.isfinite(out.velocities).all()
    with pytest.raises(KeyError, match="no field 'magic'"):
        NVE(model=MODEL, dt=1.0, hooks=[NaNDetectorHook(keys=["magic"])]).init(batch)


def test_energy_drift(batch):
    moving = batch.replace(velocities=jnp.where(batch.atom_mask[:, None], 0.01, batch.velocities))
    engine = NVE(model=MODEL, dt=10.0, hooks=[EnergyDriftMonitorHook()])
    state = engine.init(moving)
    totals = []
    for _ in range(15):
        state = engine.advance(state, 1)
        total = (state.batch.energy + kinetic_energy(state.batch)) / state.batch.atoms_per_system
        totals.append(np.asarray(total))
    drift = np.array(totals) - totals[0]
    np.testing.assert_allclose(state.memory[0].now, drift[-1], atol=1e-15)
    np.testing.assert_allclose(state.memory[0].worst, np.abs(drift).max(0), atol=1e-15)
    limit = float(np.sort(np.abs(drift).max(0))[1]) * 1.0001
    strict = NVE(model=MODEL, dt=10.0, n_steps=15, hooks=[EnergyDriftMonitorHook(threshold=limit)])
    with pytest.warns(RuntimeWarning, match="failed in step"):
        out = strict.run(moving).take()
    assert out.failed.tolist() == (np.abs(drift).max(0) > limit).tolist()


# -- observers -------------------------------------------------------------------------------------


def test_observables_come_back_as_arrays(batch):
    hook = ObservableHook(
        {"fmax": fmax, "x": lambda ctx: ctx.batch.positions[ctx.batch.first_atom]}, frequency=3
    )
    engine = NVE(model=MODEL, dt=1.0, hooks=[hook])
    assert hook.table == {}
    state = engine.init(batch)
    by_hand = []
    for step in range(10):
        state = engine.advance(state, 1)
        if step % 3 == 0:
            by_hand.append(np.asarray(fmax(state.batch)))
    table = hook.table
    assert table["step"].tolist() == [0, 3, 6, 9]
    assert table["x"].shape == (4, batch.system_capacity, 3)
    np.testing.assert_allclose(table["fmax"], by_hand, rtol=1e-12)
    assert table["active"][:, :3].all()
    hook.clear()
    assert hook.table == {}
    with pytest.raises(ValueError, match="column 'step' of its own"):
        ObservableHook({"step": fmax})


def test_the_pressure_is_observed_if_asked_for(lj, tmp_path):
    """With `stress` it is that of the engine's final evaluation at every step; without it is NaN."""
    start = Batch.from_ase(crystal(0))
    table, log = ObservableHook({"p": pressure}, stress=True), tmp_path / "p.csv"
    logging = LoggingHook(log_path=log, custom_scalars={"p": lambda c: pressure(c.batch)}, stress=True)
    out = NVE(model=lj, dt=2.0, n_steps=3, hooks=[table, logging]).run(start)
    assert table.table["p"][-1, 0] == pytest.approx(float(pressure(out)[0]), rel=1e-12)
    assert np.genfromtxt(log, delimiter=",", names=True)["p"] == pytest.approx(table.table["p"][:, 0])
    blind = ObservableHook({"p": pressure})
    NVE(model=lj, dt=2.0, n_steps=3, hooks=[blind]).run(start)
    assert np.isnan(blind.table["p"]).all()


def test_progress_and_callback(batch, capsys):
    seen = []
    hooks = [
        ConvergenceHook.from_fmax(1e-3),
        ProgressHook(frequency=2),
        CallbackHook(lambda ctx: seen.append((ctx.step_count, temperature(ctx.batch)[0])), frequency=4),
    ]
    out = FIRE(model=MODEL, dt=5.0, n_steps=200, hooks=hooks).run(batch).take()
    assert [s for s, _ in seen] == list(range(0, out.steps_taken.max(), 4))
    shown = capsys.readouterr().err
    assert "/3" in shown
    assert "eV/Å" in shown
    assert repr(hooks[1:]) == "[ProgressHook(frequency=2), CallbackHook(<lambda>, AFTER_STEP, frequency=4)]"


def test_live_plot(batch, tmp_path):
    path = tmp_path / "live.png"
    NVE(model=MODEL, dt=1.0, n_steps=20, hooks=[LivePlotHook(path=path, frequency=2, seconds=0.0)]).run(batch)
    assert path.read_bytes().startswith(b"\x89PNG")
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        NVE(model=MODEL, dt=1.0, n_steps=20, hooks=[LivePlotHook(path=tmp_path / "no" / "x.png")]).run(batch)


def test_stage_timing_measures_every_stage(batch):
    hook = StageTimingHook()
    assert "fewer than two" in hook.summary()
    NVE(model=MODEL, dt=1.0, n_steps=4, hooks=[hook]).run(batch)
    times = hook.times
    assert list(times) == list(S)[:7]
    assert all(t.shape == (3,) and (t > 0).all() for t in times.values())
    lines = hook.summary().splitlines()
    assert len(lines) == 8
    assert lines[4].startswith("BEFORE_COMPUTE        AFTER_COMPUTE")
    hook.reset()
    assert len(hook.times[S.BEFORE_STEP]) == 0


def test_profile_names_the_stages(batch, tmp_path):
    NVE(model=MODEL, dt=1.0, n_steps=12, hooks=[ProfilerHook(tmp_path, frequency=5)]).run(batch)
    (trace,) = tmp_path.rglob("perfetto_trace.json.gz")
    with gzip.open(trace) as f:
        events = json.load(f)
    events = events["traceEvents"] if isinstance(events, dict) else events
    names = [e.get("name") for e in events]
    for stage in list(S)[:7]:
        assert names.count(stage.name) == 3, stage


def test_profile_names_the_stages_for_nvtx(batch, tmp_path, monkeypatch):
    """Each stage is one range, opened and closed in turn, also when the run breaks."""
    calls = []

    class Nvtx:
        @staticmethod
        def push_range(name):
            calls.append(name)

        @staticmethod
        def pop_range():
            calls.append("pop")

    monkeypatch.setattr(timing, "nvtx", Nvtx)
    # The file of a trace takes seconds to write; the test above reads one.
    for name in ("start_trace", "stop_trace"):
        monkeypatch.setattr(jax.profiler, name, lambda *given, **more: None)
    NVE(model=MODEL, dt=1.0, n_steps=2, hooks=[ProfilerHook(tmp_path / "a", frequency=2)]).run(batch)
    assert calls == [name for stage in list(S)[:7] for name in (stage.name, "pop")]
    calls.clear()

    def stop(ctx):
        raise RuntimeError("enough")

    breaks = CallbackHook(stop, S.BEFORE_COMPUTE)
    with pytest.raises(RuntimeError, match="enough"):
        NVE(model=MODEL, dt=1.0, n_steps=2, hooks=[ProfilerHook(tmp_path / "b"), breaks]).run(batch)
    assert calls[-2:] == ["BEFORE_COMPUTE", "pop"]


OBSERVERS = {
    "LoggingHook": lambda p: LoggingHook(log_path=p / "l.csv", frequency=3),
    "ObservableHook": lambda p: ObservableHook({"fmax": fmax}),
    "SnapshotHook": lambda p: SnapshotHook(HostMemory(), 4),
    "ConvergedSnapshotHook": lambda p: ConvergedSnapshotHook(HostMemory()),
    "ProgressHook": lambda p: ProgressHook(frequency=3),
    "LivePlotHook": lambda p: LivePlotHook(path=p / "a.png", frequency=7),
    "CallbackHook": lambda p: CallbackHook(lambda ctx: None),
}


@pytest.fixture(scope="module")
def unwatched(lj):
    engine = FIRE(model=lj, dt=1.0, n_steps=40, hooks=[ConvergenceHook.from_fmax(0.05)])
    start = Batch.from_ase([cluster(0, 6), cluster(1, 5)])
    return engine, start, engine.run(start).take()


@pytest.mark.cheap_xla
@pytest.mark.parametrize("name", OBSERVERS)
def test_an_observer_changes_no_bit(unwatched, name, tmp_path):
    engine, start, plain = unwatched
    watched = engine.with_hooks(OBSERVERS[name](tmp_path)).run(start).take()
    for a, b in zip(jax.tree.leaves(plain), jax.tree.leaves(watched), strict=True):
        np.testing.assert_array_equal(a, b)


# -- embedded loops --------------------------------------------------------------------------------


def test_host_hooks_reach_a_jitted_loop(batch):
    """In order, none lost, at their frequency; what they see is what `advance` shows them."""
    seen = {"loop": [], "advance": []}

    def note(where):
        return CallbackHook(lambda ctx: seen[where].append((ctx.step_count, *ctx.batch.energy)), frequency=3)

    for where in seen:
        engine = NVE(model=MODEL, dt=1.0, hooks=[note(where)])
        state = engine.init(batch)
        if where == "advance":
            engine.advance(state, 10)
        else:
            jax.block_until_ready(eqx.filter_jit(lambda s, e=engine: e.loop(s, 10))(state))
            jax.effects_barrier()
    assert [s[0] for s in seen["loop"]] == [0, 3, 6, 9]
    np.testing.assert_allclose(seen["loop"], seen["advance"], rtol=1e-12)


def test_host_hooks_are_refused_under_vmap_and_grad(batch):
    hook = CallbackHook(lambda ctx: None)
    state = NVE(model=MODEL, dt=1.0).init(batch)
    state = state.replace(batch=state.batch)

    def final(dt):
        return NVE(model=MODEL, dt=dt, hooks=[hook]).loop(state, 3).batch.energy.sum()

    with pytest.raises(
        ValueError, match=r"CallbackHook cannot be called from a loop under vmap.*RecordingHook"
    ):
        jax.vmap(final)(jnp.array([1.0, 2.0]))
    with pytest.raises(ValueError, match="under grad"):
        jax.grad(final)(1.0)

    # The transform outside of a jit, where the loop's own arguments do not show it; and the step alone.
    def one_step(dt):
        return NVE(model=MODEL, dt=dt, hooks=[hook]).step(state).batch.energy.sum()

    for function in (jax.jit(final), one_step):
        with pytest.raises(ValueError, match=r"CallbackHook cannot be called .* under vmap.*RecordingHook"):
            jax.jit(jax.vmap(function))(jnp.array([1.0, 2.0]))
    with pytest.raises(ValueError, match=r"CallbackHook cannot be called .* under grad.*RecordingHook"):
        jax.grad(jax.jit(final))(1.0)
    each = jax.tree.map(lambda x: x[None] if eqx.is_array(x) else x, state)
    loop = eqx.filter_jit(NVE(model=MODEL, dt=1.0, hooks=[hook]).loop)
    with pytest.raises(ValueError, match="under vmap"):
        eqx.filter_vmap(loop, in_axes=(0, None))(each, 3)


@pytest.mark.cheap_xla
def test_two_engines_share_a_hook_object(batch):
    """Memories are in the states, not in the hooks; a run that goes on continues them."""
    hook = EnergyDriftMonitorHook()
    a = NVE(model=MODEL, dt=1.0, hooks=[hook])
    b = NVE(model=MODEL, dt=20.0, hooks=[hook])
    one, two = a.advance(a.init(batch), 5), b.advance(b.init(batch), 5)
    assert (two.memory[0].worst > one.memory[0].worst)[:3].all()
    on = a.advance(one, 5)
    np.testing.assert_array_equal(on.memory[0].reference, one.memory[0].reference)


def test_with_hooks_makes_a_new_engine(batch):
    engine = NVE(model=MODEL, dt=1.0, n_steps=3)
    seen = []
    more = engine.register_hook(CallbackHook(lambda ctx: seen.append(ctx.step_count)))
    assert (len(engine.hooks), len(more.hooks)) == (0, 1)
    engine.run(batch)
    assert seen == []
    more.run(batch)
    assert seen == [0, 1, 2]


def test_the_first_exception_is_the_one_that_is_seen(batch):
    class Fragile(CallbackHook):
        def __enter__(self):
            return self

        def __exit__(self, *exc):
            raise OSError("cannot close")

    def fail(ctx):
        raise ArithmeticError("first")

    engine = NVE(model=MODEL, dt=1.0, n_steps=3, hooks=[Fragile(fail, frequency=2)])
    with pytest.raises(ArithmeticError, match="first") as e:
        engine.run(batch)
    notes = " ".join(e.value.__notes__)
    assert "raised in hook Fragile at AFTER_STEP of step 0" in notes
    assert "a hook could not be closed: OSError: cannot close" in notes
    quiet = dataclasses.replace(engine, hooks=[Fragile(lambda ctx: None)])
    with pytest.raises(OSError, match="cannot close") as e:
        quiet.run(batch)
    assert "raised in hook Fragile when it was closed" in " ".join(e.value.__notes__)
