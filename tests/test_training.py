"""The Trainer: order of hooks, what they may change, what is trained, resuming, mistakes."""

import csv
import dataclasses
import os
import signal
import subprocess
import sys
from enum import Enum
from pathlib import Path
from typing import Any

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import plum
import pytest
from conftest import cluster

from alchemi_jax import Batch
from alchemi_jax.dynamics import NVE, DynamicsStage
from alchemi_jax.dynamics.hooks import (
    CallbackHook,
    CheckpointHook,
    LoggingHook,
    ObservableHook,
    ProgressHook,
    StageTimingHook,
)
from alchemi_jax.hooks import HookContext, RecordingHook, TracedHook
from alchemi_jax.models import (
    FlaxModel,
    FunctionModel,
    GraphFunctionModel,
    HarmonicModel,
    InvariantNetwork,
    LennardJones,
)
from alchemi_jax.training import (
    Batches,
    ListedBatches,
    Loss,
    Precision,
    Trainer,
    TrainingContext,
    TrainingStage,
)
from alchemi_jax.training.hooks import (
    BestCheckpointHook,
    ClipGradientsHook,
    EarlyStoppingHook,
    EMAHook,
    ScheduleHook,
    SkipNonFiniteHook,
    ValidationHook,
)
from alchemi_jax.training.stage import IN_STEP, MAY_CHANGE, ON_HOST, OWNED
from alchemi_jax.training.step import update_by_optax, value_and_grad


S = TrainingStage
TRUE, BEGIN = 0.7, 2.0


def batches(n=2):
    """Batches of one shape, labelled by a HarmonicModel."""
    out = []
    for i in range(n):
        batch = Batch.from_ase([cluster(2 * i, 3), cluster(2 * i + 1, 2)])
        results = HarmonicModel(k=TRUE).evaluate(batch, None)
        out.append(batch.replace(energy=results.energy, forces=results.forces))
    return out


@pytest.fixture(scope="module")
def data():
    return batches()


def loss(results, batch, step):
    """Mean squares; systems and atoms without a label are left out."""
    e = jnp.where(jnp.isnan(batch.energy) | ~batch.system_mask, 0, results.energy - batch.energy)
    f = jnp.where(batch.atom_mask[:, None], results.forces - batch.forces, 0)
    parts = {"energy": jnp.mean(e**2), "forces": jnp.mean(f**2)}
    return parts["energy"] + parts["forces"], parts


#: Made once, so that trainers of several tests share what they compile.
SGD, ADAM, TENTH = optax.sgd(0.01), optax.adam(0.05), optax.adam(0.1)


def make(*hooks, **kwargs):
    given = {"optimizer": SGD, "frozen": "center", "loss": loss, **kwargs}
    return Trainer(HarmonicModel(k=BEGIN), hooks=hooks, **given)


# -- order -----------------------------------------------------------------------------------------


class Everywhere(TracedHook):
    """Notes, while it is traced, at which stages it is."""

    seen: Any = eqx.field(static=True)
    frequency: int = 1
    stage: None = None

    def _runs_on_stage(self, stage):
        return stage in IN_STEP

    def __call__(self, ctx, stage):
        self.seen.append(stage)
        return ctx


class Rows(RecordingHook):
    """Records each stage of the step."""

    def __init__(self):
        self.seen = []

    def _runs_on_stage(self, stage):
        return stage in IN_STEP

    def record(self, ctx):
        return jnp.asarray(ctx.step_count)

    def write(self, rows):
        self.seen += rows.tolist()


class Host:
    stage, frequency = None, 1

    def __init__(self, seen):
        self.seen = seen

    def _runs_on_stage(self, stage):
        return stage in ON_HOST

    def __call__(self, ctx, stage):
        assert isinstance(ctx, TrainingContext)
        self.seen.append((stage, ctx.epoch, ctx.step_count))


class Seen(list):
    def __hash__(self):
        return id(self)


