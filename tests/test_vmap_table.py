"""The vmap table: whatever is public gives under vmap what a Python loop gives, or says why not."""

import dataclasses
import importlib.util

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import public
from potential_cases import CASES, neighbors_of
from transform_cases import (
    ENGINES,
    MODELS,
    TRACED,
    WELLS,
    arrays_equal,
    free,
    host,
    periodic,
    public_classes,
    recording,
)

from alchemi_jax import dynamics, models
from alchemi_jax.dynamics import NPH, NPT, NVE, AbstractDynamics, NVTLangevin
from alchemi_jax.dynamics.parameter_paths import leaf, with_leaf
from alchemi_jax.neighbors import allocate, edge_list, empty_list, guess_sizes, update


def lane(tree, i):
    return jax.tree.map(lambda x: x[i], tree)


def agree(function, *lanes, **how):
    """Two lanes at once, and each alone by the same compiled function."""
    mapped = jax.jit(jax.vmap(function))(*lanes)
    single = jax.jit(function)
    for i in range(2):
        arrays_equal(lane(mapped, i), single(*lane(lanes, i)), **how)


def test_nothing_public_is_left_out(tmp_path):
    hooks = public(dynamics.hooks)
    named = {name for name, value in hooks.items() if name.endswith("Hook") and isinstance(value, type)}
    assert named == set(TRACED) | set(recording(tmp_path)) | set(host())
    # CHGNet has its weights from elsewhere, and its tests in test_chgnet.py.
    assert public_classes(models, models.AbstractModel) == set(CASES) | set(MODELS) | {"CHGNet"}
    assert public_classes(dynamics, AbstractDynamics) == set(ENGINES)


@pytest.mark.parametrize("name", sorted(MODELS))
def test_a_model(name):
    """Over positions and cells: energy, forces and stress. Those of `CASES` have this law in
    test_potentials_laws.py, with lists of their own in each lane."""
    model, batch = MODELS[name], periodic()
    needs = model.requirements
    neighbors = allocate(batch, needs) if needs.edges else neighbors_of(model, batch)
    moves = jnp.asarray(np.random.default_rng(0).normal(0, 0.02, (2, *batch.positions.shape)))

    def found(move, stretch):
        moved = batch.replace(positions=batch.positions * stretch + move, cell=batch.cell * stretch)
        held = update(moved, neighbors) if neighbors is not None else None
        return model.evaluate(moved, held, stress=True)

    agree(found, moves, jnp.array([1.0, 1.003]), rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("builder", ["brute force", "cell list", "warp"])
def test_a_list(builder):
    """One lane is due and the other is not; edges, too."""
    if builder == "warp" and importlib.util.find_spec("nvalchemiops") is None:
        pytest.skip("without the extra `warp`")
    batch, cutoff, skin = periodic(), 5.0, 0.5
    sizes = guess_sizes(batch, cutoff, skin, builder=builder)
    begun = update(batch, empty_list(batch, cutoff, skin, sizes))
    assert not bool(begun.overflow)
    shape = jnp.asarray(np.random.default_rng(1).normal(0, 1, batch.positions.shape))

    def renewed(size):
        moved = batch.replace(positions=batch.positions + size * shape)
        held = update(moved, begun)
        return held, edge_list(moved, held)

    agree(renewed, jnp.array([0.3, 0.01]))


def start_of(engine, batch):
    """The state before the first step. Engines without hooks share the program that evaluates it."""
    if len(engine.parts) > 1 or len(engine.hooks):
        state = engine.init(batch)
    else:
        first = NPH if engine.needs_stress else NVE
        state = first(model=engine.model, dt=1.0).init(batch)
        state = state.replace(integrator=engine.init_state(state.batch))
    return state.replace(batch=state.batch)


def of_engine(engine, parameter, batch, steps=4):
    """Over a leaf of the engine, states and keys, all at once."""
    start = start_of(engine, batch)
    moves = jnp.asarray(np.random.default_rng(2).normal(0, 0.02, (2, *batch.positions.shape)))
    value = leaf(engine, parameter)
    values = jnp.stack([value * 1.0, value * 1.5 + 0.01])

    def final(value, move, key):
        begun = start.batch.replace(positions=start.batch.positions + move)
        state = start.replace(batch=begun, key=key)
        out = with_leaf(engine, parameter, value).loop(state, steps)
        rows = [buffer.rows for buffer in out.records]
        return out.replace(records=()), [jax.tree.map(lambda r: r[:2], r) for r in rows]

    agree(final, values, moves, jax.random.split(jax.random.key(5), 2))


@pytest.mark.parametrize("name", sorted(ENGINES))
def test_an_engine(name):
    engine, parameter, needs_cells = ENGINES[name]
    of_engine(engine, parameter, periodic() if needs_cells else free())


#: Hooks that one engine takes together, and the engine on which they have a meaning.
TOGETHER = {
    "thermostat": (
        NVTLangevin,
        ["ConvergenceHook", "MaxForceClampHook", "FreezeAtomsHook", "TemperatureScheduleHook", "LoggingHook"],
    ),
    "ladder": (
        NVTLangevin,
        ["BiasedPotentialHook", "NaNDetectorHook", "ReplicaExchangeHook", "ObservableHook"],
    ),
    "cell": (NPT, ["PressureScheduleHook", "WrapPeriodicHook"]),
    "energy": (NVE, ["EnergyDriftMonitorHook", "UncertaintyHook", "GuardHook"]),
}


@pytest.mark.parametrize("name", TOGETHER)
def test_hooks(name, tmp_path):
    """Memories and rows of each of them, and what all of them make of the run."""
    kind, names = TOGETHER[name]
    every = TRACED | recording(tmp_path)
    engine = kind(model=WELLS, dt=1.0, temperature=50.0, hooks=[every[hook] for hook in names])
    of_engine(engine, "dt", periodic() if kind is NPT else free())


def test_no_hook_is_left_out(tmp_path):
    assert sorted(TRACED | recording(tmp_path)) == sorted(h for _, names in TOGETHER.values() for h in names)


@pytest.mark.parametrize("name", sorted(host()))
def test_a_host_hook_says_why_not(name):
    hook = host()[name]
    engine = NVTLangevin(model=WELLS, dt=1.0, temperature=50.0)
    start = start_of(engine, free())
    hooks = [hook] if name != "ConvergedSnapshotHook" else [dynamics.ConvergenceHook(), hook]
    if name == "ConvergedSnapshotHook":
        start = start_of(engine.with_hooks(hooks[0]), free())

    def final(dt):
        return dataclasses.replace(engine, dt=dt, hooks=hooks).loop(start, 2).batch.energy

    with pytest.raises(ValueError, match=rf"the host hooks {name} cannot be called from a loop under vmap"):
        jax.vmap(final)(jnp.array([1.0, 2.0]))


def test_what_chooses_shapes_says_why_not():
    engine = NVTLangevin(model=WELLS, dt=1.0, temperature=50.0)
    with pytest.raises(ValueError, match=r"NVTLangevin\.init chooses the capacities of neighbor lists"):
        jax.vmap(lambda dt: dataclasses.replace(engine, dt=dt).init(free()).batch.energy)(jnp.ones(2))
