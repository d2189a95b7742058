"""Mistakes in code of a user's: one sentence each, and nothing added to code without any."""

import dataclasses
import inspect
import re
import traceback

import error_cases
import jax
import jax.numpy as jnp
import jaxtyping
import pytest
from conftest import cluster
from error_cases import CASES, Model, Recording, Traced, engine, hook
from transform_cases import ENGINES, TRACED, free

from alchemi_jax import Batch
from alchemi_jax.dynamics import NPH, NVE, ConvergenceHook, NVTLangevin
from alchemi_jax.dynamics import updates as updates_module
from alchemi_jax.dynamics.stage import DynamicsStage
from alchemi_jax.errors import UserCodeError
from alchemi_jax.hooks import calls as calls_module
from alchemi_jax.hooks import records as records_module
from alchemi_jax.models import base as base_module


@pytest.fixture(autouse=True)
def as_users_have_it():
    """Without the checks of types that only the tests switch on, and that would speak first."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture(scope="module")
def batch():
    return Batch.from_ase([cluster(0, 3), cluster(1, 2)], dtype="float32")


@pytest.fixture(scope="module")
def like(batch):
    return engine().init(batch)


def traced(make, batch, like):
    """An engine, its state and a loop: all that a run does before it compiles."""
    made = make()
    jax.eval_shape(lambda: made.loop(made.init(batch, like=like), 3))


def line_of(make):
    """Where the function that the engine is made with has its mark."""
    for name in make.__code__.co_names + tuple(n for c in nested(make.__code__) for n in c.co_names):
        lines, first = inspect.getsourcelines(getattr(error_cases, name, make))
        for n, line in enumerate(lines):
            if name.startswith("bad_") and "# here" in line:
                return f"error_cases.py:{first + n}"
    return "HERE"


def nested(code):
    return [c for c in code.co_consts if inspect.iscode(c)]


@pytest.mark.parametrize("name", CASES)
def test_a_mistake_is_said_in_one_sentence(name, batch, like):
    make, expected = CASES[name]
    with pytest.raises(TypeError) as error:
        traced(make, batch, like)
    said = str(error.value)
    path = r"\S*"
    pattern = re.escape(expected).replace("HERE", path + re.escape(line_of(make)))
    assert re.search(pattern, said), said
    assert "\n" not in said
    assert len(said) < 300
    # What is given back has no line of its own: that of the function that gives it.
    if re.search("returned|Mine.*made", said):
        assert re.search(r"\(\S*(error_cases|base|protocol)\.py:\d+\)\.$", said), said


def test_a_mistake_leaves_a_run_without_the_frames_of_loops(batch):
    def frames():
        with pytest.raises(UserCodeError, match="returned None") as error:
            hook(lambda ctx: None, stage=DynamicsStage.AFTER_STEP).run(batch, n_steps=3)
        notes = getattr(error.value, "__notes__", [])
        return len(traceback.extract_tb(error.value.__traceback__)), notes, error.value.__cause__

    assert frames() == (frames()[0], [], None)
    assert frames()[0] <= 6
    before = jax.config.jax_traceback_filtering
    jax.config.update("jax_traceback_filtering", "off")
    try:
        assert frames()[0] > 20
    finally:
        jax.config.update("jax_traceback_filtering", before)


def test_other_exceptions_keep_their_frames_and_get_the_name(batch):
    def divide(ctx):
        return ctx.with_batch(energy=ctx.batch.energy / {}["k"])

    with pytest.raises(KeyError) as error:
        hook(divide).init(batch)
    assert "raised in hook Mine at AFTER_COMPUTE" in error.value.__notes__
    assert any(frame.name == "divide" for frame in traceback.extract_tb(error.value.__traceback__))


def test_what_may_be_cast_is_cast(batch, like):
    """Python's numbers, counts of another width."""

    def call(ctx):
        n, _ = ctx.memory
        return ctx.with_batch(steps_taken=ctx.batch.steps_taken + jnp.sum(n)).with_memory((n + 1, 2))

    made = hook(call, lambda b: (jnp.zeros(2, jnp.int32), jnp.zeros((), b.dtype)))
    out = jax.eval_shape(lambda: made.step(made.init(batch, like=like)))
    assert out.batch.steps_taken.dtype == jnp.int32
    assert [m.dtype.name for m in out.memory[0]] == ["int32", "float32"]


def test_a_recording_hook_at_on_converge_sees_what_it_will_see(batch):
    """The first row is made from the context of its stage: the mask of who converged is there."""

    class Converged(Recording):
        stage = DynamicsStage.ON_CONVERGE

        def record(self, ctx):
            return {"who": ctx.converged_mask}

    state = engine(hooks=[ConvergenceHook(), Converged()]).init(batch)
    assert state.records[0].rows["who"].dtype == bool


@pytest.mark.parametrize("name", [*ENGINES, *TRACED])
def test_what_is_built_in_stays_in_single_precision(name, batch, like):
    """In a process in which JAX has double precision: what is wider is refused."""
    if name in TRACED:
        made = NVTLangevin(model=Model(), dt=1.0, temperature=50.0)
        if name == "EnergyDriftMonitorHook":
            made = NVE(model=Model(), dt=1.0)
        if name == "PressureScheduleHook":
            made = NPH(model=Model(), dt=1.0, pressure=0.1)
        made = made.with_hooks(TRACED[name])
    else:
        made = ENGINES[name][0]
    three = dataclasses.replace(batch, meta=None)
    if name == "ReplicaExchangeHook":
        three = jax.tree.map(lambda x: x.astype("float32") if x.dtype == "float64" else x, free())
        like = made.init(three)
    out = jax.eval_shape(lambda: made.loop(made.init(three, like=like), 3))
    assert out.batch.dtype == "float32"


class Remembering(Traced):
    def init(self, batch):
        return {"n": jnp.zeros(batch.system_capacity, jnp.int32)}

    def __call__(self, ctx, stage):
        half = ctx.with_batch(forces=ctx.batch.forces / 2)
        return half.with_memory({"n": ctx.memory["n"] + ctx.active_mask})


@pytest.mark.parametrize("kind", ["integrator", "with a state"])
def test_nothing_is_traced_for_the_checks(batch, like, monkeypatch, kind):
    """The program is the same, to the letter, when none of them is made."""

    class Rows(Recording):
        def row(self, ctx):
            return {"e": ctx.batch.energy, "n": ctx.step_count}

    def text():
        hooks = [Remembering(), Remembering(frequency=3), Rows()]
        if kind == "integrator":
            made = NVTLangevin(model=Model(), dt=1.0, temperature=10.0, hooks=hooks)
        else:
            made = error_cases.Algorithm(model=Model(), dt=1.0, hooks=hooks)
        found = jax.make_jaxpr(lambda b: made.step(made.init(b, like=like)))(batch)
        return re.sub("0x[0-9a-f]+", "", str(found))

    checked = text()
    for module in (calls_module, records_module, updates_module):
        monkeypatch.setattr(module, "check_same_structure", lambda who, what, new, *rest: new)
    monkeypatch.setattr(base_module, "_check", lambda *args: None)
    monkeypatch.setattr(updates_module, "_check_own_state", lambda *args: None)
    monkeypatch.setattr(calls_module, "check_levels", lambda *args: None)
    monkeypatch.setattr(records_module, "is_array", lambda x: True)
    assert text() == checked
