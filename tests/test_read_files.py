"""Reading files of others: right, refused, or said in one line; never lost or guessed in silence."""

import datetime
import gzip
import os
import warnings

import ase.db
import ase.io
import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from ase.constraints import FixAtoms, FixBondLengths, FixCartesian
from conftest import cluster

from alchemi_jax import AtomicData, Batch, HostBatch, units
from alchemi_jax.cli.outcome import UsageError
from alchemi_jax.cli.read import read
from alchemi_jax.cli.write import write_structures as write_results
from alchemi_jax.dynamics.sinks import AseTrajectory, ExtXYZ, ZarrData
from alchemi_jax.io.read import read_structures
from alchemi_jax.io.write import WriteError, format_of_name, write_structures


def found(path, *args, said=None):
    """The structures of a file; `said` is a part of the one warning."""
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        out = [s.atoms for s in read_structures(path, *args)]
    texts = [str(w.message) for w in seen]
    assert all(str(path) in t and "\n" not in t for t in texts)
    assert len(texts) == (said is not None), texts
    assert said is None or said in texts[0], texts
    return out


def write(folder, name, text):
    (folder / name).write_text(text)
    return folder / name


CIF = (
    "data_x\n"
    + "".join(f"_cell_length_{x} 5.3\n" for x in "abc")
    + "".join(f"_cell_angle_{x} 90\n" for x in ("alpha", "beta", "gamma"))
    + "_symmetry_space_group_name_H-M 'P 1'\nloop_\n_atom_site_label\n_atom_site_type_symbol\n"
    + "".join(f"_atom_site_{x}\n" for x in ("fract_x", "fract_y", "fract_z", "occupancy"))
)
DUMP = "ITEM: TIMESTEP\n0\nITEM: NUMBER OF ATOMS\n2\nITEM: BOX BOUNDS pp pp pp\n0 10\n0 10\n0 10\n"
DATA = "made by hand\n\n2 atoms\n1 atom types\n0 9 xlo xhi\n0 9 ylo yhi\n0 9 zlo zhi\n\n"
PDB = "ATOM  {:5d}  AR  AR  A   1    {:8.3f}{:8.3f}{:8.3f}  1.00  0.00          AR\n"
ALTERNATE = "".join(PDB.format(i, i, 0, 0).replace("AR  AR", f"AR {x}AR", 1) for i, x in ((1, "A"), (2, "B")))
#: name, text, what the sentence says
REFUSED = [
    ("a.cif", CIF + "Ar1 Ar 0 0 0 0.6\nKr1 Kr 0 0 0 0.4\n", "site 0 is shared, its occupancy is Ar 0.6 and"),
    ("b.cif", CIF + "Ar1 Ar 0 0 0 0.5\n", "site 0 is partly empty"),
    ("c.dump", DUMP + "ITEM: ATOMS id type x y z\n1 1 0 0 0\n2 2 4 0 0\n", "types of LAMMPS and no elements"),
    ("d.dump", DUMP + "ITEM: ATOMS id element x y z\n1 Ar 0 0 0\n", "frame 0 says that it has 2 atoms"),
    ("e.dump", "ITEM: UNITS\nlj\n" + DUMP + "ITEM: ATOMS id element\n1 Ar\n2 Ar\n", "units are 'lj'"),
    ("f.data", DATA + "Atoms # atomic\n\n1 1 0 0 0\n2 1 4 0 0\n", "neither masses nor labels"),
    ("g.data", DATA.replace("2 atoms", "1000000000000 atoms") + "Masses\n\n1 40.0\n", "1000000000000"),
    ("h.xyz", "1000000000000\n\nAr 0 0 0\n", "1000000000000 atoms, more than fit into its 24 bytes"),
    ("i.xyz", "1\n\nAr 0 0 0\n1\n\nAr1 0 0 0\n", "structure 1, line 6: 'Ar1' is no chemical symbol"),
    ("j.xyz", "1\n\nD 0 0 0\n", "line 3: 'D' is no chemical symbol; deuterium is H"),
    ("k.xyz", "1\n\n18 0 0 0\n", "given as the number 18"),
    ("l.xyz", "2\n\nAr 0 0 0\nAr 0 0 1.0D+00\n", "line 4: '1.0D+00' is no number"),
    ("m.xyz", "2\n\nAr 0 0 0\nAr 0 02\n\nAr 0 0 0\nAr 0 0 0\n", "line 6: a number of atoms was expected"),
    ("m2.xyz", "2\n\nAr 0 0 0\nAr 0 0\n", "line 4: 4 columns were expected, not 'Ar 0 0'"),
    ("n.xyz", "1\n\nAr 0 0 0\nand so on\n", "line 4: a number of atoms was expected, not 'and so on'"),
    ("o.xyz", "2\n\nX 0 0 0\nAr 2 0 0\n", "ghosts, X"),
    ("p.xyz", "1\n\nAr 0 0 0\n3\n\nAr 0 0 0\n", "structure 1 (line 4) has 3 atoms by its first line"),
    ("q.pdb", ALTERNATE, "alternate locations (A, B, line 2)"),
    ("POSCAR", "x\n1\n9 0 0\n0 9 0\n0 0 9\nAr\n1000000000000\ndirect\n0 0 0\n", "more than fit into its"),
    ("r.gro", "x\n1000000000000\n", "more than fit into its"),
    ("s.cif.gz", "no gzip at all", "cannot be decompressed"),
    ("t.nothing", "some words\n", "neither its name nor its contents"),
    ("u.xyz", "-3\n\n", "a number of atoms was expected, not '-3'"),
    ("v.xyz", "1\n\nAr 0 0 nan\n", "positions of atom 0 is not finite"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "text", "sentence"), REFUSED, ids=[r[0] for r in REFUSED])
