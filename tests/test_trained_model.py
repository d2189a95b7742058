"""Models in folders, `trained:FOLDER`: they come back bit for bit, or one sentence says why not.

Hardly anything is compiled: models that are equal in structure and bits have the same results.
"""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import ase.io
import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ase import Atoms
from flax import nnx
from potential_cases import CASES
from transform_cases import MODELS

from alchemi_jax import models
from alchemi_jax.cli.main import main
from alchemi_jax.cli.models import model_from
from alchemi_jax.models import (
    AbstractGraphModel,
    CHGNet,
    CommitteeModel,
    FlaxModel,
    GraphFunctionModel,
    HarmonicModel,
    InvariantNetwork,
    LennardJones,
    evaluate,
    split_nnx,
)
from alchemi_jax.models.trained import load, load_about, save


class Dense(nn.Module):
    """With fields of many kinds."""

    width: int
    act: Any = nn.silu
    dtype: Any = jnp.float32
    scales: tuple[float, ...] = (0.5, 2.0)

    @nn.compact
    def __call__(self, batch, neighbors):
        x = self.act(nn.Dense(self.width, dtype=self.dtype)(batch.positions * self.scales[0]))
        return jnp.zeros_like(batch.energy) + nn.Dense(1)(x).sum()


class Equinox(AbstractGraphModel):
    """A user's own, with modules of equinox."""

    mlp: eqx.nn.MLP
    norm: eqx.nn.LayerNorm
    names: dict[str, int] = eqx.field(static=True, default_factory=dict)
    cutoff: float = 4.0

    def node_energies(self, graph):
        return jax.vmap(self.mlp)(graph.node_features)[:, 0]


class Net(nnx.Module):
    def __init__(self, rngs):
        self.line = nnx.Linear(1, 1, rngs=rngs)

    def __call__(self, graph):
        return self.line(graph.numbers[:, None] * 1.0)[:, 0]


def make_nnx():
    return GraphFunctionModel(*split_nnx(Net(nnx.Rngs(0))), cutoff=4.0)


def make_flax():
    variables = {"params": {"Dense_0": {"kernel": jnp.ones((3, 2), jnp.bfloat16), "bias": np.zeros(2)}}}
    return FlaxModel(Dense(2), variables, cutoff=4.0)


def make_equinox():
    key = jax.random.key(0)
    mlp = eqx.nn.MLP(3, 1, 4, 2, activation=jax.nn.relu, key=key)
    return Equinox(mlp, eqx.nn.LayerNorm(4), {"Cu": 3})


def make_chgnet():
    try:
        return CHGNet.load()
    except OSError as e:
        pytest.skip(f"no weights: {e}")


MADE = {
    **{name: (lambda model=model: model) for name, model in MODELS.items()},
    **{name: (lambda make=make: make().model) for name, make in CASES.items() if name != "ASEModel"},
    "flax with fields": make_flax,
    "equinox": make_equinox,
    "CHGNet": make_chgnet,
    "float32": lambda: InvariantNetwork(["Cu"], key=jax.random.key(1), scale=jnp.float32(2.0)),
}


def check_same(a, b):
    """Equal in structure, static parts included, and in every bit."""
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert type(x) is type(y)
        if eqx.is_array(x):
            assert (x.dtype, x.shape) == (y.dtype, y.shape)
            assert getattr(x, "weak_type", 0) == getattr(y, "weak_type", 0)
            assert np.asarray(x).tobytes() == np.asarray(y).tobytes()
        else:
            assert x == y


@pytest.mark.parametrize("name", list(MADE))
def test_a_model_comes_back_bit_for_bit(name, tmp_path):
    model = MADE[name]()
    save(tmp_path / "deep" / "model", model)
    check_same(model, models.load(f"trained:{tmp_path / 'deep' / 'model'}"))


def test_commands_read_it(tmp_path, monkeypatch, capsys):
    """By a name with a space, a colon and a comma; unknown elements are said before a run begins."""
    monkeypatch.chdir(tmp_path)
    network = InvariantNetwork(["Ar"], key=jax.random.key(0), cutoff=5.0, gaussians=4, hidden=(3,))
    name = "trained:net work: 1,2"
    models.save("net work: 1,2", network, {"forces": 0.5})
    assert load_about("net work: 1,2") == {"forces": 0.5}
    check_same(model_from(name), network)
    ase.io.write("kr.extxyz", Atoms("Kr2", [[0, 0, 0], [0, 0, 3.0]]))
    for command in (["relax"], ["md", "--temperature", "30", "--steps", "1"]):
        assert main([*command, "kr.extxyz", "--model", name, "--out", "out"]) == 2
        assert "InvariantNetwork has no parameters for Kr" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    assert main(["models"]) == 0
    assert "trained:FOLDER" in capsys.readouterr().out


