"""Packages are indexes: names load when they are used, and nothing slow is imported before."""

import importlib
import pickle
import re
import subprocess
import sys
from pathlib import Path

import pytest

import alchemi_jax


INDEXES = [
    "alchemi_jax",
    "alchemi_jax.dynamics",
    "alchemi_jax.dynamics.hooks",
    "alchemi_jax.dynamics.integrators",
    "alchemi_jax.dynamics.optimizers",
    "alchemi_jax.dynamics.sinks",
    "alchemi_jax.hooks",
    "alchemi_jax.io",
    "alchemi_jax.io.sinks",
    "alchemi_jax.models",
    "alchemi_jax.neighbors",
    "alchemi_jax.systems",
]
#: What takes long to import, and most programs never use.
SLOW = "matplotlib ase.io zarr numcodecs flax optax orbax tqdm plum pydantic"
CHECK = f"loaded = [name for name in '{SLOW}'.split() if name in sys.modules]\nassert not loaded, loaded\n"


def run(text):
    done = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_imports_of_the_readme_load_nothing_slow():
    page = Path(alchemi_jax.__file__).parent.parent / "README.md"
    if not page.exists():
        pytest.skip("installed without its repository")
    (block, *_) = re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL)
    lines = re.findall(r"^from alchemi_jax.*$", block, re.MULTILINE)
    assert len(lines) >= 5
    begin = "import sys, alchemi_jax\nassert 'jax' not in sys.modules and 'ase' not in sys.modules\n"
    run(begin + CHECK + "\n".join(lines) + "\n" + CHECK)


def test_every_way_to_import_a_name():
    run(
        "import alchemi_jax, sys\n"
        "hook = alchemi_jax.dynamics.hooks.LoggingHook\n"
        "import alchemi_jax.dynamics.hooks.logging\n"
        "assert alchemi_jax.dynamics.hooks.logging.LoggingHook is hook\n"
        "from alchemi_jax.dynamics.hooks import LoggingHook\n"
        "assert LoggingHook is hook\n"
        "import alchemi_jax.observables\n"
        "assert alchemi_jax.observables.fmax is alchemi_jax.systems.observables.fmax\n"
        "assert alchemi_jax.dynamics.checkpoint.save\n" + CHECK.replace("orbax ", "")
    )


@pytest.mark.parametrize("name", INDEXES)
def test_an_index_offers_what_it_lists(name):
    module = importlib.import_module(name)
    star = {}
    exec(f"from {name} import *", star)
    assert set(star) - {"__builtins__"} == set(module.__all__)
    assert set(module.__all__) <= set(dir(module))
    for public in module.__all__:
        value = getattr(module, public)
        assert star[public] is value
        # Importing a submodule sets it as an attribute, in the place of anything else of this name.
        submodule = sys.modules.get(f"{name}.{public}")
        assert submodule is None or submodule is value
        if isinstance(value, type):
            assert pickle.loads(pickle.dumps(value)) is value


@pytest.mark.parametrize("name", INDEXES)
def test_a_name_that_is_not_there(name):
    module = importlib.import_module(name)
    for wrong in ("Nothing", "_private", "no.name"):
        assert not hasattr(module, wrong)
    with pytest.raises(AttributeError, match=f"module '{name}' has no attribute 'Nothing'"):
        _ = module.Nothing
    with pytest.raises(ImportError, match=f"cannot import name 'Nothing' from '{name}'"):
        exec(f"from {name} import Nothing")