def test_what_is_not_understood_is_one_sentence_with_its_place(tmp_path, name, text, sentence):
    path = write(tmp_path, name, text)
    with pytest.raises(UsageError) as e:
        read([str(path)])
    assert str(path) in str(e.value)
    assert sentence in str(e.value)
    assert "\n" not in str(e.value)


def test_errors_of_readers_say_what_they_looked_at(tmp_path):
    text = "&CONTROL\n/\n&SYSTEM\n ibrav=0, nat=1, ntyp=1\n/\nATOMIC_SPECIES\nAr 39.948 Ar.upf\n"
    text += "CELL_PARAMETERS angstrom\n5 0 0\n0 5 0\n0 0 5\nATOMIC_POSITIONS angstrom\nAr 0.0 0.0 1.0D+00\n"
    with pytest.raises(ValueError, match=r"espresso-in .*1\.0D\+00"):
        read_structures(write(tmp_path, "x.pwi", text))
    with pytest.raises(ValueError, match=r"x\.xsf cannot be read by ASE: .* xsf"):
        read_structures(write(tmp_path, "x.xsf", "no such thing\n"))
    (tmp_path / "x.xyz").write_bytes(b"1\n\xff\nAr 0 0 0\n")
    with pytest.raises(ValueError, match="no text in UTF-8"):
        read_structures(tmp_path / "x.xyz")


def test_warnings_of_readers_reach_the_user(tmp_path):
    text = CIF.replace("'P 1'", "'P 1'\n_symmetry_Int_Tables_number 1") + "Ar1 Ar 0 0 0 1\n"
    assert len(found(write(tmp_path, "x.cif", text))[0]) == 1
    path = write(tmp_path, "y.pdb", PDB.format(1, 0, 0, 0).replace("  1.00", " -1.00"))
    found(path, said="Negative occupancy")


@pytest.mark.parametrize("column", ["velo:R:3", "vel:R:3", "velocities:R:3", "vx:R:1:vy:R:1:vz:R:1"])
def test_velocities_of_other_columns_are_used_and_said(tmp_path, column):
    text = (
        f'2\nProperties=species:S:1:pos:R:3:{column} pbc="F F F"\nAr 0 0 0 0.001 0 0.5\nAr 4 0 0 -0.001 0 0\n'
    )
    (atoms,) = found(write(tmp_path, "x.xyz", text), said="velocities are taken from the column v")
    data = AtomicData.from_ase(atoms)
    np.testing.assert_allclose(data.velocities, [[0.001, 0, 0.5], [-0.001, 0, 0]], rtol=1e-12)
    assert not data.atom_extras


def test_columns_that_nothing_explains_are_said(tmp_path):
    found(
        write(tmp_path, "x.xyz", "1\n\nAr 0 0 0 0.1 0.2 0.3\n"),
        said="lines have 7 columns, of which the first 4",
    )


def test_joined_files_lose_no_frame(tmp_path):
    one = "1\n\nAr 0 0 0\n"
    path = write(tmp_path, "x.xyz", one + "\n\n" + one + " \n" + one.rstrip("\n"))
    assert len(found(path)) == 3
    frames = [1, 2, 3]
    text = "".join(DUMP + f"ITEM: ATOMS id element x y z\n1 Ar 0 0 {k}\n2 Kr 4 0 0\n" for k in frames)
    assert [a.positions[0, 2] for a in found(write(tmp_path, "x.dump", text))] == frames


