"""Independent codes that potentials are compared with: in numpy, over ASE's neighbor list, and matscipy's."""

import numpy as np
import pytest
from ase.calculators.calculator import Calculator, all_changes
from ase.data import chemical_symbols
from ase.neighborlist import neighbor_list
from scipy.special import erfc

from alchemi_jax.units import COULOMB


class PairReference(Calculator):
    """Sum over ASE's neighbor list of u(r, symbol, symbol) -> (energy, slope), in numpy."""

    implemented_properties = ["energy", "forces", "stress"]  # noqa: RUF012

    def __init__(self, u, cutoff):
        super().__init__()
        self.u, self.reach = u, cutoff

    def calculate(self, atoms=None, properties=(), system_changes=all_changes):
        super().calculate(atoms, properties, system_changes)
        i, j, r, d = neighbor_list("ijdD", atoms, self.reach)
        symbols = np.array(atoms.get_chemical_symbols())
        u, slope = self.u(r, symbols[i], symbols[j])
        f = (slope / r)[:, None] * d
        forces = np.zeros((len(atoms), 3))
        np.add.at(forces, i, f)
        self.results = {"energy": u.sum() / 2, "forces": forces}
        if atoms.pbc.all():
            s = np.einsum("pa,pb->ab", d, f) / 2 / atoms.get_volume()
            self.results["stress"] = s.flat[[0, 4, 8, 5, 2, 1]]


MGO = {
    "A": {("Mg", "O"): 1428.5, ("O", "O"): 22764.3, ("Mg", "Mg"): 0.0},
    "rho": {("Mg", "O"): 0.2945, ("O", "O"): 0.149, ("Mg", "Mg"): 1.0},
    "C": {("O", "Mg"): 3.0, ("O", "O"): 27.88, ("Mg", "Mg"): 0.0},
}


def buckingham(r, a, b):
    def of(name):
        table = {frozenset(k): v for k, v in MGO[name].items()}
        return np.array([table[frozenset(pair)] for pair in zip(a, b, strict=True)])

    A, rho, C = of("A"), of("rho"), of("C")
    u = A * np.exp(-r / rho) - C / r**6
    return u, -A / rho * np.exp(-r / rho) + 6 * C / r**7


def zbl(r, a, b, onset, cutoff):
    """The screened repulsion, and the switch from three linear equations: u, u' and u'' vanish."""
    c = np.array([0.02817, 0.28022, 0.50986, 0.18175])
    d = np.array([0.20162, 0.40290, 0.94229, 3.19980])
    u, slope = np.zeros_like(r), np.zeros_like(r)
    for first, second in set(zip(a, b, strict=True)):
        z1, z2 = chemical_symbols.index(first), chemical_symbols.index(second)
        k = d * (z1**0.23 + z2**0.23) / 0.46850
        ke = COULOMB * z1 * z2

        def plain(r, ke=ke, k=k):
            e = c * np.exp(-np.multiply.outer(r, k))
            return ke * e.sum(-1) / r, -ke * ((e * k).sum(-1) / r + e.sum(-1) / r**2)

        h = 1e-30
        e0, e1 = plain(np.array(cutoff))
        e2 = plain(np.array(cutoff + 1j * h))[1].imag / h
        w = cutoff - onset
        equations = [[w**3 / 3, w**4 / 4, 1], [w**2, w**3, 0], [2 * w, 3 * w**2, 0]]
        third, fourth, constant = np.linalg.solve(equations, [-e0, -e1, -e2])
        these = (a == first) & (b == second)
        x = np.maximum(r[these] - onset, 0)
        value, derivative = plain(r[these])
        u[these] = value + constant + third / 3 * x**3 + fourth / 4 * x**4
        slope[these] = derivative + third * x**2 + fourth * x**3
    return u, slope


def soft(r, a, b, sigma, epsilon, alpha):
    s = np.array([sigma[x] + sigma[y] for x, y in zip(a, b, strict=True)]) / 2
    e = np.sqrt([epsilon[x] * epsilon[y] for x, y in zip(a, b, strict=True)])
    overlap = np.maximum(1 - r / s, 0)
    return e / alpha * overlap**alpha, -e / s * overlap ** (alpha - 1)


def sum_of_three(r, a, b):
    """Lennard-Jones to 7 Å, Morse's to 4.5 Å, and ZBL to 4 Å."""
    x = (3.4 / r) ** 6
    e = np.exp(1.6 * (3.7 - r))
    near = r <= 4.5
    u = 0.04 * (x * x - x) + np.where(near, 0.02 * e * (e - 2), 0)
    slope = -0.04 * (12 * x * x - 6 * x) / r + np.where(near, 0.02 * 2 * -1.6 * e * (e - 1), 0)
    more, steeper = zbl(r, a, b, 3.0, 4.0)
    return u + np.where(r <= 4, more, 0), slope + np.where(r <= 4, steeper, 0)


