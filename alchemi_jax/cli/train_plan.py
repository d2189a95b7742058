"""From the settings of a training to its parts: data, model, loss, optimizer and hooks."""

import contextlib
import dataclasses
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
from ase.data import chemical_symbols

from alchemi_jax.cli.cache import use_cache
from alchemi_jax.cli.flags import TrainJob
from alchemi_jax.cli.models import canonical, model_from, model_hashes
from alchemi_jax.cli.outcome import UsageError, os_reason, sentence
from alchemi_jax.cli.train_data import Sets, batches_of, read_sets, warn_twice
from alchemi_jax.cli.train_hooks import BestModel
from alchemi_jax.cli.train_settings import DECAY, INVARIANT, OPTIMIZERS, Training
from alchemi_jax.dynamics.devices.devices import count_cores, use_cores
from alchemi_jax.errors import name_of
from alchemi_jax.models.elements import UnknownElementError
from alchemi_jax.models.invariant import InvariantNetwork
from alchemi_jax.models.registry import advice
from alchemi_jax.models.symbols import symbols_of
from alchemi_jax.models.trained import save
from alchemi_jax.training.data import Batches
from alchemi_jax.training.devices import as_mesh
from alchemi_jax.training.hooks import (
    ClipGradientsHook,
    EarlyStoppingHook,
    EMAHook,
    LoggingHook,
    ScheduleHook,
    ValidationHook,
)
from alchemi_jax.training.losses import Loss
from alchemi_jax.training.precision import Precision
from alchemi_jax.training.source import label_of
from alchemi_jax.training.stage import TrainingStage
from alchemi_jax.training.statistics import network_for, structures_of
from alchemi_jax.training.trainer import Trainer
from alchemi_jax.transforms import count_numbers


LOG, VALIDATIONS = "log.csv", "validation.csv"
#: The first factor on the loss in float16.
_LOSS_SCALE = 2.0**12


@dataclasses.dataclass
class TrainPlan:
    """A training whose input is known to be good; nothing is written yet.

    Attributes:
        settings: with the model by name.
        sets: the structures.
        data, validation: batches with the neighbors that the model needs.
        model: with which it begins. Of a new network that is only checked, without statistics.
        loss: as `Trainer` takes it.
        hashes: of the files of the model.
        devices: as `Trainer.run` takes them.
    """

    settings: Training
    sets: Sets
    data: Any
    validation: Batches | None
    model: Any
    loss: Loss
    hashes: dict[str, str]
    devices: Any = None

    @property
    def n_steps(self) -> int:
        """Steps in all."""
        run = self.settings.run
        return run.n_steps or (run.epochs or 0) * len(self.data)

    @property
    def subtracted(self) -> dict[str, float]:
        """Energies of elements that labels are without, eV."""
        source = self.data.parts[0][0] if hasattr(self.data, "parts") else self.data
        return dict(source.subtracted)

    @property
    def keys(self) -> tuple[Any, Any]:
        """PRNG keys of the first weights and of the order of the data."""
        first, second = jax.random.split(jax.random.key(self.settings.run.seed))
        return first, second

    def trainer(self, hooks: list[Any]) -> Trainer:
        """The trainer with these hooks after those of the settings.

        Raises:
            UsageError: for paths of parameters that the model does not have.
        """
        settings, chosen = self.settings, self.settings.model
        precision = settings.run.precision
        if precision is not None:
            precision = Precision(precision, _LOSS_SCALE if precision == "float16" else None)
        try:
            return Trainer(
                self.model,
                self.loss,
                optimizer_of(settings),
                [*traced_hooks(settings, self.n_steps), *hooks],
                trainable=chosen.trainable,
                frozen=chosen.frozen,
                precision=precision,
            )
        except ValueError as e:
            raise UsageError(f"model: {sentence(e)}") from None

    def save(self, folder: Path, model: Any, about: dict[str, Any]) -> None:
        """Write a model of this training to a folder.

        Raises:
            UsageError: if it cannot be written.
        """
        kind = self.settings.model.kind
        try:
            save(folder, model, about, base=kind if isinstance(kind, str) and kind != INVARIANT else None)
        except OSError as e:
            raise UsageError(f"{folder} cannot be written: {os_reason(e)}.") from None
        except (TypeError, ValueError) as e:
            raise UsageError(f"the model cannot be saved: {sentence(e)}") from None

    def host_hooks(self, at: Path) -> tuple[list[Any], BestModel | None]:
        """Logs, validations and what follows from them; the one that has the best model, if it is kept."""
        run, validation = self.settings.run, self.validation
        hooks: list[Any] = [
            LoggingHook(log_path=at / LOG, frequency=run.log_every, stage=TrainingStage.AFTER_BATCH)
        ]
        if validation is None:
            return hooks, None
        best = BestModel() if self.settings.keeps_best else None
        hooks.append(ValidationHook(validation, run.validate_every or len(self.data)))
        scalars = {
            f"{name}_{which}": _error(name, which) for name in self.loss.names for which in ("mae", "rmse")
        }
        hooks.append(
            LoggingHook(
                log_path=at / VALIDATIONS, custom_scalars=scalars, stage=TrainingStage.AFTER_VALIDATION
            )
        )
        hooks += [EarlyStoppingHook(run.patience)] if run.patience is not None else []
        hooks += [best] if best is not None else []
        return hooks, best


