"""CHGNet: weights, results of the package on torch, derivatives, and runs."""

import dataclasses
import io
import json
import pickle
import subprocess
import sys
import zipfile
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk

from alchemi_jax import Batch
from alchemi_jax.dynamics import FIRE, NVE, Sampler, initialize_velocities
from alchemi_jax.dynamics.sinks import ZarrData
from alchemi_jax.models import CHGNet, chgnet_weights, evaluate
from alchemi_jax.models.torch_archive import read_torch_archive
from alchemi_jax.neighbors import allocate


DATA = Path(__file__).parent / "data"
REFERENCE = json.loads((DATA / "chgnet.json").read_text())
GPA = 160.21766208


def model_of(version="0.3.0"):
    try:
        return CHGNet.load(version)
    except OSError as e:
        pytest.skip(f"no weights: {e}")


@pytest.fixture(scope="module")
def model():
    return model_of()


# -- weights ---------------------------------------------------------------------------------------


def archive(content, storages=()):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as z:
        z.writestr("a/data.pkl", content)
        for key, data in storages:
            z.writestr(f"a/data/{key}", data)
    file.seek(0)
    return file


class Evil:
    def __reduce__(self):
        return (print, ("run",))


def test_an_archive_cannot_run_anything(capsys):
    with pytest.raises(
        ValueError, match=r"it names (builtins|__builtin__)\.print, which weights do not need"
    ):
        read_torch_archive(archive(pickle.dumps({"model": Evil()}, protocol=2)))
    assert capsys.readouterr().out == ""
    for data, message in ((b"no zip", "cannot be read"), (archive(b"\x80\x02").read(), "cannot be read")):
        with pytest.raises(ValueError, match=message):
            read_torch_archive(io.BytesIO(data))