class EwaldReference(Calculator):
    """Both sums in numpy, with another width than the model's, and all waves in a sphere."""

    implemented_properties = ["energy", "forces", "stress"]  # noqa: RUF012

    def calculate(self, atoms=None, properties=(), system_changes=all_changes):
        super().calculate(atoms, properties, system_changes)
        q, x, volume = atoms.get_initial_charges(), atoms.positions, atoms.get_volume()
        alpha, cutoff, longest = 0.55, 9.0, 6.0
        i, j, r, d = neighbor_list("ijdD", atoms, cutoff)
        qq = q[i] * q[j]
        u = qq * erfc(alpha * r) / r
        slope = -u / r - qq * 2 * alpha / np.sqrt(np.pi) * np.exp(-((alpha * r) ** 2)) / r
        f = (slope / r)[:, None] * d
        forces = np.zeros_like(x)
        np.add.at(forces, i, f)
        virial = np.einsum("pa,pb->ab", d, f) / 2
        most = np.ceil(longest * np.linalg.norm(atoms.cell.array, axis=1) / 2 / np.pi).astype(int)
        n = np.stack(np.meshgrid(*(np.arange(-m, m + 1) for m in most)), axis=-1).reshape(-1, 3)
        k = 2 * np.pi * n @ np.linalg.inv(atoms.cell.array).T
        k2 = (k * k).sum(1)
        k, k2 = k[(k2 > 0) & (k2 < longest**2)], k2[(k2 > 0) & (k2 < longest**2)]
        weight = 2 * np.pi / volume * np.exp(-k2 / 4 / alpha**2) / k2
        phase = np.exp(1j * x @ k.T)
        total = q @ phase
        power = weight * np.abs(total) ** 2
        forces += 2 * q[:, None] * (phase * total.conj() * weight).imag @ k
        inner = np.einsum("k,ka,kb->ab", power * 2 * (1 / k2 + 1 / 4 / alpha**2), k, k)
        background = np.pi * q.sum() ** 2 / 2 / volume / alpha**2
        virial += inner + (background - power.sum()) * np.eye(3)
        own = alpha / np.sqrt(np.pi) * (q @ q) + background
        self.results = {
            "energy": COULOMB * (u.sum() / 2 + power.sum() - own),
            "forces": COULOMB * forces,
            "stress": COULOMB * virial.flat[[0, 4, 8, 5, 2, 1]] / volume,
        }


def manybody(form, parameters):
    matscipy = pytest.importorskip("matscipy.calculators.manybody")
    from matscipy.calculators.manybody import explicit_forms
    from matscipy.calculators.manybody.explicit_forms import stillinger_weber, tersoff_brenner

    source = stillinger_weber if form == "StillingerWeber" else tersoff_brenner
    made = getattr(explicit_forms, form)(getattr(source, parameters))
    return lambda: matscipy.Manybody(**made)


class NetworkReference(Calculator):
    """An InvariantNetwork in numpy, over ASE's neighbor list, with slopes written out by hand."""

    implemented_properties = ["energy", "forces", "stress"]  # noqa: RUF012

    def __init__(self, model):
        super().__init__()
        self.model = model

    def calculate(self, atoms=None, properties=(), system_changes=all_changes):
        super().calculate(atoms, properties, system_changes)
        m = self.model
        rc, n, symbols = m.cutoff, m.gaussians, np.array(atoms.get_chemical_symbols())
        i, j, r, d = neighbor_list("ijdD", atoms, rc)
        width = (rc - 0.5) / (n - 1)
        x = (r[:, None] - np.linspace(0.5, rc, n)) / width
        bell, smooth = np.exp(-x * x / 2), (1 + np.cos(np.pi * r / rc))[:, None] / 2
        bends = -np.pi / rc / 2 * np.sin(np.pi * r / rc)[:, None]
        value, slope = bell * smooth, bell * (bends - x / width * smooth)
        kind = np.array([m.elements.index(s) for s in symbols])
        g = np.zeros((len(atoms), len(m.elements), n))
        np.add.at(g, (i, kind[j]), value)
        energy, pulls = 0.0, np.zeros_like(g)
        for a, k in enumerate(kind):
            mean, spread = (np.asarray(p[k], float) for p in (m.mean, m.spread))
            (w1, b1), (w2, b2) = ((np.asarray(w[k], float), np.asarray(b[k], float)) for w, b in m.layers)
            h = ((g[a].ravel() - mean) / spread) @ w1 + b1
            sigmoid = 1 / (1 + np.exp(-h))
            energy += float(m.energies[k]) + float(m.scale) * ((h * sigmoid) @ w2 + b2)[0]
            back = w2[:, 0] * sigmoid * (1 + h * (1 - sigmoid))
            pulls[a] = (float(m.scale) * (w1 @ back) / spread).reshape(g[a].shape)
        f = ((slope * pulls[i, kind[j]]).sum(1) / r)[:, None] * d
        forces = np.zeros((len(atoms), 3))
        np.add.at(forces, i, f)
        np.add.at(forces, j, -f)
        self.results = {"energy": energy, "forces": forces}
        if atoms.pbc.all():
            s = np.einsum("pa,pb->ab", d, f) / atoms.get_volume()
            self.results["stress"] = s.flat[[0, 4, 8, 5, 2, 1]]
