"""Every potential against an independent code or a closed form: energy, forces, stress."""

import dataclasses
import re
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, molecule
from ase.calculators.emt import EMT as ASEEMT
from conftest import cluster, public
from potential_cases import (
    CASES,
    VARIANTS,
    boxed,
    diamonds,
    eam_tables,
    evaluate,
    geometries,
    matscipy_eam,
    neighbors_of,
    platinum_carbide,
    solved,
    write_funcfl,
    write_setfl,
)
from potential_references import manybody

import alchemi_jax
from alchemi_jax import Batch, models
from alchemi_jax.dynamics import FIRE
from alchemi_jax.models import (
    EAM,
    ZBL,
    AbstractModel,
    ASEModel,
    Buckingham,
    Ewald,
    LennardJones,
    Morse,
    StillingerWeber,
    Tersoff,
)
from alchemi_jax.models.tables import EAMTables
from alchemi_jax.models.tersoff import NAMES
from alchemi_jax.units import COULOMB


#: matscipy's formulas divide by zero and take powers of it before they mask.
noisy = pytest.mark.filterwarnings("ignore::RuntimeWarning", "ignore:'where' used without:UserWarning")


def compare(structures, batch, results, calculator, tolerance, prepare=lambda atoms: atoms):
    """Energy, forces and stress of each structure against a calculator of ASE's."""
    for i, atoms in enumerate(structures):
        reference = prepare(atoms)
        reference.calc = calculator()
        first = int(batch.first_atom[i])
        forces = reference.get_forces()
        energy = reference.get_potential_energy()
        np.testing.assert_allclose(results.energy[i], energy, rtol=tolerance, atol=tolerance)
        found = results.forces[first : first + len(atoms)]
        scale = max(np.abs(forces).max(), 0.1)
        np.testing.assert_allclose(found, forces, atol=tolerance * scale, rtol=0)
        if atoms.pbc.all():
            stress = reference.get_stress(voigt=False)
            scale = max(np.abs(stress).max(), 1e-2)
            np.testing.assert_allclose(results.stress[i], stress, atol=tolerance * scale, rtol=0)
        else:
            assert np.isnan(results.stress[i]).all()


def equals(model, structures, calculator, tolerance=1e-10, prepare=lambda atoms: atoms):
    batch = Batch.from_ase(structures)
    model.check(batch)
    results = evaluate(model, batch, neighbors_of(model, batch))
    compare(structures, batch, results, calculator, tolerance, prepare)


@noisy
@pytest.mark.parametrize("name", [*CASES, *VARIANTS])
def test_equals_an_independent_code(name):
    """In one batch: alloys as clusters, crystals, wires and slabs, in small, skewed and left-handed cells."""
    if not name.startswith(("Buck", "Soft", "ZBL", "EMT", "ASE", "Ewald", "Sum")):
        pytest.importorskip("matscipy")
    s = solved(name)
    case = s.case
    compare(case.structures, s.batch, s.results, case.calculator, case.tolerance, case.prepare)


# -- pairs -----------------------------------------------------------------------------------------


def test_buckingham_equals_matscipy():
    pair = pytest.importorskip("matscipy.calculators.pair_potential.calculator")
    model = Buckingham(A=1388.773, rho=1 / 2.76, C=175.0, cutoff=7.0, shift=True)
    reference = pair.BeestKramerSanten(1388.773, 2.76, 175.0, 7.0)
    equals(model, geometries(["Si"], 2.6, periodic=True), lambda: pair.PairPotential({(14, 14): reference}))


@pytest.mark.cheap_xla
def test_zbl_takes_charges():
    batch = Batch.from_ase(Atoms("FeW"))
    given = ZBL(charges={"Fe": 26, "W": 74}).atom_parameters(batch)
    for a, b in zip(given, ZBL().atom_parameters(batch), strict=True):
        np.testing.assert_array_equal(a[:2], b[:2])


# -- embedded atoms --------------------------------------------------------------------------------


def positive(tables):
    """Charges of funcfl files are roots of the pair energy."""
    r = np.arange(tables.pair.shape[-1]) * tables.distance_step
    end = (1 - r / tables.cutoff) ** 6
    k = np.array([[2.1, 2.15], [2.15, 2.2]])[..., None]
    rho = np.arange(tables.embedding.shape[-1]) * tables.density_step
    embedding = np.array([-np.sqrt(rho + 20), -1.2 * np.sqrt(rho + 20)])
    return dataclasses.replace(tables, embedding=embedding, pair=r * end * 90 * np.exp(-k * r))