STEP = [
    S.BEFORE_BATCH,
    S.BEFORE_FORWARD,
    S.AFTER_FORWARD,
    S.BEFORE_LOSS,
    S.AFTER_LOSS,
    S.BEFORE_BACKWARD,
    S.DO_BACKWARD,
    S.AFTER_BACKWARD,
    S.BEFORE_OPTIMIZER_STEP,
    S.DO_OPTIMIZER_STEP,
    S.AFTER_OPTIMIZER_STEP,
    S.AFTER_BATCH,
]
RUN = [
    (S.SETUP, 0, 0),
    (S.BEFORE_TRAINING, 0, 0),
    *[
        entry
        for epoch in range(2)
        for entry in (
            (S.BEFORE_EPOCH, epoch, 2 * epoch),
            *(
                (stage, epoch, step)
                for step in (2 * epoch, 2 * epoch + 1)
                for stage in S
                if "BATCH" in stage.name
            ),
            (S.AFTER_EPOCH, epoch, 2 * epoch + 2),
            (S.AFTER_VALIDATION, epoch + 1, 2 * epoch + 2),
        )
    ],
    (S.AFTER_TRAINING, 2, 4),
]


def test_the_exact_order(data):
    """Of 18 stages, 10 in the compiled step have traced and recording hooks, 8 host hooks, 2 an owner."""
    assert len(S) == 18
    assert len(IN_STEP) == 10
    assert len(ON_HOST) == 8
    traced, host, rows = Seen(), [], Rows()

    def backward(function, params):
        found = value_and_grad(function, params)
        traced.append(S.DO_BACKWARD)
        return found

    def update(*given):
        traced.append(S.DO_OPTIMIZER_STEP)
        return update_by_optax(*given)

    trainer = make(Everywhere(seen=traced), Host(host), rows, backward=backward, update=update)
    state = trainer.init(data[0])
    traced.clear()
    assert int(jax.eval_shape(trainer.step, state, ListedBatches(data).batches[0]).step_count.size) == 1
    assert traced == STEP
    trainer.run(data, epochs=2, validation=data[:1])
    assert host == RUN
    assert rows.seen == [step for step in range(4) for _ in IN_STEP]


@pytest.mark.parametrize("stage", list(S), ids=lambda s: s.name)
def test_which_hook_runs_where(stage):
    """Each kind at each stage: accepted, or refused by name when the trainer is made."""

    class Traced(TracedHook):
        stage: Any
        frequency: int = 1

        def __call__(self, ctx, stage):
            return ctx

    hooks = {"Traced": Traced(stage), "CallbackHook": CallbackHook(print, stage)}
    fits = {"Traced": stage in IN_STEP, "CallbackHook": stage in ON_HOST}
    for name, hook in hooks.items():
        if fits[name]:
            make(hook)
            continue
        why = (
            "has one owner"
            if stage in OWNED
            else "inside the comp"
            if name[0] == "C"
            else "outside of the comp"
        )
        with pytest.raises(TypeError, match=f"{name} runs on {stage.name}, which .*{why}"):
            make(hook)


def test_a_hook_of_dynamics_is_refused():
    with pytest.raises(
        TypeError,
        match=r"CallbackHook\.stage must be a TrainingStage.*: give .*stage=TrainingStage\.AFTER_BATCH",
    ):
        make(CallbackHook(print))


# -- what hooks may change -------------------------------------------------------------------------

CHANGES = {
    "batch": lambda ctx: ctx.with_batch(energy=ctx.batch.energy + 1),
    "loss": lambda ctx: dataclasses.replace(ctx, loss=None if ctx.loss is None else ctx.loss * 2),
    "losses": lambda ctx: dataclasses.replace(ctx, losses={}),
    "gradients": lambda ctx: dataclasses.replace(ctx, gradients=jax.tree.map(lambda g: g * 2, ctx.gradients)),
    "updates": lambda ctx: dataclasses.replace(ctx, updates=jax.tree.map(lambda u: u * 2, ctx.updates)),
    "model": lambda ctx: dataclasses.replace(ctx, model=HarmonicModel(k=3.0)),
    "skipped": lambda ctx: ctx.skip(ctx.step_count < 0),
}


