"""Potential files mean what LAMMPS makes of them, or are refused with file, line and reason."""

import numpy as np
import pytest
from ase import Atoms
from file_cases import FILES, LAMMPS, SCALES, SW, TERSOFF, crystal, funcfl, setfl

from alchemi_jax.models import EAM, StillingerWeber, Tersoff, evaluate
from alchemi_jax.models.files import KCAL_PER_MOL
from alchemi_jax.models.tables import slopes


READERS = {".sw": StillingerWeber.read, ".tersoff": Tersoff.read}
H = 1e-4


def read(folder, name, texts, **options):
    paths = [folder / f"{k}{name}" for k in range(len(texts))]
    for path, text in zip(paths, texts, strict=True):
        path.write_text(text)
    reader = READERS.get(paths[0].suffix, EAM.read)
    return reader(paths if len(paths) > 1 else paths[0], **options)


@pytest.fixture(scope="module")
def solved(tmp_path_factory):
    """Of a file: two crystals, the first moved to and fro, an atom, a cell of one atom and of two."""
    found = {}

    def of(name):
        if name not in found:
            texts, elements, names = FILES[name]
            chosen = dict(zip(elements, names, strict=True)) if names else None
            model = read(tmp_path_factory.mktemp("files"), name, texts, elements=chosen)
            a, b = elements
            structures = [crystal(a + b + a * 2 + b * 3 + a, scale) for scale in SCALES]
            direction = np.random.default_rng(4).normal(size=(8, 3))
            for along in (H, -H):
                moved = structures[0].copy()
                moved.positions += along * direction
                structures.append(moved)
            primitive = Atoms(b, cell=2.6 * (1 - np.eye(3)) / 2**0.5, pbc=True)
            structures += [Atoms(a), primitive, primitive.repeat((2, 1, 1))]
            found[name] = model, structures, direction, list(evaluate(model, structures))
        return found[name]

    return of


every = pytest.mark.parametrize("name", FILES)


@every
def test_equals_lammps(name, solved):
    _, _, _, results = solved(name)
    for result, (energy, first, last) in zip(results, LAMMPS[name], strict=False):
        np.testing.assert_allclose(result.energy, energy, rtol=1e-11)
        scale = np.abs(result.forces).max()
        np.testing.assert_allclose(result.forces[[0, -1]], [first, last], atol=1e-10 * scale)


@every
def test_forces_are_slopes_and_small_cells_are_their_supercells(name, solved):
    _, _, direction, results = solved(name)
    slope = (results[2].energy - results[3].energy) / (2 * H)
    np.testing.assert_allclose(-(results[0].forces * direction).sum(), slope, rtol=1e-5)
    np.testing.assert_allclose(2 * results[5].energy, results[6].energy, rtol=1e-12)
    np.testing.assert_allclose(results[5].stress, results[6].stress, atol=1e-12)
    assert not results[4].forces.any()


@every
def test_float32_and_alone(name, solved):
    model, structures, _, results = solved(name)
    narrow = list(evaluate(model, structures, dtype=np.float32))
    for wide, found in zip(results, narrow, strict=True):
        np.testing.assert_allclose(found.energy, wide.energy, rtol=2e-5)
        scale = max(np.abs(wide.forces).max(), 1.0)
        np.testing.assert_allclose(found.forces, wide.forces, atol=2e-5 * scale)


def test_slopes_are_exact_for_the_powers_that_five_points_know():
    x = np.arange(9.0)
    np.testing.assert_allclose(slopes(x**4)[2:-2], 4 * x[2:-2] ** 3, rtol=1e-12)
    np.testing.assert_allclose(slopes(x**2)[[1, -2]], 2 * x[[1, -2]])
    np.testing.assert_allclose(slopes(x), 1)


