"""Sweep: one batch under many values of an engine's parameters, all at once."""

import functools
import itertools
import os
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray, Shaped

from alchemi_jax import neighbors as nl
from alchemi_jax.dynamics.check import with_budget
from alchemi_jax.dynamics.devices.devices import as_devices, as_many_as_pay
from alchemi_jax.dynamics.devices.sweep import SweepOverDevices
from alchemi_jax.dynamics.engine import AbstractDynamics
from alchemi_jax.dynamics.hooks.checkpoint import CheckpointHook
from alchemi_jax.dynamics.lanes import Group, Lanes, Observable, take_lanes, with_keys
from alchemi_jax.dynamics.out_of_memory import explain_sweep
from alchemi_jax.dynamics.parameter_paths import leaf, with_leaf
from alchemi_jax.dynamics.processes import check_one_process
from alchemi_jax.dynamics.saved_sweep import Progress, SweepSaver
from alchemi_jax.dynamics.state import DynamicsState
from alchemi_jax.errors import name_of, public_call
from alchemi_jax.models.base import with_extra_results
from alchemi_jax.parameters import natural
from alchemi_jax.systems.batch import Batch
from alchemi_jax.systems.observables import fmax, temperature


#: Fields of a batch that a sweep depends on.
_OF_SYSTEMS = (
    *("positions", "numbers", "masses", "velocities", "fixed", "fixed_components", "cell", "pbc"),
    *("charge", "spin", "system_id", "atoms_per_system", "atom_extras", "system_extras"),
)
_ENDED = ("converged", "failed", "steps_taken")
_ATOMS = 1024
"""On a CPU, the number of atoms of the combinations that run together."""


