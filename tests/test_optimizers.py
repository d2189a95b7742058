"""Optimizers: the paths of ASE where the algorithm is the same, its minima everywhere."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from ase.calculators.lj import LennardJones as ASELennardJones
from ase.constraints import FixAtoms
from ase.filters import FrechetCellFilter
from ase.optimize import BFGS as ASEBFGS
from ase.optimize import FIRE as ASEFIRE
from ase.optimize import FIRE2 as ASEFIRE2
from ase.optimize import LBFGS as ASELBFGS
from conftest import EPSILON, SIGMA, cluster, crystal
from following import CellSpring

from alchemi_jax import Batch
from alchemi_jax.dynamics import (
    BFGS,
    FIRE,
    FIRE2,
    LBFGS,
    NPT,
    ConvergenceHook,
    FIRE2VariableCell,
    FIREVariableCell,
    GradientDescent,
    NVTLangevin,
    OptaxOptimizer,
)
from alchemi_jax.dynamics.hooks import PressureScheduleHook
from alchemi_jax.models import HarmonicModel, LennardJones
from alchemi_jax.systems.observables import fmax, pressure, volume
from alchemi_jax.units import ASE_TIME, GPA


TIMES = {"dt": 0.1 * ASE_TIME, "dt_max": ASE_TIME}
TIMES2 = {**TIMES, "dt_min": 2e-3 * ASE_TIME}


class Noted(ASELennardJones):
    """Remembers where it was evaluated."""

    def __init__(self, rc):
        super().__init__(epsilon=EPSILON, sigma=SIGMA, rc=rc)
        self.path = []

    def calculate(self, *args, **kwargs):
        super().calculate(*args, **kwargs)
        self.path.append(np.concatenate([self.atoms.positions, self.atoms.cell.array]))


def with_calculator(atoms, rc):
    atoms = atoms.copy()
    atoms.calc = Noted(rc)
    return atoms


@pytest.fixture(scope="session")
def short():
    """Reaches two shells of neighbors of fcc argon, and lies between shells all the way."""
    return LennardJones(epsilon=EPSILON, sigma=SIGMA, cutoff=5.8)


def frechet(**kwargs):
    return lambda atoms: FrechetCellFilter(atoms, **kwargs)


#: Ours, theirs, what theirs moves, structures, steps. The path is compared at every evaluation.
PATHS = {
    "FIRE2": (FIRE2, TIMES2, ASEFIRE2, lambda a: a, "clusters", 80),
    "LBFGS": (LBFGS, {"memory": 40}, ASELBFGS, lambda a: a, "calm", 30),
    "BFGS": (BFGS, {}, ASEBFGS, lambda a: a, "clusters", 40),
    "FIREVariableCell": (
        FIREVariableCell,
        {**TIMES, "scalar_pressure": 0.3},
        ASEFIRE,
        frechet(scalar_pressure=0.3 * GPA),
        "crystals",
        30,
    ),
    "hydrostatic": (
        FIREVariableCell,
        {**TIMES, "hydrostatic": True},
        ASEFIRE,
        frechet(hydrostatic_strain=True),
        "crystals",
        25,
    ),
    "mask": (
        FIREVariableCell,
        {**TIMES, "mask": (1, 0, 1, 0, 0, 0)},
        ASEFIRE,
        frechet(mask=(1, 0, 1, 0, 0, 0)),
        "crystals",
        25,
    ),
    "FIRE2VariableCell": (FIRE2VariableCell, TIMES2, ASEFIRE2, frechet(), "crystals", 40),
}


def structures(kind):
    if kind == "crystals":
        skewed = crystal(1, 1, 0.15, 5.2)
        skewed.set_cell(skewed.cell.array @ np.array([[1.03, 0, 0], [0.1, 1, 0], [0, 0.05, 0.98]]), True)
        return [skewed]
    if kind == "calm":
        return [cluster(0, 13, 0.05), cluster(1, 13, 0.05)]
    fixed = cluster(2)
    fixed.set_constraint(FixAtoms(indices=[0, 3]))
    return [cluster(0), cluster(1, 9), fixed]


@pytest.mark.parametrize("name", PATHS)
def test_paths_are_those_of_ase(lj, short, name):
    """From the same start with the same constants, step for step; ASE's second evaluation in a
    step of FIRE2 is a step of ours."""
    ours, arguments, theirs, moving, kind, steps = PATHS[name]
    systems = structures(kind)
    model = short if kind == "crystals" else lj
    engine = ours(model=model, **arguments)
    state = engine.init(Batch.from_ase(systems))
    state = state.replace(batch=state.batch)
    step = eqx.filter_jit(lambda state: engine.step(state))
    path = []
    for _ in range(steps):
        state = step(state)
        path.append(jax.device_get((state.batch.positions, state.batch.cell)))
    first = 0
    for number, atoms in enumerate(systems):
        last = first + len(atoms)
        mine = np.array([np.concatenate([r[first:last], h[number]]) for r, h in path])
        first = last
        atoms = with_calculator(atoms, model.cutoff)
        theirs(moving(atoms), logfile=None).run(fmax=1e-12, steps=steps)
        expected = np.array(atoms.calc.path[1 : steps + 1])
        assert len(expected) == steps
        np.testing.assert_allclose(mine, expected, atol=1e-8, rtol=0)


# -- minima ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def crystals():
    """Six rattled and sheared crystals of four atoms."""
    rng = np.random.default_rng(3)
    out = []
    for seed in range(6):
        atoms = crystal(seed, 1, 0.05, a=5.1 + 0.04 * seed)
        atoms.set_cell(atoms.cell.array @ (np.eye(3) + rng.normal(0, 0.01, (3, 3))), True)
        out.append(atoms)
    return out


@pytest.fixture(scope="module")
def cell_engine(short):
    def make(**kwargs):
        kwargs = {"scalar_pressure": 0.0, "hooks": [ConvergenceHook(STRICT)], **kwargs}
        return FIREVariableCell(model=short, **TIMES, n_steps=1000, **kwargs)

    return make


STRICT = [{"key": "fmax", "threshold": 4e-6}, {"key": "smax", "threshold": 1e-8}]
PRESSURES = np.array([0.0, 0.1, 0.3, 0.5, -0.02, 0.2])


@pytest.fixture(scope="module")
def squeezed(cell_engine, crystals):
    """Relaxed under a pressure for each."""
    return cell_engine(scalar_pressure=PRESSURES).run(Batch.from_ase(crystals)).take()


def test_cells_relax_to_those_of_ase(squeezed, crystals):
    """Enthalpies, eV, and cells, Å, to 1e-6; a step count within 10 %; stress balanced."""
    assert squeezed.converged.all()
    np.testing.assert_allclose(pressure(squeezed), PRESSURES, atol=2e-6)
    # ASE's own loops take most of the time: one system, under a pressure. Paths without one are above.
    system = 3
    atoms = with_calculator(crystals[system], 5.8)
    p = PRESSURES[system] * GPA
    theirs = ASEFIRE(FrechetCellFilter(atoms, scalar_pressure=p), logfile=None)
    # Forces on n U are stresses times V/n, about 40 Å³.
    theirs.run(fmax=4e-7, steps=1000)
    ours = Batch.to_ase(squeezed)[system]
    np.testing.assert_allclose(ours.cell.array, atoms.cell.array, rtol=0, atol=1e-6)
    shift = _shift_per_system(ours)
    h = [a.get_potential_energy() + p * a.get_volume() for a in (ours, atoms)]
    np.testing.assert_allclose(h[0], h[1] - shift, atol=1e-6)
    assert abs(int(squeezed.steps_taken[system]) - theirs.nsteps) <= 0.1 * theirs.nsteps


def _shift_per_system(atoms):
    """What ASE's energy has more than ours: it moves each pair within the cutoff up by -u(cutoff)."""
    copies = atoms.repeat(5).positions
    copies = copies - 2 * atoms.cell.array.sum(axis=0)
    pairs = 0
    for r in atoms.positions:
        d = np.linalg.norm(copies - r, axis=1)
        pairs += ((d < 5.8) & (d > 1e-9)).sum()
    return pairs / 2 * -4 * EPSILON * ((SIGMA / 5.8) ** 12 - (SIGMA / 5.8) ** 6)


