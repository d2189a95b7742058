"""Engines inside programs of others: under settings of JAX, in threads, as arguments of transforms."""

import contextlib
import threading

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from ase import Atoms
from ase.build import bulk
from counting import compiled_programs

from alchemi_jax import Batch
from alchemi_jax.dynamics import (
    FIRE,
    NVE,
    ConvergenceHook,
    DynamicsStage,
    NVTLangevin,
    OptaxOptimizer,
    Sampler,
)
from alchemi_jax.dynamics import hooks as h
from alchemi_jax.dynamics.optimizers import bfgs
from alchemi_jax.dynamics.sinks import HostMemory
from alchemi_jax.hooks import TracedHook
from alchemi_jax.models import HarmonicModel, LennardJones
from alchemi_jax.systems import observables
from alchemi_jax.systems.observables import fmax
from alchemi_jax.transforms import cond_any


PAIR = Atoms("Ar2", positions=[[0.2, 0, 0], [3.8, 0, 0]])
WELLS = HarmonicModel()


def relax_move_and_stream(model=None):
    """A relaxation, dynamics with hooks of all kinds, and a sampler: positions and what hooks have seen."""
    model = model or LennardJones(epsilon=0.0104, sigma=3.4, cutoff=6.0)
    relaxed = FIRE(model=model, n_steps=2, hooks=[ConvergenceHook.from_fmax(0.01)]).run(PAIR)
    frames, table = HostMemory(), h.ObservableHook({"fmax": fmax}, frequency=2)
    hooks = [h.MaxForceClampHook(limit=5.0), table, h.SnapshotHook(frames, frequency=2)]
    md = NVTLangevin(model=WELLS, dt=1.0, temperature=30.0, n_steps=2, hooks=hooks)
    moved = md.run(relaxed)
    streamed = NVE(model=WELLS, dt=1.0, n_steps=1).run(sampler=Sampler([PAIR, PAIR, PAIR], max_systems=2))
    out = [np.asarray(b.positions)[: b.num_atoms] for b in (relaxed, moved, streamed)]
    return [*out, table.table["fmax"], frames.read().positions]


@pytest.fixture(scope="module")
def plain():
    return relax_move_and_stream()


@contextlib.contextmanager
def seen_everywhere(name, value):
    """A setting of the whole program, other threads too."""
    before = getattr(jax.config, name)
    jax.config.update(name, value)
    try:
        yield
    finally:
        jax.config.update(name, before)


MODES = {
    "strict promotion": lambda: jax.numpy_dtype_promotion("strict"),
    "no rank promotion": lambda: jax.numpy_rank_promotion("raise"),
    "NaNs reported": lambda: jax.debug_nans(True),
    "NaNs reported everywhere": lambda: seen_everywhere("jax_debug_nans", True),
    "no transfers": lambda: jax.transfer_guard("disallow"),
    "leaks looked for": lambda: jax.checking_leaks(),
}