def sweep(
    engine: AbstractDynamics,
    batch: Batch,
    parameters: Mapping[str, Any] | None = None,
    *,
    n_steps: int | None = None,
    product: bool = True,
    key: PRNGKeyArray | Shaped[Array, "combinations ..."] | None = None,
    start: Callable[[Any, Batch, PRNGKeyArray], Batch] | None = None,
    observe: Mapping[str, Observable] | None = None,
    with_states: bool = False,
    together: int | None = None,
    resume: str | os.PathLike | None = None,
    devices: Any = None,
    **more: Any,
) -> Any:
    """Run a batch once for each combination of values of parameters, in one compiled program.

        temperatures, frictions = [100.0, 200.0, 300.0], [0.001, 0.01]
        table = sweep(engine, batch, temperature=temperatures, friction=frictions)
        table = sweep(engine, batch, {"model.epsilon": [0.010, 0.011]})

    It is `vmap` of `loop`, in segments, with neighbor lists that grow: if a capacity is too small in any
    combination, the segment is repeated with a larger one. Memory is that of one run times the number of
    combinations that run together.

    Args:
        engine: has all other parameters. It must have no host hooks.
        batch: the systems, the same for each combination.
        parameters, more: name -> list of values, each a number or a row with one value per system. Names may
            have dots: "model.sigma", "stages.1.temperature" of a pipeline, "hooks.0.limit".
        n_steps: number of steps; by default that of the engine.
        product: whether to run all combinations, the first name varying slowest. False: the first values of
            all lists, then the second values, ...
        key: key of the run; each combination has different noise, `fold_in(key, combination)`. Or keys
            [combinations]: equal keys give equal noise.
        start: start(engine, batch, key) -> batch, traced: the batch from which a combination starts, given
            its engine; for instance with velocities of its temperature.
        observe: name -> function of the final batch that gives [systems]; by default the energy (eV), the
            temperature (K) and fmax (eV/Å).
        with_states: whether to return the final states, too. Each leaf has a leading axis [combinations];
            rows of recording hooks are in them.
        together: number of combinations that are mapped at once; one group of them runs after another. By
            default all of them; on a CPU as many as have about a thousand atoms together, since larger
            groups do not fit into the cache.
        resume: a folder of checkpoints, as for `engine.run`: the same call continues from there, bit for bit.
            A CheckpointHook of the engine sets how often it saves. Values, keys, structures, `n_steps` and
            `together` must be the same.
        devices: "all", a number, or a list of JAX devices; the cores of a CPU are devices. Each takes the
            next group of combinations when it has finished one.

    Returns:
        A dict of numpy arrays with one row per combination and system: "combination", "system" (its row in
        the batch), each parameter, each observable, "converged", "failed", "steps_taken".
        `pandas.DataFrame` accepts it.

    Raises:
        ValueError: for an unknown parameter, with the names of all parameters; for values that the engine
            does not accept; for lists of different lengths if product is False; for host hooks, and for
            recording hooks unless `with_states` is set; for checkpoints of another sweep.
    """
    check_one_process("sweep")
    given = {**(parameters or {}), **more}
    _check_hooks(engine, with_states)
    engine = with_budget(engine, n_steps)
    values = _combinations(engine, batch, given, product)
    count = len(next(iter(values.values())))
    keys = _keys(key, count)
    observe = {"energy": _energy, "temperature": temperature, "fmax": fmax} if observe is None else observe
    # A swept parameter, such as the temperature, has a column of this name already.
    names = {name: name if name not in values else f"final_{name}" for name in observe}

    engine.model.check(batch)
    for part in engine.parts:
        part.check(batch)
    batch = jax.device_put(with_extra_results(batch, engine.model))
    # Room for rows of recording hooks needs a known number of steps.
    recording = any(group.hooks.recording for group in engine.groups)
    budget: Any = values.get("n_steps", engine.max_steps)
    budget = budget if engine.n_stages == 1 else budget + 1
    over = as_many_as_pay(
        devices, as_devices(devices, "sweep"), engine.model, count * batch.num_atoms, int(np.max(budget))
    )
    shares = 1 if over is None else len(over)
    lanes = _together(together, count, batch.atom_capacity, shares)
    impl, key_data = jax.random.key_impl(keys), np.asarray(jax.random.key_data(keys))
    runner = Lanes(
        engine.on_device(),
        batch,
        start,
        tuple(observe.items()),
        nl.unbuilt_list(batch, engine.model.requirements),
        impl,
        int(np.max(budget)) if recording else None,
    )
    asked = {
        **{name: v for name, v in values.items()},
        "the keys": key_data,
        "the kind of keys": str(impl),
        "together": lanes,
        "observe": list(names),
        "with_states": with_states,
        "n_steps": np.asarray(budget),
        "the batch": {name: getattr(batch, name) for name in _OF_SYSTEMS},
    }
    saver = SweepSaver(engine, resume, runner, asked)
    progress = _run_groups(saver, values, key_data, lanes, with_states, over)
    columns = [progress.columns[number] for number in sorted(progress.columns)]
    found = {name: np.concatenate([c[name] for c in columns]) for name in columns[0]}

    systems = int(batch.num_systems)
    table = {
        "combination": np.repeat(np.arange(count), systems),
        "system": np.tile(np.arange(systems), count),
    }
    for name, v in values.items():
        rows = v if v.ndim == 2 else np.repeat(v[:, None], systems, axis=1)
        table[name] = rows[:, :systems].reshape(-1)
    for name, column in found.items():
        table[names.get(name, name)] = column[:, :systems].reshape(-1)
    if not with_states:
        return table
    return table, _join_states(runner, [progress.states[n] for n in sorted(progress.states)])