@pytest.fixture(scope="module")
def eam_files(tmp_path_factory):
    """One of each form."""
    folder = tmp_path_factory.mktemp("eam")
    write_setfl(folder / "NiAl.eam.alloy", eam_tables(), False)
    write_setfl(folder / "NiAl.eam.fs", eam_tables(by_pair=True), True)
    for k, name in enumerate(("Ni", "Al")):
        write_funcfl(folder / f"{name}.eam", positive(eam_tables()), k)
    return folder


@pytest.mark.parametrize("file", ["NiAl.eam.alloy", "NiAl.eam.fs", "Ni.eam"])
def test_eam_from_files(file, eam_files, tmp_path):
    """Equal to matscipy's, with its reader; to ASE's to what its other splines lose between points."""
    pytest.importorskip("matscipy.calculators.eam")
    from ase.calculators.eam import EAM as ASEEAM
    from matscipy.calculators.eam import io

    path = eam_files / file
    model = EAM.read(path)
    elements, kind, theirs = ["Ni", "Al"], "eam/" + file.split(".")[-1], path
    if file == "Ni.eam":
        # matscipy and ASE have other digits of the hartree and of the bohr.
        elements, kind, theirs, path = ["Ni"], "eam", tmp_path / "Ni.eam", tmp_path / "ASE.eam"
        write_funcfl(theirs, positive(eam_tables()), 0, io._hartree_bohr_in_electronvolt_angstrom)
        write_funcfl(path, positive(eam_tables()), 0, COULOMB)
    assert model.elements == tuple(elements)
    if kind == "eam/fs":
        case = solved("EAM")
        for a, b in zip(jax.tree.leaves(model), jax.tree.leaves(case.case.model), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12)
        structures, batch, results = case.case.structures, case.batch, case.results
    else:
        structures = geometries(elements, 2.5)
        batch = Batch.from_ase(structures)
        results = evaluate(model, batch, neighbors_of(model, batch))
    _, head, embedding, density, pair = io.read_eam(str(theirs), kind=kind)
    if kind != "eam/fs":
        density = np.broadcast_to(density[:, None], (len(elements), *density.shape))
    tables = EAMTables(
        tuple(map(int, head.atomic_numbers)),
        embedding,
        density.swapaxes(0, 1),
        pair,
        head.density_grid_spacing,
        head.distance_grid_spacing,
        head.cutoff,
    )
    compare(structures, batch, results, lambda: matscipy_eam(tables), 1e-9, boxed)
    for i, atoms in enumerate(structures):
        if len(atoms) > 1 and atoms.cell.rank in (0, 3):
            atoms = atoms.copy()
            atoms.calc = ASEEAM(potential=str(path))
            first = int(batch.first_atom[i])
            np.testing.assert_allclose(results.energy[i], atoms.get_potential_energy(), rtol=1e-6)
            found = results.forces[first : first + len(atoms)]
            np.testing.assert_allclose(found, atoms.get_forces(), atol=1e-5)


def test_funcfl_of_two_elements_multiplies_their_charges(eam_files):
    model = EAM.read([eam_files / "Ni.eam", eam_files / "Al.eam"])
    pair = positive(eam_tables()).pair
    mixed = np.sqrt(pair[0, 0] * pair[1, 1])
    tables = dataclasses.replace(
        positive(eam_tables()), pair=np.array([[pair[0, 0], mixed], [mixed, pair[1, 1]]])
    )
    # As LAMMPS, without the last point.
    names = ("embedding", "density", "pair")
    other = EAM.from_tables(
        dataclasses.replace(tables, **{name: getattr(tables, name)[..., :-1] for name in names})
    )
    for name in names:
        np.testing.assert_allclose(getattr(model, name), getattr(other, name), rtol=1e-9, atol=1e-12)


def test_eam_goes_on_straight_beyond_its_densities():
    model = EAM.from_tables(eam_tables(points=501))
    kind = jnp.array([0, 1])
    values = [np.asarray(model.embedding_energy(jnp.full(2, x), kind)) for x in (60.0, 61.0, 75.0)]
    np.testing.assert_allclose((values[2] - values[0]) / 15, values[1] - values[0], rtol=1e-9)


HEAD, TABLE = "a\nb\nc\n1 Cu\n5 0.1 5 0.1 5\n29 63 3.6 fcc\n", "1 2 3 4 5\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (HEAD + 2 * TABLE + "1 2 3 4", r"line 9: the file ends early, .* \(from line 9\) has 4 of 5 values"),
        (HEAD + 3 * TABLE + "4", "line 10: there are more lines than the head"),
        (HEAD + TABLE.replace("3", "x") + 2 * TABLE, "line 7: a value of .* is 'x', which is no number"),
        ("a\nb\nc\none Cu\n", "line 4: the number of elements is 'one', which is no whole number"),
    ],
    ids=["short", "long", "words", "no header"],
)
def test_a_broken_file_is_named(text, message, tmp_path):
    (tmp_path / "Cu.eam.alloy").write_text(text)
    with pytest.raises(ValueError, match=rf"Cu\.eam\.alloy.*{message}"):
        EAM.read(tmp_path / "Cu.eam.alloy")


