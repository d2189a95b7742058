"""Settings of all tests, and structures that many of them use."""

import gc
import itertools
import os
import shutil
import tempfile
import warnings
from pathlib import Path


# XLA remarks, at length, that code from the cache on disk prefers not to gather. Read when jaxlib is loaded.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import jax
import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, fcc111
from cheap_xla import cheap_xla, needs_full_xla


jax.config.update("jax_enable_x64", True)
jax.config.update("jax_numpy_rank_promotion", "raise")

EPSILON, SIGMA = 0.0104, 3.40
#: XLA cuts each program into parts for several threads. The workers keep all cores busy already, and whole
#: programs take a quarter less of a core; the instructions are the same. XLA reads it when it compiles first,
#: also in processes that tests start. It ends the process if it does not know a flag.
ONE_PART = "--xla_cpu_parallel_codegen_split_count=1"
#: Names of fixtures that are compiled with the options of users.
FULL_FIXTURES: set[str] = set()


def pytest_addoption(parser):
    parser.addoption("--compile-report", action="store_true", help="where the time of the tests goes")
    parser.addoption("--full-xla", action="store_true", help="compile all tests as users compile")


def pytest_configure(config):
    if config.getoption("--compile-report"):
        from compile_report import Report

        config.pluginmanager.register(Report())
    flags = os.environ.get("XLA_FLAGS", "")
    if jax.__version__.startswith(("0.10.", "0.11.", "0.12.")) and ONE_PART not in flags:
        os.environ["XLA_FLAGS"] = f"{flags} {ONE_PART}".strip()
    if hasattr(config, "workerinput") or os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        return
    # Nearly all the time of the tests is compiling. What a worker has compiled is found on disk by the other
    # one, and by itself after it dropped its compiled code, until the end of this run. Workers, and processes
    # that tests start, take these settings from the environment; this process has loaded jax already.
    folder = tempfile.mkdtemp(prefix="alchemi-jax-tests-")
    config.add_cleanup(lambda: shutil.rmtree(folder, ignore_errors=True))
    for name, value in (
        ("jax_compilation_cache_dir", folder),
        ("jax_persistent_cache_min_compile_time_secs", 0.3),
        ("jax_persistent_cache_min_entry_size_bytes", -1),
    ):
        os.environ[name.upper()] = str(value)
        jax.config.update(name, value)


def icosahedron() -> np.ndarray:
    """13 atoms near the minimum of Lennard-Jones argon."""
    phi = (1 + 5**0.5) / 2
    v = [(0, a, b * phi) for a in (1, -1) for b in (1, -1)]
    v += [(b, c, a) for a, b, c in v[:4]] + [(c, a, b) for a, b, c in v[:4]]
    x = np.array([(0, 0, 0), *v], float)
    return x / np.linalg.norm(x[1]) * 0.96 * 2 ** (1 / 6) * SIGMA


def cluster(seed: int = 0, n: int = 13, spread: float = 0.25) -> Atoms:
    """The first n atoms of a perturbed icosahedron."""
    rng = np.random.default_rng(seed)
    return Atoms(f"Ar{n}", positions=icosahedron()[:n] + rng.normal(0, spread, (n, 3)))


def crystal(seed: int = 0, repeat: int = 2, spread: float = 0.1, a: float = 5.26) -> Atoms:
    """A rattled fcc crystal of 4 repeat^3 atoms."""
    atoms = bulk("Ar", "fcc", a=a, cubic=True).repeat(repeat)
    atoms.positions += np.random.default_rng(seed).normal(0, spread, atoms.positions.shape)
    return atoms


