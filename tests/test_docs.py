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
from alchemi_jax.dynamics import FIRE, DynamicsStage
from alchemi_jax.hooks import TracedHook
from alchemi_jax.models import AbstractPair, LennardJones


README = Path(alchemi_jax.__file__).parent.parent / "README.md"
BLOCKS = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL) if README.exists() else []


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