def test_all_optimizers_find_the_minimum_of_ase(lj):
    """Clusters near a minimum: energy to 1e-5 eV; LBFGS with ASE's memory in as many steps,
    to 10 %."""
    systems = [cluster(seed, n, 0.06) for seed, n in enumerate((13, 13, 12, 13))]
    batch = Batch.from_ase(systems)
    hooks = [ConvergenceHook.from_fmax(3e-4)]
    theirs, counts = [], []
    for atoms in systems:
        atoms = with_calculator(atoms, 8.5)
        optimizer = ASELBFGS(atoms, logfile=None)
        optimizer.run(fmax=3e-4, steps=500)
        pairs = np.linalg.norm(atoms.positions[:, None] - atoms.positions[None], axis=-1)
        pairs = (pairs[np.triu_indices(len(atoms), 1)] < 8.5).sum()
        shift = 4 * EPSILON * ((SIGMA / 8.5) ** 12 - (SIGMA / 8.5) ** 6)
        theirs.append(atoms.get_potential_energy() + pairs * shift)
        counts.append(optimizer.nsteps)
    found = {}
    for engine in (
        LBFGS(model=lj, n_steps=500, hooks=hooks, memory=100),
        BFGS(model=lj, n_steps=500, hooks=hooks),
        FIRE2(model=lj, n_steps=1000, hooks=hooks, **TIMES2),
        GradientDescent(model=lj, rate=0.5, n_steps=4000, hooks=hooks),
        OptaxOptimizer(model=lj, optimizer=optax.adam(0.01), n_steps=2000, hooks=hooks),
    ):
        out = found[type(engine).__name__] = engine.run(batch).take()
        assert out.converged.all(), type(engine).__name__
        np.testing.assert_allclose(out.energy, theirs, atol=1e-5)
    steps = found["LBFGS"].steps_taken
    np.testing.assert_allclose(steps, counts, rtol=0.1, atol=1)
    assert (found["BFGS"].steps_taken < found["GradientDescent"].steps_taken).all()