def _error(name: str, which: str) -> Callable[[Any], Any]:
    return lambda ctx: getattr(ctx.errors[name], which)


# -- parts ---------------------------------------------------------------------------------------------


def loss_of(settings: Training) -> Loss:
    """The loss."""
    loss = settings.loss
    weights = dict(loss.weights)
    kind = loss.kind if isinstance(loss.kind, str) else {"energy": "huber", **loss.kind}
    if isinstance(kind, dict):
        kind = {name: kind.get(name, "huber") for name in weights}
    return Loss(**weights, kind=kind, delta=loss.deltas)  # pyright: ignore[reportArgumentType]


def schedule_of(settings: Training, n_steps: int) -> Any:
    """The rate as a function of the number of completed steps; None if it is constant."""
    options, rate = settings.optimizer, settings.rate
    warmup = options.warmup
    if options.schedule == "cosine":
        after = optax.cosine_decay_schedule(rate, max(n_steps - warmup, 1))
    elif options.schedule == "exponential":
        assert options.half_life is not None, "checked with the settings"
        after = optax.exponential_decay(rate, options.half_life, 0.5)  # pyright: ignore[reportArgumentType]
    else:
        after = optax.constant_schedule(rate)
    if warmup:
        return optax.join_schedules([optax.linear_schedule(0.0, rate, warmup), after], [warmup])
    return None if options.schedule == "constant" else after


def optimizer_of(settings: Training) -> Any:
    """The transformation of optax, with its numbers in its state."""
    options = settings.optimizer
    numbers = {"learning_rate": settings.rate}
    if "weight_decay" in OPTIMIZERS[options.name]:
        numbers["weight_decay"] = DECAY if options.weight_decay is None else options.weight_decay
    if options.momentum:
        numbers["momentum"] = options.momentum
    return optax.inject_hyperparams(getattr(optax, options.name))(**numbers)


def traced_hooks(settings: Training, n_steps: int) -> list[Any]:
    """Those that change the step."""
    options, hooks = settings.optimizer, []
    schedule = schedule_of(settings, n_steps)
    if schedule is not None:
        hooks.append(ScheduleHook(schedule=schedule))
    if options.clip is not None:
        hooks.append(ClipGradientsHook(limit=options.clip))
    if options.ema:
        hooks.append(EMAHook(decay=options.ema))
    return hooks


# -- all of it -----------------------------------------------------------------------------------------


def prepare_training(job: TrainJob, *, only_check: bool = False) -> TrainPlan:
    """Reads and checks all input.

    Args:
        only_check: a new network gets no statistics of the data, which take compiling.

    Raises:
        UsageError: naming what is wrong.
    """
    settings = job.settings
    assert settings is not None, "parse reads the file"
    if settings.data.dtype == "float64":
        jax.config.update("jax_enable_x64", True)
    use_cache(not job.options.no_cache)
    devices = _devices(job.options.devices)
    named = settings.model.kind if settings.model.kind == INVARIANT else canonical(settings.model.kind)
    chosen = settings.model.model_copy(update={"kind": named})
    settings = settings.model_copy(update={"model": chosen})
    sets = read_sets(settings.data, settings.run.seed)
    warn_twice(sets)
    data, validation = batches_of(settings.data, sets)
    loss = loss_of(settings)
    hashes: dict[str, str] = {}
    if named != INVARIANT:
        model = model_from(named)
        # After modules of the user's are found.
        hashes = model_hashes(named)
    try:
        if named == INVARIANT:
            model = _network(settings, data, only_check)
        data = data.fit_to(model, loss)
        validation = None if validation is None else validation.fit_to(model, loss)
    except UnknownElementError as e:
        raise UsageError(f"{e.problem}. {advice(elements_of(sets))}.") from None
    except ValueError as e:
        raise UsageError(sentence(e)) from None
    plan = TrainPlan(settings, sets, data, validation, model, loss, hashes, devices)
    plan.trainer([])
    _check_can_be_saved(plan)
    if plan.n_steps <= settings.optimizer.warmup:
        raise UsageError(f"optimizer.warmup must be less than all {plan.n_steps} steps of the training.")
    return plan


def _devices(asked: str | None) -> Any:
    """The devices of a training: those that were asked for. Whether several are faster than one depends on
    the network and the batches, so by default it is one.

    Raises:
        UsageError: if there are fewer than were asked for.
    """
    if asked is None:
        return None
    wanted = asked if asked == "all" else int(asked)
    if wanted == "all" or wanted <= count_cores():
        # Where JAX has started already, `as_mesh` says what there is.
        with contextlib.suppress(RuntimeError):
            use_cores(None if wanted == "all" else wanted)
    try:
        as_mesh(wanted, "--devices")
    except ValueError as e:
        raise UsageError(str(e).replace("--devices: devices is", "--devices is")) from None
    return wanted