def test_what_a_traced_hook_may_change(data):
    """The table `MAY_CHANGE`, by tracing alone; everything else is refused by hook, field and stage."""

    class Mine(TracedHook):
        stage: Any
        change: Any = eqx.field(static=True)
        frequency: int = 1

        def __call__(self, ctx, stage):
            return self.change(ctx)

    item = ListedBatches(data).batches[0]
    state = make().init(data[0])
    absent = {"loss": 10, "losses": 10, "gradients": 13, "updates": 16}
    for stage in IN_STEP:
        for field, change in CHANGES.items():
            there = stage is S.AFTER_BATCH or stage.value >= absent.get(field, 0)
            if not there or (field == "loss" and stage in (S.BEFORE_FORWARD, S.AFTER_FORWARD, S.BEFORE_LOSS)):
                continue
            trainer = make(Mine(stage, change))
            given = state.replace(memory=(None,))
            if field in MAY_CHANGE.get(stage, ()):
                jax.eval_shape(trainer.step, given, item)
                continue
            with pytest.raises(
                TypeError, match=f"Mine changed {field} at {stage.name}, where a traced hook may"
            ):
                jax.eval_shape(trainer.step, given, item)


def test_changed_loss_gradients_and_updates_act(data):
    """Twice the loss, the gradient or the update: twice the step; the hooks after it see it."""

    class Double(TracedHook):
        stage: Any
        field: str = eqx.field(static=True)
        frequency: int = 1

        def __call__(self, ctx, stage):
            return CHANGES[self.field](ctx)

    item = ListedBatches(data).batches[0]
    plain, moved = make(), {}
    begin = plain.init(data[0])
    for field, stage in (
        (None, None),
        ("loss", S.AFTER_LOSS),
        ("gradients", S.AFTER_BACKWARD),
        ("gradients", S.BEFORE_OPTIMIZER_STEP),
        ("updates", S.AFTER_OPTIMIZER_STEP),
    ):
        hooks = [] if field is None else [Double(stage, field), EMAHook(1e-9)]
        trainer = make(*hooks)
        state = eqx.filter_jit(trainer.step)(trainer.init(data[0]), item)
        moved[stage] = float(state.params.k - begin.params.k)
        if field is not None:
            np.testing.assert_allclose(state.ema.k, state.params.k, rtol=1e-6)
            np.testing.assert_allclose(moved[stage], 2 * moved[None], rtol=1e-6)


# -- training --------------------------------------------------------------------------------------


@pytest.mark.cheap_xla
def test_one_compilation_per_shape(data, compilations):
    """Two shapes of batches, several epochs: two programs, also with host hooks, rows and a second run."""
    other = Batch.from_ase([cluster(9, 5)])
    labels = HarmonicModel(k=TRUE).evaluate(other, None)
    mixed = [*data, other.replace(energy=labels.energy, forces=labels.forces)]
    trainer = make(EMAHook(0.9), CallbackHook(lambda ctx: None, S.AFTER_BATCH), Rows())
    with compilations() as count:
        state = trainer.run(mixed, epochs=3)
        assert sum("compiled_step" in name for name in count) == 2
        trainer.run(mixed, epochs=5, state=state)
    assert sum("compiled_step" in name for name in count) == 2


@pytest.mark.cheap_xla
def test_the_parameter_is_found_and_seeds_repeat(data):
    """Adam finds the force constant; the same key gives the same bits, another key another order."""
    clip = ClipGradientsHook(100.0)
    trainer = make(clip, EMAHook(0.9), optimizer=ADAM)
    states = [trainer.run(data, epochs=100, key=jax.random.key(i)) for i in (1, 1, 2)]
    assert float(trainer.trained(states[0]).k) == pytest.approx(TRUE, abs=0.03)
    assert float(trainer.averaged(states[0]).k) == pytest.approx(TRUE, abs=0.03)
    assert int(states[0].step_count) == 200
    assert np.array_equal(states[0].params.k, states[1].params.k)
    assert not np.array_equal(states[0].params.k, states[2].params.k)
    assert trainer.averaged(states[0]).center is trainer.model.center


def pair_energy(params, batch, neighbors):
    """A function of distances with a network of one layer."""
    from alchemi_jax.neighbors import pair_vectors
    from alchemi_jax.systems.segments import sum_by_system

    x, y, z, near = pair_vectors(batch, neighbors)
    r = jnp.sqrt(jnp.where(near, x * x + y * y + z * z, 1.0))
    return sum_by_system(batch, jnp.where(near, params["a"] * jnp.tanh(params["b"] - r), 0).sum(axis=0))


