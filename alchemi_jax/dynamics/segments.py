"""Compiled segments: steps until the host has something to do, and the report that it then reads."""

import functools
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, PRNGKeyArray

from alchemi_jax import neighbors as nl
from alchemi_jax.dynamics.loop import should_continue, unfinished
from alchemi_jax.dynamics.protocol import Engine
from alchemi_jax.dynamics.rescue import RESCUES
from alchemi_jax.dynamics.start import initial_state
from alchemi_jax.dynamics.state import DynamicsState, StepCarry
from alchemi_jax.dynamics.step import STEP, begin, run_phases, step
from alchemi_jax.partitioned import Partitioned
from alchemi_jax.systems.batch import Batch
from alchemi_jax.systems.levels import unsafe_replace
from alchemi_jax.transforms import RUNS_ONCE


#: Pair loops are 7 to 30 % faster on a CPU with AVX-512. Other backends ignore the option.
LOOP_OPTIONS = {"xla_cpu_prefer_vector_width": 512}
#: `jax.jit` for code that runs in every step.
jit_loop = functools.partial(jax.jit, compiler_options=LOOP_OPTIONS)
#: `jax.jit` for code that runs once: compiled in a third of the time, to slower code.
jit_once = functools.partial(jax.jit, compiler_options=RUNS_ONCE)
#: The types of equinox do not declare compiler options.
_filter_jit: Any = eqx.filter_jit


class Report:
    """The few numbers that the host reads after a segment.

    Attributes:
        step: number of completed steps.
        active: number of unfinished systems (see `loop.unfinished`).
        newly: number of systems that converged in the last step.
        failed: number of systems that have failed. `rescued`: number of rescues of all systems.
        overflow: whether a capacity was too small, so that the segment must be replayed.
        counts: rows in each record buffer.
    """

    def __init__(self, numbers: Int[Array, " numbers"]):
        n = np.asarray(numbers)
        self.step, self.active, self.newly, self.failed, self.rescued, self.overflow = map(int, n[:6])
        self.counts = n[6:]


def report_numbers(engine: Engine, state: DynamicsState) -> Int[Array, " numbers"]:
    """The numbers of a `Report`. Traced."""
    numbers = [
        state.step_count,
        unfinished(engine, state),
        state.newly_converged.sum(dtype=jnp.int32),
        state.batch.failed.sum(dtype=jnp.int32),
        jnp.int32(0) if state.rescue is None else state.batch.system_extras[RESCUES].sum(dtype=jnp.int32),
        jnp.asarray(False if state.neighbors is None else state.neighbors.overflow, jnp.int32),
        *(buffer.count for buffer in state.records),
    ]
    return jnp.stack(numbers)


def run_segment(
    engine: Engine, state: DynamicsState, stop: Any, stop_on_convergence: Any, min_active: Any
) -> tuple[DynamicsState, Int[Array, " numbers"]]:
    """Steps while `should_continue` is true, and the numbers of the report. Traced."""
    state = state.replace(newly_converged=jnp.zeros_like(state.newly_converged))
    state = jax.lax.while_loop(
        lambda s: should_continue(engine, s, stop, stop_on_convergence, min_active, drains=True),
        lambda s: step(engine, s),
        state,
    )
    return state, report_numbers(engine, state)


@jit_loop
def compiled_segment(
    engine: Partitioned[Engine], state: DynamicsState, stop: Any, stop_on_convergence: Any, min_active: Any
) -> tuple[DynamicsState, Int[Array, " numbers"]]:
    """`run_segment`, compiled."""
    return run_segment(engine.combine(), state, stop, stop_on_convergence, min_active)


@jit_once
def compiled_initial_state(engine: Partitioned[Engine], batch: Batch, key: PRNGKeyArray) -> DynamicsState:
    """`initial_state` without a neighbor list, compiled."""
    return initial_state(engine.combine(), batch, None, key)


@jit_once
def compiled_report(engine: Partitioned[Engine], state: DynamicsState) -> Int[Array, " numbers"]:
    """`report_numbers`, compiled."""
    return report_numbers(engine.combine(), state)


@jit_loop
def compiled_entry(engine: Partitioned[Engine], state: DynamicsState) -> DynamicsState:
    """The state after systems have entered the parts of a pipeline to which they moved."""
    return begin(engine.combine(), state).state


@functools.partial(_filter_jit, compiler_options=LOOP_OPTIONS)
def compiled_phases(
    engine: Engine, at: DynamicsState | StepCarry, first: int, last: int
) -> tuple[StepCarry, Int[Array, " numbers"]]:
    """Phases first .. last-1 of a step, from a state (first = 0) or the carry of the phase before."""
    carry = begin(engine, at) if isinstance(at, DynamicsState) else at
    carry = run_phases(engine, carry, STEP[first:last])
    return carry, report_numbers(engine, carry.state)


def evaluate_fresh(
    engine: Partitioned[Engine], state: DynamicsState, has_records: bool = False
) -> tuple[DynamicsState, Report]:
    """The state after fresh systems were evaluated, with capacities that suffice, and its report.

    No step is taken. The compiled program is that of the loop.
    """
    while True:
        after, numbers = compiled_segment(engine, state, np.int32(-1), np.bool_(False), np.int32(0))
        report = Report(numbers)
        if not report.overflow:
            return after, report
        assert state.neighbors is not None
        assert after.neighbors is not None
        state = unsafe_replace(
            state, neighbors=nl.enlarge(state.neighbors, np.asarray(after.neighbors.needs))
        )


__all__ = [
    "LOOP_OPTIONS",
    "Report",
    "compiled_entry",
    "compiled_initial_state",
    "compiled_phases",
    "compiled_report",
    "compiled_segment",
    "evaluate_fresh",
    "jit_loop",
    "jit_once",
    "report_numbers",
    "run_segment",
]
