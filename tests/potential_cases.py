"""Potentials, structures and independent codes for the tests of potentials; each is computed once."""

import dataclasses
import functools
from collections.abc import Callable
from functools import partial
from typing import Any

import equinox as eqx
import jax
import numpy as np
from ase import Atoms
from ase.build import bulk
from ase.calculators.emt import EMT as ASEEMT
from ase.calculators.emt import parameters as ase_emt_parameters
from ase.data import chemical_symbols
from conftest import zoo
from potential_references import (
    MGO,
    EwaldReference,
    NetworkReference,
    PairReference,
    buckingham,
    manybody,
    soft,
    sum_of_three,
    zbl,
)

from alchemi_jax import Batch
from alchemi_jax.models import (
    EAM,
    EMT,
    ZBL,
    ASEModel,
    Buckingham,
    Ewald,
    InvariantNetwork,
    LennardJones,
    Morse,
    SoftSphere,
    StillingerWeber,
    Tersoff,
)
from alchemi_jax.models.tables import CHARGES, EAMTables
from alchemi_jax.models.tersoff import NAMES
from alchemi_jax.neighbors import empty_list, grow, guess_sizes, update


# -- evaluating ------------------------------------------------------------------------------------


@eqx.filter_jit
def listed(model, batch, sizes):
    """A list made from the start, without another compilation for other positions and cells."""
    return update(batch, empty_list(batch, model.cutoff, model.skin, sizes))


def neighbors_of(model, batch):
    if model.cutoff is None:
        return None
    sizes = guess_sizes(batch, model.cutoff, model.skin)
    # Room enough not to compile twice.
    sizes = dataclasses.replace(sizes.times(2), neighbors=2 * sizes.neighbors)
    while (found := listed(model, batch, sizes)).overflow:
        sizes = grow(sizes, np.asarray(found.needs))
    return found


@eqx.filter_jit
def evaluate(model, batch, neighbors):
    return model.evaluate(batch, neighbors, stress=True)


# -- structures ------------------------------------------------------------------------------------


def geometries(elements, nearest, seed=0, periodic=False):
    """The zoo with other elements, at another distance of nearest neighbors, Å."""
    rng = np.random.default_rng(seed)
    out = []
    for atoms in zoo().values():
        if len(atoms) > 20:
            atoms = bulk("Ar", "fcc", a=5.3, cubic=True)
            atoms.positions += rng.normal(0, 0.15, (4, 3))
        atoms.set_cell(atoms.cell.array * nearest / 3.748)
        atoms.positions *= nearest / 3.748
        atoms.symbols = rng.choice(elements, len(atoms))
        if atoms.pbc.all() or not periodic:
            out.append(atoms)
    return out


def diamonds(elements, a, seed=0):
    """Tetrahedral structures: rattled, as a slab and a molecule, and the cell of two atoms."""
    rng = np.random.default_rng(seed)
    cubic = bulk("Si", "diamond", a=a, cubic=True)
    cubic.positions += rng.normal(0, 0.12, (8, 3))
    slab, molecule = cubic.copy(), cubic.copy()
    slab.pbc = (True, True, False)
    molecule.pbc = False
    skewed = bulk("Si", "diamond", a=a)
    skewed.set_cell(skewed.cell.array + rng.normal(0, 0.2, (3, 3)), True)
    out = [cubic, slab, molecule, bulk("Si", "diamond", a=a), skewed]
    for atoms in out:
        atoms.symbols = rng.choice(elements, len(atoms))
    return out


def boxed(atoms):
    """A copy for codes that want a cell which holds the atoms in the directions that are not periodic."""
    out = atoms.copy()
    free = ~out.pbc
    if free.any():
        cell = out.cell.array.copy()
        cell[free] = 0
        out.cell = cell
        out.cell = np.where(free[:, None], 200 * out.cell.complete().array, cell)
        middle = out.cell.scaled_positions(out.positions).mean(axis=0)
        out.positions += np.where(free, 0.5 - middle, 0) @ out.cell.array
    return out


