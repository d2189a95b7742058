"""Running an engine on a batch or a state, and what ends a run early."""

import contextlib
import os
import warnings
from typing import Any

from jaxtyping import PRNGKeyArray

from alchemi_jax.dynamics import driver, refill, shrink
from alchemi_jax.dynamics.check import NO_LIMIT, check_arrays, count_steps, with_budget
from alchemi_jax.dynamics.checkpoints import Checkpoint
from alchemi_jax.dynamics.devices.batch import OverDevices
from alchemi_jax.dynamics.devices.devices import as_devices, as_many_as_pay
from alchemi_jax.dynamics.driver import Run, carry_state
from alchemi_jax.dynamics.final import has_final, record_final
from alchemi_jax.dynamics.finish import finalize
from alchemi_jax.dynamics.init import prepare_batch
from alchemi_jax.dynamics.interrupt import in_notebook, interrupted
from alchemi_jax.dynamics.loop import steps_of_budget
from alchemi_jax.dynamics.out_of_memory import explain_out_of_memory
from alchemi_jax.dynamics.processes import share_batch
from alchemi_jax.dynamics.protocol import Engine
from alchemi_jax.dynamics.resume import Begun, go_on, merge_all
from alchemi_jax.dynamics.sameness import marks_of
from alchemi_jax.dynamics.sampler import Sampler
from alchemi_jax.dynamics.saver import Saver, make_saver
from alchemi_jax.dynamics.state import DynamicsState
from alchemi_jax.errors import description, name_of
from alchemi_jax.io.sinks import Sink
from alchemi_jax.parameters import as_flag, as_key
from alchemi_jax.systems.batch import Batch, as_batch
from alchemi_jax.transforms import is_traced


def run(
    engine: Engine,
    systems: Any,
    n_steps: int | None,
    key: PRNGKeyArray | None,
    sampler: Sampler | None,
    sink: Sink | None,
    shrinks: bool,
    resume: str | os.PathLike | None = None,
    devices: Any = None,
) -> Any:
    """See `AbstractDynamics.run`."""
    refuse_tracing(engine, "run", (engine, systems, n_steps, key))
    asked, devices = devices, as_devices(devices, f"{name_of(engine)}.run")
    shrinks = as_flag("shrink")(shrinks)
    if sampler is not None and not isinstance(sampler, Sampler):
        raise TypeError(
            f"{name_of(engine)}.run takes a Sampler as sampler, Sampler(structures, max_systems=...), not "
            f"{description(sampler)}."
        )
    if sampler is not None and systems is None and not shrinks:
        return refill.run(engine, sampler, sink, n_steps, key, resume, asked)
    if systems is None or sampler is not None or sink is not None:
        raise TypeError(
            f"{name_of(engine)}.run takes a batch, or a sampler and maybe a sink; shrink goes with a "
            "batch, a Sampler has its own."
        )
    engine = with_budget(engine, n_steps)
    most = steps_of_budget(engine)

    def work(engine: Engine, batch: Batch, builder: str | None) -> Batch:
        own = as_many_as_pay(asked, devices, engine.model, batch.num_atoms, most)
        return run_batch(engine, batch, key, shrinks, resume, own, builder)

    return share_batch(engine, as_batch(systems), work)


def run_batch(
    engine: Engine,
    batch: Batch,
    key: PRNGKeyArray | None,
    shrinks: bool,
    resume: str | os.PathLike | None = None,
    devices: tuple[Any, ...] | None = None,
    builder: str | None = None,
) -> Batch:
    """`run` without a sampler, in one process, of an engine with a budget."""
    most = steps_of_budget(engine)
    assert most is not None
    if shrinks:
        # Before anything is compiled.
        shrink.check(engine, batch)
    saver, state = make_saver(engine, resume), None
    if saver is not None:
        saver.marks = marks_of(batch.to_host())

    def look(found: Checkpoint) -> Begun:
        assert saver is not None
        saved = saver.restore(found, prepare_batch(engine, batch), as_key(key))
        return go_on(engine, saved, batch.meta, shrinks)

    try:
        opened = contextlib.nullcontext() if saver is None else saver.opened(resume is not None, look=look)
        with opened as begun, engine:
            if devices is not None:
                return _run_over(engine, batch, devices, int(most), key, saver, begun, shrinks)
            if begun is None:
                state, report = driver.init(engine, batch, key, builder)
                begun = Begun([state], report=report)
            state = begun.states[-1]
            left = max(int(most) - int(state.step_count), 0)
            state = _advance(engine, begun, left, shrinks, saver)
            with explain_out_of_memory(engine, lambda: batch):
                out = finalize(engine, state)
            if saver is not None and begun.interrupted:
                # Hooks may not have been called for the last step: the run goes on from its checkpoint.
                return out
            record_final(engine, state, out)
            if saver is not None and not begun.ended:
                saver.save([state], {}, ended=True)
            return out
    except BaseException as e:
        carry_state(e, state)
        raise


