"""Models of other packages: what they give, against the package's own code or plain NumPy.

Tiny models are written by the package's own writer and read again. Tests of packages that are not installed
are skipped; `.ci/run` says which it installs.
"""

import json
import zipfile

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, molecule
from ase.neighborlist import neighbor_list

from alchemi_jax import Batch
from alchemi_jax.models import Morse, evaluate, load
from alchemi_jax.models.exported import METADATA, MODEL, PARAMETERS, ExportedModel, save_exported
from alchemi_jax.neighbors import allocate


CUTOFF = 4.0


def structures(metal="Cu"):
    """A crystal, a cell of one atom, smaller than the cutoff, a molecule, a slab, a left-handed cell."""
    crystal = bulk(metal, cubic=True, a=3.7, crystalstructure="fcc")
    crystal.rattle(0.1, seed=1)
    one = bulk(metal, a=3.6, crystalstructure="fcc")
    water = molecule("H2O")
    slab = bulk("Al", cubic=True)
    slab.rattle(0.1, seed=2)
    slab.pbc = (True, True, False)
    left = Atoms(f"{metal}OAl", [[0, 0, 0.1], [2.0, 0, 0], [0.3, 1.9, 0.1]], cell=np.diag([3.9, 4.3, -4.1]))
    left.set_cell(left.cell @ np.array([[1, 0.1, 0], [0, 1, 0.2], [0, 0, 1]]))
    left.pbc = True
    assert np.linalg.det(left.cell) < 0
    return [crystal, one, water, slab, left]


def strained(atoms, a, b, size):
    strain = np.zeros((3, 3))
    strain[a, b] += size / 2
    strain[b, a] += size / 2
    out = atoms.copy()
    out.set_cell(atoms.cell @ (np.eye(3) + strain), scale_atoms=True)
    return out


# -- jax.export ----------------------------------------------------------------------------------------


def pair_energy(r, depth, width, r0, xp=jnp):
    x = xp.exp(-width * (r - r0))
    return 0.5 * depth * (x * x - 2 * x) * xp.maximum(1 - r / CUTOFF, 0) ** 3


def exported_function(parameters, inputs):
    depth, width, r0 = parameters
    i, j = inputs["edge_index"]
    n, systems = inputs["pos"].shape[0], inputs["cell"].shape[0]
    shift = jnp.einsum("ea,eab->eb", inputs["cell_offsets"], inputs["cell"][inputs["batch"][i]])
    vectors = inputs["pos"][j] - inputs["pos"][i] + shift
    weight = (inputs["atomic_numbers"][j] * 0.1).astype(vectors.dtype)
    energies = weight * pair_energy(jnp.sqrt(jnp.sum(vectors**2, axis=-1)), depth, width, r0)
    of_atoms = jax.ops.segment_sum(energies, i, n) + 0.1 * inputs["charge"][inputs["batch"]]
    return jax.ops.segment_sum(of_atoms, inputs["batch"], systems)


PARAMETERS_OF_PAIRS = (0.3, 1.5, 2.3)


def by_numpy(atoms):
    j, r = neighbor_list("jd", atoms, CUTOFF)
    return float(np.sum(0.1 * atoms.numbers[j] * pair_energy(r, *PARAMETERS_OF_PAIRS, xp=np)))


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    pytest.importorskip("flatbuffers")
    path = tmp_path_factory.mktemp("exported") / "pairs.zip"
    parameters = [np.float64(p) for p in PARAMETERS_OF_PAIRS]
    elements = ["H", "O", 13, "Cu"]
    save_exported(path, exported_function, parameters, CUTOFF, elements=elements, dtype="float64")
    return path


def test_exported_function_gives_what_numpy_gives(archive):
    """Energies by ASE's neighbor list; forces and stress by central differences of these."""
    systems = structures()
    found = evaluate(load(f"exported:{archive}"), systems)
    h = 1e-5
    for n, atoms in enumerate(systems):
        result = found[n]
        assert float(result.energy) == pytest.approx(by_numpy(atoms), abs=1e-10)
        atom, axis = len(atoms) - 1, n % 3
        ends = [atoms.copy(), atoms.copy()]
        ends[0].positions[atom, axis] += h
        ends[1].positions[atom, axis] -= h
        slope = (by_numpy(ends[0]) - by_numpy(ends[1])) / (2 * h)
        assert float(result.forces[atom, axis]) == pytest.approx(-slope, abs=1e-7)
        if atoms.pbc.all():
            for a, b in ((0, 0), (1, 2)):
                ends = [by_numpy(strained(atoms, a, b, s)) for s in (h, -h)]
                slope = (ends[0] - ends[1]) / (2 * h) / atoms.get_volume()
                assert float(result.stress[a, b]) == pytest.approx(slope, abs=1e-7)