# -- files of EAM and Tersoff ----------------------------------------------------------------------


def eam_tables(elements=(28, 13), points=2001, by_pair=False):
    """Smooth functions of no metal in particular, which end at 5.5 Å."""
    cutoff = 5.5
    rho, r = np.linspace(0, 60, points), np.linspace(0, cutoff, points)
    end = (1 - r / cutoff) ** 3
    n = len(elements)
    density = np.zeros((n, n, points))
    pair = np.zeros((n, n, points))
    for i in range(n):
        for j in range(n):
            width = 1.2 + 0.2 * j + (0.1 * i if by_pair else 0)
            density[i, j] = (4 + j) * end * np.exp(-((r / 2 / width) ** 2))
            k = 2.1 + 0.1 * (i + j)
            pair[i, j] = r * end * (90 * np.exp(-k * r) - 1.5 * np.exp(-0.5 * r))
    embedding = np.array([-(1 + 0.2 * i) * np.sqrt(rho + 0.5) + 0.01 * i * rho for i in range(n)])
    return EAMTables(tuple(elements), embedding, density, pair, rho[1], r[1], cutoff)


def write_setfl(path, t, by_pair):
    def block(values):
        return "\n".join(" ".join(f"{v:.16e}" for v in row) for row in values.reshape(-1, 1)) + "\n"

    n = len(t.elements)
    text = "made by a test\n\n\n" + f"{n} {' '.join(chemical_symbols[z] for z in t.elements)}\n"
    points = t.embedding.shape[1]
    text += f"{points} {t.density_step:.16e} {points} {t.distance_step:.16e} {t.cutoff:.16e}\n"
    for j, z in enumerate(t.elements):
        text += f"{z} 50.0 4.0 fcc\n" + block(t.embedding[j])
        text += "".join(block(t.density[i, j]) for i in range(n if by_pair else 1))
    text += "".join(block(t.pair[i, j]) for i in range(n) for j in range(i + 1))
    path.write_text(text)


def write_funcfl(path, t, k, unit=CHARGES):
    points = t.embedding.shape[1]
    text = f"made by a test\n{t.elements[k]} 50.0 4.0 fcc\n{points} {t.density_step:.16e} {points} "
    text += f"{t.distance_step:.16e} {t.cutoff:.16e}\n"
    charge = np.sqrt(t.pair[k, k] / unit)
    for values in (t.embedding[k], charge, t.density[0, k]):
        text += "\n".join(f"{v:.16e}" for v in values) + "\n"
    path.write_text(text)


def platinum_carbide():
    """Lines of a file in LAMMPS's form: Pt and C of Albe et al. (2002), which have lam3."""
    from matscipy.calculators.manybody.explicit_forms.tersoff_brenner import Albe_PRB_65_195124_PtC as p

    def entry(i, j, k):
        ij, ik = i + j, i + k
        lam1, lam2 = p["beta"][ij] * np.sqrt(2 * p["S"][ij]), p["beta"][ij] * np.sqrt(2 / p["S"][ij])
        scale = p["D0"][ij] / (p["S"][ij] - 1)
        values = {
            "m": 1, "gamma": p["gamma"][ij], "lam3": 2 * p["mu"][ik], "c": p["c"][ij], "d": p["d"][ij],
            "cos0": -p["h"][ij], "n": 1, "beta": 1, "lam2": lam2, "lam1": lam1,
            "B": scale * p["S"][ij] * np.exp(lam2 * p["r0"][ij]), "A": scale * np.exp(lam1 * p["r0"][ij]),
            "R": (p["r1"][ik] + p["r2"][ik]) / 2, "D": (p["r2"][ik] - p["r1"][ik]) / 2,
        }  # fmt: skip
        return {name: float(values[name]) for name in NAMES}

    return {
        (p["el"][i], p["el"][j], p["el"][k]): entry(i, j, k)
        for i in range(2)
        for j in range(2)
        for k in range(2)
    }