@pytest.mark.cheap_xla
@pytest.mark.parametrize("wide", [True, False])
def test_written_in_one_precision_and_read_in_another(wide, tmp_path):
    """Without 64 bits arrays are float32; with them a model of float32 keeps its own.

    Results have the precision of the batch.
    """
    dimer = Atoms("Ar2", [[0, 0, 0], [0, 0, 3.0]])
    made = {"elements": ["Ar"], "cutoff": 5.0, "gaussians": 4, "hidden": (3,), "energies": [0.5]}
    with jax.enable_x64(wide):
        model = InvariantNetwork(key=jax.random.key(0), **made)
        save(tmp_path / "m", model)
        expected = evaluate(model, dimer)
    with jax.enable_x64(not wide):
        found = evaluate(load(tmp_path / "m"), dimer)
        assert load(tmp_path / "m").mean.dtype == jnp.float32
    assert found.energy.dtype == (np.float32 if wide else np.float64)
    for name in ("energy", "forces"):
        a, b = (np.asarray(getattr(r, name)) for r in (expected, found))
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_a_model_with_foreign_parts_is_kept_by_the_name_of_its_base(tmp_path):
    net = make_nnx()
    with pytest.raises(TypeError, match=r"GraphFunctionModel\.function.*cannot be "):
        save(tmp_path / "m", net)
    trained = jax.tree.map(lambda x: x + 1, net)
    save(tmp_path / "m", trained, base="test_trained_model:make_nnx")
    check_same(load(tmp_path / "m"), trained)
    with pytest.raises(ValueError, match="differs from lj, its base, by more than the values of its arrays"):
        save(tmp_path / "n", net, base="lj")


def local(params, graph):
    return graph.numbers * params


CANNOT = {
    "a lambda": (
        lambda: GraphFunctionModel(lambda p, g: g.numbers * p, 1.0, cutoff=4.0),
        r"GraphFunctionModel\.function is <function .*, which cannot be imported by a name",
    ),
    "a calculator": (
        lambda: CASES["ASEModel"]().model,
        r"ASEModel\.calculator is a _Calculator, which cannot be kept in a folder",
    ),
    "a key": (
        lambda: GraphFunctionModel(local, jax.random.key(0), cutoff=4.0),
        r"GraphFunctionModel\.params is key.*, which cannot be kept",
    ),
}


