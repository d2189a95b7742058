"""Hooks that watch a run and mark systems as failed: NaNDetectorHook and EnergyDriftMonitorHook."""

from typing import Any, ClassVar

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from alchemi_jax.dynamics.stage import DynamicsStage
from alchemi_jax.errors import name_of
from alchemi_jax.hooks import HookContext, TracedHook
from alchemi_jax.parameters import Described, Parameter, names, number, optional
from alchemi_jax.systems.batch import Batch
from alchemi_jax.systems.levels import per_system
from alchemi_jax.systems.observables import kinetic_energy
from alchemi_jax.systems.segments import any_by_system


class NaNDetectorHook(TracedHook):
    """Marks systems in which a field is not finite as failed. Traced, at AFTER_STEP.

    Every engine checks energies and forces; this hook checks other fields. A system that it marks is
    restored to the beginning of the step, frozen and named in a warning. Costs one pass over the fields.

    Args:
        keys: names of fields or extras of the batch that hold floats.
    """

    keys: tuple[str, ...] = eqx.field(
        static=True, converter=names("keys"), default=("positions", "velocities")
    )
    frequency: int = 1
    stage: DynamicsStage = DynamicsStage.AFTER_STEP

    reasons: ClassVar[tuple[str, ...]] = ("a field that it checks is not finite",)

    def init(self, batch: Batch) -> None:
        """No memory.

        Raises:
            KeyError: for a key that the batch does not have.
        """
        for key in self.keys:
            batch.level(key)

    def __call__(self, ctx: HookContext, stage: Any) -> HookContext:
        batch = ctx.batch
        failed = jnp.zeros_like(batch.failed)
        for key in self.keys:
            values = jnp.asarray(batch[key])
            lost = ~jnp.all(jnp.isfinite(values.reshape(values.shape[0], -1)), axis=1)
            failed = failed | (any_by_system(batch, lost) if batch.level(key) == "atom" else lost)
        return ctx.fail(failed)


class Drift(Described):
    """The memory of EnergyDriftMonitorHook.

    Attributes:
        reference: [systems], total energy at the first call, eV per atom; NaN before it.
        now: [systems], its change from then to the last call, eV per atom.
        worst: [systems], the largest absolute change so far, eV per atom.
    """

    reference: Float[Array, " systems"] = per_system()
    now: Float[Array, " systems"] = per_system()
    worst: Float[Array, " systems"] = per_system()


class EnergyDriftMonitorHook(TracedHook):
    """Monitors the total energy, kinetic plus potential, of constant-energy runs. Traced, at AFTER_STEP.

    Its memory (in `state.memory`, a `Drift`) has the difference of the energy to its first value, eV per
    atom. Reads energy, velocities, masses; with a threshold it writes `failed`. Costs one sum over the atoms.

    Args:
        threshold: eV per atom; a system with a larger difference is marked as failed, restored to the
            beginning of the step and named in a warning. None: no system is marked.

    Raises:
        TypeError: for a threshold in an engine with a thermostat or a barostat, or in a relaxation, where
            this energy changes.
    """

    threshold: Parameter | None = eqx.field(converter=optional(number("threshold")), default=None)
    frequency: int = 1
    stage: DynamicsStage = DynamicsStage.AFTER_STEP

    reasons: ClassVar[tuple[str, ...]] = ("the total energy drifted too far",)

    def check_engine(self, engine: Any) -> None:
        if self.threshold is None:
            return
        for part in getattr(engine, "parts", ()):
            if part.follows_targets or not part.has_velocities:
                raise TypeError(
                    "EnergyDriftMonitorHook with a threshold ends systems whose kinetic plus potential "
                    f"energy changes, and {name_of(part)} does not keep it constant: attach it to NVE, or "
                    "watch engine.conserved_energy(state)."
                )

    def init(self, batch: Batch) -> Drift:
        zero = jnp.zeros_like(batch.energy)
        return Drift(reference=jnp.full_like(zero, jnp.nan), now=zero, worst=zero)

    def __call__(self, ctx: HookContext, stage: Any) -> HookContext:
        batch, memory = ctx.batch, ctx.memory
        atoms = jnp.maximum(batch.atoms_per_system, 1).astype(batch.dtype)
        energy = (batch.energy + kinetic_energy(batch)) / atoms
        reference = jnp.where(jnp.isnan(memory.reference), energy, memory.reference)
        now = jnp.where(ctx.active_mask, energy - reference, memory.now)
        worst = jnp.maximum(memory.worst, jnp.abs(now))
        ctx = ctx.with_memory(Drift(reference=reference, now=now, worst=worst))
        if self.threshold is None:
            return ctx
        return ctx.fail(jnp.abs(now) > self.threshold)


__all__ = ["Drift", "EnergyDriftMonitorHook", "NaNDetectorHook"]
