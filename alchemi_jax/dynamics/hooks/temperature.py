"""Hooks that set temperatures and pressures: the schedules, and ReplicaExchangeHook."""

from collections.abc import Callable
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Shaped, UInt32

from alchemi_jax.dynamics.stage import DynamicsStage
from alchemi_jax.dynamics.updates import by_system, filled_up
from alchemi_jax.hooks import HookContext, TracedHook
from alchemi_jax.parameters import (
    Described,
    Parameter,
    as_count,
    as_seed,
    finite,
    function,
    positive,
)
from alchemi_jax.systems.batch import Batch
from alchemi_jax.systems.levels import per_system
from alchemi_jax.systems.segments import to_atoms
from alchemi_jax.units import KB


def _target(hook: Any, batch: Batch) -> Float[Array, " systems"]:
    """The value of the hook's schedule for each system, [systems]."""
    # In the dtype of the run: an integer divided by a float would be float32.
    steps = batch.stage_steps.astype(batch.dtype)
    return by_system(batch, hook.schedule(steps))


class Ramp(Described):
    """A straight line from `start` to `end` over `n_steps` steps, then constant."""

    start: Parameter = eqx.field(converter=finite("start"))
    end: Parameter = eqx.field(converter=finite("end"))
    n_steps: Int[Array, ""] = eqx.field(converter=as_count("n_steps"))

    def __call__(self, step: Float[Array, " systems"]) -> Float[Array, " systems"]:
        part = jnp.minimum(step / self.n_steps.astype(step.dtype), 1.0)
        start, end = (filled_up(value, step.shape[0]) for value in (self.start, self.end))
        return start * (1 - part) + end * part


class TemperatureScheduleHook(TracedHook):
    """Sets the temperature of a thermostat in every step. Traced, at BEFORE_STEP.

    Reads `stage_steps`, writes `target_temperature`, K, which replaces the temperature of the engine from
    this step on. The cost is negligible.

    Args:
        schedule: pure function of the number of steps that each system has taken in its part of the pipeline,
            [systems] floats, that gives K: one value, or [systems]. `TemperatureScheduleHook.ramp(300, 900,
            10_000)` is a straight line; start and end may be one per system.

    Raises:
        TypeError: when it is attached to an engine without thermostat.
    """

    schedule: Callable[[Float[Array, " systems"]], Any] = eqx.field(converter=function("schedule"))
    frequency: int = 1
    stage: DynamicsStage = DynamicsStage.BEFORE_STEP

    sets_targets: ClassVar[tuple[str, ...]] = ("temperature",)

    @classmethod
    def ramp(cls, start: Any, end: Any, n_steps: int) -> "TemperatureScheduleHook":
        """From `start` to `end`, K, in `n_steps` steps of each system, then constant."""
        start, end = positive("start", zero=True)(start), positive("end", zero=True)(end)
        return cls(schedule=Ramp(start=start, end=end, n_steps=n_steps))

    def __call__(self, ctx: HookContext, stage: Any) -> HookContext:
        return ctx.with_batch(target_temperature=_target(self, ctx.batch))


class PressureScheduleHook(TracedHook):
    """Sets the pressure of a barostat or of a cell relaxation in every step. Traced, at BEFORE_STEP.

    Reads `stage_steps`, writes `target_pressure`, GPa, which replaces the pressure of the engine from this
    step on. The cost is negligible.

    Args:
        schedule: pure function of the number of steps that each system has taken in its part of the pipeline,
            [systems] floats, that gives GPa: one value, or [systems]. `PressureScheduleHook.ramp(0, 5,
            10_000)` is a straight line; start and end may be one per system.

    Raises:
        TypeError: when it is attached to an engine without a pressure.
    """

    schedule: Callable[[Float[Array, " systems"]], Any] = eqx.field(converter=function("schedule"))
    frequency: int = 1
    stage: DynamicsStage = DynamicsStage.BEFORE_STEP

    sets_targets: ClassVar[tuple[str, ...]] = ("pressure",)

    @classmethod
    def ramp(cls, start: Any, end: Any, n_steps: int) -> "PressureScheduleHook":
        """From `start` to `end`, GPa, in `n_steps` steps of each system, then constant."""
        return cls(schedule=Ramp(start=finite("start")(start), end=finite("end")(end), n_steps=n_steps))

    def __call__(self, ctx: HookContext, stage: Any) -> HookContext:
        return ctx.with_batch(target_pressure=_target(self, ctx.batch))


