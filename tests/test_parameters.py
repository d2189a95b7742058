"""Every parameter of every engine refuses what it cannot be, where the engine is made, by its name."""

import dataclasses
import inspect

import numpy as np
import optax
import pytest
from conftest import cluster, crystal

import alchemi_jax.dynamics
from alchemi_jax import Batch
from alchemi_jax.dynamics import AbstractDynamics
from alchemi_jax.models import HarmonicModel


MODEL = HarmonicModel(k=1.0)
#: What engines cannot be made without.
NEEDED = {"dt": 1.0, "temperature": 300.0, "optimizer": optax.sgd(0.1)}
ENGINES = {
    name: value
    for name, value in vars(alchemi_jax.dynamics).items()
    if isinstance(value, type)
    and issubclass(value, AbstractDynamics)
    and name not in ("AbstractDynamics", "FusedStage")
}
#: Fields that are no numbers.
OTHERS = {"model", "hooks", "optimizer", "cell", "mask", "hydrostatic"}
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
    return cls(model=MODEL, **needed | kwargs)


CASES = [
    (name, f.name) for name, cls in ENGINES.items() for f in dataclasses.fields(cls) if f.name not in OTHERS
]


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