def graph_energy(params, graph):
    r = jnp.sqrt((graph.vectors**2).sum(axis=-1))
    pairs = jnp.where(graph.edge_mask, params["a"] * jnp.tanh(params["b"] - r), 0)
    return jax.ops.segment_sum(pairs, graph.receivers, graph.species.shape[0])


class Net(nn.Module):
    @nn.compact
    def __call__(self, batch, neighbors):
        a, b = (self.param(name, lambda _: jnp.asarray(0.5)) for name in ("a", "b"))
        return pair_energy({"a": a, "b": b}, batch, neighbors)


PAIR = {"a": 0.1, "b": 3.0}
MODELS = {
    "LennardJones": lambda: LennardJones(epsilon=0.02, sigma=3.0, cutoff=6.0),
    "FunctionModel": lambda: FunctionModel(pair_energy, PAIR, cutoff=6.0),
    "GraphFunctionModel": lambda: GraphFunctionModel(graph_energy, PAIR, cutoff=6.0),
    "flax": lambda: FlaxModel(
        module=Net(), variables={"params": {n: jnp.asarray(v) for n, v in PAIR.items()}}, cutoff=6.0
    ),
}


@pytest.mark.parametrize("name", list(MODELS))
def test_gradients_of_forces(name, data):
    """Second derivatives: the gradient of a loss of forces is that of finite differences."""
    trainer = Trainer(MODELS[name](), loss, optax.sgd(1.0))
    item = ListedBatches(data[:1]).fit_to(trainer.model).batches[0]
    state = trainer.init(item)
    stepped = eqx.filter_jit(trainer.step)(state, item)
    leaves, tree = jax.tree.flatten(state.params)
    assert len(leaves) == 2
    for number, (before, after) in enumerate(zip(leaves, jax.tree.leaves(stepped.params), strict=True)):
        values = []
        for sign in (1, -1):
            moved = [x + sign * 1e-5 if i == number else x for i, x in enumerate(leaves)]
            there = state.replace(params=jax.tree.unflatten(tree, moved))
            values.append(trainer.validate(there, [item])[0] if number == 0 else None)
        if number == 0:
            # validate takes means over systems of the loss of a batch: one batch, so the loss itself.
            np.testing.assert_allclose(float(before - after), (values[0] - values[1]) / 2e-5, rtol=1e-5)
        assert float(before - after) != 0


def test_what_is_trained():
    model = FunctionModel(pair_energy, {"body": {"a": 0.1, "b": 1.0}, "head": {"a": 0.2}}, cutoff=6.0)

    def trained(**kwargs):
        params = Trainer(model, loss, optax.sgd(0.1), **kwargs).split()[0]
        return [
            jax.tree_util.keystr(p, simple=True, separator=".") for p, _ in jax.tree.leaves_with_path(params)
        ]

    every = ["params.body.a", "params.body.b", "params.head.a"]
    assert trained() == every
    assert trained(frozen="params.body") == every[2:]
    assert trained(trainable=["params.body", "params.head"], frozen="*.a") == every[1:2]
    assert trained(trainable=lambda path, leaf: "head" in path) == every[2:]
    with pytest.raises(
        ValueError, match=r"frozen 'params\.tail' is no path of FunctionModel, whose floats are "
    ):
        trained(frozen="params.tail")
    with pytest.raises(ValueError, match="there is nothing to train"):
        trained(frozen="params")
    # Statistics of the data are left alone, also by an optimizer with weight decay, unless they are named.
    model = InvariantNetwork(["Cu"], key=jax.random.key(0), hidden=()) + LennardJones(0.1, 3.0)
    layers = ["parts.0.layers.0.0", "parts.0.layers.0.1"]
    assert trained() == [*layers, "parts.1.epsilon", "parts.1.sigma"]
    assert trained(trainable=["parts.0.energies", "parts.0.layers"]) == ["parts.0.energies", *layers]


# -- hooks of both worlds --------------------------------------------------------------------------