def test_models_of_pdb(tmp_path):
    cell = "CRYST1   20.000   20.000   20.000  90.00  90.00  90.00 P 1\n"
    models = [f"MODEL {k}\n" + PDB.format(1, k, 0, 0) + PDB.format(2, k, 4, 0) + "ENDMDL\n" for k in range(3)]
    a, b, c = found(write(tmp_path, "x.pdb", cell + "".join(models) + "END\n"))
    assert [x.positions[0, 0] for x in (a, b, c)] == [0, 1, 2]
    assert all(x.pbc.all() and x.cell[0, 0] == 20 for x in (a, b, c))
    tail = write(tmp_path, "y.pdb", models[0] + PDB.format(1, 7, 0, 0))
    assert [len(x) for x in found(tail)] == [2, 1]
    (atoms,) = found(
        write(tmp_path, "z.pdb", cell.replace("20.000", " 1.000") + models[0]), said="means no cell"
    )
    assert not atoms.pbc.any()
    assert not atoms.cell.any()
    names = "ATOM      1  CA  ALA A   1       0.000   0.000   0.000  1.00  0.00\n"
    names += "ATOM      2 CA    CA A   2       4.000   0.000   0.000  1.00  0.00\n"
    names += "ATOM      3 HG11 VAL A   3       8.000   0.000   0.000  1.00  0.00\n"
    (atoms,) = found(write(tmp_path, "n.pdb", names), said="taken from the names")
    assert atoms.get_chemical_symbols() == ["C", "Ca", "H"]


def test_data_of_lammps(tmp_path):
    atoms = bulk("Ar", cubic=True, a=5.3)
    ase.io.write(tmp_path / "in.data", atoms, format="lammps-data", masses=True)
    (back,) = found(tmp_path / "in.data", said="does not say its units")
    assert (back.get_chemical_formula(), back.cell[0, 0]) == ("Ar4", 5.3)
    body = "Masses\n\n1 5.0\n\nAtoms # atomic\n\n1 1 0 0 0\n2 1 4 0 0\n"
    found(
        write(tmp_path, "heavy.data", "units = metal\n" + DATA.split("\n", 1)[1] + body),
        said="that of no element",
    )
    text = (
        "units = real\n"
        + DATA.split("\n", 1)[1]
        + body.replace("5.0", "39.948")
        + "\nVelocities\n\n1 0.5 0 0\n2 0 0 0\n"
    )
    (back,) = found(write(tmp_path, "real.lmp", text))
    np.testing.assert_allclose(units.velocities_from_ase(back.get_velocities())[0], [0.5, 0, 0], rtol=1e-6)


def test_fixed_atoms_beside_fixed_components(tmp_path):
    atoms = cluster(0, 5)
    atoms.set_constraint([FixAtoms([0, 1]), FixCartesian([2], (False, False, True))])
    ase.io.write(tmp_path / "x.xyz", atoms, format="extxyz")
    a, b = found(tmp_path / "x.xyz")[0].constraints
    assert (a.index.tolist(), b.index.tolist(), b.mask.tolist()) == ([0, 1], [2], [False, False, True])


def test_formats_indices_names_folders_and_compression(tmp_path):
    frames = [cluster(k, 2 + k) for k in range(4)]
    folder = tmp_path / "folder"
    folder.mkdir()
    ase.io.write(tmp_path / "a@1.xyz", frames, format="extxyz")
    ase.io.write(folder / "b.xyz", frames[:2], format="extxyz")
    ase.io.write(folder / "a.cif", bulk("Ar"))
    with gzip.open(tmp_path / "c.cif.gz", "wb") as file:
        file.write((folder / "a.cif").read_bytes())
    sizes = lambda *args, said=None: [len(a) for a in found(*args, said=said)]  # noqa: E731
    assert sizes(tmp_path / "a@1.xyz") == [2, 3, 4, 5]
    assert sizes(tmp_path / "a@1.xyz", None, "-1") == [5]
    assert sizes(tmp_path / "a@1.xyz", None, "1::2") == [3, 5]
    assert sizes(tmp_path / "a@1.xyz", "extxyz", ":1") == [2]
    assert [(f.name, i) for f, i, _ in read([f"{tmp_path}/a@1.xyz@2:"])] == [("a@1.xyz", 2), ("a@1.xyz", 3)]
    assert sizes(tmp_path / "c.cif.gz") == [1]
    assert sizes(folder) == [1, 2, 3]
    (folder / "notes.txt").write_text("nothing")
    (folder / "settings.json").write_text('{"a": 1}')
    assert sizes(
        folder, said="left out, since ASE reads no structures from them: notes.txt, settings.json"
    ) == [1, 2, 3]
    ZarrData(tmp_path / "x.zarr").write(HostBatch.from_data_list([AtomicData.from_ase(a) for a in frames]))
    assert sizes(tmp_path / "x.zarr", None, "1:3") == [3, 4]
    for args, sentence in (
        ((folder, None, "x"), "index 'x' is neither a number"),
        ((tmp_path / "a@1.xyz", None, "9"), "has 4 structures, there is no structure 9"),
        ((tmp_path / "a@1.xyz", "odd"), "format 'odd' is not one that ASE knows"),
        ((tmp_path / "none.xyz",), "none.xyz does not exist"),
    ):
        with pytest.raises(ValueError, match=sentence):
            read_structures(*args)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="holds no files of structures"):
        read_structures(tmp_path / "empty")


