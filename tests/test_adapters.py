"""Models of other packages: what they give, against the package's own code or plain NumPy.

Tiny models are written by the package's own writer and read again. Tests of packages that are not installed
are skipped; `.ci/run` says which it installs.
"""

import json
import re
import zipfile
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, molecule
from ase.neighborlist import neighbor_list

from alchemi_jax import AtomicData, Batch
from alchemi_jax.models import Morse, SumModel, evaluate, load
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
    with (
        jax.enable_x64(False),
        pytest.raises(ValueError, match="was exported with float64, and jax_enable_x64"),
    ):
        model.check(Batch.from_ase(Atoms("Cu")))
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as z:
        z.writestr("readme", "")
    with pytest.raises(ValueError, match=r"x\.zip has no model\.jax and no metadata\.json; it has readme"):
        ExportedModel.read(tmp_path / "x.zip")
    with pytest.raises(ValueError, match="takes can have charge, spin, not 'head'"):
        save_exported(tmp_path / "y.zip", exported_function, [], 3.0, takes=["head"])


# -- nequix --------------------------------------------------------------------------------------------


def nequix_reference(compute, config, atoms):
    """Energy, forces, stress of the package's own code, in float64, of graphs of one size."""
    import jraph
    from nequix.data import atomic_numbers_to_indices, dict_to_graphstuple, preprocess_graph

    if not atoms.pbc.all():
        # Without a full cell the package leaves out all images, those along periodic directions too.
        atoms = atoms.copy()
        for axis in np.flatnonzero(~atoms.pbc).tolist():
            atoms.center(vacuum=CUTOFF, axis=axis)
        atoms.pbc = True
    table = atomic_numbers_to_indices(config["atomic_numbers"])
    graph = dict_to_graphstuple(preprocess_graph(atoms, table, config["cutoff"], False))
    graph.nodes["positions"] = atoms.positions
    graph.globals["cell"] = np.array(atoms.cell)[None]
    energy, forces, stress = compute(jraph.pad_with_graphs(graph, 8, 256, 2))
    return float(energy[0]), forces[: len(atoms)], stress[0]


# Of jraph, on Python 3.13.
@pytest.mark.filterwarnings("ignore:Creating NamedTuple classes:DeprecationWarning")
def test_nequix_gives_what_its_package_gives(tmp_path):
    """A tiny network, written by the package, for all kinds of cells."""
    before = jax.config.jax_default_matmul_precision
    pytest.importorskip("nequix", reason="nequix is not installed; .ci/run installs it")
    from nequix.model import Nequix, save_model

    # Importing it changes this setting of the process.
    jax.config.update("jax_default_matmul_precision", before)
    shared = {
        "hidden_irreps": "2x0e+2x1o",
        "lmax": 1,
        "cutoff": CUTOFF,
        "n_layers": 2,
        "radial_basis_size": 3,
    }
    shared |= {
        "radial_mlp_size": 4,
        "radial_mlp_layers": 1,
        "radial_polynomial_p": 6.0,
        "mlp_init_scale": 4.0,
    }
    shared |= {"index_weights": False, "layer_norm": True, "shift": 0.1, "scale": 1.5, "avg_n_neighbors": 9.0}
    numbers = [29, 1, 8, 13]
    path = tmp_path / "tiny.nqx"
    with jax.enable_x64(False), jax.numpy_rank_promotion("allow"):
        network = Nequix(jax.random.key(1), 4, atom_energies=[-1.0, -2.0, -0.5, -0.3], **shared)
        save_model(str(path), network, {**shared, "atomic_numbers": numbers})
    model, systems = load(f"nequix:{path}"), structures()
    assert jax.config.jax_default_matmul_precision == before
    assert model.elements == (1, 8, 13, 29)
    # The same static parts, so that nothing is compiled again.
    assert jax.tree.structure(load(f"nequix:{path}")) == jax.tree.structure(model)
    # Other networks change this for the whole process.
    e3nn_jax = pytest.importorskip("e3nn_jax")
    e3nn_jax.config("path_normalization", "path")
    found = evaluate(model, systems)
    assert e3nn_jax.config("path_normalization") == "path"
    e3nn_jax.config("path_normalization", "element")
    double = jax.tree.map(lambda x: x.astype(float) if eqx.is_inexact_array(x) else x, network)
    compute = jax.jit(lambda graph: double(graph))
    with jax.numpy_rank_promotion("allow"):
        for n, atoms in enumerate(systems):
            energy, forces, stress = nequix_reference(compute, {"atomic_numbers": numbers, **shared}, atoms)
            assert float(found[n].energy) == pytest.approx(energy, abs=1e-6)
            np.testing.assert_allclose(found[n].forces, forces, atol=1e-6)
            if atoms.pbc.all():
                np.testing.assert_allclose(found[n].stress, stress, atol=1e-7)
    with pytest.raises(ValueError, match="NequixModel has no parameters for Ag"):
        model.check(Batch.from_ase(Atoms("Ag")))
    path.write_bytes(b"nothing\n")
    with pytest.raises(ValueError, match=r"tiny\.nqx is no model of nequix"):
        load(f"nequix:{path}")