class UniversalLogger:
    """The hook of the guide, for three enums."""

    stage, frequency = DynamicsStage.AFTER_STEP, 1

    def __init__(self):
        self.lines = []

    def _runs_on_stage(self, stage: Enum) -> bool:
        return stage in (DynamicsStage.AFTER_STEP, TrainingStage.AFTER_BATCH)

    @plum.dispatch
    def __call__(self, ctx: HookContext, stage: DynamicsStage) -> None:
        fmax = jnp.linalg.norm(ctx.batch.forces, axis=-1).max().item()
        self.lines.append(f"[dynamics] step {ctx.step_count}: fmax={fmax:.4f}")

    @plum.dispatch
    def __call__(self, ctx: HookContext, stage: TrainingStage) -> None:  # noqa: F811
        self.lines.append(f"[training] epoch {ctx.epoch}: loss={ctx.loss.item():.4f}")

    @plum.dispatch
    def __call__(self, ctx: HookContext, stage: Enum) -> None:  # noqa: F811
        self.lines.append(f"[custom] step {ctx.step_count}: stage={stage.name}")


def test_hooks_of_both_worlds(data, tmp_path, capsys):
    """The same objects, but for their stage; a log has loss, parts and rate of each step."""
    universal, timing, seen = UniversalLogger(), StageTimingHook(), []
    log = LoggingHook(log_path=tmp_path / "log.csv", stage=S.AFTER_BATCH)
    observe = ObservableHook({"loss": lambda ctx: ctx.loss}, stage=S.AFTER_BATCH, frequency=2)
    epochs = LoggingHook(log_path=tmp_path / "epochs.csv", stage=S.AFTER_VALIDATION)
    hooks = [
        *(universal, timing, log, observe, epochs),
        ProgressHook(2, stage=S.AFTER_BATCH, disable=True),
        CallbackHook(lambda ctx: seen.append(ctx), S.AFTER_EPOCH),
        ScheduleHook(optax.linear_schedule(0.002, 0.0, 4)),
    ]
    trainer = make(*hooks, optimizer=optax.inject_hyperparams(optax.sgd)(learning_rate=1.0))
    trainer.run(data, epochs=2, validation=data)
    with open(tmp_path / "epochs.csv") as file:
        assert [(row["step"], row["epoch"]) for row in csv.DictReader(file)] == [("2", "1"), ("4", "2")]
    with open(tmp_path / "log.csv") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["step", "epoch", "loss", "energy", "forces", "rate"]
    assert [int(row["step"]) for row in rows] == [0, 1, 2, 3]
    assert [int(row["epoch"]) for row in rows] == [0, 0, 1, 1]
    np.testing.assert_allclose(
        [float(row["rate"]) for row in rows], [0.002, 0.0015, 0.001, 0.0005], rtol=1e-6
    )
    for row in rows:
        assert float(row["loss"]) == pytest.approx(float(row["energy"]) + float(row["forces"]))
    assert observe.table["step"].tolist() == [0, 2]
    assert float(observe.table["loss"][1]) == pytest.approx(float(rows[2]["loss"]))
    begins = [line.split(":")[0] for line in universal.lines]
    assert begins == [f"[training] epoch {i}" for i in (0, 0, 1, 1)]
    assert len(timing.times[S.BEFORE_BATCH]) == 3
    assert "AFTER_BATCH" in timing.summary()
    ctx = seen[1]
    assert float(ctx.lr_scheduler.rate) == pytest.approx(0.0005)
    assert ctx.lr_scheduler.schedule is trainer.hooks.traced[0].schedule
    assert ctx.optimizer.transformation is trainer.optimizer
    assert set(ctx.losses) == {"energy", "forces"}
    assert (ctx.epoch, ctx.step_count, ctx.workflow) == (1, 4, trainer)
    assert BEGIN > float(ctx.model.k) > TRUE
    assert ctx.gradients.k.shape == ()
    NVE(model=HarmonicModel(), dt=1.0, n_steps=1, hooks=[universal]).run(data[0])
    assert universal.lines[-1].startswith("[dynamics] step 0: fmax=")


# -- hooks of training -----------------------------------------------------------------------------


