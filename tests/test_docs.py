"""The README's first code runs as it stands, and the others are what they claim."""

import re
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import cluster

import alchemi_jax
from alchemi_jax import Batch
from alchemi_jax.dynamics import FIRE, NVE, DynamicsStage
from alchemi_jax.hooks import RecordingHook, TracedHook
from alchemi_jax.models import AbstractPair, LennardJones


ROOT = Path(alchemi_jax.__file__).parent.parent


def code(page):
    path = ROOT / page
    return re.findall(r"```python\n(.*?)```", path.read_text(), re.DOTALL) if path.exists() else []


BLOCKS = code("README.md")


@pytest.fixture(scope="module")
def blocks():
    if not BLOCKS:
        pytest.skip("installed without its repository")
    return BLOCKS


def test_the_first_example(blocks, tmp_path):
    done = subprocess.run(
        [sys.executable, "-W", "error::UserWarning", "-c", blocks[0]],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("Batch(33 systems")
    assert "33 converged, 0 failed" in done.stdout
    assert (tmp_path / "relax.csv").exists()


def test_the_pieces(blocks):
    engine = FIRE(model=LennardJones(epsilon=0.0104, sigma=3.4), dt=1.0)
    names = {"engine": engine, "batch": Batch.from_ase(cluster(0, 4)).replace(meta=None)}
    exec(blocks[1], names)
    assert int(names["state"].step_count) == 201


def test_a_model_and_a_hook_of_ones_own(blocks):
    names = {"AbstractPair": AbstractPair, "TracedHook": TracedHook, "DynamicsStage": DynamicsStage}
    names |= {"jax": jax, "jnp": jnp}
    exec(blocks[2], names)
    exec(blocks[3], names)
    model = names["Springs"](r0=jnp.asarray(3.8))
    engine = FIRE(model=model, dt=1.0, n_steps=5, hooks=[names["ClampForces"](limit=0.1)])
    out = engine.run(Batch.from_ase(cluster(0, 4))).take()
    assert np.linalg.norm(out.forces, axis=1).max() <= 0.1 + 1e-12


def test_the_page_on_hooks(blocks, capsys):
    """Its three hooks run; the page names every hook that there is."""
    names = {"np": np, "jnp": jnp, "DynamicsStage": DynamicsStage}
    names |= {"TracedHook": TracedHook, "RecordingHook": RecordingHook}
    for block in code("docs/hooks.md"):
        exec(block, names)
    hooks = [names["PrintFmax"](), names["Kick"](speed=1e-4, frequency=3), names["Record"]()]
    engine = NVE(model=LennardJones(epsilon=0.0104, sigma=3.4), dt=1.0, hooks=hooks)
    state = engine.advance(engine.init(Batch.from_ase(cluster(0, 4))), 11)
    assert int(state.memory[0]) == 4
    printed = capsys.readouterr().out.splitlines()
    # Rows come after the steps that a host hook cut the run into.
    assert [line.split()[0] for line in printed if line.startswith("10")] == ["10", "10"]
    page = (ROOT / "docs/hooks.md").read_text()
    for name in vars(alchemi_jax.dynamics.hooks):
        assert not name.endswith("Hook") or f"`{name}" in page, name
