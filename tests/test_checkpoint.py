"""Checkpoints: what another engine, model or batch is told, and what stays on disk when writing fails."""

import subprocess
import sys

import jax
import numpy as np
import pytest
from ase import Atoms

from alchemi_jax import Batch
from alchemi_jax.dynamics import NVE, NVTBussi, NVTLangevin, checkpoint
from alchemi_jax.models import HarmonicModel


MODEL = HarmonicModel(k=1.0)


def structures(symbols="Ar2", n=2):
    return Batch.from_ase([Atoms(symbols, np.eye(3)[:2]) for _ in range(n)])


def langevin(**fields):
    return NVTLangevin(**{"model": MODEL, "dt": 1.0, "temperature": 50.0, "friction": 0.1, **fields})


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A state after some steps, and its checkpoint."""
    engine = langevin()
    state = engine.advance(engine.init(structures(), key=jax.random.key(3, impl="rbg")), 4)
    path = tmp_path_factory.mktemp("run") / "c"
    checkpoint.save(path, state)
    return engine, state, path


def test_goes_on_bit_for_bit_with_the_generator_that_it_had(written):
    engine, state, path = written
    found = checkpoint.load(path, engine.init(structures()))
    assert str(jax.random.key_impl(found.key)) == "rbg"
    one, two = (engine.advance(s, 3).batch.positions for s in (state, found))
    np.testing.assert_array_equal(one, two)


@pytest.mark.parametrize(
    ("engine", "batch", "message"),
    [
        (NVE(MODEL, dt=1.0), structures(), "the engine was NVTLangevin and is NVE"),
        (langevin(model=HarmonicModel(k=2.0)), structures(), r"HarmonicModel\.k was 1\.0 and is 2\.0"),
        (langevin(), structures("ArNe"), "atom 1 was Ar and is Ne"),
        (langevin(), structures(n=3), "it has 2 systems, this one 3"),
        (
            NVTBussi(MODEL, dt=1.0, temperature=50.0),
            structures(),
            "the engine was NVTLangevin and is NVTBussi",
        ),
    ],
    ids=["engine", "model", "element", "systems", "thermostat"],
)
def test_what_differs_is_named(written, engine, batch, message):
    like = engine.init(batch)
    with pytest.raises(ValueError, match=message):
        checkpoint.load(written[2], like)


def test_a_parameter_may_differ_and_is_named(written):
    like = langevin(temperature=80.0, n_steps=5).init(structures())
    with pytest.warns(
        RuntimeWarning, match=r"another parameter: NVTLangevin\.temperature was 50\.0 and is 80\.0"
    ):
        checkpoint.load(written[2], like)


def test_masses_of_other_systems_are_named(written):
    _, state, path = written
    heavy = state.replace(batch=state.batch.replace(masses=state.batch.masses.at[1].set(50.0)))
    with pytest.raises(ValueError, match=r"masses of row 1 was 39\.9.* and is 50\.0"):
        checkpoint.load(path, heavy)


def test_what_is_there_stays(written, tmp_path):
    """Another folder is never replaced, a checkpoint only by a whole one; what is no checkpoint says so."""
    _, state, _ = written
    own = tmp_path / "mine"
    own.mkdir()
    (own / "thesis.txt").write_text("all of it")
    for overwrite in (False, True):
        with pytest.raises(FileExistsError, match="mine exists"):
            checkpoint.save(own, state, overwrite=overwrite)
    with pytest.raises(ValueError, match="mine is no checkpoint"):
        checkpoint.load(own, state)
    assert (own / "thesis.txt").read_text() == "all of it"
    copy = tmp_path / "c"
    checkpoint.save(copy, state)
    checkpoint.save(copy, state, overwrite=True)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["c", "mine"]
    assert checkpoint.load(copy, state).step_count == state.step_count
    with pytest.raises(OSError, match=r"no checkpoint was written: .*thesis\.txt"):
        checkpoint.save(own / "thesis.txt" / "c", state)


FULL = """
import resource, signal, sys
from ase import Atoms
from alchemi_jax import Batch
from alchemi_jax.dynamics import NVE, checkpoint
from alchemi_jax.models import HarmonicModel
batch = Batch.from_ase([Atoms("Ar2", [[0, 0, 0], [3, 0, 0]])] * 300)
state = NVE(HarmonicModel(), dt=1.0).init(batch)
checkpoint.save(sys.argv[1], state)
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))
for path in sys.argv[1:]:
    try:
        checkpoint.save(path, state, overwrite=True)
    except OSError as e:
        print("refused", e)
print("still", int(checkpoint.load(sys.argv[1], state).step_count))
"""


def test_the_process_ends_when_nothing_can_be_written(tmp_path):
    """A full disk (here a limit on the size of files) and a place without folders: an error, the old
    checkpoint is still there, and the process ends."""
    command = [sys.executable, "-W", "ignore", "-c", FULL, str(tmp_path / "c"), "/proc/run.ckpt"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    lines = done.stdout.splitlines()
    assert done.returncode == 0, done.stderr[-500:]
    assert [line.split()[0] for line in lines] == ["refused", "refused", "still"], lines
    assert "/proc/run.ckpt" in lines[1]
    assert [p.name for p in tmp_path.iterdir()] == ["c"]
