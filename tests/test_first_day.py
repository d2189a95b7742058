"""What a new user writes first: structures as they are, labels, messages that say what to write; the state of
a run that ends early."""

import contextlib
import functools

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from ase.calculators.emt import EMT as EMTCalculator
from ase.calculators.singlepoint import SinglePointCalculator
from conftest import EPSILON, SIGMA

from alchemi_jax import Batch
from alchemi_jax.analysis import unwrap
from alchemi_jax.dynamics import FIRE, NVE, DynamicsStage, Sampler, initialize_velocities
from alchemi_jax.dynamics.hooks import ConvergedSnapshotHook, SnapshotHook
from alchemi_jax.models import EMT, HarmonicModel, LennardJones, evaluate


@pytest.fixture(autouse=True, scope="module")
def as_for_users():
    """Without the type checks of the tests, which speak first."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


PAIR = Atoms("Ar2", positions=[[0.2, 0, 0], [3.8, 0, 0]])
ENGINE = NVE(model=HarmonicModel(), dt=1.0, n_steps=2)


def test_structures_as_they_are():
    alone, many = ENGINE.run(PAIR), ENGINE.run([PAIR, PAIR])
    for system in many:
        np.testing.assert_array_equal(system.positions, alone[0].positions)


def test_evaluate():
    copper = bulk("Cu", cubic=True)
    copper.rattle(0.1, seed=0)
    dimer = Atoms("Al2", positions=[[0, 0, 0], [2.5, 0, 0]])
    found = evaluate(EMT(), [copper, dimer])
    for atoms, system in zip((copper, dimer), found, strict=True):
        atoms.calc = EMTCalculator()
        assert system.energy == pytest.approx(atoms.get_potential_energy(), abs=1e-8)
        np.testing.assert_allclose(system.forces, atoms.get_forces(), atol=1e-8)
    np.testing.assert_allclose(found.stress[0], copper.get_stress(voigt=False), atol=1e-9)
    assert np.isnan(found.stress[1]).all()
    assert found.to_ase()[0].get_potential_energy() == pytest.approx(copper.get_potential_energy(), abs=1e-8)
    assert evaluate(HarmonicModel(), PAIR).energy.shape == (1,)
    with pytest.warns(RuntimeWarning, match=r"energy of 1 of 1 systems is not finite: system 0 \(Ar2\)"):
        evaluate(LennardJones(epsilon=EPSILON, sigma=SIGMA), Atoms("Ar2", positions=np.zeros((2, 3))))
    with pytest.raises(TypeError, match=r"write evaluate\(ASEModel\(calculator\), "):
        evaluate(EMTCalculator(), copper)
    with pytest.raises(ValueError, match="evaluate chooses the capacities"):
        jax.jit(lambda x: evaluate(HarmonicModel(k=x), PAIR).energy)(1.0)


def test_labels():
    copper = bulk("Cu", cubic=True)
    copper.calc = EMTCalculator()
    copper.get_potential_energy()
    copper.get_stress()
    moved = copper.copy()
    moved.calc = copper.calc
    moved.positions[0] += 0.1  # what its calculator knows is of other positions
    file = Atoms("Cu2", positions=[[0, 0, 0], [2.5, 0, 0]])
    file.info["energy"] = -1.5
    file.arrays["forces"] = np.ones((2, 3))
    point = PAIR.copy()
    point.calc = SinglePointCalculator(point, energy=2.0, stress=np.arange(6.0))
    labels = Batch.from_ase([copper, moved, file, point], results=True).take()
    np.testing.assert_allclose(labels.energy, [copper.get_potential_energy(), np.nan, -1.5, 2.0])
    np.testing.assert_allclose(labels.stress[0], copper.get_stress(voigt=False))
    np.testing.assert_allclose(labels[2].forces, 1.0)
    np.testing.assert_allclose(labels.stress[3], [[0, 5, 4], [5, 1, 3], [4, 3, 2]])
    assert np.isnan(Batch.from_ase(copper).energy[0])
    # Nothing was calculated.
    assert moved.calc.atoms == copper


MESSAGES = {
    "a calculator": (lambda: FIRE(model=EMTCalculator()), r"write FIRE\(model=ASEModel\(calculator\), ...\)"),
    "its class": (lambda: FIRE(model=EMTCalculator), r"write FIRE\(model=ASEModel\(EMT\(...\)\), ...\)"),
    "a function": (lambda: FIRE(model=lambda x: x), r"write a class Mine\(AbstractModel\)"),
    "a partial": (lambda: FIRE(model=functools.partial(max, 1)), r"write a class Mine\(AbstractModel\)"),
    "a path": (lambda: SnapshotHook("x.zarr"), r"SnapshotHook takes a sink, .* write ZarrData\('x.zarr'\)"),
    "a file": (lambda: ConvergedSnapshotHook("a/b.xyz"), r"write ExtXYZ\('a/b.xyz'\)"),
    "a number": (lambda: SnapshotHook(3), r"such as ZarrData\(path\), not the number 3"),
    "a path for a run": (
        lambda: ENGINE.run(sampler=Sampler([PAIR]), sink="a.traj"),
        r"NVE.run takes a sink, .* write AseTrajectory\('a.traj'\)",
    ),
    "a list for a sampler": (lambda: ENGINE.run(sampler=[PAIR]), r"NVE.run takes a Sampler as sampler"),
    "half precision": (lambda: Batch.from_ase(PAIR, dtype="float16"), "float32 or float64, not float16"),
}


@pytest.mark.parametrize("name", MESSAGES)
def test_what_to_write(name):
    call, message = MESSAGES[name]
    with pytest.raises((TypeError, ValueError), match=message):
        call()


class Breaking:
    """Raises in its third call."""

    stage = DynamicsStage.AFTER_STEP
    frequency = 1

    def __init__(self, error):
        self.error = error

    def __call__(self, ctx, stage):
        if ctx.step_count == 2:
            raise self.error


class Wide(OSError):
    """An error that a hook may well raise."""


@pytest.mark.parametrize("error", [Wide("disk full"), KeyboardInterrupt()], ids=["error", "ctrl-c"])
def test_whatever_ends_a_run_early_carries_the_state(error):
    steady = NVE(model=HarmonicModel(), dt=1.0)
    engine = steady.with_hooks(Breaking(error))
    want = steady.advance(ENGINE.init(Batch.from_ase(PAIR)), 3)
    calls = {
        "advance": lambda: engine.advance(engine.init(Batch.from_ase(PAIR)), 9),
        "run": lambda: engine.run(PAIR, n_steps=9),
        "sampler": lambda: engine.run(n_steps=9, sampler=Sampler([PAIR])),
    }
    for name, call in calls.items():
        error.__dict__.pop("state", None)
        with pytest.raises(type(error)) as caught:
            call()
        state = caught.value.state
        assert int(state.step_count) == 3, name
        np.testing.assert_array_equal(state.batch.positions, want.batch.positions)
        assert state.batch.name_of(0) == "system 0 (Ar2)"


@pytest.mark.parametrize(
    "cell", [np.diag([10.0, 10.0, 0.0]), np.diag([10.0, 10.0, 7.0]), np.eye(3) * [10, 10, 0]]
)
def test_unwrap_of_a_slab(cell):
    x = np.zeros((50, 1, 3))
    x[:, 0] = np.arange(50)[:, None] * [0.9, -0.7, 0.3]
    wrapped = x.copy()
    wrapped[..., :2] %= 10
    for cells in (cell, np.broadcast_to(cell, (50, 3, 3))):
        off = unwrap(wrapped, cells, [True, True, False]) - x
        np.testing.assert_allclose(off - off[:1], 0, atol=1e-9)
    with pytest.raises(ValueError, match="independent lattice vectors"):
        unwrap(wrapped, np.zeros((3, 3)), True)


def test_fields_that_do_not_fit_are_refused():
    batch = Batch.from_ase(PAIR)
    wide = batch.atom_capacity
    fits = {"positions": np.ones((wide, 3)), "system_id": [7], "charge": [1], "pbc": [[0, 1, 1]]}
    for name, value in fits.items():
        new = batch.replace(**{name: value})[name]
        assert new.dtype == batch[name].dtype
        np.testing.assert_array_equal(new, np.asarray(value))
    wrong = {
        "positions": [
            np.ones((2, 3)),
            np.ones((wide, 3), np.float32),
            "x",
            None,
            jnp.ones((wide, 3), complex),
        ],
        "status": [[0.5], [2**40], jnp.ones(1)],
        "energy": [1.0, [1.0, 2.0], object()],
    }
    for name, values in wrong.items():
        for value in values:
            with pytest.raises(ValueError, match=rf"Batch\.replace: {name} "):
                batch.replace(**{name: value})
    lanes = jnp.stack([batch.positions, batch.positions + 1])
    assert batch.replace(positions=lanes).positions.shape == (2, wide, 3)
    # Whatever way it came about.
    with contextlib.suppress(TypeError):
        odd = jax.tree.map(lambda x: x[:1] if x.shape[:1] == (wide,) and x.ndim == 1 else x, batch)
        with pytest.raises(ValueError, match=r"NVE\.init was given a batch with "):
            ENGINE.init(odd)


NOT_A_STATE = [PAIR, None, 3, Batch.from_ase(PAIR)]


@pytest.mark.parametrize("given", NOT_A_STATE, ids=lambda x: type(x).__name__)
def test_methods_that_take_a_state(given):
    for name in ("advance", "loop", "rollout"):
        with pytest.raises(TypeError, match=rf"NVE\.{name} takes the state that NVE\.init\(batch\) made"):
            getattr(ENGINE, name)(given, 1)
    for name in ("step", "conserved_energy"):
        with pytest.raises(TypeError, match=rf"NVE\.{name} takes the state that"):
            getattr(ENGINE, name)(given)
    with pytest.raises(TypeError, match=r"NVE\.init: like must be a state"):
        ENGINE.init(PAIR, like=3)


def test_a_state_of_another_engine():
    """One that remembers the same is continued, another one is named."""
    state = ENGINE.init(PAIR)
    assert int(NVE(model=ENGINE.model, dt=0.5).advance(state, 1).step_count) == 1
    with pytest.raises(ValueError, match=r"FIRE\.advance was given a state of NVE, .*FIRE\.init\(state"):
        FIRE(model=ENGINE.model).advance(state, 1)


KEYS = [3, "x", True, np.arange(3), jax.random.split(jax.random.key(0)), np.zeros((2, 2), np.uint32)]


@pytest.mark.parametrize("key", KEYS, ids=range(len(KEYS)))
def test_what_is_no_key(key):
    batch = Batch.from_ase(PAIR)
    for call in (
        lambda: ENGINE.init(batch, key=key),
        lambda: ENGINE.run(batch, key=key),
        lambda: ENGINE.run(sampler=Sampler([PAIR]), key=key),
        lambda: initialize_velocities(batch, 300.0, key),
    ):
        with pytest.raises(ValueError, match=r"key must be one PRNG key, such as jax\.random\.key\(3\)"):
            call()
    jax.eval_shape(lambda k: initialize_velocities(batch, 300.0, k), jax.random.PRNGKey(3))


@pytest.mark.parametrize("mass", [0.0, -39.9, np.nan, np.inf])
def test_masses_of_a_changed_batch(mass):
    """Atoms would fly against their forces, or not at all."""
    batch = Batch.from_ase([PAIR, PAIR])
    with pytest.raises(ValueError, match=r"system 1 \(Ar2\): masses must be positive, that of atom 1 is "):
        ENGINE.run(batch.replace(masses=batch.masses.at[3].set(mass)))
