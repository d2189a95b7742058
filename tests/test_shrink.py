"""Shrinking: finished systems leave the compute, and nobody's path knows of it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ase import Atoms
from conftest import EPSILON, SIGMA, cluster, crystal
from counting import Counting

from alchemi_jax import Batch
from alchemi_jax.dynamics import FIRE, ConvergenceHook, DynamicsStage, NVTLangevin, Sampler
from alchemi_jax.dynamics.checkpoints import Checkpoints
from alchemi_jax.dynamics.driver import Interrupted
from alchemi_jax.dynamics.hooks import (
    CallbackHook,
    CheckpointHook,
    ConvergedSnapshotHook,
    LoggingHook,
    ObservableHook,
    SnapshotHook,
)
from alchemi_jax.dynamics.rows import Capacities
from alchemi_jax.dynamics.shrink import shrink_room
from alchemi_jax.dynamics.sinks import HostMemory
from alchemi_jax.hooks import TracedHook
from alchemi_jax.models import HarmonicModel, LennardJones
from alchemi_jax.systems.levels import level_fields


pytestmark = pytest.mark.cheap_xla

MODEL = LennardJones(epsilon=EPSILON, sigma=SIGMA, cutoff=50.0)
#: Three kinds of clusters, seed and atoms, that take 21, 46 and 64 steps: each batch shrinks twice.
KINDS = ((17, 3), (0, 5), (14, 10))
ORDER = (0, 1, 0, 2, 0, 0, 1, 0, 1, 2, 0, 0, 1, 0, 2, 1, 0, 1, 0)


class PullAtoms(TracedHook):
    """Forces on some rows of atoms."""

    forces: jax.Array
    stage: DynamicsStage = DynamicsStage.AFTER_COMPUTE
    frequency: int = 1

    def __call__(self, ctx, stage):
        return ctx


@pytest.fixture(scope="module")
def batch():
    return Batch.from_ase([cluster(*KINDS[k]) for k in ORDER], atom_capacity=160, system_capacity=20)


def relax(*hooks, **more):
    return FIRE(
        model=MODEL, n_steps=300, hooks=[ConvergenceHook.from_fmax(0.003), Counting(), *hooks], **more
    )


@pytest.fixture(scope="module")
def wanted(batch):
    return relax().run(batch)


def same(found, wanted):
    """In every field: what is counted exactly, floats to rounding."""
    assert (found.system_capacity, found.atom_capacity) == (wanted.system_capacity, wanted.atom_capacity)
    for name, _ in level_fields(found):
        pairs = zip(
            jax.tree.leaves(getattr(found, name)), jax.tree.leaves(getattr(wanted, name)), strict=True
        )
        for a, b in pairs:
            if np.asarray(a).dtype.kind == "f":
                np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-11, err_msg=name)
            else:
                np.testing.assert_array_equal(a, b, err_msg=name)


def test_a_run_that_shrinks_is_the_same_run(batch, wanted):
    """Memory of hooks and state of the algorithm move along: forces depend on the one, FIRE on the other."""
    steps = np.asarray(wanted.steps_taken)[: len(ORDER)]
    assert len(set(steps.tolist())) == 3
    found = relax().run(batch, shrink=True)
    same(found, wanted)
    assert [m.name for m in found.meta] == [m.name for m in batch.meta]


def test_the_state_goes_on(batch, wanted):
    """All systems stand in their rows, with memories and the algorithm's state: the run goes on."""
    engine = relax()
    k = int(np.sort(np.asarray(wanted.steps_taken)[: len(ORDER)])[-4])
    state = engine.advance(engine.init(batch), k, shrink=True)
    assert int(state.step_count) == k
    assert state.memory[1].value.shape == (20,)
    np.testing.assert_array_equal(state.memory[1].value, state.batch.steps_taken)
    np.testing.assert_array_equal(state.moved, np.asarray(state.batch.steps_taken) == k)
    same(engine.advance(state, 300).batch, wanted.replace(stress=state.batch.stress))
    again = engine.advance(state, 300, shrink=True)
    same(again.batch, wanted.replace(stress=state.batch.stress))
    np.testing.assert_array_equal(again.memory[1].value, wanted.steps_taken)


def test_crystals_with_lists_and_stress_through_a_pipeline():
    """Images shrink with the systems; the stress of those that left is theirs; noise is their own."""
    model = LennardJones(epsilon=EPSILON, sigma=SIGMA, cutoff=6.0)
    batch = Batch.from_ase([crystal(i, 1 + (i == 0), 0.02 + 0.05 * (i % 3), 5.3) for i in range(9)])
    engine = FIRE(model=model, n_steps=80, hooks=[ConvergenceHook.from_fmax(0.01)]) + NVTLangevin(
        model=model, dt=2.0, temperature=20.0, friction=0.02, n_steps=11
    )
    wanted = engine.run(batch, key=jax.random.key(3))
    assert len(set(np.asarray(wanted.steps_taken)[:9].tolist())) > 2
    same(engine.run(batch, key=jax.random.key(3), shrink=True), wanted)