def test_files_are_told_by_their_names(tmp_path, eam_files):
    with pytest.raises(ValueError, match=r"Cu\.dat: cannot tell the form"):
        EAM.read(tmp_path / "Cu.dat")
    with pytest.raises(ValueError, match="form must be 'funcfl'"):
        EAM.read(tmp_path / "Cu.dat", form="adp")
    with pytest.raises(ValueError, match="One setfl file has all its elements"):
        EAM.read([eam_files / "NiAl.eam.alloy"] * 2)


# -- bonds and angles ------------------------------------------------------------------------------


@noisy
def test_stillinger_weber_with_stiffer_angles():
    """Holland and Marder's set differs in one number."""
    pytest.importorskip("matscipy")
    calculator = manybody("StillingerWeber", "Holland_Marder_PRL_80_746_Si")
    equals(StillingerWeber(lam=42.0), diamonds(["Si"], 5.43), calculator, 1e-9, boxed)


def test_cohesive_energy_of_water():
    """As published: the diamond crystal has -2 epsilon an atom, its bonds 2^(1/6) sigma."""
    model = StillingerWeber.water()
    atoms = bulk("O", "diamond", a=4 / 3**0.5 * 2 ** (1 / 6) * float(model.sigma))
    batch = Batch.from_ase(atoms)
    energy = evaluate(model, batch, neighbors_of(model, batch)).energy[0]
    np.testing.assert_allclose(energy, -4 * float(model.epsilon), rtol=1e-8)


def test_tersoff_from_a_file(tmp_path):
    pytest.importorskip("matscipy")
    path = tmp_path / "PtC.tersoff"
    entries = platinum_carbide()
    lines = (" ".join([*key, *(f"{v[n]:.16e}" for n in NAMES)]) for key, v in entries.items())
    path.write_text("# by a test\n" + "\n".join(lines))
    read, made = Tersoff.read(path), Tersoff.from_entries(entries)
    assert read.elements == made.elements
    for name in NAMES:
        np.testing.assert_allclose(read.parameters[name], made.parameters[name], rtol=1e-14)
    only = Tersoff.read(path, elements=["C"])
    assert float(only.parameters["A"][0, 0, 0]) == float(made.parameters["A"][1, 1, 1])
    with pytest.raises(ValueError, match=r"PtC\.tersoff has no Si; it has Pt, C"):
        Tersoff.read(path, elements=["Si"])
    path.write_text("C C C 1 2")
    with pytest.raises(ValueError, match="line 1: the entry C C C breaks off after 5 of 17 words"):
        Tersoff.read(path)


# -- charges ---------------------------------------------------------------------------------------

#: Of the shortest distance and unit charges, as in any textbook: constant, cell, distance, |q q'|.
MADELUNG = {
    "rocksalt": (1.74756459463318, bulk("NaCl", "rocksalt", a=5.64), 5.64 / 2, 1),
    "cesium chloride": (1.76267477307099, bulk("CsCl", "cesiumchloride", a=4.12), 4.12 * 3**0.5 / 2, 1),
    "zincblende": (1.63805505338879, bulk("ZnS", "zincblende", a=5.41), 5.41 * 3**0.5 / 4, 4),
}
CHARGES = {"Na": 1, "Cl": -1, "Cs": 1, "Zn": 2, "S": -2}


def test_madelung_constants():
    """Primitive cells, and supercells that are twice and three times as long."""
    structures, expected = [], []
    for constant, atoms, distance, square in MADELUNG.values():
        for repeat in ((1, 1, 1), (2, 1, 3)):
            structures.append(atoms.repeat(repeat))
            expected.append(-constant * COULOMB * square / distance * np.prod(repeat))
    batch = Batch.from_ase(structures)
    model = Ewald.of(batch, charges=CHARGES, accuracy=1e-11)
    model.check(batch)
    results = evaluate(model, batch, neighbors_of(model, batch))
    np.testing.assert_allclose(results.energy[: len(structures)], expected, rtol=1e-10)
    np.testing.assert_allclose(results.forces, 0, atol=1e-9)
    # E ~ 1/length: the pressure is a third of the energy density.
    for i, atoms in enumerate(structures):
        pressure = np.trace(results.stress[i]) / 3
        np.testing.assert_allclose(pressure, -expected[i] / 3 / atoms.get_volume(), rtol=1e-8)


