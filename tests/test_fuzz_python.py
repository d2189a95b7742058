"""Random arguments of constructors, `from_ase`, `replace` and `run`: each call works, or a sentence says why
not. Seeds are fixed, and nearly all calls end before anything is compiled."""

import dataclasses
import inspect
import random
import warnings

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
from ase import Atoms
from ase.calculators.emt import EMT
from transform_cases import ENGINES, MODELS, TRACED, WELLS

from alchemi_jax import AtomicData, Batch
from alchemi_jax.dynamics import NVE, Sampler, relax_all
from alchemi_jax.dynamics import hooks as h
from alchemi_jax.dynamics.sinks import HostMemory
from alchemi_jax.models import AbstractModel, evaluate


@pytest.fixture(autouse=True, scope="module")
def as_for_users():
    """Without the type checks of the tests, which speak first."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


PAIR = Atoms("Ar2", positions=[[0.2, 0, 0], [3.8, 0, 0]])

#: Values that people, and programs, give by mistake.
ODD = [
    None, True, False, 0, -1, 1, 3, 2**31, 2**63, 10**400, 0.0, -0.5, 1.5, 1e-300, 1e300, 5e-324, 1e10,
    float("nan"), float("inf"), -float("inf"), 1 + 2j, "", "a", "0.1", b"x", [], [1.0], [1.0, 2.0], [1, "a"],
    [[1.0, 2.0], [3.0]], (), (0.5,), {}, {"a": 1}, {"Ar": 1.0}, {"Xx": 1.0}, set(), object(), len,
    lambda x: x, int, Atoms, np.array(1.0), np.array([1.0, np.nan]), np.zeros(0), np.zeros((2, 2)),
    np.array(["a"]),
    np.float16(1.0), np.array([1 + 1j]),
    np.datetime64("2020-01-01"),
    jnp.array(2.0), jnp.array([1, 2]),
    jnp.zeros((3, 3, 3)), jax.ShapeDtypeStruct((2,), jnp.float32), NVE, WELLS, EMT(), PAIR, np.ma.masked,
    range(3), slice(2),
]  # fmt: skip

#: What a refusal may be. Others, or these from deep inside, are faults.
REFUSALS = (ValueError, TypeError, KeyError, IndexError, NotImplementedError, FileNotFoundError)
#: Words of libraries that a user cannot do anything with.
LEAKS = (
    "unsupported operand",
    "object is not",
    "__array",
    "__len",
    "tuple index",
    "JAX array type",
    "tracer",
)
LEAKS += ("has no attribute", "not supported between", "unhashable", "broadcast", "truth value", "ambiguous")
LEAKS += ("cannot convert", "could not convert", "setting an array element", "invalid literal", "beartype")


FAULTS = []


class Stop(Exception):
    """Of `Stopping`."""


@pytest.fixture(autouse=True)
def no_faults():
    FAULTS.clear()
    yield
    assert not FAULTS, "\n".join(dict.fromkeys(FAULTS))


def attempt(call, what):
    """The result of a call, or None; what is raised must be a sentence about the argument."""
    try:
        with warnings.catch_warnings():
            # Of numpy, about the values that are refused then.
            warnings.filterwarnings("ignore", ".*(overflow|invalid value|masked element|set as static)")
            return call()
    except REFUSALS as error:
        text = str(error.args[0]) if error.args else ""
        leaks = [leak for leak in LEAKS if leak in text]
        if len(text) < 15 or leaks:
            FAULTS.append(f"{what}: {error!r} is no sentence of ours: {leaks}")
    except Exception as error:
        if isinstance(error, Stop):
            raise
        FAULTS.append(f"{what}: {error!r}")
    return None


#: Not for users, or checked when the hook is attached.
UNASKED = ("stage", "frequency", "inner", "inner_codes")


def constructor_cases(rng, count):
    """A public class, arguments that it accepts, and one of them replaced by something odd."""
    pool = [*(e for e, _, _ in ENGINES.values()), *MODELS.values(), *TRACED.values()]
    for _ in range(count):
        made = rng.choice(pool)
        fields = [f.name for f in dataclasses.fields(made) if f.init and f.name not in UNASKED]
        if not fields:
            continue
        yield made, rng.choice(fields), rng.choice(ODD)


@pytest.mark.parametrize("seed", range(6))
def test_constructors(seed):
    rng = random.Random(seed)
    for made, field, value in constructor_cases(rng, 50):
        what = f"{type(made).__name__}({field}={value!r})"
        new = attempt(lambda: dataclasses.replace(made, **{field: value}), what)  # noqa: B023
        if new is None or not isinstance(new, AbstractModel | type(made)):
            continue
        found = getattr(new, field, None)
        if isinstance(found, jax.Array) and found.dtype.kind == "f" and not field.startswith("n_"):
            assert not found.size or np.isfinite(np.asarray(found)).any(), what


def random_atoms(rng):
    n = rng.randint(1, 4)
    atoms = Atoms(f"Ar{n}", positions=np.arange(3 * n).reshape(n, 3) * 1.7)
    for name, values in (("positions", atoms.positions), ("cell", atoms.cell.array)):
        if rng.random() < 0.3:
            bad = values.copy()
            bad.flat[rng.randrange(bad.size)] = rng.choice([np.nan, np.inf, -np.inf, 3.0])
            getattr(atoms, f"set_{name}")(bad)
    atoms.pbc = rng.choice([False, True, (True, False, False)])
    if rng.random() < 0.3:
        atoms.set_masses([rng.choice([0.0, -1.0, 40.0, np.inf]) for _ in range(n)])
    if rng.random() < 0.3:
        atoms.info.update(charge=rng.choice([0, 1.5, "a", None, [1]]), energy=rng.choice([1.0, "x", None]))
    return atoms


@pytest.mark.parametrize("seed", range(4))
def test_from_ase(seed):
    rng = random.Random(100 + seed)
    names = [p for p in inspect.signature(Batch.from_ase).parameters if p != "atoms"]
    for _ in range(40):
        structures = [random_atoms(rng) for _ in range(rng.randint(1, 3))]
        if rng.random() < 0.2:
            structures = rng.choice(
                [structures[0], [], None, "Ar", 3, [None], [structures], {"a": 1}, AtomicData]
            )
        odd = {rng.choice(names): rng.choice(ODD)} if rng.random() < 0.7 else {}
        batch = attempt(lambda: Batch.from_ase(structures, **odd), f"from_ase({structures}, {odd})")  # noqa: B023
        if batch is not None:
            given = [structures] if isinstance(structures, Atoms) else structures
            assert batch.num_atoms == sum(map(len, given))
            assert np.isfinite(np.asarray(batch.positions)).all()
            np.testing.assert_array_equal(np.asarray(batch.take().numbers), 18)


@pytest.mark.parametrize("seed", range(2))
def test_replace(seed):
    rng = random.Random(200 + seed)
    batch = Batch.from_ase(PAIR)
    for _ in range(60):
        field, value = rng.choice([*batch.keys(), "magic"]), rng.choice(ODD)
        for host in (batch, batch.to_host()):
            new = attempt(lambda: host.replace(**{field: value}), f"replace({field}={value!r})")  # noqa: B023
            if new is not None:
                assert new[field].dtype == host[field].dtype
                assert new[field].shape[-host[field].ndim :] == host[field].shape


class Stopping:
    """Ends a run before its first step, so that nothing but the first evaluation is compiled."""

    frequency = 1
    stage = h.CallbackHook(print).stage

    def __enter__(self):
        raise Stop

    def __exit__(self, *_): ...

    def __call__(self, ctx, stage): ...


def test_run():
    """Whatever is refused is refused before the hooks are opened."""
    rng = random.Random(300)
    engine = NVE(model=WELLS, dt=1.0, n_steps=2, hooks=[Stopping()])
    for _ in range(60):
        name = rng.choice(["batch", "n_steps", "sampler", "sink", "shrink"])
        given = {"batch": PAIR, name: rng.choice(ODD)}
        if name in ("sampler", "sink"):
            given.pop("batch")
            given.setdefault("sampler", Sampler([PAIR]))
        try:
            attempt(lambda: engine.run(**given), f"run({given})")  # noqa: B023
        except Stop:
            continue


def test_calls_of_the_first_day():
    rng = random.Random(400)
    for _ in range(40):
        value = rng.choice(ODD)
        attempt(lambda: h.SnapshotHook(value), f"SnapshotHook({value!r})")  # noqa: B023
        attempt(lambda: Sampler(value), f"Sampler({value!r})")  # noqa: B023
        attempt(lambda: Sampler([PAIR], max_systems=value), f"Sampler(max_systems={value!r})")  # noqa: B023
        if value is not WELLS:
            attempt(lambda: evaluate(value, PAIR), f"evaluate({value!r})")  # noqa: B023
            attempt(lambda: NVE(model=value, dt=1.0), f"NVE(model={value!r})")  # noqa: B023
        if not isinstance(value, Atoms):
            attempt(lambda: evaluate(WELLS, value), f"evaluate(model, {value!r})")  # noqa: B023
            attempt(lambda: relax_all(WELLS, value), f"relax_all(model, {value!r})")  # noqa: B023
    assert HostMemory() is not None