def test_at_the_end_of_a_stream(batch, wanted):
    whole = Sampler(batch, max_systems=12, refill_share=0.5)
    found = relax().run(sampler=whole)
    smaller = Sampler(batch, max_systems=12, refill_share=0.5, shrink=True)
    same(relax().run(sampler=smaller), found)
    assert smaller.traffic.steps == whole.traffic.steps
    assert smaller.traffic.occupancy > 1.1 * whole.traffic.occupancy
    np.testing.assert_array_equal(found.take().steps_taken, np.asarray(wanted.steps_taken)[: len(ORDER)])


def test_hooks_that_follow_systems_say_the_same(tmp_path):
    """A log names systems, so that its lines are the same; each system is caught when it converges."""
    # Atoms in wells of their own: the farther away, the more steps.
    atoms = [Atoms("Ar2", [[0, 0, 0], [0.02 * 4.0 ** (k % 3), 0, 0]]) for k in range(9)]
    batch = Batch.from_ase(atoms)
    lines, steps, seen = [], [], []
    for shrink in (False, True):
        sink, frames = HostMemory(), HostMemory()
        log = LoggingHook(log_path=tmp_path / f"{shrink}.csv", frequency=3)
        look = SnapshotHook(frames, frequency=7, finished=False)
        hooks = [ConvergenceHook.from_fmax(0.003), log, ConvergedSnapshotHook(sink), look]
        FIRE(model=HarmonicModel(k=1.0), n_steps=300, hooks=hooks).run(batch, shrink=shrink)
        lines.append((tmp_path / f"{shrink}.csv").read_text().splitlines())
        caught = sink.read().take()
        assert sorted(np.asarray(caught.system_id).tolist()) == list(range(9))
        steps.append(np.asarray(caught.steps_taken)[np.argsort(np.asarray(caught.system_id))])
        seen.append(np.column_stack([frames.read().system_id, frames.read().steps_taken]))
    np.testing.assert_array_equal(*steps)
    np.testing.assert_array_equal(*seen)
    assert len(set(steps[0].tolist())) == 3
    a, b = lines
    assert a[0] == b[0]
    assert [x.split(",")[:3] for x in a] == [x.split(",")[:3] for x in b]


def test_nothing_compiles_the_second_time(batch, compilations):
    engine = relax()
    engine.run(batch, shrink=True)
    with compilations() as names:
        relax().run(batch, shrink=True)
    assert not [n for n in names if "_segment" in n or "_shrink_state" in n], names


def test_interrupted_everybody_is_in_their_rows(batch, wanted):
    late = 50

    class Stop(CallbackHook):
        follows_systems = True

    def stop(ctx):
        if ctx.step_count >= late:
            raise KeyboardInterrupt

    with pytest.raises(Interrupted) as caught:
        relax(Stop(stop, frequency=late)).run(batch, shrink=True)
    state = caught.value.state
    assert state.batch.system_capacity == 20
    np.testing.assert_array_equal(state.batch.system_id, batch.system_id)
    done = np.asarray(wanted.steps_taken) < late
    np.testing.assert_array_equal(np.asarray(state.batch.converged)[done], np.asarray(wanted.converged)[done])
    same(relax().advance(state, 300).batch, wanted.replace(stress=state.batch.stress))


def test_a_run_that_had_shrunk_goes_on_without_shrink(batch, wanted, tmp_path):
    """From a checkpoint of a smaller batch: all systems are in their rows again."""

    class Stop(CallbackHook):
        follows_systems = True

    def stop(ctx):
        if ctx.step_count:
            raise RuntimeError("bang")

    hooks = CheckpointHook(tmp_path / "c", frequency=48), Stop(stop, frequency=50)
    with pytest.raises(RuntimeError, match="bang"):
        relax(*hooks).run(batch, resume=tmp_path / "c", shrink=True)
    about = Checkpoints(tmp_path / "c").newest().about
    assert [state["batch"]["systems"] for state in about["states"]] == [20, 10, 5]
    same(relax().run(batch, resume=tmp_path / "c"), wanted)


@pytest.mark.parametrize(
    ("engine", "sentence"),
    [
        (
            lambda b: relax(ObservableHook({"e": lambda ctx: ctx.batch.energy})),
            "ObservableHook is not known",
        ),
        (lambda b: relax(CallbackHook(print)), "CallbackHook is not known to follow systems"),
        (lambda b: relax(PullAtoms(jnp.zeros_like(b.forces))), r"PullAtoms\.forces has a value for each row"),
        (
            lambda b: NVTLangevin(
                model=MODEL, dt=1.0, friction=0.01, temperature=jnp.arange(1.0, 21.0), n_steps=3
            ),
            r"NVTLangevin\.temperature has one value per system, but with shrink=True",
        ),
    ],
)
def test_what_relies_on_rows_is_refused(batch, engine, sentence):
    with pytest.raises(ValueError, match=sentence):
        engine(batch).run(batch, shrink=True)


def test_room_is_halved_as_often_as_it_fits():
    room = Capacities(64, 1000)
    assert shrink_room(room, 33, 10) is None
    assert shrink_room(room, 32, 501) is None
    assert shrink_room(room, 32, 500) == Capacities(32, 500)
    assert shrink_room(room, 3, 100) == Capacities(8, 125)
    assert shrink_room(room, 3, 100, least=16) == Capacities(16, 250)
    assert shrink_room(Capacities(64, 64), 3, 3) == Capacities(4, 4)
    assert shrink_room(Capacities(3, 4), 1, 1) == Capacities(1, 1)
