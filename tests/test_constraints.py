"""Constraints of ASE: those that can be applied act, the others are refused by name."""

import inspect

import ase.io
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from ase import Atoms
from ase.constraints import (
    FixAtoms,
    FixBondLengths,
    FixCartesian,
    FixCom,
    FixedLine,
    FixedPlane,
    FixScaled,
    FixSymmetry,
    Hookean,
)
from conftest import crystal

from alchemi_jax import AtomicData, Batch, dynamics
from alchemi_jax.cli.flags import parse
from alchemi_jax.cli.outcome import UsageError
from alchemi_jax.cli.stream import prepare
from alchemi_jax.dynamics import NVE, ConvergenceHook, FIREVariableCell, initialize_velocities
from alchemi_jax.dynamics.check import check_systems
from alchemi_jax.dynamics.hooks import FreezeAtomsHook, MaxForceClampHook, WrapPeriodicHook
from alchemi_jax.models import HarmonicModel
from alchemi_jax.systems.observables import degrees_of_freedom


MODEL = HarmonicModel(k=1.0)


def argon(*constraints, n=4, cell=8.0):
    atoms = Atoms(f"Ar{n}", np.random.default_rng(0).normal(0, 1.5, (n, 3)), cell=[cell] * 3, pbc=True)
    atoms.set_constraint(list(constraints))
    return atoms


HELD = [
    (FixAtoms([1]), [1], (1, 1, 1)),
    (FixCartesian([0, 2], (True, False, True)), [0, 2], (1, 0, 1)),
    (FixCartesian([3]), [3], (1, 1, 1)),
    (FixedPlane([2], (0, 0, 1)), [2], (0, 0, 1)),
    (FixedLine([2], (0, -2, 0)), [2], (1, 0, 1)),
    (FixScaled([1], (True, True, False)), [1], (1, 1, 0)),
]


@pytest.mark.parametrize(("constraint", "atoms", "mask"), HELD)
def test_what_a_constraint_fixes(constraint, atoms, mask):
    """In the batch, and in what it gives back to ASE, where its own constraints say the same."""
    wanted = np.zeros((4, 3), bool)
    wanted[atoms] = mask
    batch = Batch.from_ase(argon(constraint))
    held = ~np.asarray(batch.free_components)[:4]
    np.testing.assert_array_equal(held, wanted)
    np.testing.assert_array_equal(np.asarray(batch.fixed)[:4], wanted.all(1))
    back = batch.to_ase()[0]
    probe = np.ones((4, 3))
    for c in back.constraints:
        c.adjust_forces(back, probe)
    np.testing.assert_array_equal(probe == 0, wanted)
    np.testing.assert_array_equal(~np.asarray(Batch.from_ase(back).free_components)[:4], wanted)


def test_constraints_add_up():
    batch = Batch.from_ase(
        argon(FixCartesian([0, 1], (1, 0, 0)), FixCartesian([1], (0, 1, 1)), FixAtoms([2]))
    )
    assert np.asarray(batch.fixed)[:4].tolist() == [False, True, True, False]
    assert [type(c).__name__ for c in batch.to_ase()[0].constraints] == ["FixAtoms", "FixCartesian"]
    with pytest.raises(ValueError, match="fixed_components has shape"):
        AtomicData(positions=np.eye(3), numbers=[18] * 3, fixed_components=np.ones(3, bool))


