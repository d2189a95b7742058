"""The engines that settings describe, with their logs."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from alchemi_jax.cli.settings import MD, Pipeline, Relax
from alchemi_jax.dynamics import (
    BFGS,
    FIRE,
    FIRE2,
    LBFGS,
    ConvergenceHook,
    FIRE2VariableCell,
    FIREVariableCell,
    GradientDescent,
)
from alchemi_jax.dynamics.api import integrator
from alchemi_jax.dynamics.engine import AbstractDynamics
from alchemi_jax.dynamics.hooks import LoggingHook
from alchemi_jax.dynamics.hooks.logging import COLUMNS
from alchemi_jax.dynamics.hooks.writers import CSVWriter
from alchemi_jax.dynamics.stage import DynamicsStage
from alchemi_jax.models.base import AbstractModel
from alchemi_jax.systems.observables import density, kinetic_energy, pressure, volume


#: optimizer -> its engines with fixed and with variable cells.
OPTIMIZERS: dict[str, tuple[type[AbstractDynamics], type[AbstractDynamics] | None]] = {
    "fire": (FIRE, FIREVariableCell),
    "fire2": (FIRE2, FIRE2VariableCell),
    "lbfgs": (LBFGS, None),
    "bfgs": (BFGS, None),
    "gradient-descent": (GradientDescent, None),
}
_CHANGING_CELLS = ("nph", "npt")


def engine_of(settings: Pipeline, model: AbstractModel) -> AbstractDynamics:
    """The engine of all stages.

    Raises:
        ValueError: naming the parameter.
    """
    engines = [_stage(stage, model, first=i == 0) for i, stage in enumerate(settings.stages)]
    engine = engines[0]
    for other in engines[1:]:
        engine = engine + other
    return engine


def _stage(stage: Relax | MD, model: AbstractModel, first: bool) -> AbstractDynamics:
    given: dict[str, Any] = stage.model_dump(exclude={"kind"}, exclude_none=True)
    if isinstance(stage, MD):
        if stage.ensemble == "nve" and first:
            # Structures at rest get velocities when they are read, others keep theirs.
            given.pop("temperature", None)
        return integrator(model, **given)
    criteria: list[dict[str, Any]] = [{"key": "fmax", "threshold": stage.fmax}]
    fixed, variable = OPTIMIZERS[stage.optimizer]
    make: Any = fixed
    options: dict[str, Any] = {} if stage.dt is None else {"dt": stage.dt}
    if stage.relax_cell:
        make = variable
        options["scalar_pressure"] = stage.pressure
        criteria.append({"key": "smax", "threshold": stage.smax})
    return make(model=model, n_steps=stage.n_steps, hooks=[ConvergenceHook(criteria)], **options)


def changes_cells(settings: Pipeline) -> bool:
    """Whether any stage changes cells."""
    return any(
        stage.ensemble in _CHANGING_CELLS if isinstance(stage, MD) else stage.relax_cell
        for stage in settings.stages
    )


def log_of(settings: Pipeline, path: Path) -> LoggingHook:
    """The hook that writes log.csv: with time and total energy if there is dynamics, with volume, density and
    pressure if cells change."""
    scalars: dict[str, Callable[[Any], Any]] = {}
    if any(isinstance(stage, MD) for stage in settings.stages):
        scalars |= {"time": _time, "total_energy": _total_energy}
    cells = changes_cells(settings)
    if cells:
        scalars |= {"volume": _volume, "density": _density, "pressure": _pressure}
    file = CSVWriter(path, [*COLUMNS, *scalars], "a")
    # The first row is the structure that was given, the last one that which comes out.
    return LoggingHook(
        backend=file,
        log_path=path,
        frequency=settings.log_every,
        custom_scalars=scalars,
        stress=cells,
        stage=DynamicsStage.BEFORE_STEP,
        final=True,
    )


def _time(ctx: Any) -> Any:
    """Time of the dynamics of each system, ps."""
    return ctx.batch.time / 1000


def _total_energy(ctx: Any) -> Any:
    return ctx.batch.energy + kinetic_energy(ctx.batch)


def _volume(ctx: Any) -> Any:
    return volume(ctx.batch)


def _density(ctx: Any) -> Any:
    return density(ctx.batch)


def _pressure(ctx: Any) -> Any:
    return pressure(ctx.batch)
