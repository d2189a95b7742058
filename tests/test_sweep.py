"""`sweep`: many values of parameters at once, against single runs."""

import dataclasses

import jax
import numpy as np
import pytest
from conftest import EPSILON, SIGMA, cluster, crystal

from alchemi_jax import Batch
from alchemi_jax.dynamics import FIRE, ConvergenceHook, NVTLangevin, initialize_velocities, sweep
from alchemi_jax.dynamics.driver import Interrupted
from alchemi_jax.dynamics.hooks import CallbackHook, CheckpointHook, LoggingHook, ObservableHook
from alchemi_jax.models import HarmonicModel, LennardJones
from alchemi_jax.neighbors import allocation
from alchemi_jax.systems.levels import unsafe_replace
from alchemi_jax.systems.observables import fmax, kinetic_energy


@pytest.fixture(scope="module")
def batch():
    return Batch.from_ase([cluster(0, 4), crystal(0, 1)])


def warm(engine, batch, key):
    return initialize_velocities(batch, engine.temperature, key)


def test_a_table_of_all_combinations(batch):
    """Two systems, six combinations; each row is what a run of its own gives."""
    model = LennardJones(epsilon=EPSILON, sigma=SIGMA, cutoff=6.0, skin=0.3)
    engine = NVTLangevin(model=model, dt=5.0, temperature=1.0, n_steps=15)
    key = jax.random.key(3)
    table, states = sweep(
        engine, batch, temperature=[50.0, 300.0], friction=[0.001, 0.01, 0.1], key=key,
        start=warm, observe={"energy": lambda b: b.energy, "kinetic": kinetic_energy}, with_states=True,
    )  # fmt: skip
    assert table["temperature"].tolist() == [50.0] * 6 + [300.0] * 6
    assert table["friction"].tolist() == [0.001, 0.001, 0.01, 0.01, 0.1, 0.1] * 2
    assert table["system"].tolist() == [0, 1] * 6
    assert table["combination"].tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5]
    assert (table["steps_taken"] == 15).all()
    assert int(states.neighbors.builds.max()) > int(states.neighbors.builds.min())
    for lane in (0, 5):
        rows = table["combination"] == lane
        one = dataclasses.replace(
            engine, temperature=table["temperature"][rows][0], friction=table["friction"][rows][0]
        )
        own = jax.random.fold_in(key, lane)
        alone = one.run(warm(one, batch, own), key=own)
        np.testing.assert_allclose(table["energy"][rows], alone.energy, rtol=1e-9)
        np.testing.assert_allclose(table["kinetic"][rows], kinetic_energy(alone), rtol=1e-7)


