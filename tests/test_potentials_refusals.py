"""What potentials refuse, naming system and element, and how they are printed."""

import jax.numpy as jnp
import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from ase.calculators.emt import EMT as ASEEMT
from potential_cases import eam_tables

from alchemi_jax import Batch
from alchemi_jax.models import (
    EAM,
    EMT,
    ZBL,
    ASEModel,
    Buckingham,
    Ewald,
    SoftSphere,
    StillingerWeber,
    SumModel,
    Tersoff,
)
from alchemi_jax.models.tersoff import NAMES


@pytest.mark.parametrize(
    ("model", "formula", "message"),
    [
        (EMT(), "CuFe", r"system 1 \(CuFe\): EMT has no parameters for Fe \(atom 1\); it has H, C, N"),
        (StillingerWeber(), "SiGe", r"StillingerWeber has no parameters for Ge \(atom 1\); it has Si\."),
        (Tersoff.group_iv(), "SiO", r"Tersoff has no parameters for O \(atom 1\); it has C, Si, Ge\."),
        (Tersoff.group_iv(), "SiCGe", r"Tersoff has no parameters for C-Ge; it has C-C, C-Si, Si-Si, Si-Ge"),
        (
            EAM.from_tables(eam_tables(points=51)),
            "NiCu",
            r"EAM has no tables for Cu \(atom 1\); it has Al, Ni",
        ),
        (
            Buckingham(A={("Mg", "O"): 1.0}, rho=0.3, C=0.0),
            "MgO",
            r"no A for Mg-Mg; it has O-Mg\. A pair",
        ),
        (SoftSphere(sigma={"Ar": 3}), "ArHe", r"SoftSphere has no sigma for He"),
        (SoftSphere(sigma={"Ar": 3}, cutoff=2), "Ar", r"the largest sigma, 3.0 Å, is beyond the cutoff"),
        (StillingerWeber(cutoff=3), "Si", r"a sigma, 3.7712 Å, is beyond the cutoff"),
        (ZBL(charges={"Ar": 18}), "ArHe", r"ZBL has no nuclear charge for He"),
        (ZBL() + EMT(), "CuFe", r"EMT has no parameters for Fe"),
        (Ewald(charges={"Na": 1}), "Na", r"Ewald takes cells that are periodic in all directions"),
    ],
)
def test_check_names_what_is_missing(model, formula, message):
    numbers = Atoms(formula).numbers
    atoms = Atoms(numbers, positions=np.arange(3 * len(numbers)).reshape(-1, 3))
    batch = Batch.from_ase([Atoms(numbers[:1]), atoms])
    with pytest.raises(ValueError, match=message):
        model.check(batch)


def test_ewald_asks_for_its_charges():
    batch = Batch.from_ase(bulk("NaCl", "rocksalt", a=5.64))
    with pytest.raises(ValueError, match="per-atom extra 'initial_charges', which this batch has not"):
        Ewald().check(batch)
    with pytest.raises(ValueError, match="Ewald has no charge for Cl"):
        Ewald(charges={"Na": 1}).check(batch)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Buckingham(A={("Mg", "Q"): 1}, rho=1, C=0), "'Q' is no chemical symbol"),
        (lambda: Buckingham(A={"MgO": 1}, rho=1, C=0), "A must be keyed by pairs such as"),
        (lambda: Buckingham(A={("O", "Mg"): 1, ("Mg", "O"): 2}, rho=1, C=0), "A has two values for O-Mg"),
        (lambda: Buckingham(A={}, rho=1, C=0), "A has no pairs of elements"),
        (lambda: Buckingham(A=np.ones(3), rho=1, C=0), "A must be a number or a dict of pairs"),
        (lambda: ZBL(onset=5.0), "onset must lie between"),
        (lambda: EMT(elements=("Cu", "Fe")), "EMT has no parameters for Fe; it has Al, Cu"),
        (lambda: Tersoff(("C",), {"A": jnp.ones((1, 1, 1))}), "Tersoff takes the parameters m, gamma"),
        (lambda: Tersoff(("C",), dict.fromkeys(NAMES, jnp.full((1, 1, 1), 2.0))), "m must be 1 or 3"),
        (lambda: Tersoff(("C", "Si"), dict.fromkeys(NAMES, jnp.ones((1, 1, 1)))), "m must be an array"),
        (lambda: Ewald(accuracy=2.0), "accuracy must lie between"),
        (lambda: Ewald(waves=(0, 1, 1)), "waves must be three positive counts"),
        (lambda: SumModel(parts=()), "at least one model"),
    ],
)
def test_bad_parameters(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_models_print_as_a_methods_section_would():
    print_of = {
        "Buckingham(A={O-Mg: 1428.5}, rho=0.2945, C=0, cutoff=10.0, shift=False, skin=1.0)": Buckingham(
            A={("Mg", "O"): 1428.5}, rho=0.2945, C=0
        ),
        "SoftSphere(epsilon=1, sigma={Ar: 3.4}, alpha=2, cutoff=3.4, skin=1.0)": SoftSphere(
            sigma={"Ar": 3.4}
        ),
        "EMT(elements=('Cu', 'Au'), skin=1.0)": EMT(elements=("Cu", "Au")),
        "Tersoff(elements=('C', 'Si'), cutoff=2.96, skin=0.5)": Tersoff.silicon_carbide(),
        "ASEModel(calculator=EMT, cutoff=None)": ASEModel(ASEEMT()),
        "ZBL(onset=3.0, cutoff=4.0, charges=None, skin=1.0) + EMT(elements=None, skin=1.0)": ZBL() + EMT(),
    }
    for text, model in print_of.items():
        assert repr(model) == text
    assert "element='Si'" in repr(StillingerWeber())