@pytest.mark.parametrize("name", list(CANNOT))
def test_what_cannot_be_kept_is_named(name, tmp_path):
    make, message = CANNOT[name]
    with pytest.raises(TypeError, match=message) as caught:
        save(tmp_path / "m", make())
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_a_folder_of_something_else_is_left_alone(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "precious.txt").write_text("mine")
    (tmp_path / "file").write_text("mine")
    (tmp_path / "empty").mkdir()
    for name in ("data", "file"):
        with pytest.raises(ValueError, match="is there and has no model in it: give another folder"):
            save(tmp_path / name, HarmonicModel())
    with pytest.raises(ValueError, match="save keeps a model, not the number 3"):
        save(tmp_path / "m", 3)
    with pytest.raises(TypeError, match="about must be what JSON can hold"):
        save(tmp_path / "m", HarmonicModel(), {"data": np.zeros(3)})
    assert (tmp_path / "data" / "precious.txt").read_text() == "mine"
    for k in (1.0, 2.0):
        save(tmp_path / "empty", HarmonicModel(k=k))
    assert float(load(tmp_path / "empty").k) == 2.0
    assert sorted(p.name for p in (tmp_path / "empty").iterdir()) == ["arrays.npz", "model.json"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["data", "empty", "file"]


def loaded(path, good):
    """What is said about a folder; "the same" if the model of it is."""
    try:
        model = load(path)
    except ValueError as e:
        return str(e)
    check_same(model, good)
    return "the same"


def test_a_damaged_folder_is_one_sentence(tmp_path):
    """Cut anywhere, changed in any byte, of two halves, of another version: never another model."""
    good, path = HarmonicModel(k=2.0, center=(1.0, 2.0, 3.0)), tmp_path / "m"
    save(path, good, {"forces": 1.0})
    save(tmp_path / "other", HarmonicModel(k=3.0))
    rng = np.random.default_rng(0)
    found = set()
    for file in ("model.json", "arrays.npz"):
        whole = (path / file).read_bytes()
        cuts = [whole[:n] for n in (*rng.integers(0, len(whole), 10), 0, len(whole) - 1)]
        flips = []
        for n in rng.integers(0, len(whole), 60):
            flips.append(whole[:n] + bytes([whole[n] ^ 1 << int(rng.integers(8))]) + whole[n + 1 :])
        for damaged in (*cuts, *flips, (tmp_path / "other" / file).read_bytes(), None):
            if damaged is None:
                (path / file).unlink()
            else:
                (path / file).write_bytes(damaged)
            found.add(loaded(path, good).replace(str(path), "PATH")[:15])
            (path / file).write_bytes(whole)
    assert found >= {"PATH is damaged", "PATH holds no m"}
    text = json.loads((path / "model.json").read_text())
    (path / "model.json").write_text(json.dumps({**text, "format": 99, "version": "9.0"}))
    with pytest.raises(ValueError, match=r"was written by alchemi_jax 9\.0, in a form that .* does not read"):
        load(path)
    for name, sentence in (("", "holds no model that was trained"), ("nowhere", "does not exist")):
        with pytest.raises(ValueError, match=sentence):
            models.load(f"trained:{tmp_path / name}")
    save(tmp_path / "training" / "model", HarmonicModel(k=2.0))
    with pytest.raises(ValueError, match=r"no model\.json in it; .*training.model holds one\.$"):
        models.load(f"trained:{tmp_path / 'training'}")


class Old(HarmonicModel):
    more: Any = 1.0


def test_a_class_that_has_changed_since(tmp_path, monkeypatch):
    save(tmp_path / "m", Old(k=2.0))
    new: Any = type("Old", (HarmonicModel,), {"__module__": __name__})
    monkeypatch.setitem(globals(), "Old", new)
    with pytest.raises(ValueError, match=r"had a field 'more', which it has no longer: read it with the ver"):
        load(tmp_path / "m")
    monkeypatch.delitem(globals(), "Old")
    with pytest.raises(
        ImportError, match=r"needs Old of the module test_trained_model, which has no Old now"
    ):
        load(tmp_path / "m")
    # As if the module had been moved, or could not be imported for a reason of its own.
    monkeypatch.delitem(sys.modules, __name__)
    for path, message in (([], "install it, or run in"), ([str(tmp_path)], "No module named 'lost'")):
        (tmp_path / f"{__name__}.py").write_text("import lost")
        monkeypatch.setattr(sys, "path", path)
        with pytest.raises(ImportError, match=f"test_trained_model, which cannot be imported: {message}"):
            load(tmp_path / "m")


def test_a_kill_while_it_is_replaced_leaves_one_of_both(tmp_path):
    """As if it had come between the two renames; a name on the command line finds it, too."""
    path = tmp_path / "m"
    save(path, HarmonicModel(k=1.0))
    shutil.copytree(path, tmp_path / ".m.alchemi_jax-new")
    (tmp_path / ".m.alchemi_jax-replace").write_text(json.dumps({"do": "put the new folder in its place"}))
    path.rename(tmp_path / ".m.alchemi_jax-old")
    assert float(models.load(f"trained:{path}").k) == 1.0
    assert [p.name for p in tmp_path.iterdir()] == ["m"]


def test_a_committee_of_trained_models(tmp_path):
    """Models that were read are of one structure."""
    for k in range(2):
        save(tmp_path / str(k), InvariantNetwork(["Cu"], key=jax.random.key(k)))
    committee = CommitteeModel.of([load(tmp_path / str(k)) for k in range(2)])
    save(tmp_path / "both", committee)
    check_same(load(tmp_path / "both"), committee)
    both = load(tmp_path / "0") + LennardJones(epsilon=0.01, sigma=3.0)
    save(tmp_path / "sum", both)
    check_same(models.load([f"trained:{tmp_path / '0'}", "lj:epsilon=0.01,sigma=3.0"]), both)
    assert Path(tmp_path / "sum" / "model.json").exists()