# -- laws ------------------------------------------------------------------------------------------


def test_gradient_descent_shrinks_by_its_factor():
    """x_n = (1 - rate k)^n x_0, each system with its own rate; steps longer than max_step are cut."""
    rates = np.array([0.1, 0.5, 1.5, 1.9])
    one = [cluster(seed, 1) for seed in range(4)]
    start = np.concatenate([a.positions for a in one])
    engine = GradientDescent(model=HarmonicModel(k=1.0), rate=rates, max_step=10.0)
    out = engine.run(Batch.from_ase(one), n_steps=7).take()
    np.testing.assert_allclose(out.positions, start * (1 - rates[:, None]) ** 7, rtol=1e-12)
    engine = GradientDescent(model=HarmonicModel(k=1.0), rate=rates, max_step=1e-3)
    out = engine.run(Batch.from_ase(one), n_steps=1).take()
    np.testing.assert_allclose(np.linalg.norm(out.positions - start, axis=1), 1e-3, rtol=1e-12)


def test_optax_treats_each_system_alone():
    """The same numbers as optax in a loop of its own for each system: its norms and moments are the
    system's, and one that has converged leaves the others' alone."""
    optimizer = optax.chain(optax.clip_by_global_norm(0.5), optax.adam(0.05))
    systems = [cluster(seed, n) for seed, n in enumerate((5, 1, 3))]
    hooks = [ConvergenceHook.from_fmax(0.3)]
    engine = OptaxOptimizer(model=HarmonicModel(k=1.0), optimizer=optimizer, n_steps=40, hooks=hooks)
    out = engine.run(Batch.from_ase(systems))
    assert len(set(out.steps_taken[:3].tolist())) > 1
    for atoms, found in zip(systems, out.to_ase(), strict=True):
        x = jnp.asarray(atoms.positions)
        inner = optimizer.init(x)
        steps = 0
        # The forces are -x. A system that is converged at the start takes no step.
        while steps < 40 and jnp.linalg.norm(x, axis=1).max() > 0.3:
            change, inner = optimizer.update(x, inner, x)
            x, steps = optax.apply_updates(x, change), steps + 1
        np.testing.assert_allclose(found.positions, x, atol=1e-12)


def test_alone_equals_batched(cell_engine, lj, squeezed, crystals):
    alone = cell_engine(scalar_pressure=PRESSURES[2:3]).run(Batch.from_ase(crystals[2])).take()
    assert alone.steps_taken[0] == squeezed.steps_taken[2]
    np.testing.assert_allclose(alone.cell[0], squeezed.cell[2], atol=1e-7)
    for engine in (LBFGS(model=lj), BFGS(model=lj)):
        systems = [cluster(0), cluster(1, 5), cluster(2, 9)]
        together = engine.run(Batch.from_ase(systems), 25).take()
        alone = engine.run(Batch.from_ase(systems[1]), 25).take()
        np.testing.assert_allclose(alone.positions, together.positions[13:18], atol=1e-6)