def test_others_are_refused_by_name_or_dropped_on_request():
    """By every engine before anything is compiled; the message says what to do."""
    engine = NVE(model=MODEL, dt=1.0, n_steps=1)
    skewed = argon(FixScaled([1], (True, False, False)))
    skewed.set_cell([[8, 0, 0], [3, 8, 0], [0, 0, 8]])
    symmetric = crystal(0, 1, 0.0)
    # Made without spglib, which only its own constructor needs.
    symmetric.set_constraint(FixSymmetry.__new__(FixSymmetry))
    for atoms, kind, advice in (
        (argon(FixBondLengths([[0, 1]])), "FixBondLengths", "stiff spring"),
        (argon(Hookean(0, 1, 5.0, 2.0)), "Hookean", "stiff spring"),
        (argon(FixCom()), "FixCom", "center of mass"),
        (argon(FixedPlane([1], (1, 1, 0))), "FixedPlane", "along an axis"),
        (skewed, "FixScaled", "along the axes"),
        (symmetric, "FixSymmetry", "refine_symmetry"),
    ):
        batch = Batch.from_ase([argon(), atoms])
        with pytest.raises(ValueError, match=rf"system 1 .* has the constraint {kind}.*{advice}.*'drop'"):
            engine.init(batch)
        dropped = Batch.from_ase([argon(), atoms], constraints="drop")
        check_systems(engine, dropped)
        assert dropped.to_ase()[1].constraints == []
    with pytest.raises(ValueError, match="'keep' or 'drop'"):
        Batch.from_ase(argon(), constraints="ignore")


BOUND = Batch.from_ase([argon(), argon(FixBondLengths([[0, 1]]))])


@pytest.mark.parametrize(
    "given",
    {
        "jit": jax.jit(lambda b: b)(BOUND),
        "map over leaves": jax.tree.map(lambda x: x, BOUND),
        "lane of vmap": jax.tree.map(lambda x: x[0], jax.vmap(lambda _: BOUND)(jnp.zeros(2))),
        "host": Batch.from_host(jax.jit(lambda b: b)(BOUND).to_host()),
        "joined": Batch.concatenate([jax.jit(lambda b: b)(BOUND), Batch.from_ase(argon())]),
        "chosen": Batch.from_host(jax.device_put(BOUND).to_host([1, 0])),
    }.items(),
    ids=lambda item: item[0],
)
def test_they_are_refused_where_a_transform_has_dropped_their_names(given):
    """Silently ignored they would give another result. Others are not concerned."""
    engine = NVE(model=MODEL, dt=1.0, n_steps=1)
    with pytest.raises(ValueError, match=r"NVE.* with constraints that no engine applies.*'drop'"):
        engine.init(given[1])
    assert not jax.jit(lambda b: b)(Batch.from_ase(argon(FixAtoms([0])))).meta.constrained


def test_they_are_refused_in_transforms():
    engine = NVE(model=MODEL, dt=1.0, n_steps=1)
    state = engine.init(Batch.from_ase([argon(), argon()]))
    for call in (
        lambda: engine.init(BOUND, like=state),
        lambda: jax.jit(lambda b: engine.init(b, like=state))(BOUND),
        lambda: jax.jit(lambda b: engine.loop(state.replace(batch=b), 1))(BOUND),
        lambda: engine.step(state.replace(batch=BOUND)),
    ):
        with pytest.raises(ValueError, match="constraint"):
            call()


