"""The package as a whole: layers, checkpoints, flax models, canaries, and clean code."""

import ast
import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import cluster, crystal

import alchemi_jax
from alchemi_jax import Batch
from alchemi_jax.cli import canaries
from alchemi_jax.dynamics import FIRE, ConvergenceHook, NVTLangevin, checkpoint
from alchemi_jax.models import FlaxModel
from alchemi_jax.neighbors import pair_vectors
from alchemi_jax.systems.segments import sum_by_system


ROOT = Path(alchemi_jax.__file__).parent

#: Lowest first. A file may import from its own layer and from those below.
LAYERS = [
    [
        "units",
        "transforms",
        "_version",
        "_lazy",
        "samples",
        "html",
        "errors",
        "folders",
        "launch",
        "messages",
        "shared",
        "distributed",
    ],
    ["spelling", "partitioned", "products"],
    ["parameters"],
    ["systems"],
    ["atoms", "levels", "segments", "observables", "analysis"],
    ["hooks", "neighbors", "io"],
    ["models"],
    ["dynamics.stage", "dynamics.updates"],
    ["dynamics.hooks"],
    ["dynamics"],
    ["training"],
    ["cli"],
]
#: Named by the design: these do not know one another.
STRANGERS = [("models", "hooks"), ("hooks", "models"), ("hooks", "dynamics"), ("io", "hooks")]


def layer(module):
    """The longest entry of LAYERS that the module lies in."""
    found = [(len(name), n) for n, row in enumerate(LAYERS) for name in row if _inside(module, name)]
    return max(found)[1]


def _inside(module, name):
    return module == name or module.startswith(name + ".")


def imports(path):
    """Modules of ours that a file imports, those for the type checker alone left out."""
    tree = ast.parse(path.read_text())
    skipped = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if id(node) in skipped:
            continue
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            below = [f"{node.module}.{alias.name}" for alias in node.names]
            names = [b if _exists(b) else node.module for b in below]
        else:
            continue
        yield from (name.removeprefix("alchemi_jax.") for name in names if name.startswith("alchemi_jax."))


def _exists(module):
    path = ROOT.parent / module.replace(".", "/")
    return path.with_suffix(".py").exists() or (path / "__init__.py").exists()


def test_imports_point_down_only():
    for path in ROOT.rglob("*.py"):
        module = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        if module == "__init__":
            continue
        for other in imports(path):
            assert layer(other) <= layer(module), f"{module} imports {other}, which is above it"
            for a, b in STRANGERS:
                assert not (_inside(module, a) and _inside(other, b)), f"{module} imports {other}"


def _modules():
    """Name -> path of every file of the package."""
    found = {".".join(p.relative_to(ROOT.parent).with_suffix("").parts): p for p in ROOT.rglob("*.py")}
    return {name.removesuffix(".__init__"): path for name, path in found.items()}