# -- cases -----------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Case:
    """A model, structures for it, and a maker of a calculator of ASE's that is to agree with it."""

    model: Any
    structures: list
    calculator: Callable
    tolerance: float = 1e-10
    prepare: Callable = lambda atoms: atoms


def _buckingham():
    model = Buckingham(**MGO, cutoff=6.0)
    return Case(model, geometries(["Mg", "O"], 2.6), lambda: PairReference(buckingham, 6.0))


def _soft_sphere():
    given = {"sigma": {"Ar": 3.4, "Kr": 4.0}, "epsilon": {"Ar": 1.0, "Kr": 2.0}, "alpha": 2.5}
    u = partial(soft, **given)
    return Case(SoftSphere(**given), geometries(["Ar", "Kr"], 3.0), lambda: PairReference(u, 4.0))


def _zbl():
    u = partial(zbl, onset=2.0, cutoff=3.5)
    model = ZBL(onset=2.0, cutoff=3.5)
    return Case(model, geometries(["Fe", "H", "W"], 1.9), lambda: PairReference(u, 3.5))


def _emt():
    """Alloys of the eleven elements, each of them alone, an atom, and a pair between rc and the end."""
    structures = geometries(["Cu", "Au", "Ni", "Al"], 2.7) + geometries(list(ase_emt_parameters), 2.4)
    structures += [bulk(e, "fcc", a=4.0).repeat((1, 1, 2)) for e in ase_emt_parameters]
    structures += [Atoms("Pt"), Atoms("CuAg", positions=[[0, 0, 0], [0, 0, 5.5]])]
    return Case(EMT(), structures, ASEEMT)


def _emt_of_two():
    structures = [a for a in geometries(["Cu", "Ni"], 2.5) if "Cu" in a.symbols]
    return Case(EMT(elements=("Ni", "Cu")), structures, lambda: ASEEMT(asap_cutoff=True))


def _eam():
    t = eam_tables(by_pair=True)
    return Case(EAM.from_tables(t), geometries(["Ni", "Al"], 2.5), lambda: matscipy_eam(t), prepare=boxed)


def matscipy_eam(t):
    """matscipy's EAM with tables; as in LAMMPS, slopes at the points of a table are from five of them."""
    from matscipy.calculators.eam import EAM as Reference
    from scipy.interpolate import CubicHermiteSpline

    class Cubic(CubicHermiteSpline):
        def derivative(self, n=1):
            return super().derivative(n)

    def splines(step, values):
        if values.ndim > 1:
            return [splines(step, v) for v in values]
        inner = np.convolve(values, np.array([-1, 8, 0, -8, 1]) / 12, "valid")
        ends = np.diff(values)
        first, last = (values[2] - values[0]) / 2, (values[-1] - values[-3]) / 2
        slopes = np.array([ends[0], first, *inner, last, ends[-1]])
        return Cubic(step * np.arange(len(values)), values, slopes / step)

    return Reference(
        atomic_numbers=np.array(t.elements),
        F=splines(t.density_step, t.embedding),
        f=splines(t.distance_step, t.density.swapaxes(0, 1)),
        rep=splines(t.distance_step, t.pair),
        cutoff=t.cutoff,
    )


def _stillinger_weber():
    calculator = manybody("StillingerWeber", "Stillinger_Weber_PRB_31_5262_Si")
    structures = diamonds(["Si"], 5.43) + geometries(["Si"], 2.6)
    # The cosine there has twelve digits.
    return Case(StillingerWeber(), structures, calculator, 1e-9, boxed)


def _tersoff(model, parameters, elements, sizes, nearest):
    structures = [a for size in sizes for a in diamonds(elements, size)] + geometries(elements, nearest)
    return Case(model(), structures, manybody("TersoffBrenner", parameters), 1e-9, boxed)