def test_validation_early_stopping_and_the_best_model(data, tmp_path):
    """A rate that is too large: the loss rises, the best model is an early one, the training ends."""
    every = ValidationHook(data, every=2)
    stop, best = EarlyStoppingHook(patience=3), BestCheckpointHook(tmp_path / "best.eqx")
    values = []

    def note(ctx):
        values.append((float(ctx.loss), float(ctx.model.k)))

    watch = CallbackHook(note, S.AFTER_VALIDATION)
    trainer = make(every, stop, best, watch, optimizer=optax.adam(0.3))
    state = trainer.run(data, epochs=100)
    assert int(state.epoch) < 100
    assert [row["step"] for row in every.table] == list(range(2, 2 * len(every.table) + 1, 2))
    lowest = min(values)
    assert best.best == lowest[0] == stop.best
    assert float(best.load(trainer.model).k) == pytest.approx(lowest[1])
    assert values[-1] != lowest


@pytest.mark.cheap_xla
def test_steps_that_are_not_finite(data, tmp_path):
    """Skipped, they do not count and leave no row; without the hook the training ends and says where."""
    bad = data[1].replace(energy=data[1].energy.at[0].set(jnp.inf))
    log = LoggingHook(log_path=tmp_path / "log.csv", stage=S.AFTER_BATCH)
    steps = []
    note = CallbackHook(lambda ctx: steps.append(ctx.step_count), S.AFTER_BATCH)
    skips = make(SkipNonFiniteHook(most=3), EMAHook(0.5), log, note, optimizer=TENTH)
    state = skips.run([data[0], bad], n_steps=4)
    assert (int(state.step_count), steps) == (4, [0, 1, 2, 3])
    assert 7 <= 2 * int(state.epoch) + int(state.position) <= 8
    assert len((tmp_path / "log.csv").read_text().splitlines()) == 5
    # The loop does not read the count of steps after each where nobody asks for it.
    unwatched = make(SkipNonFiniteHook(most=3), optimizer=TENTH).run([data[0], bad], n_steps=4)
    assert int(unwatched.step_count) == 4
    only = make(optimizer=TENTH).run([data[0]], n_steps=4)
    np.testing.assert_allclose(state.params.k, only.params.k, rtol=1e-6)
    with pytest.raises(
        FloatingPointError, match=r"a gradient of batch 0 of epoch 0 is not finite \(numbers of "
    ):
        make().run([bad], epochs=1)
    with pytest.raises(FloatingPointError, match="batch 3 of epoch 0") as caught:
        skips.run([bad] * 5, epochs=1)
    assert int(caught.value.state.step_count) == 0
    np.testing.assert_array_equal(caught.value.state.params.k, BEGIN)


def test_low_precision_with_a_factor_on_the_loss(data):
    """Parameters stay in full precision; a factor that is too large is halved until gradients are finite."""
    model = HarmonicModel(k=jnp.asarray(BEGIN, jnp.float32))
    single = [
        Batch.from_ase(batch.to_ase(), dtype=np.float32).replace(
            energy=batch.energy.astype(jnp.float32), forces=batch.forces.astype(jnp.float32)
        )
        for batch in data
    ]
    precision = Precision("bfloat16", loss_scale=2.0**126, period=5)
    trainer = Trainer(model, loss, optax.adam(0.05), frozen="center", precision=precision)
    state = trainer.run(single, n_steps=60)
    assert state.params.k.dtype == jnp.float32
    assert float(state.params.k) == pytest.approx(TRUE, abs=0.1)
    assert 2 * int(state.epoch) + int(state.position) > 60
    with pytest.raises(ValueError, match="compute of Precision must be a dtype of floats"):
        Precision("int8")


# -- going on --------------------------------------------------------------------------------------


class Power(CallbackHook):
    """Fails once, after so many steps; or kills the process."""

    kills = False

    def __init__(self, at):
        super().__init__(self.cut, S.AFTER_BATCH)
        self.at = at

    def cut(self, ctx):
        if ctx.step_count == self.at:
            if self.kills:
                os.kill(os.getpid(), signal.SIGKILL)
            raise RuntimeError("no power")


FALLS = optax.cosine_decay_schedule(0.05, 30)
SCHEDULED = optax.inject_hyperparams(optax.adam)(learning_rate=1.0)