class Exchange(Described):
    """The memory of ReplicaExchangeHook.

    Attributes:
        attempted, accepted: [pairs], number of attempted and accepted swaps between rungs r and r + 1, over
            all ladders.
        rung: [systems], the position of each system in its ladder of temperatures, from 0.
    """

    attempted: Int[Array, " pairs"]
    accepted: Int[Array, " pairs"]
    rung: Int[Array, " systems"] = per_system()


#: Fields that replicas have in common.
_OF_ONE_SYSTEM = ("masses", "pbc", "fixed", "charge", "spin")


class ReplicaExchangeHook(TracedHook):
    """Parallel tempering: replicas of a system swap temperatures by the Metropolis criterion. Traced.

    At BEFORE_STEP. Systems 0 to R - 1 of the batch are the first ladder, one at each of the R temperatures,
    the next R systems are the second ladder, and so on. The systems of a ladder are replicas of one system.
    After the steps every, 2 every, ... neighboring rungs i and j (pairs 0-1, 2-3, ... and 1-2, 3-4, ...
    alternate) swap with probability min(1, exp((1/kT_i - 1/kT_j)(H_i - H_j))), where H is the potential
    energy, and with a barostat H = E + P V. Velocities, and the momenta of barostat and chains, are scaled by
    sqrt(T_new/T_old). Systems keep their rows and pressures; the temperatures move.

    Reads `energy` and, with a barostat, `cell`; writes `target_temperature` (K) and, in a swap, `velocities`.
    The memory, an `Exchange`, has the rung of each system and the counts of swaps. Costs one small sort when
    swaps are tried. The random numbers depend on seed, step and the first system_id of the ladder.

    Args:
        temperatures: K, one per rung, at least two.
        every: number of steps from one attempt to the next.
        seed: of the random numbers.

    Raises:
        ValueError: if the temperatures are not positive, or the batch does not consist of such ladders.
        TypeError: when it is attached to an engine without thermostat, or beside another hook that sets
            temperatures.

    Source: Sugita, Okamoto, Chem. Phys. Lett. 314, 141 (1999), doi:10.1016/S0009-2614(99)01123-9; with a
    barostat: Okabe, Kawata, Okamoto, Mikami, Chem. Phys. Lett. 335, 435 (2001),
    doi:10.1016/S0009-2614(01)00055-0.
    """

    temperatures: Float[Array, " rungs"] = eqx.field(converter=positive("temperatures"))
    every: Int[Array, ""] = eqx.field(converter=as_count("every"), default=100)
    seed: UInt32[Array, ""] = eqx.field(converter=as_seed("seed"), default=0)
    frequency: int = 1
    stage: DynamicsStage = DynamicsStage.BEFORE_STEP

    needs_fixed_systems: ClassVar[bool] = True
    sets_targets: ClassVar[tuple[str, ...]] = ("temperature",)
    swaps_temperatures: ClassVar[bool] = True

    def __check_init__(self):
        if self.temperatures.ndim != 1 or self.rungs < 2:
            raise ValueError(
                "temperatures of ReplicaExchangeHook must be a list of at least two, "
                f"not {self.temperatures.tolist()}."
            )

    @property
    def rungs(self) -> int:
        """Number of temperatures."""
        return self.temperatures.shape[0]

    def check_in(self, engine: Any, batch: Batch) -> None:
        n, rungs = batch.num_systems, self.rungs
        if n % rungs:
            raise ValueError(
                f"ReplicaExchangeHook has {rungs} temperatures, so the batch must hold a multiple of {rungs} "
                f"systems, not {n}."
            )
        host = batch.take()
        for i in range(n):
            first = i - i % rungs
            one, other = host[i], host[first]
            pair = (
                f"{batch.name_of(i)} and {batch.name_of(first)} are in one ladder of ReplicaExchangeHook, but"
            )
            if not np.array_equal(one.numbers, other.numbers):
                raise ValueError(f"{pair} are not made of the same atoms in the same order.")
            # A barostat gives every replica the cell of its own pressure and temperature.
            own_cells = "pressure" in engine.follows_targets
            for name in _OF_ONE_SYSTEM if own_cells else (*_OF_ONE_SYSTEM, "cell"):
                if not np.array_equal(one[name], other[name]):
                    raise ValueError(f"{pair} differ in {name}: replicas are copies of one system.")

    def init(self, batch: Batch) -> Exchange:
        none = jnp.zeros(self.rungs - 1, jnp.int32)
        rung = jnp.arange(batch.system_capacity, dtype=jnp.int32) % self.rungs
        return Exchange(rung=rung, attempted=none, accepted=none)

    def __call__(self, ctx: HookContext, stage: Any) -> HookContext:
        step = jnp.asarray(ctx.step_count)
        due = (step > 0) & (step % self.every == 0)
        memory: Exchange = jax.lax.cond(due, lambda m: self._swap(ctx, m), lambda m: m, ctx.memory)
        kelvin = self.temperatures.astype(ctx.batch.dtype)
        before, after = kelvin[ctx.memory.rung], kelvin[memory.rung]
        scale = jnp.where(before == after, 1, jnp.sqrt(after / before))
        velocities = ctx.batch.velocities * to_atoms(ctx.batch, scale)[:, None]
        return ctx.with_batch(target_temperature=after, velocities=velocities).with_memory(memory)

    def _swap(self, ctx: HookContext, memory: Exchange) -> Exchange:
        batch, rungs = ctx.batch, self.rungs
        ladders = batch.system_capacity // rungs

        def rows(values: Any) -> Shaped[Array, "ladders rungs"]:
            return jnp.asarray(values)[: ladders * rungs].reshape(ladders, rungs)

        rung = rows(memory.rung)
        holder = jnp.argsort(rung, axis=1)
        # A workflow that is no engine has no barostat.
        weighed = getattr(ctx.workflow, "ensemble_energy", lambda b: b.energy)(batch)
        energy = jnp.take_along_axis(rows(weighed), holder, axis=1)
        moving = jnp.take_along_axis(rows(ctx.active_mask), holder, axis=1)

        place = jnp.arange(rungs - 1, dtype=jnp.int32)
        turn = (jnp.asarray(ctx.step_count) // self.every) % 2
        tried = (place % 2 == turn)[None] & moving[:, :-1] & moving[:, 1:]
        beta = 1 / (KB * self.temperatures.astype(batch.dtype))
        gain = (beta[:-1] - beta[1:])[None] * (energy[:, :-1] - energy[:, 1:])
        key = jax.random.fold_in(jax.random.key(self.seed), ctx.step_count)
        keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(rows(batch.system_id)[:, 0].astype(jnp.uint32))
        uniform = jax.vmap(lambda k: jax.random.uniform(k, (rungs - 1,), batch.dtype))(keys)
        accepted = tried & (jnp.log(uniform) < gain)

        moves = accepted.astype(jnp.int32)
        up, down = jnp.pad(moves, ((0, 0), (0, 1))), jnp.pad(moves, ((0, 0), (1, 0)))
        target = jnp.arange(rungs, dtype=jnp.int32)[None] + up - down
        rung = jnp.take_along_axis(target, rung, axis=1)
        rest = memory.rung[ladders * rungs :]
        return Exchange(
            rung=jnp.concatenate([rung.reshape(-1), rest]),
            attempted=memory.attempted + tried.sum(0, dtype=jnp.int32),
            accepted=memory.accepted + accepted.sum(0, dtype=jnp.int32),
        )


__all__ = ["Exchange", "PressureScheduleHook", "Ramp", "ReplicaExchangeHook", "TemperatureScheduleHook"]
