"""Every parameter of every engine refuses what it cannot be, where the engine is made, by its name."""

import dataclasses
import inspect

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import cluster, crystal, public

import alchemi_jax.dynamics
from alchemi_jax import Batch
from alchemi_jax.dynamics import NVE, AbstractDynamics, initialize_velocities
from alchemi_jax.models import AbstractModel, HarmonicModel
from alchemi_jax.systems.segments import sum_by_system


MODEL = HarmonicModel(k=1.0)
#: What engines cannot be made without.
NEEDED = {"dt": 1.0, "temperature": 300.0, "optimizer": optax.sgd(0.1)}
ENGINES = {
    name: value
    for name, value in public(alchemi_jax.dynamics).items()
    if isinstance(value, type)
    and issubclass(value, AbstractDynamics)
    and name not in ("AbstractDynamics", "FusedStage")
}
#: Fields that are no numbers.
OTHERS = {"model", "hooks", "rescue", "optimizer", "cell", "mask", "hydrostatic"}
COUNTS = {"n_steps", "n_min", "memory"}
SIGNED = {"pressure", "scalar_pressure"}
#: Zero means something: no friction, no noise, velocities at rest, no turning.
MAY_BE_ZERO = {
    ("NVTLangevin", "friction"),
    ("NVTLangevin", "temperature"),
    ("NVTBussi", "temperature"),
    ("NVE", "temperature"),
    *((engine, "alpha") for engine in ("FIRE", "FIRE2", "FIREVariableCell", "FIRE2VariableCell")),
}


def made(name, **kwargs):
    cls = ENGINES[name]
    taken = inspect.signature(cls).parameters
    needed = {k: v for k, v in NEEDED.items() if k in taken and taken[k].default is inspect.Parameter.empty}
    return cls(**{"model": MODEL} | needed | kwargs)


CASES = [
    (name, f.name) for name, cls in ENGINES.items() for f in dataclasses.fields(cls) if f.name not in OTHERS
]


def test_numbers_of_numpy_take_the_dtype_of_the_batch_like_those_of_python():
    """So that neither a run in single precision is widened nor a sweep by np.linspace compiles anew."""
    for number in (300, 300.0, np.float64(300), np.float32(300), np.int64(300)):
        temperature = made("NVTLangevin", temperature=number).temperature
        assert temperature.weak_type
        assert (temperature + jnp.float32(0)).dtype == jnp.float32


def test_every_engine_is_here():
    assert len(ENGINES) >= 14
    assert {name for name, _ in CASES} == set(ENGINES)
    for name, field in MAY_BE_ZERO:
        made(name, **{field: 0.0})
    for name, field in CASES:
        if field in SIGNED:
            made(name, **{field: -1.0})


@pytest.mark.parametrize(("name", "field"), CASES)
def test_a_bad_value_is_refused_by_its_name(name, field):
    """Negative, zero where that means nothing, not finite, not a number of steps, not one a system."""
    if field in COUNTS:
        bad = [-1, 0, 1.5, [3, 4]]
    else:
        bad = [np.nan, np.inf, [[1.0, 2.0]], [1.0, np.nan]]
        if field not in SIGNED:
            bad += [-1.0, [1.0, -1.0]]
            if (name, field) not in MAY_BE_ZERO:
                bad += [0.0]
    for value in bad:
        with pytest.raises(ValueError, match=rf"\b{field} must be"):
            made(name, **{field: value})


PER_SYSTEM = [(name, field) for name, field in CASES if field not in COUNTS]


@pytest.mark.parametrize(("name", "field"), PER_SYSTEM)
def test_a_wrong_number_of_values_is_refused_by_its_name(name, field):
    """Against another parameter where the engine is made, against the batch where it begins."""
    good = 0.99 if field in ("f_dec", "f_alpha", "alpha") else 1.1
    others = [f for n, f in PER_SYSTEM if n == name and f != field]
    if others:
        with pytest.raises(ValueError, match=rf"^(?=.*\b{field}\b).*one per system"):
            made(name, **{field: [good] * 3, others[0]: np.full(2, 1.0)})
    periodic = name.startswith("NP") or name.endswith("VariableCell")
    system = crystal(0, 1) if periodic else cluster(0, 3)
    with pytest.raises(ValueError, match=rf"{field} has 3 values, one per system, but the batch has 2"):
        made(name, **{field: [good] * 3}).init(Batch.from_ase([system] * 2))