def everything(folder, data, at=-1):
    """A trainer whose every part has something to keep, and its hooks that observe."""
    log = LoggingHook(log_path=folder / "log.csv", stage=S.AFTER_BATCH, frequency=2)
    observe = ObservableHook({"k": lambda ctx: ctx.model.k}, stage=S.AFTER_BATCH)
    best, every = BestCheckpointHook(folder / "best.eqx"), ValidationHook(data, every=4)
    hooks = [
        *(log, observe, best, every, EarlyStoppingHook(50)),
        *(EMAHook(0.9), SkipNonFiniteHook(), ClipGradientsHook(2.0)),
        ScheduleHook(FALLS),
        CheckpointHook(folder / "checkpoints", frequency=3, every_seconds=None),
        Power(at),
    ]
    # A factor on the loss, which is halved where the label is not finite, and doubled after five steps.
    precision = Precision("bfloat16", loss_scale=2.0**10, period=5)
    return make(*hooks, optimizer=SCHEDULED, precision=precision), (observe, best, every)


def source():
    """Batches, one of them with a label that is not finite, and what to validate with."""
    data = batches(4)
    bad = data[2].replace(energy=data[2].energy.at[0].set(jnp.inf))
    return [*data[:2], bad, data[3]], data[:1]


def run_until_killed(folder, at):
    """For a process of its own."""
    data, others = source()
    trainer, _ = everything(folder, others, at)
    trainer.run(data, epochs=7, validation=others, resume=folder / "checkpoints")


def outcome(folder, state, watched):
    observe, best, every = watched
    return {
        **{f"state{name}": np.asarray(leaf) for name, leaf in named(state)},
        **{name: np.asarray(x) for name, x in observe.table.items()},
        "log": (folder / "log.csv").read_text(),
        "best": (best.best, best.step, (folder / "best.eqx").read_bytes()),
        "validations": every.table,
    }


def named(state):
    state = state.replace(records=(), key=jax.random.key_data(state.key))
    return [(jax.tree_util.keystr(path), leaf) for path, leaf in jax.tree.leaves_with_path(state)]


def check_same(a, b):
    assert a.keys() == b.keys()
    for name, value in a.items():
        if isinstance(value, np.ndarray):
            np.testing.assert_array_equal(value, b[name], name)
        else:
            assert value == b[name], name


@pytest.mark.cheap_xla
@pytest.mark.parametrize("killed", [False, pytest.param(True, marks=pytest.mark.long)])
def test_going_on(tmp_path, killed):
    """Cut twice in the middle of an epoch, by SIGKILL or an error: the same bits, files and tables."""
    data, others = source()
    results = []
    for cuts in ((), (5, 13)):
        folder = tmp_path / str(len(cuts))
        folder.mkdir()
        for at in cuts:
            if killed and at == 5:
                done = subprocess.run(
                    [sys.executable, "-c", KILLED.format(folder=str(folder))],
                    cwd=Path(__file__).parent,
                    env=os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")])},
                    capture_output=True,
                    text=True,
                    check=False,
                )
                assert done.returncode == -signal.SIGKILL, done.stderr[-3000:]
                continue
            trainer, _ = everything(folder, others, at)
            with pytest.raises(RuntimeError, match="no power"):
                trainer.run(data, epochs=7, validation=others, resume=folder / "checkpoints")
        trainer, watched = everything(folder, others)
        state = trainer.run(data, epochs=7, validation=others, resume=folder / "checkpoints")
        results.append(outcome(folder, state, watched))
    check_same(*results)
    assert int(state.step_count) == 21
    assert len(results[0]["log"].splitlines()) == 12
    again = trainer.run(data, epochs=7, validation=others, resume=folder / "checkpoints")
    assert np.array_equal(again.params.k, state.params.k)
    with pytest.raises(ValueError, match="is of a training with another key"):
        trainer.run(data, epochs=7, resume=folder / "checkpoints", key=jax.random.key(7))
    with pytest.raises(ValueError, match="is of another training: batches per epoch was 4 and is 1"):
        trainer.run(data[:1], epochs=7, resume=folder / "checkpoints")
    with pytest.raises(ValueError, match="holds checkpoints of an earlier training, up to step 21"):
        trainer.run(data, epochs=7)