def _check_can_be_saved(plan: TrainPlan) -> None:
    """Not found out after the training.

    Raises:
        UsageError: naming the part of the model that cannot be written.
    """
    with tempfile.TemporaryDirectory() as folder:
        plan.save(Path(folder) / "model", plan.model, {})


def _network(settings: Training, data: Any, only_check: bool) -> InvariantNetwork:
    given = settings.model
    options = {
        name: getattr(given, name)
        for name in ("cutoff", "gaussians", "hidden")
        if getattr(given, name) is not None
    }
    key = jax.random.split(jax.random.key(settings.run.seed))[0]
    if only_check:
        elements = sorted({int(z) for s in structures_of(data) for z in np.unique(s.numbers)})
        return InvariantNetwork([chemical_symbols[z] for z in elements], key=key, **options)
    return network_for(data, key=key, **options)


def elements_of(sets: Sets) -> set[int]:
    """Atomic numbers in both sets."""
    parts = [*sets.train, sets.validation or []]
    return {int(z) for part in parts for _, structure in part for z in np.unique(structure.numbers)}


# -- in words ------------------------------------------------------------------------------------------


def describe_training(plan: TrainPlan) -> str:
    """What is trained, in a line."""
    settings = plan.settings
    kind = settings.model.kind
    name = (
        "a new invariant network"
        if kind == INVARIANT
        else kind
        if isinstance(kind, str)
        else " + ".join(kind)
    )
    run = settings.run
    length = f"{run.n_steps} steps" if run.n_steps is not None else f"{run.epochs} epochs"
    n, others = sum(map(len, plan.sets.train)), len(plan.sets.validation or ())
    on = f"{n} structure{'s' * (n != 1)}"
    on += f", validated on {others}" if others else ", without validation"
    return f"Train {name} for {length} on {on}"


def rows_of(plan: TrainPlan) -> list[tuple[str, str]]:
    """What would be done, for `--check`."""
    settings, sets = plan.settings, plan.sets
    rows = []
    for name, part in (("train", [e for p in sets.train for e in p]), ("validation", sets.validation)):
        if part is None:
            rows.append((name, "none"))
            continue
        structures = [structure for _, structure in part]
        atoms = [len(s) for s in structures]
        sizes = f"{min(atoms)}" if min(atoms) == max(atoms) else f"{min(atoms)} to {max(atoms)}"
        files = len({structure.file for structure, _ in part})
        rows.append((name, f"{len(part)} structures of {sizes} atoms, from {files} file{'s' * (files > 1)}"))
        rows.append(("  labels", _labels(structures, plan.loss.names)))
    rows.append(("elements", symbols_of(elements_of(sets))))
    if plan.subtracted:
        rows.append(("  subtracted", energies_text(plan.subtracted)))
    for name, batches in (("batches", plan.data), ("  validation", plan.validation)):
        if batches is not None:
            shapes = [
                f"{layout.systems} x {layout.atoms} atoms"
                for source in getattr(batches, "parts", None) or [(batches, 1.0)]
                for layout in source[0].layouts
            ]
            rows.append((name, f"{len(batches)} an epoch; shapes, each compiled once: {', '.join(shapes)}"))
    trained, frozen = plan.trainer([]).split()
    count, rest = count_numbers(trained), count_numbers(frozen)
    rows.append(
        (
            "parameters",
            f"{count} of {name_of(plan.model)} are trained" + (f", {rest} are not" if rest else ""),
        )
    )
    weights = ", ".join(f"{name} {weight:g}" for name, weight in settings.loss.weights.items())
    rows.append(("loss", f"{weights}, {settings.loss.kind}"))
    options = settings.optimizer
    rows.append(("optimizer", f"{options.name}, rate {settings.rate:g}, {options.schedule}"))
    rows.append(("steps", f"{plan.n_steps}, {plan.n_steps / len(plan.data):.4g} epochs"))
    return rows


def _labels(structures: list[Any], names: tuple[str, ...]) -> str:
    """Which of them have labels of energy, forces, stress, and what else the loss names."""
    found = []
    for name in dict.fromkeys(("energy", "forces", "stress", *names)):
        level = "atom" if any(name in s.atom_extras for s in structures) else "system"
        labels = (label_of(s, name, level) for s in structures)
        n = sum(label is not None and bool(np.isfinite(label).any()) for label in labels)
        if n:
            found.append(f"{name} of {'all' if n == len(structures) else n}")
    return ", ".join(found) or "none"


def energies_text(energies: dict[str, float]) -> str:
    """Energies of elements in words."""
    return ", ".join(f"{symbol} {energy:.6g} eV" for symbol, energy in energies.items())
