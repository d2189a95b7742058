"""Runs of a Trainer: other checkpoints, committees, optimizers, hooks that fail, compilations."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import cluster
from test_training import BEGIN, Rows, S, batches, loss, make

from alchemi_jax.dynamics import DynamicsStage
from alchemi_jax.dynamics.hooks import (
    CallbackHook,
    CheckpointHook,
    LoggingHook,
    ObservableHook,
    ProfilerHook,
    StageTimingHook,
)
from alchemi_jax.dynamics.outside import collect, put_back
from alchemi_jax.hooks import HookContext, TracedHook
from alchemi_jax.models import FunctionModel, HarmonicModel, evaluate
from alchemi_jax.training import Batches, ListedBatches, Loss, Trainer
from alchemi_jax.training.hooks import (
    BestCheckpointHook,
    ClipGradientsHook,
    EarlyStoppingHook,
    EMAHook,
    ScheduleHook,
    ValidationHook,
)


BOTH = Loss(energy=1.0, forces=1.0, kind="mse")


@pytest.fixture(scope="module")
def data():
    return batches()


# -- which checkpoints a training goes on from -----------------------------------------------------


def moved(data):
    return [data[0], data[1].replace(positions=data[1].positions + 0.1)]


OTHERS = {
    "data": (lambda d: {"data": moved(d)}, r"the contents of the data are not the same"),
    "labels": (
        lambda d: {"data": [d[0], d[1].replace(forces=d[1].forces * 2)]},
        r"the contents of the data are not the same",
    ),
    "number of batches": (lambda d: {"data": d[:1]}, "batches per epoch was 2 and is 1"),
    "validation": (lambda d: {"validation": moved(d)}, "the contents of the validation are not the same"),
    "key": (lambda d: {"key": jax.random.key(3)}, "a training with another key"),
    "first parameters": (lambda d: {"model": HarmonicModel(k=1.5)}, r"HarmonicModel\.k was 2\.0 and is 1\.5"),
    "loss": (
        lambda d: {"loss": Loss(energy=2.0, forces=1.0, kind="mse")},
        r"loss\.weights\['energy'\] was 1\.0 and is 2\.0",
    ),
    "rate": (lambda d: {"optimizer": optax.adam(2e-3)}, "the optimizer is not the same"),
    "optimizer": (lambda d: {"optimizer": optax.sgd(1e-3)}, "the optimizer is not the same"),
    "number of a hook": (
        lambda d: {"hooks": [ClipGradientsHook(2.0)]},
        r"ClipGradientsHook\.limit was 1\.0 and is 2\.0",
    ),
    "hooks": (lambda d: {"hooks": [EMAHook(0.9)]}, "hook 0, ClipGradientsHook was ClipGradientsHook and is"),
    "precision": (lambda d: {"precision": "float32"}, "precision was None and is Precision"),
}


@pytest.mark.cheap_xla
def test_checkpoints_of_another_training(data, tmp_path):
    """Each thing that the result follows from, changed alone: refused with what differs, before compiling."""
    adam = optax.adam(1e-3)

    def run(data=data, validation=data, key=None, epochs=1, **given):
        hooks = given.pop("hooks", [ClipGradientsHook(1.0)])
        model = given.pop("model", HarmonicModel(k=BEGIN))
        given = {"loss": BOTH, "optimizer": adam, **given}
        trainer = Trainer(model, hooks=hooks, frozen="center", **given)
        return trainer.run(data, epochs, validation=validation, resume=tmp_path, key=key)

    first = run()
    for change, message in OTHERS.values():
        given = change(data)
        with pytest.raises(ValueError, match=f"is of .*{message}"):
            run(**given)
    assert np.array_equal(run().params.k, first.params.k)
    assert int(run(epochs=2, validation=None).epoch) == 2
    # Refused before hooks go back to the checkpoint, and cut their files.
    files = _Files()
    hooks = [ClipGradientsHook(1.0), files]
    with pytest.raises(ValueError, match=r"the checkpoint in .* has 2 epochs already, more than epochs=1"):
        run(hooks=hooks)
    with pytest.raises(ValueError, match="is of a training with another key"):
        run(epochs=3, hooks=hooks, key=jax.random.key(5))
    assert not files.cut


class _Files:
    """A host hook with files that it cuts."""

    stage, frequency = S.AFTER_EPOCH, 1

    def __init__(self):
        self.cut = False

    def __call__(self, ctx, stage):
        pass

    def state(self):
        return {}

    def set_state(self, state):
        self.cut = True


def test_a_schedule_is_known_again(data):
    """Functions in hooks and losses count by what they compute."""
    from alchemi_jax.training.origin import describe, difference

    def described(end, weight=1.0):
        adam = optax.inject_hyperparams(optax.adam)(learning_rate=0.1)
        schedules = Loss(energy=optax.linear_schedule(0.0, weight, 10), forces=1.0)
        hook = ScheduleHook(optax.linear_schedule(0.1, 0.0, end))
        trainer = make(hook, loss=schedules, optimizer=adam)
        return describe(trainer, ListedBatches(data), None, trainer.split()[0])

    assert difference(described(10), described(10)) == ""
    assert "ScheduleHook.schedule is not the same" in difference(described(10), described(20))
    assert "loss.weights['energy'] is not the same" in difference(described(10), described(10, 2.0))


def test_stopped_early_at_a_checkpoint(data, tmp_path):
    """More epochs do not take a stop back; without the hook the training goes on."""

    def run(epochs, *hooks):
        trainer = make(*hooks, CheckpointHook(tmp_path, frequency=2, every_seconds=None), loss=BOTH)
        return trainer.run(data, epochs, validation=data, resume=tmp_path)

    stop = EarlyStoppingHook(patience=1, least=1e9)
    assert int(run(9, stop).epoch) == 2
    assert int(run(20, EarlyStoppingHook(patience=1, least=1e9)).epoch) == 2
    assert int(run(4).epoch) == 4


@pytest.mark.cheap_xla
def test_a_training_that_is_made_longer_is_the_longer_one(data, tmp_path):
    """The validations at its first end are taken back; called again when complete, it ends so again."""
    adam = optax.adam(0.26)

    def run(folder, n_steps):
        every, best = ValidationHook(data[:1], every=2), BestCheckpointHook(folder / "best.eqx")
        log = LoggingHook(log_path=folder / "log.csv", stage=S.AFTER_VALIDATION)
        trainer = make(every, best, log, EarlyStoppingHook(50), loss=BOTH, optimizer=adam)
        state = trainer.run(data, n_steps=n_steps, validation=data, resume=folder / "saved")
        found = (best.best, best.step, best.path.read_bytes(), log.log_path.read_text())
        return [row["step"] for row in every.table], found, float(state.params.k)

    whole = run(tmp_path / "whole", 9)
    assert whole[0] == [2, 4, 6, 8, 9]
    assert len(whole[1][3].splitlines()) == 1 + 5 + 4 + 1
    short = run(tmp_path / "parts", 5)
    assert short[0] == [2, 4, 5]
    assert short[1][1] == 5
    assert run(tmp_path / "parts", 5) == short
    assert run(tmp_path / "parts", 9) == whole
    assert run(tmp_path / "parts", 9) == whole


# -- transforms and optimizers ---------------------------------------------------------------------


def test_a_committee_by_vmap(data):
    """Models and rates mapped over: each member is as alone."""
    item = ListedBatches(data).batches[0]
    adam = optax.inject_hyperparams(optax.adam)(learning_rate=0.1)
    hooks = [EMAHook(0.9), ClipGradientsHook(10.0)]
    given = {"loss": BOTH, "optimizer": adam, "hooks": hooks, "frozen": "center"}
    trainer = Trainer(HarmonicModel(k=BEGIN), **given)

    def begin(k, rate):
        state = Trainer(HarmonicModel(k=k), **given).init(item)
        numbers = {**state.optimizer.hyperparams, "learning_rate": rate}
        return state.replace(optimizer=state.optimizer._replace(hyperparams=numbers))

    k, rates = jnp.array([1.0, 2.0, 3.0]), jnp.array([0.1, 0.01, 0.05])
    states = eqx.filter_vmap(begin)(k, rates)
    step = eqx.filter_jit(trainer.step)
    many = eqx.filter_jit(eqx.filter_vmap(trainer.step, in_axes=(0, None)))
    states = many(many(states, item), item)
    for member in range(3):
        alone = begin(k[member], rates[member])
        alone = step(step(alone, item), item)
        for a, b in zip(jax.tree.leaves(states), jax.tree.leaves(alone), strict=True):
            if not jnp.issubdtype(a.dtype, jax.dtypes.prng_key):
                np.testing.assert_allclose(a[member], b, rtol=1e-9)


def shaped(names):
    return lambda params: jax.tree.map(lambda p: p.ndim >= names, params)


OPTIMIZERS = {
    "chain": lambda: optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(1e-2, momentum=0.9)),
    "decay with a mask": lambda: optax.adamw(1e-3, mask=shaped(0)),
    "MultiSteps of numbers in the state": lambda: optax.MultiSteps(
        optax.inject_hyperparams(optax.adam)(learning_rate=1e-3), 2
    ),
    "the value of the loss": lambda: optax.chain(optax.adam(1e-3), optax.contrib.reduce_on_plateau()),
    "lbfgs without line search": lambda: optax.lbfgs(1e-3, linesearch=None),
    "schedule": lambda: optax.adam(optax.cosine_decay_schedule(1e-3, 10)),
}


@pytest.mark.parametrize("name", list(OPTIMIZERS))
def test_transformations_of_optax(name, data):
    """Traced, not compiled: the state keeps its structure."""
    trainer, item = make(optimizer=OPTIMIZERS[name]()), ListedBatches(data).batches[0]
    state = trainer.init(data[0])
    after = jax.eval_shape(trainer.step, state, item)
    assert jax.tree.structure(after) == jax.tree.structure(state)


def test_optimizers_that_cannot_work(data):
    item = ListedBatches(data).batches[0]
    trainer = make(optimizer=optax.lbfgs(1e-3))
    with pytest.raises(TypeError, match=r"needs more than gradients, .*'value_fn'.*optax\.lbfgs"):
        jax.eval_shape(trainer.step, trainer.init(data[0]), item)
    with pytest.raises(ValueError, match=r"cannot begin with the parameters .*trainer\.split\(\)\[0\]"):
        make(optimizer=optax.adamw(1e-3, mask={"a": True})).init(data[0])
    with pytest.raises(ValueError, match="is of another trainer: it has other numbers of the optimizer"):
        make().run(data, 1, state=make(optimizer=optax.adam(1e-3)).init(data[0]))
    with pytest.raises(ValueError, match="the state is of another trainer: it has other parameters"):
        make(frozen=()).run(data, 1, state=Trainer(pair(), loss, optax.sgd(0.1)).init(data[0]))


def pair():
    return FunctionModel(lambda p, batch, neighbors: p["a"] * batch.energy, {"a": 1.0}, cutoff=None)


def test_accumulated_gradients(data):
    """optax.MultiSteps: two batches, then one step with the mean of their gradients."""
    items = ListedBatches(data).batches
    several = make(optimizer=optax.MultiSteps(optax.sgd(0.01), 2))
    step, state = eqx.filter_jit(several.step), several.init(data[0])
    half = step(state, items[0])
    assert float(half.params.k) == BEGIN
    whole = step(half, items[1])
    single = make()
    one, begin = eqx.filter_jit(single.step), single.init(data[0])
    steps = [float(one(begin, item).params.k) - BEGIN for item in items]
    np.testing.assert_allclose(float(whole.params.k) - BEGIN, sum(steps) / 2, rtol=1e-6)


# -- compilations ----------------------------------------------------------------------------------


@pytest.mark.cheap_xla
def test_one_compilation_per_bucket(compilations):
    """Structures of two sizes, with rows and an observer, a validation with other buckets, a second run."""
    sizes = [2, 2, 2, 2, 5, 5, 5, 5]
    structures = evaluate(HarmonicModel(k=0.7), [cluster(i, n) for i, n in enumerate(sizes)]).to_ase()
    data = Batches(structures, max_systems=2, buckets=2)
    others = Batches(structures[:3], max_systems=3, buckets=1)
    rows = Rows()
    trainer = make(rows, CallbackHook(lambda ctx: None, S.AFTER_BATCH), loss=BOTH)
    with compilations() as count:
        state = trainer.run(data, 2, validation=others)
        trainer.run(data, 4, validation=others, state=state)
    assert int(state.step_count) == 8
    assert sum("compiled_step" in name for name in count) == 2
    assert sum("compiled_loss" in name for name in count) == 1


def test_hooks_that_measure(data, tmp_path, monkeypatch):
    """ProfilerHook and StageTimingHook: a step is one range, and one object serves both workflows."""
    ranges = []

    class Annotation:
        def __init__(self, name, step):
            self.name = name

        def __enter__(self):
            ranges.append(self.name)

        def __exit__(self, *exc):
            ranges.append("end")

    monkeypatch.setattr(jax.profiler, "TraceAnnotation", Annotation)
    monkeypatch.setattr(jax.profiler, "start_trace", lambda *given, **more: ranges.append("begin"))
    monkeypatch.setattr(jax.profiler, "stop_trace", lambda: ranges.append("stop"))
    timing = StageTimingHook()
    make(ProfilerHook(tmp_path), timing).run(data, n_steps=1)
    assert ranges == ["begin", "BEFORE_BATCH", "end", "stop"]
    for stage in [s for s in DynamicsStage if s is not DynamicsStage.ON_CONVERGE]:
        timing(HookContext(batch=data[0]), stage)
    make(timing).run(data, n_steps=1)
    assert {len(times) for times in timing.times.values()} == {1}
    assert timing.summary().count("1 steps") == 2


# -- what fails ------------------------------------------------------------------------------------


class Broken:
    """Raises at one stage."""

    stage, frequency = None, 1

    def __init__(self, at, error):
        self.at, self.error = at, error

    def _runs_on_stage(self, stage):
        return stage is self.at

    def __call__(self, ctx, stage):
        raise self.error


@pytest.mark.cheap_xla
def test_a_host_hook_that_fails(data, tmp_path):
    """At each stage, also by Ctrl-C: the state comes with the exception, rows so far are in the file, and
    from there or from the checkpoint the training ends as one that was never cut."""
    whole = None
    for number, stage in enumerate((None, *(s for s in S if s.on_host))):
        folder = tmp_path / str(number)
        folder.mkdir()
        log = LoggingHook(log_path=folder / "log.csv", stage=S.AFTER_BATCH)
        save = CheckpointHook(folder / "saved", frequency=1, every_seconds=None)
        error = KeyboardInterrupt() if number % 2 else ValueError("broken")

        def trainer(*more, log=log, save=save):
            return make(EMAHook(0.5), log, save, *more, loss=BOTH)

        if stage is not None:
            with pytest.raises(type(error)) as caught:
                trainer(Broken(stage, error)).run(data, 2, validation=data[:1], resume=folder / "saved")
            if not number % 2:
                assert f"raised in hook Broken at {stage.name}" in "".join(caught.value.__notes__)
            reached = caught.value.state
            lines = (folder / "log.csv").read_text().splitlines() if (folder / "log.csv").exists() else []
            assert max(len(lines) - 1, 0) == int(reached.step_count)
        state = trainer().run(data, 2, validation=data[:1], resume=folder / "saved")
        text = (folder / "log.csv").read_text()
        whole = whole or (state, text)
        assert np.array_equal(state.params.k, whole[0].params.k)
        assert np.array_equal(state.ema.k, whole[0].ema.k)
        assert text == whole[1]


class Falls(TracedHook):
    """Raises, or returns something else, while it is traced."""

    stage: Any
    value: Any = eqx.field(static=True)
    frequency: int = 1

    def __call__(self, ctx, stage):
        if self.value is None:
            raise KeyError("oh")
        return self.value


def test_what_fails_in_the_step(data):
    """A model, a traced hook and a loss, each named; hooks that were open are closed."""
    closed = []

    class Opened:
        stage, frequency = S.AFTER_BATCH, 1

        def __enter__(self):
            return self

        def __exit__(self, *exc):
            closed.append(exc[0])

        def __call__(self, ctx, stage):
            pass

    def broken_energy(params, batch, neighbors):
        raise IndexError("no such atom")

    def no_loss(results, batch, step):
        raise IndexError("no label")

    for trainer, error, words in (
        (make(Opened(), Falls(S.AFTER_LOSS, None)), KeyError, "raised in hook Falls at AFTER_LOSS"),
        (make(Opened(), Falls(S.AFTER_LOSS, 3)), TypeError, "Falls returned the number 3 at AFTER_LOSS"),
        (make(Opened(), loss=no_loss), IndexError, "no_loss"),
        (
            Trainer(FunctionModel(broken_energy, {"a": 1.0}, cutoff=None), loss, optax.sgd(0.1), [Opened()]),
            IndexError,
            "FunctionModel",
        ),
    ):
        closed.clear()
        with pytest.raises(error) as caught:
            trainer.run(data, 1)
        assert words in str(caught.value) + "".join(getattr(caught.value, "__notes__", ()))
        assert closed == [type(caught.value)]
        assert int(caught.value.state.step_count) == 0


def test_no_hook_sees_a_step_that_has_failed(data):
    """Host hooks are not called for it, and before a batch there is no loss."""
    bad = data[1].replace(positions=data[1].positions.at[0].set(jnp.nan))
    seen = []
    trainer = make(
        CallbackHook(lambda ctx: seen.append((ctx.step_count, float(ctx.loss))), S.AFTER_BATCH),
        CallbackHook(lambda ctx: seen.append((ctx.step_count, ctx.loss, ctx.gradients)), S.BEFORE_BATCH),
    )
    with pytest.raises(FloatingPointError, match=r"not finite \(numbers of .*Ar3\) are not finite"):
        trainer.run([data[0], bad], epochs=2)
    assert all(np.isfinite(row[1]) for row in seen if len(row) == 2)
    assert all(row[1:] == (None, None) for row in seen if len(row) == 3)
    assert [row[0] for row in seen if len(row) == 2] == list(range(sum(len(row) == 2 for row in seen)))


def test_labels_of_batches(data):
    """Missing everywhere, or infinite: one sentence before the first step; missing here and there: masked."""
    none = [b.replace(energy=jnp.full_like(b.energy, jnp.nan)) for b in data]
    with pytest.raises(ValueError, match=r"no system of the data has a label 'energy', .*they have forces"):
        make(loss=BOTH).run(none, 1)
    odd = [data[0], data[1].replace(forces=data[1].forces.at[3].set(jnp.inf))]
    with pytest.raises(ValueError, match=r"\(Ar2\) of batch 1 of the data has an infinite label 'forces'"):
        make(loss=BOTH).run(odd, 1)
    for empty, where in (({"data": []}, "data"), ({"data": data, "validation": []}, "validation")):
        with pytest.raises(ValueError, match=f"{where} of a training is an empty list"):
            make(loss=BOTH).run(empty["data"], 1, validation=empty.get("validation"))


def test_constants_of_a_model_are_not_trained():
    """What a model names as no parameter stays, also inside a sum and under weight decay."""

    class Scaled(HarmonicModel):
        untrained = ("k",)

    model = Scaled(k=2.0) + HarmonicModel(k=1.0)

    def paths(**given):
        params = Trainer(model, loss, optax.adamw(0.1), frozen="*.center", **given).split()[0]
        flat = jax.tree_util.tree_flatten_with_path(params)[0]
        return [jax.tree_util.keystr(path, simple=True, separator=".") for path, _ in flat]

    assert paths() == ["parts.1.k"]
    assert paths(trainable="parts.0.k") == ["parts.0.k"]


# -- the same hook and folder again ----------------------------------------------------------------


def seen(data, loss=None, step_count=1):
    return HookContext(batch=data[0], loss=loss, step_count=step_count)


def test_a_loss_that_is_not_finite_is_no_lowest_loss(data):
    hook = EarlyStoppingHook(2)
    for value in (np.nan, 3.0, 2.0, 1.0):
        hook(seen(data, value), S.AFTER_VALIDATION)
        assert not hook.ends_run
    assert hook.best == 1.0


def test_hooks_of_a_training_go_on_with_what_is_theirs():
    """As those of a run: they are known by what they observe, not by their order."""

    def tables(*names):
        return [ObservableHook({name: lambda ctx: ctx.loss}, stage=S.AFTER_BATCH) for name in names]

    entries = [entry | {"state": entry["kind"]} for entry in collect(make(*tables("a", "b")), None)]
    (hook,), got = tables("b"), []
    hook.set_state = got.append
    put_back(make(hook), None, entries, "here")
    assert got == ["b"]


def test_another_training_with_the_same_hook_begins_anew(data):
    hook, best = EarlyStoppingHook(1), BestCheckpointHook("best.eqx")
    best.best, best.step = 1.0, 4
    hook(seen(data, 1.0), S.AFTER_VALIDATION)
    hook(seen(data, 2.0), S.AFTER_VALIDATION)
    assert hook.ends_run
    for one in (hook, best):
        # One that goes on keeps what it has seen.
        one(seen(data, None, 4), S.BEFORE_TRAINING)
    assert hook.ends_run
    assert best.best == 1.0
    for one in (hook, best):
        one(seen(data, None, 0), S.BEFORE_TRAINING)
    assert not hook.ends_run
    assert best.best == np.inf


def test_a_total_that_is_passed_already(data):
    trainer = make()
    state = trainer.init(data[0])
    far = state.replace(step_count=jnp.asarray(9, jnp.int32), epoch=jnp.asarray(4, jnp.int32))
    with pytest.raises(ValueError, match=r"the state has 9 steps already, more than n_steps=5, the total"):
        trainer.run(data, n_steps=5, state=far)
    with pytest.raises(ValueError, match=r"the state has 4 epochs already, more than epochs=3, the total"):
        trainer.run(data, 3, state=far)
    with pytest.raises(ValueError, match=r"epochs of Trainer\.run must be a positive int, not 0"):
        trainer.run(data, 0)


def test_a_trainer_is_shown_without_addresses():
    text = repr(make(EMAHook(0.9)))
    assert "0x" not in text
    assert "loss=loss" in text
    assert "EMAHook" in text