ROOT = Path(__file__).parent.parent
KILLED = """
from pathlib import Path
import jax
jax.config.update("jax_enable_x64", True)
import test_training
test_training.Power.kills = True
test_training.run_until_killed(Path({folder!r}), 5)
"""


@pytest.mark.cheap_xla
def test_structures_of_ase_as_data(tmp_path):
    """Batches that a thread packs: cut in an epoch and gone on, the parameters are those of one run."""
    atoms = [a for batch in batches(3) for a in batch.to_ase()]
    loss = Loss(energy=1.0, forces=1.0)

    def trainer():
        return make(EMAHook(0.9), loss=loss, optimizer=ADAM)

    def data():
        return Batches(atoms, max_systems=2, buckets=1)

    whole = trainer().run(data(), n_steps=8)
    trainer().run(data(), n_steps=4, resume=tmp_path)
    parts = trainer().run(data(), n_steps=8, resume=tmp_path)
    assert (int(whole.epoch), int(whole.position)) == (2, 2)
    assert np.array_equal(whole.params.k, parts.params.k)
    assert np.array_equal(whole.ema.k, parts.ema.k)
    assert abs(float(whole.params.k) - TRUE) < abs(BEGIN - TRUE)
    assert trainer().validate(whole, atoms)[0] > 0


# -- mistakes --------------------------------------------------------------------------------------


def lossy(value):
    """A trainer whose loss returns a value."""
    return make(loss=lambda results, batch, step: value(results))


MISTAKES = {
    "a loss for each system": (
        lambda: lossy(lambda r: (r.energy, {})),
        r"returned float64\[2\]; it must be one float: take the mean over systems or atoms",
    ),
    "a part for each atom": (
        lambda: lossy(lambda r: (r.energy.sum(), {"forces": r.forces})),
        r"returned 'forces' float64\[16, 3\]; it must be one float",
    ),
    "no parts": (lambda: lossy(lambda r: r.energy.sum()), "must return a number and its parts by name"),
    "gradients of another shape": (
        lambda: make(backward=lambda f, p: ((0.0, f(p)[1]), jax.tree.map(lambda x: x[None], p))),
        r"backward of the Trainer returned gradients\.k as float64\[1\]; it must stay float64\[\]",
    ),
}


@pytest.mark.parametrize("name", list(MISTAKES))
def test_mistakes_in_a_step(name, data):
    make_it, message = MISTAKES[name]
    trainer = make_it()
    with pytest.raises(TypeError, match=message):
        jax.eval_shape(trainer.step, trainer.init(data[0]), ListedBatches(data).batches[0])


def test_mistakes_in_arguments(data, lj):
    sgd = optax.sgd(0.1)
    for given, message in (
        ((lambda: Trainer("a", loss, sgd)), "model of a Trainer must be a model"),
        ((lambda: Trainer(HarmonicModel(), 1.0, sgd)), "loss of a Trainer must be a function"),
        ((lambda: Trainer(HarmonicModel(), loss, 0.1)), "optimizer of a Trainer must be a transformation"),
        ((lambda: make(ScheduleHook(lambda step: 0.1))), "ScheduleHook sets 'learning_rate', which is not"),
        ((lambda: make(precision=3)), "precision of a Trainer must be a Precision or a dtype"),
        ((lambda: make().run(data)), "Trainer.run takes either epochs or n_steps"),
        ((lambda: make().run(data, 1, n_steps=1)), "Trainer.run takes either epochs or n_steps"),
        ((lambda: make().run(3, 1)), "data of a training must be structures with labels"),
        ((lambda: make().run([data[0], 3], 1)), "batch 1 of the data is the number 3, not a Batch"),
        ((lambda: make().run(data, 1, validation=3)), "validation of a training must be structures"),
    ):
        with pytest.raises(TypeError, match=message):
            given()
    with pytest.raises(ValueError, match="epochs of Trainer\\.run must be a positive int"):
        make().run(data, 0)
    trainer = Trainer(lj, loss, sgd)
    with pytest.raises(ValueError, match="LennardJones needs a neighbor list, and the batch has no room"):
        jax.eval_shape(trainer.step, trainer.init(data[0]), ListedBatches(data).batches[0])