def test_exported_function_beside_a_longer_cutoff_and_under_vmap(archive):
    """A list that reaches farther changes nothing; each lane of vmap has its own energy and slope."""
    model, atoms = load(f"exported:{archive}"), structures()[1]
    far = Morse(depth=0.1, width=1.0, r0=3.0, cutoff=6.0)
    x = np.exp(-(neighbor_list("d", atoms, 6.0) - 3.0))
    both = evaluate(model + far, [atoms])
    wanted = by_numpy(atoms) + 0.05 * np.sum(x * x - 2 * x)
    assert float(both.energy[0]) == pytest.approx(wanted, abs=1e-9)
    batch = Batch.from_ase([atoms])
    neighbors = allocate(batch, model.requirements)

    def energy(scale):
        return model.energy(batch.replace(cell=batch.cell * scale), neighbors)[0]

    scales, h = np.array([1.0, 1.01]), 1e-5
    values, slopes = jax.jit(jax.vmap(jax.value_and_grad(energy)))(scales)
    for n, scale in enumerate(scales):
        ends = [atoms.copy(), atoms.copy()]
        for end, size in zip(ends, (scale + h, scale - h), strict=True):
            end.set_cell(atoms.cell * size, scale_atoms=True)
        high, low = map(by_numpy, ends)
        assert float(values[n]) == pytest.approx((high + low) / 2, abs=1e-8)
        assert float(slopes[n]) == pytest.approx((high - low) / (2 * h), abs=1e-6)


def test_a_file_with_its_metadata_beside_it(archive, tmp_path):
    """Without parameters, and in the archive's other form."""
    from jax import export

    with zipfile.ZipFile(archive) as z:
        assert z.namelist() == [MODEL, METADATA, PARAMETERS]
    atoms, systems, edges = export.symbolic_shape("a, s, e")
    floats = {"pos": (atoms, 3), "cell": (systems, 3, 3), "cell_offsets": (edges, 3)}
    floats |= {"charge": (systems,), "spin": (systems,)}
    integers = {"atomic_numbers": (atoms,), "batch": (atoms,), "edge_index": (2, edges)}
    specs = {k: jax.ShapeDtypeStruct(v, jnp.float32) for k, v in floats.items()}
    specs |= {k: jax.ShapeDtypeStruct(v, jnp.int32) for k, v in integers.items()}
    specs["pbc"] = jax.ShapeDtypeStruct((systems, 3), bool)

    def function(inputs):
        return exported_function(jnp.asarray(PARAMETERS_OF_PAIRS, jnp.float32), inputs)

    made = export.export(jax.jit(function))(specs)
    (tmp_path / "net.jax").write_bytes(made.serialize(vjp_order=1))
    (tmp_path / "net.json").write_text(json.dumps({"cutoff": CUTOFF, "takes": ["charge"]}))
    model = ExportedModel.read(tmp_path / "net.jax")
    water = structures()[2]
    assert float(evaluate(model, [water]).energy[0]) == pytest.approx(by_numpy(water), abs=1e-5)
    water.info["charge"] = 2
    assert float(evaluate(model, [water]).energy[0]) == pytest.approx(by_numpy(water) + 0.6, abs=1e-5)
    (tmp_path / "net.jax").write_bytes(made.serialize())
    with pytest.raises(ValueError, match=r"net\.jax has no derivatives.*vjp_order=1"):
        ExportedModel.read(tmp_path / "net.jax")
    (tmp_path / "net.jax").write_bytes(b"nothing")
    with pytest.raises(ValueError, match=r"net\.jax holds no function that this jax can read"):
        ExportedModel.read(tmp_path / "net.jax")
    (tmp_path / "net.json").write_text("{}")
    with pytest.raises(ValueError, match=r"metadata of .*net\.jax must be JSON with cutoff"):
        ExportedModel.read(tmp_path / "net.jax")
    (tmp_path / "net.json").unlink()
    with pytest.raises(ValueError, match=r"net\.jax needs its metadata in .*net\.json"):
        ExportedModel.read(tmp_path / "net.jax")


def test_what_an_exported_function_does_not_know_is_refused(archive, tmp_path):
    model = load(f"exported:{archive}")
    with pytest.raises(ValueError, match="ExportedModel has no parameters for Ag"):
        model.check(Batch.from_ase(Atoms("Ag")))
    atoms = Atoms("Cu", info={"charge": 1})
    with pytest.raises(ValueError, match=r"has charge 1, which pairs\.zip does not use"):
        model.check(Batch.from_ase(atoms))
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as z:
        z.writestr("readme", "")
    with pytest.raises(ValueError, match=r"x\.zip has no model\.jax and no metadata\.json; it has readme"):
        ExportedModel.read(tmp_path / "x.zip")
    with pytest.raises(ValueError, match="takes can have charge, spin, not 'head'"):
        save_exported(tmp_path / "y.zip", exported_function, [], 3.0, takes=["head"])
