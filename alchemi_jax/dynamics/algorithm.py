"""What an algorithm is: fields, what it says of itself, the functions that it writes, and its hooks."""

import contextlib
import dataclasses
from abc import abstractmethod
from typing import Any, ClassVar, TypeVar

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from alchemi_jax.dynamics.rescue import Rescue, as_rescue
from alchemi_jax.dynamics.stage import DynamicsStage
from alchemi_jax.dynamics.updates import by_system
from alchemi_jax.hooks import HookSet
from alchemi_jax.hooks.groups import Group, make_groups
from alchemi_jax.models.base import AbstractModel
from alchemi_jax.parameters import Described
from alchemi_jax.systems.batch import Batch
from alchemi_jax.systems.levels import unsafe_replace
from alchemi_jax.systems.observables import kinetic_energy


_E = TypeVar("_E", bound="Algorithm")


class Algorithm(Described):
    """The methods of an engine that an algorithm defines, and its hooks; `AbstractDynamics` has the rest.

    Attributes:
        model: gives energies and forces.
        n_steps: budget of steps for each system; None: no limit. A leaf, so another value does not recompile.
        hooks: a HookSet, made from a list of hooks.
        rescue: a `Rescue`, which lets a failing system try again; None: it fails at once.
    """

    model: eqx.AbstractVar[AbstractModel]
    n_steps: eqx.AbstractVar[Int[Array, ""] | None]
    hooks: eqx.AbstractVar[HookSet]
    rescue: Rescue | None = eqx.field(converter=as_rescue, default=None, kw_only=True)

    _stage_type: ClassVar[Any] = DynamicsStage
    #: Whether this algorithm reads `batch.stress` in every step.
    needs_stress: ClassVar[bool] = False
    #: Whether `batch.velocities` are what this algorithm moves by. A system that enters a stage which does
    #: from one which does not gets velocities from `admit`.
    has_velocities: ClassVar[bool] = True
    #: What hooks may ask of this algorithm through `batch.target_...`: "temperature", "pressure".
    follows_targets: ClassVar[frozenset[str]] = frozenset()
    #: Parameters that say how far a step goes. Those of a rescued system are multiplied by a factor.
    step_lengths: ClassVar[tuple[str, ...]] = ("dt",)

    def init_state(self, batch: Batch) -> Any:
        """State of the algorithm before the first step: a Module whose fields declare levels, or None."""
        return None

    @abstractmethod
    def pre_update(self, batch: Batch, state: Any) -> tuple[Batch, Any]:
        """First half of a step, before the new forces: batch and state of the algorithm after it.

        It must be pure and acts on all systems at once. An algorithm that needs random numbers takes a third
        argument `key`, the key of the run.
        """

    def post_update(self, batch: Batch, state: Any) -> tuple[Batch, Any]:
        """Second half of a step, after the new forces: batch and state of the algorithm after it."""
        return batch, state

    def admit(self, batch: Batch, key: PRNGKeyArray) -> Batch:
        """The batch as systems enter this part of a pipeline from a relaxation, for example with new
        velocities."""
        return batch

    def time_step(self, batch: Batch, state: Any) -> Any:
        """Time that a step takes in each system, fs, [systems] or a number; None: no time passes.

        By default `dt`, if the algorithm moves atoms by velocities. Override it if the time step changes.
        """
        return getattr(self, "dt", None) if self.has_velocities else None

    def total_energy(self, batch: Batch, state: Any) -> Float[Array, " systems"]:
        """The energy that the exact dynamics conserve, eV, [systems]."""
        return batch.energy + kinetic_energy(batch)

    def ensemble_energy(self, batch: Batch) -> Float[Array, " systems"]:
        """H in the weight exp(-H/k_B T) of the ensemble, without momenta, eV, [systems]: the potential
        energy, plus P V with a barostat."""
        return batch.energy

    def scale_momenta(self, state: Any, factor: Float[Array, " systems"]) -> Any:
        """State of the algorithm with scaled momenta, after a hook has swapped temperatures.

        Args:
            factor: [systems], sqrt(T_new/T_old), by which the velocities were scaled.
        """
        return state

    def shorten_steps(self: _E, batch: Batch, factor: Float[Array, " systems"]) -> _E:
        """The algorithm with `step_lengths` multiplied by a factor per system, for a `Rescue`."""
        lengths = {name: getattr(self, name, None) for name in self.step_lengths}
        return unsafe_replace(
            self, **{n: by_system(batch, x) * factor for n, x in lengths.items() if x is not None}
        )

    def shorten_state(self, state: Any, factor: Float[Array, " systems"]) -> Any:
        """State of the algorithm with its own time step multiplied by a factor per system, for a `Rescue`."""
        return state

    def unbalanced_stress(self, batch: Batch) -> Float[Array, "systems 3 3"]:
        """Residual stress by which convergence is judged, eV/Å³, [systems, 3, 3]: without external pressure
        the stress itself."""
        return batch.stress

    def relaxes_cell(self, batch: Batch) -> Bool[Array, " systems"]:
        """Systems whose cell is relaxed, [systems]; they converge only when the stress does, too."""
        return jnp.zeros(batch.energy.shape, bool)

    def check(self, batch: Batch) -> None:
        """Check that the algorithm can treat a batch. Called once, on the host, before the first step.

        Raises:
            ValueError: naming the system, if it cannot.
        """

    # -- its hooks -------------------------------------------------------------------------------

    @property
    def groups(self) -> tuple[Group, ...]:
        """The hooks, and the stages to which they belong."""
        return make_groups([(None, self.hooks)])

    def with_hooks(self: _E, *hooks: Any) -> _E:
        """The engine with further hooks, after those that it has. This engine does not change."""
        return dataclasses.replace(self, hooks=[*self.hooks, *hooks])

    register_hook = with_hooks

    def on_device(self: _E) -> _E:
        """The engine for compiled code: without host hooks."""
        hooks = self.hooks.on_device()
        return self if hooks is self.hooks else unsafe_replace(self, hooks=hooks)

    def _shown(self) -> list[tuple[str, Any]]:
        # The fields of the base class are first. A rescue is shown last, and only if there is one.
        shown = dict(super()._shown())
        rescue = shown.pop("rescue", None)
        return [*shown.items(), *([] if rescue is None else [("rescue", rescue)])]

    def __enter__(self: _E) -> _E:
        with contextlib.ExitStack() as stack:
            for group in self.groups:
                group.hooks.open()
                stack.push(group.hooks.close)
            stack.pop_all()
        return self

    def __exit__(self, *exc: Any) -> None:
        stack = contextlib.ExitStack()
        for group in self.groups:
            stack.push(group.hooks.close)
        stack.__exit__(*exc)


__all__ = ["Algorithm"]