def _all_imports(tree):
    """Module and name of every import of ours, those in functions and for the type checker included."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("alchemi_jax"):
            for alias in node.names:
                yield node.module, alias.name


def test_nothing_imports_in_a_circle_and_no_private_name_is_taken():
    """Counting imports in functions and those for the type checker, so that none is hidden. An index, whose
    names load on use, is no node: its files are."""
    modules = _modules()
    graph = {}
    for name, path in modules.items():
        found = set()
        for module, taken in _all_imports(ast.parse(path.read_text())):
            assert not taken.startswith("_") or taken.startswith("__") or module == "alchemi_jax", (
                f"{name} takes the private {taken} of {module}"
            )
            inner = f"{module}.{taken}"
            found.add(inner if inner in modules else module)
        if path.name != "__init__.py" and name != "alchemi_jax.dynamics.sinks":
            graph[name] = found - {name}
    done, open_ = set(), []

    def visit(name):
        if name in open_:
            pytest.fail(f"a circle of imports: {' -> '.join([*open_[open_.index(name) :], name])}")
        if name in done or name not in graph:
            return
        open_.append(name)
        for other in sorted(graph[name]):
            visit(other)
        done.add(open_.pop())

    for name in graph:
        visit(name)


def test_a_file_is_one_subject():
    """Four hundred lines at most, and the step fits a screen."""
    for name, path in _modules().items():
        assert len(path.read_text().splitlines()) <= 400, name
    tree = ast.parse((ROOT / "dynamics" / "step.py").read_text())
    order = next(
        n for n in tree.body if isinstance(n, ast.AnnAssign) and getattr(n.target, "id", "") == "STEP"
    )
    assert order.end_lineno - order.lineno <= 24


def test_products_are_in_full_precision():
    """On a GPU `@` and `jnp.einsum` multiply float32 in TF32: a cell would be moved by a thousandth."""
    found = []
    for path in ROOT.rglob("*.py"):
        text = path.read_text()
        if path.name in ("products.py", "viewer.py", "canaries.py", "sizes.py"):
            # Itself, and NumPy on the host.
            continue
        for node in ast.walk(ast.parse(text)):
            product = isinstance(node, ast.BinOp) and isinstance(node.op, ast.MatMult)
            names = ("einsum", "matmul", "dot", "vdot", "tensordot", "inner")
            if isinstance(node, ast.Attribute) and node.attr in names:
                product = isinstance(node.value, ast.Name) and node.value.id in ("jnp", "lax")
            if product and "jax" in text:
                found.append(f"{path.name}:{node.lineno}")
    assert not found, f"products in the precision of the device's default: {found}"


def test_importing_switches_nothing_on():
    text = "import alchemi_jax, jax; assert not jax.config.read('jax_enable_x64')"
    subprocess.run([sys.executable, "-W", "error::UserWarning", "-c", text], check=True)


def test_modules_say_what_is_public():
    """So that names of other packages do not come along."""
    for name, path in _modules().items():
        package = name.split(".")[1] if "." in name else name
        if path.name.startswith("_") or package in ("cli", "io"):
            continue
        tree = ast.parse(path.read_text())
        targets = [t for node in ast.walk(tree) if isinstance(node, ast.Assign) for t in node.targets]
        assigned = [n.id for t in targets for n in ast.walk(t) if isinstance(n, ast.Name)]
        assert "__all__" in assigned, name
    for page in [ROOT.parent / "README.md", *(ROOT.parent / "docs").rglob("*.md")]:
        if page.exists():
            assert "import *" not in page.read_text(), page


@pytest.mark.cheap_xla
def test_checkpoint_goes_on_bit_for_bit(lj, tmp_path):
    """Save after k steps, load into a fresh state, and run the rest: noise goes on, too."""
    atoms = crystal(0)
    atoms.set_velocities(np.random.default_rng(0).normal(0, 0.02, (32, 3)))
    batch = Batch.from_ase([atoms, cluster(0)])
    engine = NVTLangevin(model=lj, dt=4.0, temperature=30.0)
    begun = engine.advance(engine.init(batch, key=jax.random.key(3)), 30)
    checkpoint.save(tmp_path / "at30", begun)
    again = checkpoint.load(tmp_path / "at30", engine.init(batch))
    assert [m.name for m in again.batch.meta] == [m.name for m in batch.meta]
    whole, parts = engine.advance(begun, 30), engine.advance(again, 30)
    assert int(parts.step_count) == 60
    for a, b in zip(jax.tree.leaves(whole), jax.tree.leaves(parts), strict=True):
        if not jnp.issubdtype(a.dtype, jax.dtypes.prng_key):
            np.testing.assert_array_equal(a, b)
    with pytest.raises(FileExistsError, match="at30 exists"):
        checkpoint.save(tmp_path / "at30", begun)
    checkpoint.save(tmp_path / "at30", whole, overwrite=True)
    assert int(checkpoint.load(tmp_path / "at30", begun).step_count) == 60
    with pytest.raises(ValueError, match="another batch"):
        checkpoint.load(tmp_path / "at30", engine.init(Batch.from_ase(cluster(0))))
    with pytest.raises(FileNotFoundError, match="no checkpoint at"):
        checkpoint.load(tmp_path / "nowhere", begun)


class Net(nn.Module):
    """A small potential: a function of the distance, learned."""

    @nn.compact
    def __call__(self, batch, neighbors):
        x, y, z, near = pair_vectors(batch, neighbors)
        squared = jnp.where(near, x * x + y * y + z * z, 1.0)
        r = jnp.sqrt(squared)[..., None]
        features = jnp.exp(-((r - jnp.linspace(2, 6, 8).reshape(1, 1, 8)) ** 2))
        pair = nn.Dense(1, param_dtype=r.dtype)(nn.tanh(nn.Dense(8, param_dtype=r.dtype)(features)))[..., 0]
        envelope = jnp.where(near, (1 - squared / 36.0) ** 2, 0.0)
        return sum_by_system(batch, (pair * envelope).sum(axis=0))


def test_a_flax_module_is_a_model(lj):
    batch = Batch.from_ase([cluster(0, 5), crystal(0, 1)])
    neighbors = alchemi_jax.neighbors.allocate(batch, lj.requirements)
    with jax.numpy_rank_promotion("allow"):
        variables = jax.jit(Net().init)(jax.random.key(0), batch, neighbors)
        model = FlaxModel(module=Net(), variables=variables, cutoff=6.0)
        hooks = [ConvergenceHook.from_fmax(0.02)]
        engine = FIRE(model=model, n_steps=200, hooks=hooks)
        state = engine.init(batch)
        out = engine.run(batch).take()
        assert (out.energy < state.batch.take().energy).all()
        h, atom = 1e-5, jnp.zeros_like(batch.positions).at[2, 1].set(1.0)

        @jax.jit
        def energy(x):
            return model.energy(batch.replace(positions=x, meta=None), state.neighbors)[0]

        slope = (energy(batch.positions + h * atom) - energy(batch.positions - h * atom)) / (2 * h)
        np.testing.assert_allclose(state.batch.forces[2, 1], -slope, rtol=1e-6)


@pytest.mark.parametrize("canary", canaries.CANARIES[:2], ids=lambda c: c.__name__)
def test_this_jax_has_no_known_fault(canary):
    assert canary() is None


@pytest.mark.parametrize(
    "command",
    [["ruff", "check", "."], ["ruff", "format", "--check", "."], ["pyright", "--pythonpath", sys.executable]],
    ids=["ruff check", "ruff format", "pyright"],
)
def test_the_code_is_clean(command):
    """The same commands that a developer runs."""
    if not (ROOT.parent / "pyproject.toml").exists():
        pytest.skip("installed without its repository")
    found = shutil.which(command[0], path=str(Path(sys.executable).parent)) or shutil.which(command[0])
    if found is None:
        assert importlib.util.find_spec(command[0]) is None
        pytest.skip(f"{command[0]} is not installed")
    done = subprocess.run([found, *command[1:]], cwd=ROOT.parent, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
