"""GuardHook: a condition of the user ends one system as stopped, with its reason."""

import jax.numpy as jnp
import numpy as np
import pytest
from ase import Atoms

from alchemi_jax import Batch
from alchemi_jax.dynamics import NVE, DynamicsStage
from alchemi_jax.dynamics.hooks import GuardHook
from alchemi_jax.errors import UserCodeError
from alchemi_jax.models import CommitteeModel, HarmonicModel
from alchemi_jax.observables import temperature, volume
from alchemi_jax.systems.outcome import Outcome


pytestmark = pytest.mark.cheap_xla


def distance(batch):
    r, first = batch.positions, batch.first_atom
    return jnp.linalg.norm(r[first] - r[first + 1], axis=-1)


#: Conditions that become true for one system of four each.
GUARDS = [
    (lambda b: volume(b) > 5000, "its cell has opened"),
    (lambda b: temperature(b) > 2000, "it is hotter than 2000 K"),
    (lambda b: distance(b) > 4, "the bond is broken"),
    (lambda b: b["energy_spread"] > 0.01, "the committee is not sure"),
]


def structures():
    """At rest in no field; one in a large cell, one hot, one that flies apart, one off the center."""
    out = [Atoms("Ar2", [[0, 0, 0], [0, 3, 0]], cell=[10] * 3, pbc=True) for _ in range(5)]
    out[0].set_cell([20] * 3)
    out[1].set_velocities([[0.2, 0, 0], [0.2, 0, 0]])
    out[2].set_velocities([[0, -0.05, 0], [0, 0.05, 0]])
    out[3].positions += 3.0
    return out


def test_a_guard_stops_one_system_with_its_reason():
    """By volume, temperature, distance and the spread of a committee; the others go on. At BEFORE_STEP
    without a step."""
    model = CommitteeModel.of([HarmonicModel(k=0.0), HarmonicModel(k=1e-3)])
    for stage, first in ((DynamicsStage.AFTER_STEP, 1), (DynamicsStage.BEFORE_STEP, 0)):
        hooks = [GuardHook(condition, reason, stage=stage) for condition, reason in GUARDS]
        out = NVE(model, dt=1.0, n_steps=300, hooks=hooks).run(structures())
        assert out.outcome.tolist() == [Outcome.STOPPED] * 4 + [Outcome.OUT_OF_STEPS]
        for system, (_, reason) in enumerate(GUARDS):
            assert out.outcome_text(system) == f"stopped: GuardHook: {reason}"
        steps = np.asarray(out.steps_taken)
        assert steps[[0, 1, 3, 4]].tolist() == [first] * 3 + [300]
        assert 10 < steps[2] < 200
        assert "0 converged, 0 failed, 4 stopped" in repr(out)
        assert "0 failed, 4 stopped" in repr(out.to_host())
        assert not out.converged.any()


@pytest.mark.parametrize("wrong", [lambda b: b.energy, lambda b: jnp.any(b.energy > 1), lambda b: None])
def test_a_condition_that_is_none(wrong):
    hook = GuardHook(wrong, "never")
    with pytest.raises(UserCodeError, match=r"must return one bool per system, bool\[1\].*max_by_system"):
        NVE(HarmonicModel(), dt=1.0, hooks=[hook]).init(Batch.from_ase(structures()[:1]))