@pytest.mark.cheap_xla
def test_n_steps_are_k_and_then_the_rest(cell_engine, crystals):
    for engine in (cell_engine(), LBFGS(model=HarmonicModel(k=1.0))):
        start = engine.init(Batch.from_ase(crystals))
        whole = engine.advance(start, 20)
        parts = engine.advance(engine.advance(start, 7), 13)
        for a, b in zip(jax.tree.leaves(whole), jax.tree.leaves(parts), strict=True):
            if not jax.dtypes.issubdtype(a.dtype, jax.dtypes.prng_key):
                np.testing.assert_array_equal(a, b)


@pytest.mark.cheap_xla
def test_masks_and_volumes(short, crystals):
    """What a mask holds stays, bit for bit; hydrostatic changes no shape."""
    batch = Batch.from_ase(crystals)
    before = batch.take().cell
    held = FIREVariableCell(model=short, **TIMES, mask=(0, 0, 1, 0, 0, 0)).run(batch, 50).take().cell
    np.testing.assert_array_equal(held[:, :, :2], before[:, :, :2])
    assert (np.abs(held[:, 2, 2] / before[:, 2, 2] - 1) > 1e-3).all()
    even = FIREVariableCell(model=short, **TIMES, hydrostatic=True).run(batch, 50).take().cell
    ratio = even / np.cbrt(np.linalg.det(even) / np.linalg.det(before))[:, None, None]
    np.testing.assert_allclose(ratio, before, atol=1e-12)


# -- convergence, pressures ------------------------------------------------------------------------


@pytest.mark.cheap_xla
def test_default_convergence_asks_forces_and_stress():
    """In a perfect crystal forces are zero from the start, so only the stress keeps it going. Here they are
    zero always: the energy is of the cell alone, and there is no list to compile."""
    spring = CellSpring(k=5.0, side=5.24)

    def cell_engine(hooks):
        return FIREVariableCell(model=spring, **TIMES, n_steps=1000, hooks=hooks)

    perfect = Batch.from_ase([crystal(0, 1, 0.0, a) for a in (5.1, 5.2, 5.3, 5.25, 5.35, 5.15)])
    default = cell_engine(hooks=[ConvergenceHook()]).run(perfect).take()
    assert np.abs(default.stress).max() <= 6e-4
    assert (np.asarray(fmax(default)) <= 0.05).all()
    stress = cell_engine(hooks=[ConvergenceHook.from_stress(6e-4)]).run(perfect).take()
    np.testing.assert_array_equal(stress.steps_taken, default.steps_taken)
    # Where the cell stays, the default asks forces alone, and from_stress the stress of the batch.
    fixed = FIRE(model=spring, n_steps=5, hooks=[ConvergenceHook()]).run(perfect).take()
    assert fixed.steps_taken.tolist() == [0] * 6, "they have converged before the first step"
    fixed = FIRE(model=spring, n_steps=5, hooks=[ConvergenceHook.from_stress(6e-4)]).run(perfect).take()
    # There nothing moved: these are the stresses at the start.
    at_once = np.abs(fixed.stress).max((1, 2)) <= 6e-4
    assert len(set(at_once.tolist())) == 2
    np.testing.assert_array_equal(fixed.steps_taken, np.where(at_once, 0, 5))
    np.testing.assert_array_equal(default.steps_taken > 0, ~at_once)
    assert "where the cell is relaxed" in repr(ConvergenceHook())