def _ewald():
    """Cells with a net charge; charges from ASE's initial charges."""
    structures = geometries(["Na", "Cl"], 2.8, periodic=True)
    for atoms in structures:
        atoms.set_initial_charges(np.where(atoms.symbols == "Na", 1.0, -1.2))
    model = Ewald.of(Batch.from_ase(structures), cutoff=6.0, accuracy=1e-10)
    return Case(model, structures, EwaldReference, 1e-8)


def _sum():
    lj = LennardJones(epsilon=0.01, sigma=3.4, cutoff=7.0, skin=0.3)
    model = lj + Morse(depth=0.02, width=1.6, r0=3.7, cutoff=4.5) + ZBL(onset=3.0, cutoff=4.0)
    return Case(model, geometries(["Ar"], 3.7), lambda: PairReference(sum_of_three, 7.0))


def _network():
    rng = np.random.default_rng(3)
    model = InvariantNetwork(
        ["Cu", "Ni"],
        key=jax.random.key(0),
        cutoff=4.5,
        gaussians=5,
        hidden=(4,),
        energies=[1.5, -0.7],
        scale=0.8,
        mean=rng.normal(0, 1, (2, 10)),
        spread=rng.uniform(1, 2, (2, 10)),
    )
    return Case(model, geometries(["Ni", "Cu"], 2.5), lambda: NetworkReference(model))


CASES = {
    "Buckingham": _buckingham,
    "SoftSphere": _soft_sphere,
    "ZBL": _zbl,
    "EMT": _emt,
    "EAM": _eam,
    "StillingerWeber": _stillinger_weber,
    "Tersoff": lambda: _tersoff(
        lambda: Tersoff.from_entries(platinum_carbide()), "Albe_PRB_65_195124_PtC", ["Pt", "C"], (4.5,), 2.3
    ),
    "Ewald": _ewald,
    "InvariantNetwork": _network,
    "SumModel": _sum,
    "ASEModel": lambda: Case(ASEModel(ASEEMT()), geometries(["Cu", "Ag"], 2.7), ASEEMT, 1e-13),
}
"""Those that the laws are held to; `VARIANTS` are only compared."""

VARIANTS = {
    "EMT of two elements": _emt_of_two,
    "Tersoff C-Si": lambda: _tersoff(
        Tersoff.group_iv, "Tersoff_PRB_39_5566_Si_C", ["Si", "C"], (5.43, 4.4, 3.57), 2.0
    ),
    "Erhart-Albe": lambda: _tersoff(
        Tersoff.silicon_carbide, "Erhart_PRB_71_035211_SiC", ["Si", "C"], (5.43, 4.4, 3.57), 2.0
    ),
}


@dataclasses.dataclass(frozen=True)
class Solved:
    """A case's structures, and after them the same ones turned, shifted and in other orders, evaluated."""

    case: Case
    turn: np.ndarray
    orders: list
    batch: Batch
    neighbors: Any
    results: Any

    def forces(self, i):
        first, n = int(self.batch.first_atom[i]), int(self.batch.atoms_per_system[i])
        return np.asarray(self.results.forces[first : first + n])


@functools.cache
def solved(name):
    case = (CASES | VARIANTS)[name]()
    rng = np.random.default_rng(1)
    turn, _ = np.linalg.qr(rng.normal(size=(3, 3)))
    orders, moved = [], []
    for atoms in case.structures:
        orders.append(rng.permutation(len(atoms)))
        other = atoms.copy()
        other.set_cell(atoms.cell.array @ turn)
        other.positions = atoms.positions @ turn + [5.0, -3.0, 20.0]
        moved.append(other[orders[-1]])
    batch = Batch.from_ase(case.structures + moved)
    case.model.check(batch)
    batch = batch
    neighbors = neighbors_of(case.model, batch)
    return Solved(case, turn, orders, batch, neighbors, evaluate(case.model, batch, neighbors))
