"""Random damage to files, and random structures: read as they are, or refused in one sentence, at once.

Everything ends before anything compiles. Seeds are fixed.
"""

import random
import time
import warnings

import ase.io
import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from ase.constraints import FixAtoms, FixCartesian

from alchemi_jax import AtomicData, HostBatch
from alchemi_jax.cli.outcome import UsageError
from alchemi_jax.cli.read import read
from alchemi_jax.dynamics.sinks import ExtXYZ


#: Cases of each format, and of structures.
OF_FORMAT, STRUCTURES = 22, 100
#: Seconds for one case; the slowest takes less than a tenth of it on an idle machine.
MOST = 10.0

#: name of a file -> format of ASE
FORMATS = {
    "x.xyz": "extxyz",
    "plain.xyz": "xyz",
    "x.cif": "cif",
    "x.pdb": "proteindatabank",
    "x.data": "lammps-data",
    "POSCAR": "vasp",
    "x.xsf": "xsf",
    "x.gen": "gen",
    "x.traj": "traj",
    "x.json": "json",
    "x.in": "aims",
    "x.cube": "cube",
    "x.dump": None,
}
_WORDS = """0 -1 1e308 1e309 nan inf -inf NaN 1.0D+00 1000000000000 99999999999999999999 2147483648 x Ar1 D X
18 T F None \0 \xff é = : " ' { } [ ] \\ # 1_000 0x10 Lattice="1" Properties=species:S:1 Properties=pos:R:3
pbc="T" _JSON END MODEL ENDMDL Atoms Masses loop_ data_ Direct Selective"""
ODD = [*_WORDS.split(), "", " ", "\n", "\r\n", "a b"]


def sample(name, folder):
    format = FORMATS[name]
    atoms = bulk("Ar", cubic=True, a=5.3)
    atoms.info["label"] = "run 7"
    path = folder / name
    if format is None:
        head = "ITEM: TIMESTEP\n{}\nITEM: NUMBER OF ATOMS\n2\nITEM: BOX BOUNDS pp pp pp\n0 9\n0 9\n0 9\n"
        path.write_text(
            "".join(head.format(k) + "ITEM: ATOMS id element x y z\n1 Ar 0 0 0\n2 Kr 4 0 0\n" for k in (0, 1))
        )
        return path.read_bytes()
    many = format in ("extxyz", "xyz", "cif", "proteindatabank", "xsf", "traj")
    options = {"masses": True} if format == "lammps-data" else {}
    ase.io.write(path, [atoms, atoms] if many else atoms, format=format, **options)
    return path.read_bytes()


def damaged(raw, rng):
    """The bytes with one to three random changes."""
    for _ in range(rng.randint(1, 3)):
        kind = rng.choice(
            ["flip", "cut", "token", "token", "token", "drop", "twice", "join", "insert", "swap"]
        )
        lines = raw.split(b"\n")
        at = rng.randrange(len(lines))
        if kind == "flip" and raw:
            k = rng.randrange(len(raw))
            raw = raw[:k] + bytes([raw[k] ^ 1 << rng.randrange(8)]) + raw[k + 1 :]
        elif kind == "cut":
            raw = raw[: rng.randrange(len(raw) + 1)]
        elif kind == "token":
            words = lines[at].split(b" ")
            words[rng.randrange(len(words))] = rng.choice(ODD).encode()
            lines[at] = b" ".join(words)
            raw = b"\n".join(lines)
        elif kind == "drop":
            raw = b"\n".join(lines[:at] + lines[at + 1 :])
        elif kind == "twice":
            raw = b"\n".join(lines[:at] + lines[at : at + 1] + lines[at:])
        elif kind == "join":
            raw = raw + rng.choice([b"", b"\n", b"\n\n"]) + raw
        elif kind == "insert":
            raw = b"\n".join([*lines[:at], rng.choice(ODD).encode(), *lines[at:]])
        else:
            other = rng.randrange(len(lines))
            lines[at], lines[other] = lines[other], lines[at]
            raw = b"\n".join(lines)
    return raw


