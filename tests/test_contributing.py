"""CONTRIBUTING.md: its examples run as they stand. Pages that list what the code has list all of it."""

import re
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from conftest import cluster

import alchemi_jax
from alchemi_jax import Batch, Outcome
from alchemi_jax.dynamics import NVE
from alchemi_jax.dynamics.footprint import Footprint
from alchemi_jax.hooks import HookFlags
from alchemi_jax.neighbors import allocate


ROOT = Path(alchemi_jax.__file__).parent.parent
PAGE = ROOT / "CONTRIBUTING.md"
TEXT = PAGE.read_text() if PAGE.exists() else ""
BLOCKS = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)

pytestmark = pytest.mark.skipif(not PAGE.exists(), reason="installed without its repository")


def run(word):
    """The names after the block that defines the class, or imports the function, of that name."""
    (block,) = (b for b in BLOCKS if re.search(rf"^(class {word}\b|from .* import {word}$)", b, re.MULTILINE))
    names = {}
    exec(block, names)
    return names


def test_an_integrator_conserves_what_it_says():
    names = run("NVTBerendsen")
    assert abs(float(names["state"].integrator.added[0])) > 0.02
    assert abs(float(names["drift_of_energy"][0])) < 2e-3


def test_a_pair_potential_is_the_formula():
    out = run("Yukawa")["results"]
    energy = 14.4 * np.exp(-1.0) / 2
    assert float(out.energy[0]) == pytest.approx(energy, rel=1e-12)
    assert float(out.forces[1, 2]) == pytest.approx(energy * (1 / 2 + 1 / 2), rel=1e-12)


def test_a_graph_model_has_forces():
    out = run("TwoLayers")["results"]
    assert float(out.energy[0]) < 0
    forces = np.asarray(out.forces)[:3]
    assert np.abs(forces).max() > 1e-3
    np.testing.assert_allclose(forces.sum(axis=0), 0, atol=1e-12)


def test_a_hook_of_each_kind():
    names = run("LowestEnergy")
    # At 1 Å the well holds half an eV; steps 0, 5 and 10 were seen.
    assert 0 < names["hook"].energy < 0.5
    names = run("StopWithoutProgress")
    assert names["stopped"]
    assert names["text"] == "StopWithoutProgress: no lower energy was found"
    assert 5 < int(names["out"].steps_taken[0]) < 500
    assert run("Energies")["steps"] == [0, 2, 4, 6, 8, 10]


@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_a_sink(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    sink = run("Database")["sink"]
    assert len(sink) == 2
    assert sink.read().num_systems == 2


def test_a_model_on_the_command_line():
    assert "r0" in run("model_from")["message"]


def test_a_workflow_samples_its_ensemble(capsys):
    names = run("MonteCarlo")
    assert names["energies"].shape == (400, 10)
    assert int(names["end"].step_count) == 400
    # 3 kT/2; 3000 correlated samples.
    assert float(capsys.readouterr().out) == pytest.approx(0.15, rel=0.2)


def test_the_map_names_what_is_there():
    """Every folder of the package is in the map, and every file that the page names exists."""
    package = ROOT / "alchemi_jax"
    for folder in (p for p in package.iterdir() if p.is_dir() and (p / "__init__.py").exists()):
        assert f"`{folder.name}/`" in TEXT, folder.name
    for name in re.findall(r"`([\w./]+\.(?:py|md))`", TEXT):
        places = (ROOT, package, package / "dynamics")
        assert any((place / name).exists() for place in places) or name == "__init__.py", name


def test_every_block_is_run():
    """A new block needs a test here."""
    assert len(BLOCKS) == 9


# -- pages that list what the code has -------------------------------------------------------------


def test_the_page_on_hooks_lists_every_flag_with_its_default():
    page = (ROOT / "docs/explanation/hooks.md").read_text()
    (section,) = re.findall(r"^## Flags\n(.*?)^## ", page, re.DOTALL | re.MULTILINE)
    rows = dict(re.findall(r"^\| `(\w+)` \| `([^`]*)` \|", section, re.MULTILINE))
    assert rows == {name: repr(getattr(HookFlags, name)) for name in HookFlags.__annotations__}


def test_the_pages_name_every_outcome_and_every_part_of_a_footprint():
    semantics = (ROOT / "docs/explanation/semantics.md").read_text()
    for outcome in Outcome:
        assert outcome.name in semantics, outcome
    performance = (ROOT / "docs/explanation/performance.md").read_text()
    for name in (*Footprint._fields, "total"):
        assert f"`{name}`" in performance, name


def test_the_guard_of_the_page_on_hooks_stops_and_says_why(lj):
    """The page's example of `ctx.stop`, and the reason in the words that the page quotes."""
    page = (ROOT / "docs/explanation/hooks.md").read_text()
    (block,) = (b for b in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if "class Guard" in b)
    names = {}
    exec(block, names)
    atoms = cluster(0, 4)
    atoms.set_velocities(np.full((4, 3), 0.2) * [[1], [-1], [1], [-1]])
    engine = NVE(model=lj, dt=1.0, n_steps=4, hooks=[names["Guard"]()])
    out = engine.run(Batch.from_ase([atoms, cluster(1, 4)]))
    assert [Outcome(int(o)) for o in out.outcome[:2]] == [Outcome.STOPPED, Outcome.OUT_OF_STEPS]
    text = engine.reason_text(out.reason[0])
    assert text == "Guard: it is too hot"
    assert f"`{text}`" in page


def test_the_graph_model_of_the_page_on_models():
    page = (ROOT / "docs/reference/models.md").read_text()
    (block,) = (b for b in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if "class Bonds" in b)
    names = {}
    exec(block, names)
    model = names["Bonds"](r0=np.array(1.9))
    batch = Batch.from_ase(Atoms("Ar2", positions=[[0, 0, 0], [2.5, 0, 0]]))
    results = model.evaluate(batch, allocate(batch, model.requirements))
    # Each bond is an edge in both directions: (1 - r/3)² (r - 1.9)², and minus its slope.
    assert float(results.energy[0]) == pytest.approx(0.01)
    assert float(results.forces[1, 0]) == pytest.approx(1 / 150)