# -- writing -------------------------------------------------------------------------------------------------


def moving(sizes=(4, 4)):
    structures = []
    for k, n in enumerate(sizes):
        atoms = bulk("Ar", cubic=True, a=5.3).repeat((1, 1, n // 4))
        atoms.set_velocities(np.full((n, 3), 0.01))
        atoms.info["label"] = f"run {k}"
        structures.append(AtomicData.from_ase(atoms, f"s{k}"))
    return HostBatch.from_data_list(structures)


def test_a_database_keeps_what_a_run_knows(tmp_path):
    host = moving()
    for name in ("x.db", "x.json"):
        assert write_structures(tmp_path / name, [host], name[2:]) == []
        with ase.db.connect(tmp_path / name) as base:
            rows = list(base.select())
        assert [row.key_value_pairs["label"] for row in rows] == ["run 0", "run 1"]
        assert {"system_id", "steps_taken", "converged"} <= rows[1].key_value_pairs.keys()
        assert base.get(label="run 1").system_id == 1


def test_what_a_format_does_not_hold_is_said(tmp_path):
    host = moving()
    for name, lost in (
        ("x.pdb", "velocities"),
        ("x.cif", "velocities"),
        ("XDATCAR", "velocities"),
        ("x.gen", "velocities"),
    ):
        if name == "x.gen":
            host = host.take([0])
        (text,) = write_structures(tmp_path / name, [host], format_of_name(tmp_path / name))
        assert lost in text
        assert "info" in text
    (text,) = write_structures(tmp_path / "x.xyz", [moving()], "xyz")
    assert "the cell, periodicity (pbc), velocities" in text
    assert format_of_name(tmp_path / "x.data") == "lammps-data"
    (text,) = write_structures(tmp_path / "x.data", [host], "lammps-data")
    assert "velocities" not in text
    with pytest.raises(WriteError, match="holds structures of one size alone"):
        write_structures(tmp_path / "y.pdb", [moving((4, 8))], "proteindatabank")
    (text,) = write_structures(tmp_path / "x.png", [host], "png")
    assert "was not checked" in text


def test_compressed_xyz_keeps_everything(tmp_path):
    atoms = Atoms("Ar", info={"remark": "a\nb", "pair": (1, 2)})
    write_structures(
        tmp_path / "x.xyz.gz", [HostBatch.from_data_list([AtomicData.from_ase(atoms)])], "extxyz"
    )
    assert found(tmp_path / "x.xyz.gz")[0].info["remark"] == "a\nb"


@pytest.mark.parametrize("sink", [ExtXYZ, AseTrajectory])
def test_files_of_ours_give_what_went_into_the_run(sink, tmp_path):
    """Also what the format does not have; how that run ended is no entry of the structure. A person's own
    entries of the same names stay."""
    atoms = cluster(0, 4)
    atoms.info = {"when": datetime.date(2020, 1, 2), "pair": (1, 2), "status": "draft", "outcome": "good"}
    atoms.set_array("ids", np.arange(4) + 2**40)
    atoms.set_constraint([FixAtoms([0]), FixBondLengths([[1, 2]])])
    sink(tmp_path / "x.out").write(Batch.from_ase(atoms))
    (again,) = found(tmp_path / "x.out", "extxyz" if sink is ExtXYZ else "traj")
    assert again.info == atoms.info
    np.testing.assert_array_equal(again.arrays["ids"], atoms.arrays["ids"])
    assert [type(c).__name__ for c in again.constraints] == ["FixAtoms", "FixBondLengths"]


def test_results_of_the_command_line_are_structures_again(tmp_path):
    system = Batch.from_ase(cluster(0, 4)).take().replace(steps_taken=np.array([3], np.int32))
    atoms = system.to_ase()[0]
    atoms.info = {"source_file": "a.cif", "source_index": 2, "pair": (1, 2), "status": "draft"}
    write_results(tmp_path / "final.extxyz", Batch.from_ase(atoms).take())
    (again,) = found(tmp_path / "final.extxyz")
    assert again.info == atoms.info


def test_what_is_neither_file_nor_folder_is_no_hang(tmp_path):
    os.mkfifo(tmp_path / "x.xyz")
    with pytest.raises(ValueError, match=r"x\.xyz is neither a file nor a folder"):
        read_structures(tmp_path / "x.xyz")