@pytest.mark.long
def test_published_nequix_gives_what_its_calculator_gave():
    pytest.importorskip("nequix", reason="nequix is not installed")
    folder = Path(__file__).parents[2] / "shared" / "data"
    if not (folder / "nequix-mp-1.nqx").exists():
        pytest.skip(f"nequix-mp-1.nqx is not in {folder}")
    wanted = json.loads((folder / "nequix_reference.json").read_text())["results"]
    known = json.loads((folder / "chgnet_reference.json").read_text())["structures"]
    systems = [
        Atoms(s["numbers"], s["positions"], cell=s["cell"], pbc=True)
        for s in (known[name] for name in wanted)
    ]
    found = evaluate(load(f"nequix:{folder / 'nequix-mp-1.nqx'}"), systems, dtype="float32")
    for n, result in enumerate(wanted.values()):
        assert float(found[n].energy) == pytest.approx(result["energy"], abs=1e-5 * len(systems[n]))
        np.testing.assert_allclose(found[n].forces, result["forces"], atol=1e-4)
        np.testing.assert_allclose(found[n].stress, result["stress"], atol=1e-6)


# -- mlip ----------------------------------------------------------------------------------------------

NETWORKS = {
    "Mace": {"num_channels": 2, "l_max": 1, "correlation": 2, "radial_mlp_hidden": [4]},
    "Nequip": {"num_layers": 1, "target_irreps": "2x0e+2x1o", "l_max": 1, "radial_mlp_hidden": [4]},
    "Visnet": {"num_layers": 1, "num_channels": 4, "l_max": 1, "num_heads": 2, "num_rbf": 4},
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "name", ["Nequip", *(pytest.param(n, marks=pytest.mark.long) for n in ("Mace", "Visnet"))]
)
def test_mlip_gives_what_its_package_gives(name, tmp_path):
    """Energies and forces of the package; its stress, but for the sign in a left-handed cell."""
    pytest.importorskip("mlip", reason="mlip is not installed: it brings jax-md, pymatgen and forty more")
    from mlip import models
    from mlip.data import DatasetInfo
    from mlip.data.chemical_system import ChemicalSystem
    from mlip.graph import Graph
    from mlip.models.model_io import save_model_to_zip
    from mlip.typing.properties import Properties

    kind, path = getattr(models, name), tmp_path / "net.zip"
    energies = {1: -1.0, 8: -2.0, 13: -0.5, 29: -0.3}
    with jax.enable_x64(False), jax.numpy_rank_promotion("allow"):
        info = DatasetInfo(
            atomic_energies_map=energies,
            graph_cutoff_angstrom=CUTOFF,
            avg_num_neighbors=9,
            avg_r_min_angstrom=2,
        )
        field = models.ForceField.from_mlip_network(
            kind(kind.Config(**NETWORKS[name]), info), Properties(stress=True)
        )
        save_model_to_zip(path, field)
    model, systems = load(f"mlip:{path}"), structures()
    assert type(model.network.value) is kind
    assert model.elements == tuple(energies)
    found = evaluate(model, systems)
    with jax.enable_x64(False), jax.numpy_rank_promotion("allow"):
        for n, atoms in enumerate(systems):
            cell = np.array(atoms.cell, np.float32) if atoms.pbc.any() else None
            system = ChemicalSystem(
                atomic_numbers=atoms.numbers,
                positions=atoms.positions.astype(np.float32),
                cell=cell,
                pbc=tuple(atoms.pbc),
            )
            theirs = jax.jit(field)(Graph.from_chemical_system(system, CUTOFF))
            assert float(found[n].energy) == pytest.approx(float(theirs.energy[0]), abs=1e-5)
            np.testing.assert_allclose(found[n].forces, theirs.forces, atol=1e-5)
            if atoms.pbc.all():
                sign = np.sign(np.linalg.det(atoms.cell))
                np.testing.assert_allclose(found[n].stress, sign * theirs.stress[0], atol=1e-6)
    with pytest.raises(ValueError, match="MLIPModel has no parameters for Ag"):
        model.check(Batch.from_ase(Atoms("Ag")))
    copper = AtomicData(numbers=[29], positions=np.zeros((1, 3)), system_extras={"head": 1})
    with pytest.raises(ValueError, match=r"has head 1; net\.zip has 1, counted from 0"):
        model.check(Batch.from_data_list([copper]))
    with zipfile.ZipFile(path, "w") as z:
        z.writestr("readme", "")
    with pytest.raises(ValueError, match=r"net\.zip is no archive of mlip with hyperparams\.json"):
        load(f"mlip:{path}")


def test_the_page_shows_how_to_save_a_function(tmp_path, monkeypatch):
    pytest.importorskip("flatbuffers")
    page = Path(__file__).parents[1] / "docs" / "reference" / "models.md"
    if not page.exists():
        pytest.skip("installed without its repository")
    monkeypatch.chdir(tmp_path)
    names = {}
    for block in re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL):
        if "models.load" in block:
            alone = {}
            exec(block, alone)
            names |= alone
    assert isinstance(names["both"], SumModel)
    pair = Atoms("Cu2", [[0, 0, 0], [0, 0, 2.0]])
    assert float(evaluate(names["soft"], [pair]).energy[0]) == pytest.approx(2 * 0.5 * 0.5**3, abs=1e-6)