def test_elements_of_a_file_and_their_names(tmp_path):
    model = read(tmp_path, "CuNi.eam.alloy", [setfl(False)], elements=["Ni"])
    assert model.elements == ("Ni",)
    assert read(tmp_path, "Cu.eam", [funcfl(0)], elements=["Ag"]).elements == ("Ag",)
    model = read(tmp_path, "SiGe.sw", [SW], elements=("Ge",))
    assert model.elements == ("Ge",)
    np.testing.assert_allclose(model.cutoff, 2.1 * 1.8)
    # One set of the file for two elements.
    model = read(tmp_path, "SiC.tersoff", [TERSOFF], elements={"Si": "C", "C": "C"})
    assert model.elements == ("Si", "C")
    np.testing.assert_array_equal(model.parameters["A"], 1544.8)


def test_energies_in_kcal_per_mol(tmp_path):
    for name, texts in (
        ("CuNi.eam.alloy", [setfl(False)]),
        ("Cu.eam", [funcfl(0)]),
        ("SiGe.sw", [SW]),
        ("C.tersoff", [TERSOFF]),
    ):
        options = {"elements": ["C"]} if name == "C.tersoff" else {}
        metal = read(tmp_path, name, texts, **options)
        real = read(tmp_path, name, [t.replace("metal", "real") for t in texts], **options)
        with pytest.raises(ValueError, match="line 1: its units are 'si'; only 'metal' and 'real'"):
            read(tmp_path, name, [t.replace("metal", "si") for t in texts], **options)
        energies = {
            "EAM": lambda m: (m.pair, m.embedding),
            "StillingerWeber": lambda m: m.epsilon,
            "Tersoff": lambda m: (m.parameters["A"], m.parameters["B"]),
        }[type(metal).__name__]
        for a, b in zip(energies(metal), energies(real), strict=True):
            np.testing.assert_allclose(b, KCAL_PER_MOL * a, rtol=1e-11, atol=1e-15)


SETFL, FUNCFL = setfl(False), funcfl(0)


def without(text, line):
    lines = text.splitlines()
    return "\n".join(lines[: line - 1] + lines[line:])