@pytest.mark.cheap_xla
@pytest.mark.parametrize("mode", MODES)
def test_settings_of_jax_change_nothing(mode, plain):
    with MODES[mode]():
        found = relax_move_and_stream()
    for a, b in zip(found, plain, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.long
def test_runs_without_compiling():
    with jax.disable_jit():
        found = relax_move_and_stream(WELLS)
    for a, b in zip(found, relax_move_and_stream(WELLS), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9)


@pytest.mark.cheap_xla
def test_in_threads(plain):
    found = {}

    def work(number):
        found[number] = relax_move_and_stream()

    threads = [threading.Thread(target=work, args=(k,)) for k in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 3
    for got in found.values():
        for a, b in zip(got, plain, strict=True):
            np.testing.assert_array_equal(a, b)


# -- what compiles ---------------------------------------------------------------------------------


def test_kinds_of_numbers_and_places_compile_nothing():
    batch = Batch.from_ase(PAIR)

    def run(batch, temperature, dt=1.0):
        NVTLangevin(model=WELLS, dt=dt, temperature=temperature, n_steps=2).run(batch)

    run(batch, 30.0)
    grid = jnp.linspace(20.0, 60.0, 3)
    others = [(batch, grid[1], jnp.array([0.5, 1.0])[1]), (batch, np.float32(31.0)), (batch, np.array(32.0))]
    others.append((jax.device_put(batch, jax.devices()[0]), 33.0))
    with compiled_programs() as programs:
        for arguments in others:
            run(*arguments)
    assert not programs


def test_a_hook_defined_again_compiles_the_loop_alone():
    def run():
        class Scale(TracedHook):
            factor: float
            stage: DynamicsStage = DynamicsStage.AFTER_COMPUTE
            frequency: int = 1

            def __call__(self, ctx, stage):
                return ctx.with_batch(forces=ctx.batch.forces * self.factor)

        NVE(model=WELLS, dt=1.0, n_steps=2, hooks=[Scale(0.5)]).run(PAIR)

    run()
    with compiled_programs() as programs:
        run()
    assert len(programs) == 1


# -- transforms ------------------------------------------------------------------------------------


class Odd(TracedHook):
    """All that a field may be."""

    limit: float
    table: np.ndarray
    kind: str
    function: object
    options: dict
    nothing: None = None
    stage: DynamicsStage = DynamicsStage.AFTER_COMPUTE
    frequency: int = 2

    def __call__(self, ctx, stage):
        assert self.kind == "odd"
        assert self.frequency == 2
        change = self.function(self.limit) * self.options["scale"] + self.table.sum() * 0
        return ctx.with_batch(forces=ctx.batch.forces * change)


def odd(limit):
    return Odd(limit, np.arange(3.0), "odd", jnp.sqrt, {"scale": 2.0, "set": {1, 2}})


def test_an_engine_with_any_hook_goes_through_transforms():
    made = odd(0.25)
    sets = made.options

    def engine(limit):
        hook = eqx.tree_at(lambda o: o.limit, made, limit)
        assert hook.options["set"] is sets["set"]
        return NVE(model=WELLS, dt=1.0, hooks=[hook, h.LoggingHook(log_path="never.csv")])

    engines = [engine(x) for x in (0.25, 1.0)]
    state = engines[0].init(Batch.from_ase(PAIR))
    state = state.replace(batch=state.batch.with_meta(None))

    def last(engine, state):
        return engine.loop(state, 3).batch.positions

    want = [last(e, state) for e in engines]
    for a, e in zip(want, engines, strict=True):
        np.testing.assert_allclose(jax.jit(last)(e, state), a, rtol=1e-12)
    stacked = jax.tree.map(lambda *x: jnp.stack(x), *engines)
    np.testing.assert_allclose(jax.vmap(last, in_axes=(0, None))(stacked, state), want, rtol=1e-12)
    arrays, rest = eqx.partition(engines[0], eqx.is_inexact_array)
    assert eqx.combine(arrays, rest).hooks.traced[0].options["set"] is sets["set"]
    changed = eqx.tree_at(lambda e: e.hooks.traced[0].limit, engines[0], jnp.asarray(1.0))
    np.testing.assert_allclose(last(changed, state), want[1], rtol=1e-12)
    paths = [jax.tree_util.keystr(p) for p, _ in jax.tree_util.tree_leaves_with_path(engines[0])]
    assert any(".limit" in path for path in paths)


NVE_ = NVE(model=WELLS, dt=1.0)


@pytest.fixture(scope="module")
def state():
    state = NVE_.init(Batch.from_ase(PAIR))
    return state.replace(batch=state.batch.with_meta(None))


TRANSFORMS = {"jit": jax.jit, "grad": jax.grad, "vmap": jax.vmap}
TRANSFORMS["jit of grad"] = lambda f: jax.jit(jax.grad(f))


def energy_by(method, state):
    def energy(dt):
        engine = NVE(model=WELLS, dt=dt)
        given = state.batch if method in ("run", "init") else state
        out = getattr(engine, method)(given, *([] if method == "init" else [3]))
        return getattr(out, "batch", out).energy.sum()

    return energy


@pytest.mark.parametrize("method", ["advance", "run", "init", "loop"])
@pytest.mark.parametrize("transform", TRANSFORMS)
def test_what_cannot_be_transformed_says_what_to_use(method, transform, state):
    energy, argument = energy_by(method, state), 1.0
    if method == "loop" and "grad" not in transform:
        pytest.skip("loop can")
    if transform == "vmap":
        argument = jnp.ones(2)
    with pytest.raises(ValueError, match=rf"NVE\.{method} .*(rollout|like=state)"):
        TRANSFORMS[transform](energy)(argument)


BACKWARDS = {
    "grad of jit": lambda f: jax.grad(jax.jit(f)),
    "jit of grad of jit": lambda f: jax.jit(jax.grad(jax.jit(f))),
    "vjp of jit": lambda f: lambda x: jax.vjp(jax.jit(f), x)[1](1.0),
    "vmap of grad of jit": lambda f: lambda x: jax.vmap(jax.grad(jax.jit(f)))(jnp.full(2, x)),
    "grad of vmap of jit": lambda f: jax.grad(lambda x: jax.vmap(jax.jit(f))(jnp.full(2, x)).sum()),
    "grad of checkpoint": lambda f: jax.grad(jax.checkpoint(f)),
    "grad of jacfwd": lambda f: jax.grad(jax.jacfwd(jax.jit(f))),
}


@pytest.mark.parametrize("transform", BACKWARDS)
def test_a_derivative_backwards_that_loop_cannot_see_names_rollout(transform, state):
    """JAX would speak of a while_loop. Nothing is compiled."""
    with pytest.raises(ValueError, match=r"NVE\.loop .*derivative backwards.*use rollout"):
        BACKWARDS[transform](energy_by("loop", state))(1.0)


def test_derivatives_forwards_go_through_loop(state):
    energy = jax.jit(energy_by("loop", state))
    (_, slope), difference = jax.jvp(energy, (1.0,), (1.0,)), energy(1 + 1e-6) - energy(1 - 1e-6)
    np.testing.assert_allclose(slope, difference / 2e-6, rtol=1e-6)
    np.testing.assert_allclose(jax.vmap(jax.jacfwd(energy))(jnp.ones(2)), slope, rtol=1e-12)
    # What is asked for does not depend on the loop.
    assert jax.grad(lambda x: x * jax.lax.stop_gradient(energy(x)))(1.0) == energy(1.0)


@pytest.mark.parametrize("method", ["advance", "loop", "rollout"])
@pytest.mark.parametrize(
    "n", [4.7, True, np.True_, -1, "4", [4, 2], np.array([4, 2]), jnp.array([4]), 4 + 0j]
)
def test_numbers_of_steps_that_are_none(method, n, state):
    with pytest.raises(ValueError, match=rf"NVE\.{method}: n_steps must be a positive int, not "):
        getattr(NVE_, method)(state, n)


@pytest.mark.cheap_xla
def test_both_ways_to_compile_a_step(state):
    one, other = eqx.filter_jit(NVE_.step)(state), jax.jit(lambda s: NVE_.step(s))(state)
    np.testing.assert_array_equal(one.batch.positions, other.batch.positions)


def test_lost_64_bits(state):
    low = NVE(model=WELLS, dt=1.0, n_steps=1)
    with jax.enable_x64(False):
        for call in (lambda: low.run(state.batch), lambda: low.advance(state, 1), lambda: low.step(state)):
            with pytest.raises(ValueError, match="float64 arrays, but jax_enable_x64 is off"):
                call()


def test_expensive_work_in_nested_vmaps():
    """Each lane gets what it gets alone, however deep it is nested, with derivatives in both directions."""
    due = jnp.array([[True, False], [False, False], [True, True]])
    values = jnp.arange(6.0).reshape(3, 2) + 1

    def one(due, x):
        return cond_any(due, lambda v: jnp.sin(v), lambda v: v, x)

    def both(f):
        return jax.vmap(jax.vmap(f))

    wanted = jnp.where(due, jnp.sin(values), values)
    np.testing.assert_allclose(both(one)(due, values), wanted)
    inner = jax.vmap(lambda d, xs: jax.vmap(lambda x: one(d, x))(xs))(due[:, 0], values)
    np.testing.assert_allclose(inner, jnp.where(due[:, :1], jnp.sin(values), values))
    swapped = jax.vmap(jax.vmap(one, in_axes=(0, None)), in_axes=(None, 0))(due[0], values[:, 0])
    np.testing.assert_allclose(swapped, jnp.where(due[0], jnp.sin(values[:, :1]), values[:, :1]))
    slopes = jnp.where(due, jnp.cos(values), 1.0)
    for derivative in (jax.grad, jax.jacfwd):
        np.testing.assert_allclose(both(derivative(one, argnums=1))(due, values), slopes)


# -- derivatives -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def mixed():
    """A molecule at rest, a crystal, an atom, and padding."""
    structures = [PAIR, bulk("Ar", "fcc", a=5.3), Atoms("Ar")]
    batch = Batch.from_ase(structures, system_capacity=4)
    stress = jnp.where(jnp.all(batch.pbc, axis=-1)[:, None, None], 1.0, jnp.nan) * jnp.ones((4, 3, 3))
    return batch.replace(energy=jnp.ones(4), stress=stress, forces=jnp.zeros_like(batch.forces))


OF_SYSTEMS = ["fmax", "kinetic_energy", "kinetic_tensor", "momentum", "temperature", "volume", "pressure"]
OF_SYSTEMS += ["kinetic_stress", "stress", "density", "enthalpy"]


@pytest.mark.parametrize("name", OF_SYSTEMS)
def test_observables_do_not_depend_on_other_systems(name, mixed):
    function = getattr(observables, name)
    floats = ("positions", "masses", "velocities", "forces", "cell", "energy", "stress")

    def value(fields, weights):
        batch = mixed.replace(**fields)
        found = function(batch, jnp.ones(4)) if name == "enthalpy" else function(batch)
        return (found.reshape(4, -1) * weights[:, None]).sum()

    fields = {key: mixed[key] for key in floats}
    for own in range(3):
        weights = jnp.zeros(4).at[own].set(1.0)
        for key, slope in jax.grad(value)(fields, weights).items():
            assert np.isfinite(slope).all(), (name, key, own)
            system = np.asarray(mixed.batch_idx) if mixed.level(key) == "atom" else np.arange(4)
            assert not np.asarray(slope)[system != own].any(), (name, key, own)


def test_gradients_at_rest_and_at_zero_temperature(state):
    def energy(temperature, velocities):
        engine = NVTLangevin(model=WELLS, dt=1.0, temperature=temperature)
        begun = state.replace(batch=state.batch.replace(velocities=velocities))
        return engine.rollout(begun, 2).batch.energy.sum()

    for slope in jax.grad(energy, argnums=(0, 1))(0.0, jnp.zeros_like(state.batch.velocities)):
        assert np.isfinite(slope).all()


def test_the_step_of_bfgs_has_derivatives_where_eigenvalues_are_equal():
    rng = np.random.default_rng(0)
    bent = rng.normal(size=(1, 4, 4))
    forces = jnp.asarray(rng.normal(size=(1, 4)))
    for hessian in (70.0 * np.eye(4)[None], bent + bent.swapaxes(1, 2)):
        change = rng.normal(size=(1, 4, 4))
        change = change + change.swapaxes(1, 2)

        def step(t, hessian=hessian, change=change):
            return bfgs._newton_step(jnp.asarray(hessian + t * change), forces)

        slope = jax.jacfwd(step)(0.0)
        np.testing.assert_allclose(slope, (step(1e-6) - step(-1e-6)) / 2e-6, rtol=1e-5, atol=1e-8)
        back = jax.grad(lambda t: step(t).sum())(0.0)
        np.testing.assert_allclose(back, slope.sum(), rtol=1e-9)


def test_gradients_through_adam():
    """Padding, and components without a force, where Adam divides by the square root of zero."""
    flat = Atoms("Ar2", positions=[[0.2, 0.1, 0], [3.8, 0, 0]])
    engine = OptaxOptimizer(model=WELLS, optimizer=optax.adam(0.01))
    begun = engine.init(Batch.from_ase([flat, Atoms("Ar")], system_capacity=3))

    def energy(inexact, rest):
        return engine.rollout(eqx.combine(inexact, rest), 2, checkpoint=None).batch.energy.sum()

    inexact, rest = eqx.partition(begun.replace(batch=begun.batch.with_meta(None)), eqx.is_inexact_array)
    slopes = jax.jit(jax.grad(energy))(inexact, rest)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(slopes))
    # All three atoms are pulled to the middle, and each moves by the learning rate, whatever the force is.
    np.testing.assert_allclose(slopes.batch.positions[:3, 0], [0.2, 3.8, 0], atol=0.03)
    assert not slopes.batch.positions[3:].any()


def test_hooks_of_a_step_that_converges_see_it_counted():
    """A host hook at AFTER_STEP, whether or not a traced hook follows at ON_CONVERGE."""

    class Mark(TracedHook):
        stage: DynamicsStage = DynamicsStage.ON_CONVERGE
        frequency: int = 1

        def __call__(self, ctx, stage):
            return ctx

    seen = {}
    for traced in ([], [Mark()]):
        rows = seen[len(traced)] = []

        def look(ctx, rows=rows):
            batch = ctx.batch
            rows.append([batch.steps_taken.tolist(), batch.outcome.tolist(), batch.time.tolist()])

        hooks = [h.CallbackHook(look), ConvergenceHook.from_fmax(0.7), *traced]
        FIRE(model=WELLS, dt=1.0, n_steps=4, hooks=hooks).run([PAIR, Atoms("Ar", [[0.71, 0, 0]])])
    assert seen[0][0][0] == [1, 1]
    assert seen[1] == seen[0]


@pytest.mark.long
def test_gradients_of_a_pipeline_through_rollout():
    def pipeline(k):
        wells = HarmonicModel(k=k)
        hook = h.MaxForceClampHook(limit=3.0)
        relax = FIRE(model=wells, dt=1.0, n_steps=2, hooks=[hook])
        return relax + NVTLangevin(model=wells, dt=2.0, temperature=20.0, n_steps=5)

    batch = Batch.from_ase(PAIR)
    begun = pipeline(1.0).init(batch)

    @jax.jit
    def energy(k):
        engine = pipeline(k)
        return engine.rollout(engine.init(batch, like=begun), 5).batch.energy.sum()

    slope = jax.jit(jax.grad(energy))(1.0)
    np.testing.assert_allclose(slope, (energy(1 + 1e-5) - energy(1 - 1e-5)) / 2e-5, rtol=1e-6)