@pytest.mark.cheap_xla
def test_pressures_by_schedule_by_vmap_and_without_compiling(cell_engine, crystals, squeezed, compilations):
    """A ramp ends at the volume of its last pressure; a sweep equals runs; numbers are leaves."""
    batch = Batch.from_ase(crystals)
    cell_engine(scalar_pressure=PRESSURES).run(batch, 1)
    with compilations() as names:
        again = cell_engine(scalar_pressure=PRESSURES[::-1].copy()).run(batch).take()
    assert names == []
    # Systems differ in where they began, not in where they end.
    np.testing.assert_allclose(volume(again), np.asarray(volume(squeezed))[::-1], rtol=1e-4)

    ramp = PressureScheduleHook.ramp(0.0, PRESSURES, 100)
    out = cell_engine(hooks=[ramp]).run(batch, 700).take()
    np.testing.assert_allclose(volume(out), volume(squeezed), rtol=1e-4)

    engine = cell_engine(hooks=[])
    start = engine.init(batch)
    start = start.replace(batch=start.batch)
    swept = jax.vmap(lambda p: cell_engine(hooks=[], scalar_pressure=p).loop(start, 15).batch.cell)(
        jnp.array([0.0, 1.0])
    )
    for p, cell in zip((0.0, 1.0), swept, strict=True):
        np.testing.assert_allclose(
            cell[:6], cell_engine(hooks=[], scalar_pressure=p).run(batch, 15).take().cell, atol=1e-10
        )


def test_a_relaxed_cell_goes_into_dynamics(cell_engine, crystals, short):
    """In one loop; the conserved energy is that of each system's stage."""
    relax = cell_engine(hooks=[ConvergenceHook()])
    md = NPT(model=short, dt=2.0, temperature=20.0, n_steps=10)
    both = relax + md
    state = both.advance(both.init(Batch.from_ase(crystals)), 1)
    np.testing.assert_allclose(
        both.conserved_energy(state), relax.total_energy(state.batch, state.integrator[0])
    )
    state = both.advance(state, 1000)
    assert (state.batch.status[:6] == 2).all()
    np.testing.assert_allclose(
        both.conserved_energy(state), md.total_energy(state.batch, state.integrator[1])
    )
    assert (np.asarray(state.integrator[1][1].count)[:6] == 9).all()


# -- refusals --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda m: FIRE2(model=m, dt=-1.0), "dt must be positive"),
        (lambda m: FIRE2(model=m, dt_min=0.0), "dt_min must be positive"),
        (lambda m: FIREVariableCell(model=m, scalar_pressure=np.nan), "scalar_pressure must be finite"),
        (lambda m: FIREVariableCell(model=m, mask=(1, 1)), "mask must have six entries"),
        (lambda m: FIREVariableCell(model=m, dt=[1.0, 2.0], max_step=[0.1] * 3), "max_step has 3 values"),
        (lambda m: GradientDescent(model=m, rate=0.0), "rate must be positive"),
        (lambda m: LBFGS(model=m, memory=0), "memory must be a positive int"),
        (lambda m: LBFGS(model=m, curvature=-70.0), "curvature must be positive"),
        (lambda m: BFGS(model=m, max_step=[[0.1]]), "max_step must be a number or one per system"),
    ],
)
def test_bad_parameters(lj, make, message):
    with pytest.raises(ValueError, match=message):
        make(lj)


def test_refusals(lj):
    with pytest.raises(TypeError, match=r"optimizer must be an optax\.GradientTransformation, not a float"):
        OptaxOptimizer(model=lj, optimizer=0.1)
    with pytest.raises(ValueError, match=r"system 1 \(Ar5\) is not periodic .* no cell to relax"):
        FIREVariableCell(model=lj).init(Batch.from_ase([crystal(0, 1), cluster(0, 5)]))
    with pytest.raises(ValueError, match=r"system 0 \(Ar256\) has 256 atoms; BFGS .* take LBFGS"):
        BFGS(model=lj).init(Batch.from_ase(crystal(0, 4)))
    with pytest.raises(TypeError, match=r"PressureScheduleHook sets the pressure, but NVTLangevin .* as NPT"):
        NVTLangevin(model=lj, dt=1.0, temperature=1.0, hooks=[PressureScheduleHook.ramp(0, 1, 10)])
    with pytest.raises(ValueError, match=r"rate has 2 values, one per system, but the batch has 3"):
        GradientDescent(model=lj, rate=[0.1, 0.2]).init(Batch.from_ase([cluster(0, 3)] * 3))


def test_an_engine_reads_like_a_methods_section(lj):
    text = repr(FIREVariableCell(model=lj, scalar_pressure=0.5, hydrostatic=True, n_steps=100))
    for part in (
        "FIREVariableCell(model=LennardJones(",
        "dt=1.01",
        "scalar_pressure=0.5",
        "hydrostatic=True",
    ):
        assert part in text
    assert "memory=20, curvature=70, damping=1, max_step=0.2" in repr(LBFGS(model=lj))