def zoo() -> dict[str, Atoms]:
    """One of each kind of geometry."""
    rng = np.random.default_rng(7)
    out = {"molecule": cluster(1), "crystal": crystal(2), "one-atom cell": bulk("Ar", "fcc", a=5.3)}
    skewed = bulk("Ar", "fcc", a=5.3, cubic=True)
    skewed.set_cell(skewed.cell.array @ np.array([[1, 0, 0], [0.9, 1, 0], [0.4, 0.7, 1.0]]), True)
    skewed.positions += rng.normal(0, 0.1, (4, 3)) + 30
    out["skewed, outside the cell"] = skewed
    left = bulk("Ar", "fcc", a=5.3, cubic=True)
    left.set_cell(left.cell.array[[1, 0, 2]])
    left.pbc = (True, False, True)
    left.positions += rng.normal(0, 0.1, (4, 3))
    out["left-handed, mixed pbc"] = left
    wire = Atoms("Ar5", positions=np.arange(5)[:, None] * np.array([0.3, 0.4, 3.0]))
    wire.cell = [[0, 0, 0], [0, 0, 0], [1, 0.5, 15.5]]
    wire.pbc = (False, False, True)
    out["wire"] = wire
    slab = fcc111("Ar", (2, 2, 3), a=5.3)
    slab.pbc = (True, True, False)
    slab.positions += rng.normal(0, 0.05, (12, 3))
    out["slab"] = slab
    thin = bulk("Ar", "fcc", a=5.3, cubic=True)
    thin.set_cell(thin.cell.array @ np.diag([0.7, 1.3, 1.1]), True)
    out["thin"] = thin
    return out


def public(module) -> dict:
    """What a package offers, by name: `vars` lacks the names that nobody has used yet."""
    return {name: getattr(module, name) for name in module.__all__}


def pytest_collection_modifyitems(items):
    """Finds which fixtures of a module or of the session are compiled as users compile: what a test with
    users' options asks for. Such fixtures are made before `options_of_xla` acts."""
    for item in items:
        if needs_full_xla(item):
            FULL_FIXTURES.update(item.fixturenames)


@pytest.hookimpl(wrapper=True)
def pytest_fixture_setup(fixturedef, request):
    if fixturedef.scope == "function" or fixturedef.argname in FULL_FIXTURES:
        return (yield)
    with cheap_xla():
        return (yield)


@pytest.fixture(autouse=True)
def options_of_xla(request):
    """Tests that do not need the options of users are compiled with cheap ones; see `cheap_xla`."""
    if needs_full_xla(request.node):
        yield
    else:
        with cheap_xla():
            yield


def pytest_collection_finish():
    """Tracing makes many small objects, and the modules of JAX hold very many that stay. The garbage
    collector need not look through these again and again: a tenth less time of tracing."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(100_000, 20, 50)


_tests_run = itertools.count(1)


@pytest.fixture(autouse=True)
def room_for_compiled_code():
    """A process may map 65,530 regions of memory, and each program that XLA compiles takes some: thousands
    of them in one process end in a crash of the compiler. So compiled code is dropped in time. Counting the
    regions takes up to 50 ms, so not after each test."""
    yield
    maps = Path("/proc/self/maps")
    if next(_tests_run) % 8 == 0 and maps.exists() and len(maps.read_bytes().splitlines()) > 45_000:
        jax.clear_caches()
        gc.collect()


@pytest.fixture(scope="session")
def lj():
    from alchemi_jax.models import LennardJones

    return LennardJones(epsilon=EPSILON, sigma=SIGMA, cutoff=8.5)


@pytest.fixture(scope="session")
def clusters():
    """Eight clusters of 13 and fewer atoms, as ASE has them."""
    return [cluster(seed, n) for seed, n in enumerate((13, 13, 7, 10, 13, 2, 13, 5))]


@pytest.fixture(scope="session")
def argon():
    """Sixteen crystals of 32 atoms that move, about at equilibrium at 30 K."""
    from alchemi_jax import Batch
    from alchemi_jax.dynamics import initialize_velocities

    batch = Batch.from_ase([crystal(seed, 2, 0.15, 5.32) for seed in range(16)])
    return initialize_velocities(batch, 30.0, jax.random.key(4))


@pytest.fixture
def compilations():
    """Counts what is compiled inside `with compilations() as count`, one name a compilation."""
    import contextlib
    import logging

    @contextlib.contextmanager
    def counting():
        names: list[str] = []

        class Handler(logging.Handler):
            def emit(self, record):
                message = record.getMessage()
                if message.startswith("Compiling "):
                    names.append(message.split()[1])

        logger = logging.getLogger("jax._src.interpreters.pxla")
        handler = Handler()
        logger.addHandler(handler)
        propagate, logger.propagate = logger.propagate, False
        try:
            with jax.log_compiles(True), warnings.catch_warnings():
                yield names
        finally:
            logger.removeHandler(handler)
            logger.propagate = propagate

    return counting