@pytest.mark.cheap_xla
def test_rows_of_each_lane_are_those_of_a_run_of_its_own(batch, tmp_path, compilations):
    """Two recording hooks of different frequency; lanes that end after different numbers of steps."""
    every, third = ObservableHook({"fmax": fmax}), ObservableHook({"E": energy_of}, frequency=3)
    engine = FIRE(
        model=HarmonicModel(k=1.0), n_steps=60, hooks=[ConvergenceHook.from_fmax(0.5), every, third]
    )
    slow = [0.5, 2.0, 5.0]
    table, states = sweep(engine, batch, dt=slow, with_states=True)
    lengths = set()
    for lane, dt in enumerate(slow):
        every.clear()
        third.clear()
        out = dataclasses.replace(engine, dt=dt).run(batch)
        mine = table["steps_taken"][table["combination"] == lane]
        assert mine.tolist() == out.take().steps_taken.tolist()
        for hook, buffer in zip((every, third), states.records, strict=True):
            count = int(buffer.count[lane])
            assert count == len(hook.table["step"]) == -(-int(mine.max()) // hook.frequency)
            lengths.add(count)
            rows = buffer.rows
            assert set(rows) == set(hook.table)
            for name, alone in hook.table.items():
                np.testing.assert_allclose(rows[name][lane, :count], alone, rtol=1e-9, err_msg=name)
    assert len(lengths) >= 4
    assert states.records[0].count.max() > states.records[0].count.min()
    # Saved every seven steps and ended each time: rows and states are the same, and nothing is compiled.
    again = lambda: sweep(saved(engine, tmp_path, 7), batch, dt=slow, with_states=True, resume=tmp_path)  # noqa: E731
    with compilations() as names:
        (found, after), calls = until_done(again)
    assert calls > 3
    assert not [name for name in names if "segment" in name]
    for name, column in table.items():
        np.testing.assert_array_equal(found[name], column, err_msg=name)
    jax.tree.map(np.testing.assert_array_equal, bare(after), bare(states))


def saved(engine, folder, frequency, asks=(1,)):
    """The engine with a CheckpointHook that ends the sweep when it is asked so many times."""
    left = list(asks)

    def stop():
        left[0] -= 1
        return left[0] < 0

    return engine.with_hooks(CheckpointHook(folder, frequency=frequency, should_stop=stop))


def until_done(run):
    """What a sweep gives that is called until it is not interrupted, and the number of calls."""
    for calls in range(1, 50):
        try:
            return run(), calls
        except Interrupted:
            pass
    raise AssertionError("it comes to no end")


def bare(states):
    """Arrays that numpy compares, without the list, which is built again."""
    lists = states.neighbors
    builds = None if lists is None else lists.builds
    plain = unsafe_replace(states, neighbors=None, key=jax.random.key_data(states.key))
    return jax.device_get((jax.tree.leaves(plain), builds))


def energy_of(ctx):
    return ctx.batch.energy


def test_pairs_of_values_and_lists_that_grow(batch, monkeypatch):
    """The first list has room for nobody: everything is run again."""

    guess = allocation.guess_sizes
    seen = []

    def small(*args, **kwargs):
        seen.append(guess(*args, **kwargs))
        return dataclasses.replace(seen[-1], neighbors=4, images=16)

    monkeypatch.setattr(allocation, "guess_sizes", small)
    model = LennardJones(epsilon=EPSILON, sigma=SIGMA, cutoff=6.0)
    engine = FIRE(model=model, n_steps=3)
    values = {"model.epsilon": [0.01, 0.011], "dt": [1.0, 2.0]}
    table = sweep(engine, batch, values, product=False)
    assert len(seen) == 1
    assert table["model.epsilon"].tolist() == [0.01, 0.01, 0.011, 0.011]
    assert table["dt"].tolist() == [1.0, 1.0, 2.0, 2.0]
    assert np.isfinite(table["energy"]).all()
    monkeypatch.undo()
    alone = dataclasses.replace(engine, model=dataclasses.replace(model, epsilon=0.011), dt=2.0).run(batch)
    np.testing.assert_allclose(table["energy"][2:], alone.energy, rtol=1e-9)


def test_a_pipeline_a_hook_and_values_per_system(batch):
    """One model for all stages; a threshold of a hook; a row of values is one per system."""
    model = HarmonicModel(k=1.0)
    stop = ConvergenceHook.from_fmax(1.0)
    engine = FIRE(model=model, n_steps=4, hooks=[stop]) + NVTLangevin(
        model=model, dt=1.0, temperature=10.0, n_steps=3
    )
    table = sweep(engine, batch, {"model.k": [1.0, 2.0]}, observe={"E": lambda b: b.energy})
    assert table["steps_taken"].tolist() == [7] * 4
    table = sweep(engine, batch, {"stages.1.temperature": [[10.0, 20.0], [30.0, 40.0]]})
    assert table["stages.1.temperature"].tolist() == [10.0, 20.0, 30.0, 40.0]
    table = sweep(engine.stages[0], batch, {"n_steps": [2, 4]})
    assert table["steps_taken"].tolist() == [2, 2, 4, 4]


@pytest.mark.cheap_xla
def test_groups_of_lanes_give_the_same_table(batch):
    """However many run together, also where lanes end at different steps and have lists that are renewed."""
    model = LennardJones(epsilon=EPSILON, sigma=SIGMA, cutoff=6.0, skin=0.3)
    engine = FIRE(model=model, dt=1.0, n_steps=40, hooks=[ConvergenceHook.from_fmax(0.03)])
    values = {"dt": [0.5, 1.0, 1.5], "model.sigma": [3.35, 3.45]}
    whole = sweep(engine, batch, values, together=6)
    assert len(set(whole["steps_taken"].tolist())) > 2
    # Five is no divisor of six: three are taken together.
    for together in (1, 5, None):
        found = sweep(engine, batch, values, together=together)
        for name, column in whole.items():
            if column.dtype.kind == "f":
                np.testing.assert_allclose(found[name], column, rtol=1e-7, atol=1e-9, err_msg=name)
            else:
                np.testing.assert_array_equal(found[name], column, err_msg=name)


@pytest.mark.cheap_xla
def test_a_sweep_that_is_ended_goes_on(batch, tmp_path):
    """In the middle of a group and between groups, with lists; ended by an error, too. Same bits."""
    model = LennardJones(epsilon=EPSILON, sigma=SIGMA, cutoff=6.0, skin=0.3)
    engine = FIRE(model=model, dt=1.0, n_steps=40, hooks=[ConvergenceHook.from_fmax(0.03)])
    values = {"dt": [0.5, 1.0, 1.5], "model.sigma": [3.35, 3.45]}
    wanted, states = sweep(engine, batch, values, together=3, with_states=True)

    def again(frequency=15, asks=1, **given):
        hooked = saved(engine, tmp_path, frequency, [asks])
        return sweep(hooked, batch, given.pop("values", values), resume=tmp_path, **asked | given)

    asked = {"together": 3, "with_states": True}
    (table, after), calls = until_done(again)
    assert calls > 2
    for name, column in wanted.items():
        np.testing.assert_array_equal(table[name], column, err_msg=name)
    jax.tree.map(np.testing.assert_array_equal, bare(after), bare(states))
    # It is complete: nothing is run, and another one is told.
    assert again(asks=0)[0].keys() == wanted.keys()
    for given, message in (
        ({"together": 2}, "they differ in together"),
        ({"values": values | {"dt": [0.5, 1.0, 1.6]}}, "they differ in dt"),
        ({"key": jax.random.key(1)}, "they differ in the keys"),
        ({"n_steps": 41}, "they differ in n_steps"),
    ):
        with pytest.raises(ValueError, match=message):
            again(**given)
    with pytest.raises(ValueError, match="the batch, positions"):
        sweep(engine, batch.replace(positions=batch.positions + 1), values, resume=tmp_path, **asked)
    with pytest.raises(ValueError, match="is of a run with a sweep"):
        engine.run(batch, resume=tmp_path)


def test_what_sweep_refuses(batch):
    engine = NVTLangevin(model=HarmonicModel(k=1.0), dt=1.0, temperature=10.0, n_steps=3)
    cases = [
        (
            {"temprature": [1.0]},
            r"NVTLangevin has no parameter 'temprature'; NVTLangevin has these: model, dt, t",
        ),
        ({"model.eps": [1.0]}, r"has no parameter 'model\.eps'; HarmonicModel has these: k, center"),
        ({"temperature": [10.0, -1.0]}, r"temperature must be zero or positive, not -1"),
        ({"model.cutoff": [1.0]}, r"the parameter 'model\.cutoff' is None: give it a value"),
        ({"temperature": 10.0}, r"temperature must be a list of values"),
        ({"temperature": [[1.0, 2.0, 3.0]]}, r"one value for each of 2 systems, not 3"),
        ({}, r"sweep needs a parameter"),
    ]
    for values, message in cases:
        with pytest.raises(ValueError, match=message):
            sweep(engine, batch, values)
    with pytest.raises(ValueError, match=r"one length, not \{'temperature': 2, 'dt': 1\}"):
        sweep(engine, batch, temperature=[1.0, 2.0], dt=[1.0], product=False)
    with pytest.raises(ValueError, match=r"3 keys for 2 combinations"):
        sweep(engine, batch, temperature=[1.0, 2.0], key=jax.random.split(jax.random.key(0), 3))
    with pytest.raises(ValueError, match=r"together must be a positive int, not 0"):
        sweep(engine, batch, temperature=[1.0, 2.0], together=0)
    with pytest.raises(ValueError, match=r"NVTLangevin has no n_steps"):
        sweep(dataclasses.replace(engine, n_steps=None), batch, temperature=[1.0])
    with pytest.raises(ValueError, match=r"sweep: the rows of LoggingHook come back in the states"):
        sweep(engine.with_hooks(LoggingHook(log_path="never.csv")), batch, temperature=[1.0])
    look = CallbackHook(lambda ctx: None)
    with pytest.raises(ValueError, match=r"sweep: the host hooks CallbackHook cannot be called for many"):
        sweep(engine.with_hooks(look), batch, temperature=[1.0])