def _run_over(
    engine: Engine,
    batch: Batch,
    devices: tuple[Any, ...],
    most: int,
    key: PRNGKeyArray | None,
    saver: Saver | None,
    begun: Begun | None,
    shrinks: bool,
) -> Batch:
    """`run_batch` over several devices; hooks and checkpoints are open."""
    whole = None if begun is None else merge_all(begun.states, begun.stayed)
    over = OverDevices(engine, batch, devices, key, saver, whole, shrinks)
    out = over.run(max(most - (0 if whole is None else int(whole.step_count)), 0))
    assert out is not None
    if saver is not None and over.interrupted:
        # Hooks may not have been called for the last step: the run goes on from its checkpoint.
        return out
    is_saved = saver is not None and not (begun is not None and begun.ended)
    if is_saved or has_final(engine):
        state = over.state()
        record_final(engine, state, out)
        if saver is not None and is_saved:
            saver.save([state], {}, ended=True)
    return out


def advance(
    engine: Engine, state: DynamicsState, n_steps: Any, shrinks: bool = False, devices: Any = None
) -> DynamicsState:
    """See `AbstractDynamics.advance`."""
    refuse_tracing(engine, "advance", (engine, state, n_steps))
    check_arrays(engine, "advance", state)
    n_steps, saver = count_steps(engine, "advance", n_steps), make_saver(engine, None)
    asked, devices = devices, as_devices(devices, f"{name_of(engine)}.advance")
    devices = as_many_as_pay(asked, devices, engine.model, state.batch.num_atoms, n_steps)
    with contextlib.nullcontext() if saver is None else saver.opened(False, int(state.step_count)):
        if devices is None:
            return _advance(engine, Begun([state]), n_steps, shrinks, saver)
        with engine:
            if any(int(buffer.count) for buffer in state.records):
                run = Run(engine, state)
                run.drain()
                state = run.with_names()
            over = OverDevices(engine, state.batch, devices, None, saver, state, shrinks, finalizes=False)
            over.run(n_steps)
            return over.state()


def _advance(engine: Engine, begun: Begun, n_steps: int, shrinks: bool, saver: Saver | None) -> DynamicsState:
    run = Run(engine, begun.states[-1], saver, begun.report)
    walk: Any = (
        shrink.ShrinkingRun(run, begun.states[:-1], begun.stayed, begun.min_active) if shrinks else run
    )
    try:
        with engine:
            try:
                with explain_out_of_memory(engine, lambda: run.with_names().batch):
                    walk.advance(min(run.report.step + n_steps, NO_LIMIT))
            except BaseException as e:
                try:
                    run.drain()
                except Exception as second:
                    e.add_note(f"while the rows recorded so far were written: {second}")
                walk.restore()
                if not isinstance(e, KeyboardInterrupt):
                    raise
                text = f"{name_of(engine)} was interrupted after step {run.report.step}"
                if in_notebook():
                    begun.interrupted = True
                    warnings.warn(f"{text}; this is the state so far.", RuntimeWarning, stacklevel=4)
                    return run.with_names()
                raise interrupted(e, text, run.with_names()) from e
            run.drain()
            walk.restore()
    except BaseException as e:
        carry_state(e, run.with_names())
        raise
    return run.with_names()


def refuse_tracing(engine: Engine, method: str, given: Any) -> None:
    """Check that a method that calls the host is not inside a transform.

    Raises:
        ValueError: naming the methods for transforms.
    """
    if is_traced(given):
        raise ValueError(
            f"{name_of(engine)}.{method} calls the host between compiled segments, so it cannot be traced: "
            "call init and advance outside of jit, vmap and grad, and inside them use loop or rollout."
        )


__all__ = ["advance", "refuse_tracing", "run", "run_batch"]