@pytest.mark.parametrize("name", FORMATS)
def test_a_damaged_file_is_read_or_refused(tmp_path, name):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        whole = sample(name, tmp_path)
        assert read([str(tmp_path / name)])
    refused = 0
    for seed in range(OF_FORMAT):
        raw = damaged(whole, random.Random(f"{name} {seed}"))
        path = tmp_path / name
        path.write_bytes(raw)
        begun, found, sentence = time.perf_counter(), [], None
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                found = [data for _, _, data in read([str(path)])]
            except UsageError as e:
                sentence = str(e)
        if sentence is not None:
            refused += 1
            assert str(path) in sentence, seed
            assert "\n" not in sentence, seed
            assert len(sentence.replace(str(path), "").split()) > 1, seed
        assert time.perf_counter() - begun < MOST, seed
        for data in found:
            assert len(data), seed
            assert np.isfinite(data.positions).all(), seed
            assert (data.numbers > 0).all(), seed
        if found and name.endswith(".xyz"):
            # Every line is of a structure.
            lines = [line for line in raw.decode().replace("\r\n", "\n").split("\n") if line.strip()]
            assert len(lines) <= sum(len(data) + 2 for data in found), seed
    assert refused > OF_FORMAT // 10


def odd_array(rng, shape):
    kind = rng.integers(8)
    values = rng.normal(0, 3, shape)
    if kind == 0 and values.size:
        values.flat[rng.integers(values.size)] = rng.choice([np.nan, np.inf, -np.inf, 1e300, 0.0, -1.0])
    if kind == 1:
        return rng.integers(-(2**62), 2**62, shape)
    if kind == 2:
        return values.astype("f4")
    if kind == 3:
        return values > 0
    if kind == 4:
        return values.astype("U5")
    return values


def odd_atoms(rng):
    n = int(rng.integers(0, 5))
    atoms = Atoms(
        rng.choice([1, 8, 18, 36, 118, 0], n, p=[0.2, 0.2, 0.3, 0.2, 0.05, 0.05]), rng.normal(0, 3, (n, 3))
    )
    if rng.random() < 0.5:
        atoms.set_cell(odd_array(rng, (3, 3)).astype(float) if rng.random() < 0.4 else 9 * np.eye(3))
        atoms.pbc = rng.random(3) < 0.7
    if rng.random() < 0.2:
        atoms.positions[:] = odd_array(rng, (n, 3)).astype(float)
    if rng.random() < 0.3:
        atoms.arrays["masses"] = rng.choice([0.0, -1.0, 1.0, 40.0, np.nan, 1e300], n)
    if rng.random() < 0.3:
        atoms.arrays["momenta"] = odd_array(rng, (n, 3)).astype(float)
    for name in rng.choice(
        ["a", "a:b", "tags", "forces", "velocities", "", "charge"], int(rng.integers(0, 3))
    ):
        shape = (n, *rng.integers(0, 3, int(rng.integers(0, 3))))
        atoms.arrays[str(name)] = odd_array(rng, shape)
    for key in rng.choice(["charge", "spin", "energy", "note", "", "pbc"], int(rng.integers(0, 3))):
        atoms.info[str(key)] = [0, 1, -2.5, None, "7", "a\nb", (1, 2), np.nan, 2**70, np.arange(3), True][
            rng.integers(11)
        ]
    if n and rng.random() < 0.3:
        atoms.set_constraint(
            [FixAtoms([0]), FixCartesian([n - 1], rng.random(3) < 0.5)][: int(rng.integers(1, 3))]
        )
    return atoms


def test_odd_structures_come_back_or_are_refused(tmp_path):
    taken = 0
    for seed in range(STRUCTURES):
        rng = np.random.default_rng(seed)
        atoms, host, sentence = odd_atoms(rng), None, ""
        try:
            host = HostBatch.from_data_list([AtomicData.from_ase(atoms, "s0")])
        except ValueError as e:
            sentence = str(e)
        if host is None:
            assert "s0" in sentence, seed
            assert "\n" not in sentence, seed
            continue
        taken += 1
        (back,) = host.to_ase()
        path = tmp_path / f"{seed}.xyz"
        ExtXYZ(path).write(host)
        (again,) = ExtXYZ(path).to_ase()
        for found, digits in ((back, 0), (again, 1e-8)):
            np.testing.assert_array_equal(found.numbers, atoms.numbers)
            np.testing.assert_allclose(found.positions, atoms.positions, rtol=1e-14, atol=digits)
            np.testing.assert_array_equal(found.pbc, atoms.pbc)
            assert found.arrays.keys() - {"momenta", "masses"} == atoms.arrays.keys() - {
                "momenta",
                "masses",
            }, seed
            assert found.info.keys() == atoms.info.keys(), seed
            for name, values in atoms.arrays.items():
                if values.dtype.kind in "biU":
                    np.testing.assert_array_equal(found.arrays[name], values)
    assert STRUCTURES // 4 < taken < STRUCTURES