def _run_groups(
    saver: SweepSaver,
    values: dict[str, Shaped[np.ndarray, "combinations ..."]],
    key_data: Shaped[np.ndarray, "combinations ..."],
    lanes: int,
    with_states: bool,
    devices: tuple[Any, ...] | None,
) -> Progress:
    """Run all groups that an earlier call has not finished."""
    groups = [Group(*take_lanes(n, lanes, (values, key_data))) for n in range(len(key_data) // lanes)]
    runner = saver.runner

    def finish(progress: Progress, number: int, group: Group) -> None:
        assert group.states is not None
        progress.columns[number] = _columns(group)
        if with_states:
            progress.states[number] = group.states
        progress.steps += group.step
        group.states = None

    with saver.opened(groups[0]) as progress:
        with public_call(), explain_sweep(runner.engine, runner.batch, lanes):
            if devices is not None and len(progress.columns) < len(groups):
                SweepOverDevices(saver, progress, groups, devices, finish).run()
        for number, group in enumerate(groups):
            if number in progress.columns:
                continue
            if number in progress.unfinished:
                group.states, group.columns = progress.unfinished.pop(number)
            with public_call(), explain_sweep(runner.engine, runner.batch, lanes):
                before = functools.partial(saver.before_segment, progress, number)
                runner.run(group, before)
            finish(progress, number, group)
        saver.save(progress, {}, ended=True)
    return progress


def _columns(group: Group) -> dict[str, Shaped[np.ndarray, "lanes systems"]]:
    """What the table says of a group: observables, and how each system ended."""
    assert group.states is not None
    batch = group.states.batch
    ended = {name: getattr(batch, name) for name in _ENDED}
    return jax.tree.map(np.asarray, jax.device_get(group.columns | ended))


def _join_states(runner: Lanes, parts: list[DynamicsState]) -> DynamicsState:
    """The states of all combinations, from those of the groups."""
    # Lists of groups that ran before a later one needed more room.
    parts = [runner.fit_lists(states) for states in parts]
    states = parts[0]
    if len(parts) > 1:
        # On the host, where nothing is compiled for it.
        states = jax.device_put(jax.tree.map(lambda *x: np.concatenate(x), *jax.device_get(parts)))
    return with_keys(states, runner.impl)


def _together(asked: int | None, count: int, atoms: int, shares: int) -> int:
    """Number of combinations mapped at once: a divisor of their number, so that one program suffices."""
    if asked is None:
        fits = count if jax.default_backend() != "cpu" else max(_ATOMS // max(atoms, 1), 1)
        asked = min(fits, -(-count // shares))
    most = min(natural("together")(asked), count)
    return next(n for n in range(most, 0, -1) if count % n == 0)


def _energy(batch: Batch) -> Float[Array, " systems"]:
    return batch.energy


def _check_hooks(engine: AbstractDynamics, with_states: bool) -> None:
    host = [hook for group in engine.groups for hook in (entry.hook for entry in group.hooks.host)]
    host = [name_of(hook) for hook in host if not isinstance(hook, CheckpointHook)]
    if host:
        raise ValueError(
            f"sweep: the host hooks {', '.join(host)} cannot be called for many combinations at once: "
            "take them off the engine, or read the final states (with_states=True)."
        )
    recording = [name_of(entry.hook) for group in engine.groups for entry in group.hooks.recording]
    if recording and not with_states:
        raise ValueError(
            f"sweep: the rows of {', '.join(recording)} come back in the states: ask for them with "
            "with_states=True, or take the hooks off the engine."
        )


def _combinations(
    engine: AbstractDynamics, batch: Batch, given: Mapping[str, Any], product: bool
) -> dict[str, Shaped[np.ndarray, "combinations ..."]]:
    """The values of each parameter in each combination, [combinations] or [combinations, systems]."""
    if not given:
        raise ValueError("sweep needs a parameter and its values, such as temperature=[100.0, 200.0].")
    lists = {}
    for name, asked in given.items():
        values = np.asarray(asked)
        like = leaf(engine, name)
        if values.ndim not in (1, 2) or not len(values):
            raise ValueError(
                f"sweep: {name} must be a list of values, or of rows with one value per system, "
                f"not of shape {list(values.shape)}."
            )
        if values.ndim == 2 and values.shape[1] not in (batch.num_systems, batch.system_capacity):
            raise ValueError(
                f"sweep: each row of {name} must have one value for each of {batch.num_systems} systems, "
                f"not {values.shape[1]}."
            )
        for value in values:
            # Raises the error of the engine if it does not accept the value.
            with_leaf(engine, name, value if values.ndim == 2 else value.item())
        integer = jnp.issubdtype(like.dtype, jnp.integer)
        lists[name] = values.astype(like.dtype if integer else np.result_type(like.dtype, np.float32))
    lengths = {name: len(v) for name, v in lists.items()}
    if not product and len(set(lengths.values())) > 1:
        raise ValueError(f"sweep: with product=False all lists must be of one length, not {lengths}.")
    if not product:
        return lists
    rows = np.array(list(itertools.product(*(range(n) for n in lengths.values()))))
    return {name: v[rows[:, k]] for k, (name, v) in enumerate(lists.items())}


def _keys(key: Any, count: int) -> Shaped[Array, "combinations ..."]:
    if key is None:
        key = jax.random.key(0)
    if key.ndim == 0:
        return jax.vmap(lambda i: jax.random.fold_in(key, i))(jnp.arange(count))
    if key.shape[0] != count:
        raise ValueError(f"sweep: {key.shape[0]} keys for {count} combinations.")
    return key


__all__ = ["sweep"]