def test_the_command_line_drops_them_on_request(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    ase.io.write("bound.traj", [argon(FixBondLengths([[0, 1]]), FixAtoms([2]))])
    with pytest.raises(UsageError, match=r"has the constraint FixBondLengths.*--constraints drop leaves it"):
        prepare(parse("relax", ["bound.traj", "--no-cache"]))
    run = prepare(parse("relax", ["bound.traj", "--no-cache", "--constraints", "drop"]))
    (atoms,) = Batch.from_data_list(run.data).to_ase()
    assert [type(c).__name__ for c in atoms.constraints] == ["FixAtoms"]


def test_a_shearing_cell_cannot_keep_one_component():
    batch = Batch.from_ase(argon(FixCartesian([0], (0, 0, 1))))
    message = r"system 0 \(Ar4\) has atoms that are fixed along some axes only"
    for engine in (
        dynamics.NPT(MODEL, dt=1.0, temperature=9.0, cell="flexible"),
        dynamics.NPH(MODEL, dt=1.0, cell="flexible"),
        FIREVariableCell(MODEL),
    ):
        with pytest.raises(ValueError, match=message):
            check_systems(engine, batch)
    for engine in (
        dynamics.NPT(MODEL, dt=1.0, temperature=9.0, cell="anisotropic"),
        FIREVariableCell(MODEL, hydrostatic=True),
        FIREVariableCell(MODEL, mask=(1, 1, 1, 0, 0, 0)),
    ):
        check_systems(engine, batch)


def test_degrees_of_freedom_count_components():
    """And the motion of the centre of mass along each axis along which no atom is held."""
    everything = [argon(), argon(FixCartesian([0], (0, 0, 1))), argon(FixAtoms([0]))]
    everything += [
        argon(FixCartesian(range(4), (0, 0, 1))),
        argon(n=1),
        argon(FixCartesian([0], (0, 0, 1)), n=1),
    ]
    batch = initialize_velocities(Batch.from_ase(everything), 300.0)
    assert np.asarray(degrees_of_freedom(batch))[:6].tolist() == [9, 9, 9, 6, 3, 2]
    assert np.asarray(degrees_of_freedom(batch, True))[:6].tolist() == [12, 11, 9, 8, 3, 2]
    held = ~np.asarray(batch.free_components)
    assert not np.asarray(batch.velocities)[held].any()
    momentum = np.einsum("n,nk->k", np.asarray(batch.masses)[4:8], np.asarray(batch.velocities)[4:8])
    assert (np.abs(momentum[:2]) < 1e-12).all()
    assert abs(momentum[2]) > 1e-3


ENGINES = [
    "BFGS",
    "FIRE",
    "FIRE2",
    "GradientDescent",
    "LBFGS",
    "NVE",
    "NVTBussi",
    "NVTLangevin",
    "NVTNoseHoover",
]


def moved(name, hooks=()):
    """How far each component of the atoms of a system moves in some steps; it has atoms of all kinds."""
    atoms = argon(FixAtoms([0]), FixCartesian([1], (1, 0, 0)), FixCartesian([2], (0, 1, 1)))
    taken = inspect.signature(getattr(dynamics, name)).parameters
    given = {"dt": 2.0, "temperature": 300.0, "friction": 0.1, "optimizer": optax.adam(0.1)}
    needed = {k: v for k, v in given.items() if k in taken}
    engine = getattr(dynamics, name)(model=MODEL, n_steps=7, hooks=list(hooks), **needed)
    batch = initialize_velocities(Batch.from_ase(atoms), 300.0)
    out = engine.run(batch)
    return np.asarray(out.positions - batch.positions)[:4], ~np.asarray(out.free_components)[:4]


def test_fixed_components_do_not_move():
    """Whatever pushes: noise, a thermostat, other hooks."""
    change, held = moved("NVTLangevin", [MaxForceClampHook(0.5), WrapPeriodicHook()])
    assert not change[held].any()
    assert (np.abs(change[~held]) > 1e-5).all()


@pytest.mark.long
@pytest.mark.parametrize("name", [*ENGINES, "OptaxOptimizer"])
def test_fixed_components_do_not_move_in_any_engine(name):
    change, held = moved(name, [FreezeAtomsHook([3])])
    assert not change[held].any()
    assert (np.abs(change[~held]) > 1e-7).all()


@pytest.mark.long
def test_relaxes_to_the_same_minimum_as_ase(lj):
    """A crystal in which some atoms may only move along one axis."""
    from ase.calculators.lj import LennardJones as AseLJ
    from ase.optimize import FIRE as AseFIRE

    atoms = crystal(3, 2, 0.15)
    atoms.set_constraint([FixCartesian([0, 5, 9], (1, 1, 0)), FixCartesian([1], (0, 0, 1)), FixAtoms([2])])
    out = dynamics.FIRE(model=lj, n_steps=400, hooks=[ConvergenceHook.from_fmax(1e-4)]).run(
        Batch.from_ase(atoms)
    )
    theirs = atoms.copy()
    theirs.calc = AseLJ(epsilon=0.0104, sigma=3.4, rc=8.5, smooth=False)
    AseFIRE(theirs, logfile=None).run(fmax=1e-4, steps=400)
    np.testing.assert_allclose(out.take().positions, theirs.positions, atol=2e-3)