# -- one value per system --------------------------------------------------------------------------


class Bowl(AbstractModel):
    """Atoms in a bowl that is steeper along y and z, in a cell with a spring: all that engines move by, and
    next to nothing to compile."""

    cutoff: None = eqx.field(static=True, default=None)

    def energy(self, batch, neighbors):
        steep = jnp.array([[1.0, 1.7, 2.9]])
        of_atoms = sum_by_system(batch, jnp.sum(steep * batch.positions**2, axis=1)) / 2
        metric = jnp.einsum("sab,scb->sac", batch.cell, batch.cell) / 5.2**2
        return of_atoms + 5.0 * jnp.sum((metric - jnp.eye(3)[None]) ** 2, axis=(1, 2)) * batch.system_mask


#: Two values of each parameter, at which all of them matter in a run of these steps.
STEPS = 80
VALUES = {
    "dt": (1.0, 1.3),
    "temperature": (200.0, 500.0),
    "friction": (0.01, 0.03),
    "pressure": (0.0, 3.0),
    "scalar_pressure": (0.0, 3.0),
    "thermostat_time": (20.0, 40.0),
    "barostat_time": (50.0, 80.0),
    "dt_max": (3.0, 4.0),
    "dt_min": (1.6, 2.0),
    "f_inc": (1.1, 1.15),
    "f_dec": (0.5, 0.6),
    "alpha": (0.1, 0.2),
    "f_alpha": (0.99, 0.9),
    "max_step": (0.1, 0.15),
    "rate": (0.1, 0.2),
    "curvature": (5.0, 7.0),
    "damping": (1.0, 0.8),
}


@pytest.fixture(scope="module")
def bowl():
    """Two systems alike but for their noise, evaluated."""
    atoms = crystal(0, 1, 0.2)
    atoms.positions -= 1.5
    batch = Batch.from_ase([atoms] * 2, system_capacity=2)
    state = made("NPH", model=Bowl()).init(initialize_velocities(batch, 300.0))
    return state.replace(batch=state.batch)


@eqx.filter_jit
def ran(engine, state):
    """Mean positions, velocities and cells on the path of each system, [2, numbers]."""
    if isinstance(engine, NVE):
        # Its temperature is that of a system which enters.
        state = state.replace(batch=engine.admit(state.batch, state.key))
    state = state.replace(integrator=engine.init_state(state.batch))

    def step(_, held):
        state, total = held
        state = engine.step(state)
        b = state.batch
        atoms = jnp.concatenate([b.positions, b.velocities], axis=1)[:8]
        now = jnp.concatenate([atoms.reshape(2, -1), b.cell.reshape(2, -1)], axis=1)
        return state, total + now / STEPS

    return jax.lax.fori_loop(0, STEPS, step, (state, jnp.zeros((2, 33))))[1]


@pytest.mark.cheap_xla
@pytest.mark.parametrize("name", sorted({name for name, _ in PER_SYSTEM}))
def test_a_value_of_a_system_acts_on_it_alone(name, bowl, compilations):
    """Of two systems with different values each goes as it does where both have its own; and each parameter
    changes something, of its own system only, without compiling anew."""
    fields = [field for n, field in PER_SYSTEM if n == name]
    counts = {"n_min": 2} if "FIRE" in name else {}

    def run(which):
        values = {field: [VALUES[field][i] for i in which(field)] for field in fields}
        return np.asarray(ran(made(name, model=Bowl(), **counts, **values), bowl))

    low = run(lambda _: (0, 0))
    with compilations() as names:
        mixed, high = run(lambda _: (0, 1)), run(lambda _: (1, 1))
        np.testing.assert_array_equal(mixed[0], low[0])
        np.testing.assert_array_equal(mixed[1], high[1])
        for field in fields:
            one = run(lambda f, field=field: (0, f == field))
            np.testing.assert_array_equal(one[0], low[0])
            assert np.abs(one[1] - low[1]).max() > 1e-4, field
    assert names == []
