"""Mistakes that users make in hooks, models and algorithms, and what each of them is told."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from alchemi_jax.dynamics import NVE, DynamicsStage
from alchemi_jax.hooks import RecordingHook, TracedHook
from alchemi_jax.models import HarmonicModel
from alchemi_jax.models.base import AbstractModel, Results
from alchemi_jax.systems.levels import per_atom, per_system
from alchemi_jax.systems.segments import sum_by_system


class Traced(TracedHook):
    """At AFTER_COMPUTE, where `init` already calls it."""

    stage: DynamicsStage = DynamicsStage.AFTER_COMPUTE
    frequency: int = 1

    def __call__(self, ctx, stage):
        return ctx


class Recording(RecordingHook):
    stage, frequency, calls = DynamicsStage.AFTER_STEP, 1, 0

    def write(self, rows): ...

    def record(self, ctx):
        self.calls += 1
        return self.row(ctx)


class Model(AbstractModel):
    cutoff = None

    def energy(self, batch, neighbors):
        return sum_by_system(batch, batch.positions[:, 0] ** 2)


class Momenta(eqx.Module):
    atoms: jax.Array = per_atom()
    systems: jax.Array = per_system()


class Algorithm(NVE):
    def init_state(self, batch):
        return Momenta(batch.positions, batch.energy)


def hook(call, init=None, **fields):
    """An engine with a traced hook `Mine` that does `call(ctx)`."""
    body = {"__call__": lambda self, ctx, stage: call(ctx), "__annotations__": {}}
    if init is not None:
        body["init"] = lambda self, batch: init(batch)
    return engine(hooks=[type("Mine", (Traced,), body)(**fields)])


def rows(row):
    """An engine with a recording hook `Mine` whose rows are `row(hook, ctx)`."""
    return engine(hooks=[type("Mine", (Recording,), {"row": row})()])


def model(**methods):
    """An engine with a model `Mine`."""
    return engine(model=type("Mine", (Model,), methods)())


def algorithm(**methods):
    """An engine of a class `Mine`."""
    return type("Mine", (Algorithm,), methods)(model=HarmonicModel(), dt=1.0)


def engine(**fields):
    return NVE(**{"model": HarmonicModel(), "dt": 1.0, **fields})


def results(energy=None, forces=None):
    """An `evaluate` with one result replaced by a function of the batch."""

    def evaluate(self, batch, neighbors, *, stress=False):
        e = jnp.zeros_like(batch.energy) if energy is None else energy(batch)
        return Results(e, jnp.zeros_like(batch.forces) if forces is None else forces(batch), None)

    return evaluate


def bad_if(ctx):
    return ctx if ctx.batch.energy[0] > 0 else ctx.with_memory(None)  # here


def bad_float(ctx):
    return ctx.with_batch(energy=ctx.batch.energy * float(ctx.step_count))  # here


def bad_item(ctx):
    return ctx.with_batch(energy=ctx.batch.energy * ctx.batch.energy[0].item())  # here


def bad_range(ctx):
    for _ in range(ctx.step_count):  # here
        pass
    return ctx


def bad_numpy(ctx):
    return ctx.with_batch(energy=jnp.asarray(np.sqrt(ctx.batch.energy)))  # here


def bad_mask(ctx):
    return ctx.with_batch(energy=ctx.batch.energy[ctx.batch.energy > 0].sum())  # here


def bad_assignment(ctx):
    ctx.batch.forces = 0.0  # here
    return ctx


def unsafe_replace(**fields):
    """An update that changes fields of the batch."""
    return lambda self, batch, state: (batch.replace(**{k: f(batch) for k, f in fields.items()}), state)


#: name -> (makes the engine, what the sentence says). The batch is float32, of 16 atoms and 2 systems.
CASES = {
    "a hook returns nothing": (
        lambda: hook(lambda ctx: None),
        "Mine returned None at AFTER_COMPUTE: a traced hook returns the context, for example ctx.with_batch",
    ),
    "a hook returns the batch": (
        lambda: hook(lambda ctx: ctx.batch),
        "Mine returned a Batch at AFTER_COMPUTE: a traced hook returns the context",
    ),
    "a field of another shape": (
        lambda: hook(lambda ctx: ctx.with_batch(forces=ctx.batch.forces[:2])),
        "Mine returned batch.forces as float32[2, 3]; it must stay float32[16, 3]: a shape never changes",
    ),
    "an atom's value for a system": (
        lambda: hook(lambda ctx: ctx.with_batch(energy=ctx.batch.masses), frequency=3),
        "Mine returned batch.energy as float32[16]; it must stay float32[2]",
    ),
    "double precision": (
        lambda: hook(lambda ctx: ctx.with_batch(forces=ctx.batch.forces.astype("float64"))),
        'batch.forces as float64[16, 3]; it must stay float32[16, 3]: end with .astype("float32")',
    ),
    "whole numbers": (
        lambda: hook(lambda ctx: ctx.with_batch(energy=jnp.ones(2, int))),
        'Mine returned batch.energy as int64[2]; it must stay float32[2]: end with .astype("float32")',
    ),
    "a status that is no int": (
        lambda: hook(lambda ctx: ctx.with_batch(status=ctx.batch.status + 0.5)),
        "it must stay int32[2]",
    ),
    "a field of None": (
        lambda: hook(lambda ctx: ctx.with_batch(forces=None)),
        "Mine returned batch.forces as None; it must stay float32[16, 3]: give an array",
    ),
    "a memory of another shape": (
        lambda: hook(lambda ctx: ctx.with_memory(jnp.zeros(3)), lambda batch: jnp.zeros(2)),
        "Mine returned memory as float64[3]; it must stay float64[2]",
    ),
    "a memory of another dtype": (
        lambda: hook(
            lambda ctx: ctx.with_memory({"n": ctx.memory["n"] * 0.5}), lambda b: {"n": jnp.arange(2)}
        ),
        "Mine returned memory['n'] as float64[2]; it must stay int64[2]",
    ),
    "a memory with more": (
        lambda: hook(lambda ctx: ctx.with_memory({"n": 1, "m": 2}), lambda batch: {"n": 0}),
        "Mine returned memory with memory['m'], which it did not have: its structure must stay",
    ),
    "a memory with less": (
        lambda: hook(lambda ctx: ctx.with_memory({}), lambda batch: {"n": 0}),
        "Mine returned memory without memory['n'], which it had: its structure must stay",
    ),
    "a memory without an init": (
        lambda: hook(lambda ctx: ctx.with_memory(ctx.batch.energy)),
        "Mine returned memory as float32[2]; it must stay None",
    ),
    "a memory of text": (
        lambda: hook(lambda ctx: ctx, lambda batch: {"name": "x"}),
        "Mine.init made memory['name'] a str: a memory is a pytree of arrays",
    ),
    "if": (
        lambda: hook(bad_if),
        "Mine at AFTER_COMPUTE asks whether a traced array is true (if, while, and, bool) at HERE, but "
        "compiled code has no values yet: choose with jnp.where, or look from a host hook.",
    ),
    "float": (lambda: hook(bad_float), "asks for the number in a traced array (float, int, .item) at HERE"),
    "item": (lambda: hook(bad_item), "asks for the number in a traced array (float, int, .item) at HERE"),
    "range": (lambda: hook(bad_range), "counts or indexes with a traced array (range, a list) at HERE"),
    "numpy": (
        lambda: hook(bad_numpy),
        "Mine at AFTER_COMPUTE gives a traced array to numpy at HERE, but compiled code has no values yet: "
        "use jax.numpy, or look from a host hook.",
    ),
    "a mask": (lambda: hook(bad_mask), "traced mask, x[mask] at HERE, but compiled code has no values yet"),
    "an assignment": (
        lambda: hook(bad_assignment),
        "Mine at AFTER_COMPUTE assigns to the frozen field 'forces' at HERE: return "
        "ctx.with_batch(forces=...)",
    ),
    "numpy in record": (
        lambda: rows(lambda self, ctx: bad_numpy(ctx)),
        "Mine.record gives a traced array to numpy at HERE",
    ),
    "a row of text": (
        lambda: rows(lambda self, ctx: {"name": "x"}),
        "Mine.record returned row['name'] as a str: a row is a pytree of arrays",
    ),
    "no row": (lambda: rows(lambda self, ctx: None), "Mine.record returned row as None: a row is a pytree"),
    "rows that grow": (
        lambda: rows(lambda self, ctx: jnp.zeros(self.calls)),
        "Mine.record returned row as float64[2]; it must stay float64[1]: a shape never changes",
    ),
    "rows of changing dtype": (
        lambda: rows(lambda self, ctx: {"a": jnp.zeros(2, "int32" if self.calls > 1 else "float32")}),
        "Mine.record returned row['a'] as int32[2]; it must stay float32[2]",
    ),
    "an energy for all": (
        lambda: model(energy=lambda self, b, n: b.positions.sum()),
        "Mine returned energy as float32[]; it must be float32[2], one number per system, for instance by "
        "segments.sum_by_system",
    ),
    "an energy of atoms": (
        lambda: model(energy=lambda self, b, n: b.positions[:, 0]),
        "Mine returned energy as float32[16]; it must be float32[2], one number per system",
    ),
    "no energy returned": (
        lambda: model(energy=lambda self, b, n: None),
        "Mine returned energy as None; it must be float32[2]",
    ),
    "no energy written": (
        lambda: type("Mine", (AbstractModel,), {"cutoff": None})(),
        r"abstract class Mine",
    ),
    "if in a model": (
        lambda: model(energy=lambda self, b, n: b.energy if b.cell[0, 0, 0] > 0 else 2 * b.energy),
        "Mine.energy asks whether a traced array is true (if, while, and, bool) at ",
    ),
    "numpy in a model": (
        lambda: model(energy=lambda self, b, n: jnp.asarray(np.asarray(b.energy))),
        "Mine.energy gives a traced array to numpy at ",
    ),
    "forces turned over": (
        lambda: model(evaluate=results(forces=lambda b: b.forces.T)),
        "Mine returned forces as float32[3, 16]; it must be float32[16, 3], one row per atom",
    ),
    "forces of whole numbers": (
        lambda: model(evaluate=results(forces=lambda b: b.forces.astype(int))),
        "Mine returned forces as int64[16, 3]; it must be float32[16, 3]",
    ),
    "no results": (
        lambda: model(evaluate=lambda self, b, n, *, stress=False: (b.energy, b.forces)),
        "Mine.evaluate returned a tuple; it must return Results(energy, forces, stress)",
    ),
    "a function for a model": (
        lambda: engine(model=lambda batch, neighbors: batch.energy),
        "not the function <lambda>: write a class Mine(AbstractModel)",
    ),
    "a class for a model": (lambda: engine(model=HarmonicModel), "not the class HarmonicModel."),
    "a state of arrays": (
        lambda: algorithm(init_state=lambda self, batch: batch.positions),
        "Mine.init_state returned float32[16, 3]; it must return None, or an equinox.Module whose fields",
    ),
    "a state of the wrong level": (
        lambda: algorithm(init_state=lambda self, b: Momenta(b.energy, b.energy)),
        "Mine.init_state made Momenta.atoms float32[2]; declared per_atom, it must begin with 16 rows",
    ),
    "an update without a state": (
        lambda: algorithm(pre_update=lambda self, batch, state: batch),
        "Mine.pre_update returned a Batch; it must return the batch and the algorithm's state",
    ),
    "an update that drops the state": (
        lambda: algorithm(post_update=lambda self, batch, state: (batch, None)),
        "Mine.post_update returned state as None; it must stay a Momenta",
    ),
    "a state of another shape": (
        lambda: algorithm(
            pre_update=lambda self, b, state: (b, eqx.tree_at(lambda s: s.atoms, state, b.energy))
        ),
        "Mine.pre_update returned state.atoms as float32[2]; it must stay float32[16, 3]",
    ),
    "positions of another shape": (
        lambda: algorithm(pre_update=unsafe_replace(positions=lambda b: b.positions[:3])),
        "Mine.pre_update returned batch.positions as float32[3, 3]; it must stay float32[16, 3]",
    ),
    "positions of another dtype": (
        lambda: algorithm(pre_update=unsafe_replace(positions=lambda b: b.positions.astype("float64"))),
        "Mine.pre_update returned batch.positions as float64[16, 3]; it must stay float32[16, 3]",
    ),
    "if in an algorithm": (
        lambda: algorithm(pre_update=lambda self, b, state: (b, state) if b.energy[0] > 0 else (b, None)),
        "Mine.pre_update asks whether a traced array is true (if, while, and, bool) at ",
    ),
}