def changed(text, line, new):
    lines = text.splitlines()
    return "\n".join([*lines[: line - 1], new, *lines[line:]])


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.eam.alloy", "one line\n", "line 1: it ends before the 3 lines of its head"),
        (
            "a.eam.alloy",
            changed(SETFL, 4, "two Cu Ni"),
            "line 4: the number of elements is 'two', which is no whole",
        ),
        (
            "a.eam.alloy",
            changed(SETFL, 4, "3 Cu Ni"),
            "line 4: 3 elements are announced, but there are 2 names",
        ),
        ("a.eam.alloy", changed(SETFL, 4, "2 Cu Cu"), "line 4: an element is there twice"),
        ("a.eam.alloy", changed(SETFL, 4, "2 Cu Nix"), "'Nix' is no chemical symbol; say which of its names"),
        ("a.eam.alloy", changed(SETFL, 5, "15 0.35 24"), "line 5: the line of the grids has 3 words"),
        ("a.eam.alloy", changed(SETFL, 5, "15 0.35 24 -1 5"), "line 5: the step of the distances is -1"),
        ("a.eam.alloy", changed(SETFL, 5, "15 0.35 2 1 5"), "line 5: a table has 2 points"),
        ("a.eam.alloy", changed(SETFL, 6, "29"), "line 6: the line of Cu needs an atomic number and a mass"),
        (
            "a.eam.alloy",
            changed(SETFL, 8, "1 2 x 4"),
            "line 8: a value of the embedding function of Cu is 'x'",
        ),
        ("a.eam.alloy", changed(SETFL, 8, "1 2 nan 4"), "line 8: .* is nan, which is not finite"),
        (
            "a.eam.alloy",
            changed(SETFL, 10, "1 2 3 4"),
            "line 10: the embedding function of Cu .* but 1 more follow",
        ),
        (
            "a.eam.alloy",
            without(SETFL, 38),
            r"the file ends early, the pair function of Ni and Ni \(from line",
        ),
        ("a.eam.alloy", SETFL + "1.0\n", r"there are more lines than the head of the file announces"),
        ("a.eam.fs", SETFL, r"line \d+: the density of .* has 24 values and ends|ends early|is no number"),
        (
            "a.eam",
            changed(FUNCFL, 2, "0 63.5"),
            "line 2: 0 is no atomic number; name the element by elements=",
        ),
        ("a.adp", SETFL, r"is of another kind, angular-dependent \(adp\), which EAM does not read"),
        ("a.sw", "Si Si Si 1 2\n", "line 1: the entry Si Si Si breaks off after 5 of 14 words"),
        (
            "a.sw",
            changed(SW, 2, SW.splitlines()[1].split("#")[0] + "5"),
            "line 2: the entry Si-Si-Si has 15 words",
        ),
        ("a.sw", SW + SW.splitlines()[1], "line 12: there is a second entry Si-Si-Si"),
        ("a.sw", SW.replace("21.0", "x"), "line 2: lam of Si-Si-Si is 'x', which is no number"),
        ("a.sw", without(SW, 8), "has no entry Si-Si-Ge"),
        ("a.sw", SW.replace("4.0 0.0 0.0  #", "4.0 0.0 0.01  #"), "has a tol of 0.01"),
        (
            "a.sw",
            SW.replace("Ge Si Si 2.0 2.05", "Ge Si Si 2.0 2.06"),
            "sigma is 2.05 for Si-Ge, but 2.06 for Ge-Si, .* pair",
        ),
        (
            "a.sw",
            SW.replace("Si Si Ge 1.7", "Si Si Ge 1.8"),
            "epsilon times lam is 36 for Si-Si-Ge, but 34 for .* the same angle",
        ),
        ("a.sw", "# nothing\n", "has no entries"),
        ("a.tersoff", TERSOFF, r"'Si\(B\)' is no chemical symbol; .*elements={'Si': 'Si\(B\)'}"),
        (
            "a.tersoff",
            TERSOFF.replace("(B)", "").replace(" 2.8 0.3 2.9726", " 2.8 0.3 3", 1),
            "lam1 is 3.0 for C-Si-Si, but 2.9726",
        ),
        ("a.tersoff", TERSOFF.replace("(B)", "").replace("22.956", "0"), "Tersoff: n must be positive"),
        ("Si.tersoff.zbl", TERSOFF, "is of another kind, tersoff/zbl, which Tersoff does not read"),
    ],
)
def test_what_is_wrong_with_a_file(name, text, message, tmp_path):
    (tmp_path / name).write_text(text)
    reader = (
        EAM.read
        if "eam" in name or "adp" in name
        else StillingerWeber.read
        if name == "a.sw"
        else Tersoff.read
    )
    with pytest.raises(ValueError, match=f"^{name.split('.')[0]}.*{message}") as caught:
        reader(tmp_path / name)
    assert "\n" not in str(caught.value)


def test_elements_that_a_file_does_not_have(tmp_path):
    for name, text, reader in (("a.eam.alloy", SETFL, EAM.read), ("a.sw", SW, StillingerWeber.read)):
        (tmp_path / name).write_text(text)
        with pytest.raises(ValueError, match=rf"{name} has no Fe; it has \w+, \w+\."):
            reader(tmp_path / name, elements=["Fe"])
        with pytest.raises(ValueError, match="'Xx' in elements is no chemical symbol"):
            reader(tmp_path / name, elements={"Xx": "Cu" if "eam" in name else "Si"})
        with pytest.raises(ValueError, match="elements must be a list"):
            reader(tmp_path / name, elements="Cu")
    turned = SW.replace("Si Si Ge 1.7", "Si Si Ge 1.8")
    assert read(tmp_path, "SiGe.sw", [turned], average=True).elements == ("Si", "Ge")
    with pytest.raises(ValueError, match="this is the second file for Cu"):
        read(tmp_path, "Cu.eam", [FUNCFL, FUNCFL])
    with pytest.raises(ValueError, match="a symbol for each of the 2 funcfl files"):
        read(tmp_path, "CuNi.eam", [FUNCFL, funcfl(1)], elements=["Cu"])
    with pytest.raises(ValueError, match=r"no parameters for Fe \(atom 0\); it has Si, Ge"):
        evaluate(read(tmp_path, "SiGe.sw", [SW]), Atoms("Fe"))