def tensor(size, stride, offset, key="0", numbers=6):
    """The pickle of one tensor, as torch writes it."""

    def ints(values):
        return b"(" + b"".join(b"K" + bytes([n]) for n in values) + b"t"

    def text(value):
        return b"X" + len(value).to_bytes(4, "little") + value.encode()

    storage = b"(" + text("storage") + b"ctorch\nFloatStorage\n" + text(key) + text("cpu")
    storage += b"K" + bytes([numbers]) + b"tQ"
    rest = b"K" + bytes([offset]) + ints(size) + ints(stride) + b"\x89ccollections\nOrderedDict\n)RtR."
    return b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n(" + storage + rest


def test_tensors_are_read_with_their_strides_and_never_beyond_their_storage():
    data = np.arange(6, dtype="<f4").tobytes()
    read = read_torch_archive(archive(tensor((2, 2), (1, 3), 1), [("0", data)]))
    np.testing.assert_array_equal(read, [[1, 4], [2, 5]])
    for bad in (tensor((3, 2), (1, 3), 1), tensor((2,), (1,), 6)):
        with pytest.raises(ValueError, match="reaches beyond its storage"):
            read_torch_archive(archive(bad, [("0", data)]))
    with pytest.raises(ValueError, match="has 3 numbers, not 6"):
        read_torch_archive(archive(tensor((2,), (1,), 0), [("0", data[:12])]))


def test_without_weights_one_sentence_says_what_to_put_where(tmp_path, monkeypatch):
    monkeypatch.setattr(chgnet_weights, "user_cache", lambda: tmp_path)
    monkeypatch.setattr(chgnet_weights, "_installed", lambda version: None)
    failed = subprocess.CompletedProcess([], 1, "", "WARNING: x\nERROR: No matching distribution found\n")
    monkeypatch.setattr(chgnet_weights.subprocess, "run", lambda *args, **kwargs: failed)
    folder = chgnet_weights.folder()
    with pytest.raises(
        OSError, match=r"No matching distribution found\): put chgnet-0\.4\.2.*\.whl from "
    ) as e:
        chgnet_weights.get()
    assert str(folder) in str(e.value)
    assert "\n" not in str(e.value)
    (folder / chgnet_weights.WHEEL).write_bytes(b"half a file")
    with pytest.raises(OSError, match=r"is no wheel of chgnet 0\.4\.2"):
        chgnet_weights.get()
    with zipfile.ZipFile(folder / chgnet_weights.WHEEL, "w") as z:
        for file in chgnet_weights.VERSIONS.values():
            z.writestr(file.path, b"others")
    with pytest.raises(OSError, match="are not those that were published"):
        chgnet_weights.get()
    assert not list(folder.glob("*.npz"))
    with pytest.raises(ValueError, match=r"has the versions 0\.3\.0, 0\.2\.0, r2scan, not '0\.1'"):
        CHGNet.load("0.1")


def test_an_installed_chgnet_is_used_as_it_is(tmp_path, monkeypatch):
    """Its file is read; the package is not imported, and nothing is downloaded."""
    weights = chgnet_weights.VERSIONS["0.2.0"]
    file = tmp_path / weights.path
    file.parent.mkdir(parents=True)
    (tmp_path / "chgnet" / "__init__.py").write_text("raise RuntimeError('imported')")
    file.write_bytes(archive(pickle.dumps({"model": {"state_dict": {"a": 1.5}, "model_args": {}}}, 2)).read())
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(chgnet_weights, "user_cache", lambda: tmp_path / "empty")
    assert chgnet_weights.keep("0.2.0") == file
    assert float(chgnet_weights.get("0.2.0").arrays["a"]) == 1.5
    chgnet_weights._get.cache_clear()


def test_no_torch_and_no_chgnet_are_imported(model):
    code = (
        "import sys; from alchemi_jax.models import CHGNet; CHGNet.load();"
        "bad = {'torch', 'chgnet', 'pymatgen'} & set(sys.modules); assert not bad, bad"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


# -- results ---------------------------------------------------------------------------------------


def structures(version):
    cases = REFERENCE[version].values()
    return [Atoms(c["numbers"], positions=c["positions"], cell=c["cell"], pbc=True) for c in cases]


@pytest.mark.parametrize("version", ["0.3.0", "0.2.0"])
def test_results_are_those_of_the_package_on_torch(version):
    found = evaluate(model_of(version), structures(version), dtype="float32")
    for (name, case), system in zip(REFERENCE[version].items(), found, strict=True):
        assert abs(float(system.energy) / len(system) - case["energy_per_atom"]) < 1e-5, name
        np.testing.assert_allclose(system.forces, case["forces"], atol=2e-4, err_msg=name)
        np.testing.assert_allclose(system.atom_extras["magmoms"], case["magmoms"], atol=1e-4, err_msg=name)
        # The package divides by a signed volume: in a left-handed cell its stress has the wrong sign.
        sign = np.sign(np.linalg.det(case["cell"]))
        np.testing.assert_allclose(
            GPA * system.stress, sign * np.array(case["stress_GPa"]), atol=5e-3, err_msg=name
        )


@pytest.mark.parametrize(
    "version",
    [
        "0.3.0",
        pytest.param("0.2.0", marks=pytest.mark.long),
        pytest.param("r2scan", marks=pytest.mark.long),
    ],
)
def test_forces_and_stress_are_central_differences(version):
    """In float64, along random directions of the positions and of the cell."""
    model, rng = model_of(version), np.random.default_rng(3)
    atoms = bulk("LiF", "rocksalt", a=4.1)
    atoms.rattle(0.1, seed=4)
    batch = Batch.from_ase(atoms, dtype="float64")
    requirements = model.requirements
    neighbors = allocate(batch, requirements)
    run = eqx.filter_jit(lambda b, n: model.evaluate(b, n, stress=True))
    results, step = run(batch, neighbors), 3e-5
    move = rng.normal(size=(2, 3))
    strain = rng.normal(size=(3, 3))

    def energy(x, of_cell):
        moved = atoms.copy()
        if of_cell:
            moved.set_cell(moved.cell[:] @ (np.eye(3) + x * (strain + strain.T) / 2), scale_atoms=True)
        else:
            moved.positions += x * move
        # Both lists have room for these few atoms more or less alike.
        moved_batch = Batch.from_ase(moved, dtype="float64")
        return float(run(moved_batch, allocate(moved_batch, requirements)).energy[0])

    slope = (energy(step, False) - energy(-step, False)) / (2 * step)
    assert abs(slope + float((np.asarray(results.forces)[:2] * move).sum())) < 2e-6
    slope = (energy(step, True) - energy(-step, True)) / (2 * step)
    expected = float((np.asarray(results.stress[0]) * (strain + strain.T) / 2).sum()) * atoms.get_volume()
    assert abs(slope - expected) < 2e-5


# -- runs ------------------------------------------------------------------------------------------


def small():
    salt = bulk("NaCl", "rocksalt", a=5.5)
    salt.rattle(0.15, seed=1)
    iron = bulk("Fe", a=2.9, cubic=True)
    iron.rattle(0.1, seed=2)
    return [salt, iron, bulk("Cu")]


def test_alone_batched_and_refilled_agree_and_moments_reach_sinks(model, tmp_path):
    """With two of the four layers, the first and that of the moments: half as much to compile."""
    model = dataclasses.replace(model, layers=(model.layers[0], model.layers[-1]))
    engine = FIRE(model=model, n_steps=3)
    batch = engine.run(Batch.from_ase(small(), dtype="float32")).to_host()
    assert (batch["magmoms"][2:4] > 0.01).all()
    sink = ZarrData(tmp_path / "refilled.zarr")
    engine.run(sampler=Sampler(small(), max_systems=1, max_atoms=2, dtype="float32"), sink=sink)
    refilled = {int(s.system_id): s for s in sink.read()}
    for row, system in enumerate(batch):
        other = refilled[row]
        for name in ("positions", "forces"):
            np.testing.assert_allclose(getattr(other, name), getattr(system, name), atol=2e-5)
        np.testing.assert_allclose(other.atom_extras["magmoms"], system.atom_extras["magmoms"], atol=1e-5)
        np.testing.assert_allclose(float(other.energy), float(system.energy), rtol=1e-6)


def test_elements_without_weights_are_refused_by_name(model):
    with pytest.raises(ValueError, match="Cm"):
        evaluate(model, Atoms("Cm", cell=[3, 3, 3], pbc=True))


@pytest.mark.long
def test_energy_is_conserved_with_the_law_of_the_time_step(model):
    atoms = bulk("NaCl", "rocksalt", a=5.6, cubic=True)
    batch = initialize_velocities(Batch.from_ase(atoms, dtype="float64"), 300.0, jax.random.key(1))
    from alchemi_jax.observables import kinetic_energy

    drift, steps = [], np.array([0.5, 1.0, 2.0, 4.0])
    for dt in steps:
        state = NVE(model=model, dt=dt).init(batch)
        engine, start, worst = NVE(model=model, dt=dt), None, 0.0
        for _ in range(16):
            state = engine.advance(state, round(4.0 / dt))
            total = float((state.batch.energy + kinetic_energy(state.batch))[0])
            start = total if start is None else start
            worst = max(worst, abs(total - start))
        drift.append(worst)
    slope = np.polyfit(np.log(steps), np.log(drift), 1)[0]
    assert abs(slope - 2) < 0.2, (slope, drift)


@pytest.mark.long
def test_vmap_hessian_and_gradients_of_weights(model):
    """Sweeps, forward mode through the energy, and training's second derivatives through the forces."""
    batch = Batch.from_ase(small()[:1], dtype="float64")
    neighbors = allocate(batch, model.requirements)
    shifts = jnp.linspace(0.0, 0.1, 3)
    moved = lambda x: batch.replace(positions=batch.positions.at[0, 0].add(x))  # noqa: E731
    forces = jax.jit(jax.vmap(lambda x: model.evaluate(moved(x), neighbors).forces))(shifts)
    one = jax.jit(lambda x: model.evaluate(moved(x), neighbors).forces)
    for f, x in zip(forces, shifts, strict=True):
        np.testing.assert_allclose(f, one(x), atol=1e-10)
    slope = jax.jit(jax.jacfwd(jax.grad(lambda x: model.energy(moved(x), neighbors)[0])))(0.0)
    np.testing.assert_allclose(-slope, (one(1e-4)[0, 0] - one(-1e-4)[0, 0]) / 2e-4, rtol=1e-5)

    def loss(m):
        return jnp.sum(m.evaluate(batch, neighbors).forces ** 2)

    gradient = eqx.filter_jit(eqx.filter_grad(loss))(model)
    bump = 1e-3
    shifted = [
        eqx.tree_at(lambda m: m.layers[0].bonds.first_bias, model, replace_fn=lambda b, s=s: b + s)
        for s in (bump, -bump)
    ]
    numeric = (float(loss(shifted[0])) - float(loss(shifted[1]))) / (2 * bump)
    np.testing.assert_allclose(float(gradient.layers[0].bonds.first_bias.sum()), numeric, rtol=1e-3)