def test_ewald_says_when_its_waves_do_not_suffice():
    small, large = MADELUNG["rocksalt"][1], MADELUNG["rocksalt"][1].repeat((4, 1, 1))
    batch = Batch.from_ase([small, large])
    model = Ewald.of(Batch.from_ase(small), charges=CHARGES, cutoff=5.0)
    with pytest.raises(ValueError, match=r"system 1 \(Cl4Na4\): its cell needs .* waves"):
        model.check(batch)
    assert np.asarray(model._suffice(batch)).tolist() == [True, False]


# -- sums and calculators --------------------------------------------------------------------------


def test_sums_are_flat_and_reach_as_far_as_their_furthest_part():
    total = solved("SumModel").case.model
    assert [type(p) for p in total.parts] == [LennardJones, Morse, ZBL]
    assert (total.cutoff, total.skin) == (7.0, 0.3)
    assert (ASEModel(ASEEMT()) + ASEModel(ASEEMT())).cutoff is None
    with pytest.raises(TypeError):
        total + 3  # pyright: ignore


def test_a_run_with_a_calculator_of_ase():
    """In the compiled loop of an engine; an error there names the system."""
    atoms = bulk("Cu", cubic=True)
    atoms.rattle(0.1, seed=0)
    engine = FIRE(model=ASEModel(ASEEMT()), dt=1.0, n_steps=5)
    out = engine.run(Batch.from_ase([atoms, bulk("Au", cubic=True)])).to_ase()[0]
    end = out.copy()
    end.calc = ASEEMT()
    assert end.get_potential_energy() < ASEEMT().get_potential_energy(atoms) - 0.01
    np.testing.assert_allclose(out.get_potential_energy(), end.get_potential_energy(), rtol=1e-12)
    np.testing.assert_allclose(out.get_forces(), end.get_forces(), atol=1e-12)
    np.testing.assert_allclose(out.get_stress(), end.get_stress(), atol=1e-12)
    batch = Batch.from_ase([atoms, bulk("Fe", "fcc", a=4.0, cubic=True)], names=["copper", "iron"])
    with pytest.raises(Exception, match="iron: EMT failed: NotImplementedError: No EMT-potential for Fe"):
        engine.run(batch)
    with pytest.raises(TypeError, match="make one of it first"):
        ASEModel(ASEEMT)


def test_gradients_of_a_calculator_in_positions_and_cell():
    """Strained together they give the calculator's own forces and stress."""
    model = solved("ASEModel").case.model
    batch = solved("ASEModel").batch
    own = model.evaluate(batch, None, stress=True)
    derived = AbstractModel.evaluate(model, batch, None, stress=True)
    np.testing.assert_allclose(derived.energy, own.energy, rtol=1e-12)
    np.testing.assert_allclose(derived.forces, own.forces, atol=1e-12)
    np.testing.assert_allclose(derived.stress, own.stress, atol=1e-12)


def test_dispersion_by_way_of_ase():
    """DFT-D3 of simple-dftd3: the energy that its own documentation gives, and its forces."""
    ase = pytest.importorskip("dftd3.ase")
    water = molecule("H2O")
    make = partial(ase.DFTD3, method="TPSS", damping="d3bj")
    equals(ASEModel(make()), [water, molecule("CH3CH2OH")], make, 1e-12)
    energy = ASEModel(make()).energy(Batch.from_ase(water), None)[0]
    np.testing.assert_allclose(energy, -0.011441640787279111, rtol=1e-6)


def test_the_page_on_models(tmp_path, monkeypatch):
    """Its code runs, its models evaluate, and it names every model."""
    page = (Path(alchemi_jax.__file__).parent.parent / "docs" / "reference" / "models.md").read_text()
    write_setfl(tmp_path / "NiAl.eam.alloy", eam_tables(points=101), False)
    monkeypatch.chdir(tmp_path)
    batch = Batch.from_ase(bulk("MgO", "rocksalt", a=4.21))
    names = {}
    for block in re.findall(r"```python\n(.*?)```", page, re.DOTALL):
        alone = {}
        exec(block, alone)
        names |= alone
    names["magnesia"].check(batch)
    atoms = Batch.from_ase(cluster(0, 4))
    for model in (names["InversePower"](strength=jnp.asarray(3.0)), names["Glue"]()):
        model.check(atoms)
        forces = model.evaluate(atoms, neighbors_of(names["Glue"](), atoms)).forces
        np.testing.assert_allclose(forces.sum(axis=0), 0, atol=1e-10)
    for name in public(models):
        if name not in ("Results", "SumModel", "Requirements"):
            assert f"`{name}" in page, name
