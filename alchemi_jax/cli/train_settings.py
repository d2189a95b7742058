"""The settings of `alchemi-jax train`: one model for each table of the file. Nothing here imports JAX."""

from typing import Any, Literal

from pydantic import field_validator as validator
from pydantic import model_validator

from alchemi_jax.cli.models import parse_models
from alchemi_jax.cli.outcome import did_you_mean
from alchemi_jax.cli.settings import (
    MOST_ATOMS,
    MOST_SEED,
    MOST_STEPS,
    MOST_SYSTEMS,
    Options,
    Problems,
    Settings,
    one_of,
    setting,
    usable_path,
)


#: The kind of model that is made new.
INVARIANT = "invariant"
#: optimizer -> what else it takes. They are functions of optax of these names.
OPTIMIZERS: dict[str, tuple[str, ...]] = {
    "adam": (),
    "adamw": ("weight_decay",),
    "amsgrad": (),
    "lamb": ("weight_decay",),
    "lion": ("weight_decay",),
    "nadam": (),
    "nadamw": ("weight_decay",),
    "radam": (),
    "rmsprop": ("momentum",),
    "sgd": ("momentum",),
}
SCHEDULES = ("cosine", "exponential", "constant")
KINDS = ("huber", "mse", "mae")
#: Weights of a loss that names none: those of the recipe in benchmarks/train_copper.py.
WEIGHTS = {"energy": 5.0, "forces": 1.0}
DELTAS = {"energy": 0.01, "forces": 0.05}
DELTA = 0.01
#: Learning rate of a new network, and weight decay where there is one.
RATE, DECAY = 5e-3, 1e-4


class TrainData(Settings):
    """The table [data]."""

    train: list[str] = setting(
        ..., "files with labels that ASE reads, stores, folders; wildcards are allowed"
    )
    validation: Any = setting(None, "files to validate on, or the fraction of train that is kept for it")
    weights: list[float] | None = setting(
        None, "shares of the entries of train in the batches", shown="by their numbers of structures"
    )
    max_systems: int = setting(8, "structures in one batch, at most", ge=1, le=MOST_SYSTEMS)
    max_atoms: int | None = setting(None, "atoms in one batch, at most", ge=1, le=MOST_ATOMS)
    max_edges: int | None = setting(None, "pairs of neighbors in one batch, at most", ge=1, le=MOST_STEPS)
    dtype: Literal["float32", "float64"] = setting("float32", "precision: float32 or float64")
    subtract: Any = setting(
        None,
        "energies of elements that are subtracted from labels before these are rounded: fit, by least "
        "squares, or a table by symbol; the model then gives energies without them",
    )

    @validator("subtract", mode="plain")
    @classmethod
    def _energies(cls, value: Any) -> Any:
        if value is None or value == "fit":
            return value
        if not isinstance(value, dict) or not value:
            raise ValueError('must be "fit", or a table of energies of elements in eV, as in {Cu = -1640.1}')
        for symbol, energy in value.items():
            if isinstance(energy, bool) or not isinstance(energy, int | float) or not abs(energy) < 1e12:
                raise ValueError(f"has {symbol}: {energy!r}, which is no energy in eV")
        return {str(symbol): float(energy) for symbol, energy in value.items()}

    @validator("train", mode="before")
    @classmethod
    def _list(cls, value: Any) -> Any:
        return [value] if isinstance(value, str) else value

    @validator("train")
    @classmethod
    def _files(cls, value: list[str]) -> list[str]:
        if not value:
            raise ValueError("must not be empty")
        return [usable_path(path) for path in value]

    @validator("validation", mode="plain")
    @classmethod
    def _validation(cls, value: Any) -> Any:
        if isinstance(value, str):
            value = [value]
        if isinstance(value, list) and value and all(isinstance(path, str) for path in value):
            return [usable_path(path) for path in value]
        if isinstance(value, int | float) and not isinstance(value, bool):
            if not 0 < value < 1:
                raise ValueError(f"must be between 0 and 1, as a fraction of train, not {value!r}")
            return float(value)
        if value is None:
            return None
        raise ValueError("must be a list of files, or the fraction of train that is kept for it, as in 0.1")

    @model_validator(mode="after")
    def _shares(self) -> "TrainData":
        if self.weights is not None:
            if len(self.weights) != len(self.train):
                text = f"must have one number for each of the {len(self.train)} entries of train"
                raise Problems([("weights", f"{text}, not {len(self.weights)}")])
            if min(self.weights) <= 0:
                raise Problems([("weights", "must be positive")])
        return self


class TrainModel(Settings):
    """The table [model]."""

    kind: str | list[str] = setting(
        INVARIANT,
        "invariant, a new network on distances; or a model to go on from, as --model takes it: chgnet, "
        "trained:FOLDER, mymodule:function",
    )
    cutoff: float | None = setting(None, "cutoff, of invariant", "Å", gt=0, shown="6.0")
    gaussians: int | None = setting(
        None, "number of functions of a distance, of invariant", ge=1, le=10**4, shown="32"
    )
    hidden: list[int] | None = setting(None, "widths of the hidden layers, of invariant", shown="[32, 32]")
    trainable: list[str] | None = setting(
        None, "paths of what is trained, with wildcards", shown="all floats; of invariant, its layers"
    )
    frozen: list[str] | None = setting(None, "paths of what is not trained", shown="nothing")

    @validator("kind", mode="plain")
    @classmethod
    def _kind(cls, value: Any) -> Any:
        if value == INVARIANT:
            return value
        if isinstance(value, str) and did_you_mean(value, (INVARIANT,)):
            raise ValueError(f"{value!r} is unknown{did_you_mean(value, (INVARIANT,))}")
        try:
            return parse_models(value)
        except ValueError as e:
            raise ValueError(str(e) if value is not None else "must be the name of a model") from None

    @validator("trainable", "frozen", mode="before")
    @classmethod
    def _list(cls, value: Any) -> Any:
        return [value] if isinstance(value, str) else value

    @model_validator(mode="after")
    def _fits(self) -> "TrainModel":
        found = []
        if self.kind != INVARIANT:
            for name in ("cutoff", "gaussians", "hidden"):
                if getattr(self, name) is not None:
                    found.append((name, f"is of kind {INVARIANT!r}, the model that is given has its own"))
        if self.hidden is not None and not all(0 < width <= 10**5 for width in self.hidden):
            found.append(("hidden", "must have positive whole numbers"))
        if self.trainable == []:
            found.append(("trainable", "must not be empty"))
        if found:
            raise Problems(found)
        return self


class TrainLoss(Settings):
    """The table [loss]."""

    energy: float | None = setting(None, "weight of the energy per atom", gt=0, shown="5.0")
    forces: float | None = setting(None, "weight of the forces", gt=0, shown="1.0")
    stress: float | None = setting(None, "weight of the stress", gt=0)
    magmoms: float | None = setting(None, "weight of magnetic moments", gt=0)
    others: dict[str, float] = setting(
        {}, "a table of weights of other results of the model, by name", shown="none"
    )
    kind: Any = setting("huber", f"{', '.join(KINDS)}; one for all, or a table by name")
    delta: Any = setting(
        None,
        "error from which on huber is linear, in the unit of the error; one for all, or a table by name",
        shown="0.01, of forces 0.05",
    )

    @validator("kind", mode="plain")
    @classmethod
    def _kinds(cls, value: Any) -> Any:
        for kind in value.values() if isinstance(value, dict) else [value]:
            if not isinstance(kind, str):
                raise ValueError(f"must be {', '.join(KINDS)}, or a table of these by name")
            one_of(kind, KINDS)
        return value

    @validator("delta", mode="plain")
    @classmethod
    def _deltas(cls, value: Any) -> Any:
        for delta in value.values() if isinstance(value, dict) else [value]:
            if delta is None:
                continue
            if isinstance(delta, bool) or not isinstance(delta, int | float) or not 0 < delta < 1e30:
                raise ValueError(f"must be a positive number, or a table of these by name, not {delta!r}")
        return value

    @property
    def weights(self) -> dict[str, float]:
        """The weights that are given, by name; without any, the default."""
        own = {name: getattr(self, name) for name in ("energy", "forces", "stress", "magmoms")}
        found = {name: weight for name, weight in own.items() if weight is not None} | self.others
        return found or dict(WEIGHTS)

    @property
    def deltas(self) -> dict[str, float]:
        """The width of Huber's loss by name."""
        given = self.delta
        if isinstance(given, int | float):
            return dict.fromkeys(self.weights, float(given))
        return {name: (given or {}).get(name, DELTAS.get(name, DELTA)) for name in self.weights}

    @model_validator(mode="after")
    def _named(self) -> "TrainLoss":
        known, found = self.weights, []
        for name, weight in self.others.items():
            if name in ("energy", "forces", "stress", "magmoms"):
                found.append((f"others.{name}", "has a key of its own in loss"))
            elif not weight > 0:
                found.append((f"others.{name}", f"must be positive, not {weight!r}"))
        for table in ("kind", "delta"):
            value = getattr(self, table)
            for name in value if isinstance(value, dict) else ():
                if name not in known:
                    near = did_you_mean(name, known)
                    found.append((f"{table}.{name}", f"is of a result that has no weight in loss{near}"))
        if found:
            raise Problems([(field, text.replace("{", "{{").replace("}", "}}")) for field, text in found])
        return self


class TrainOptimizer(Settings):
    """The table [optimizer]."""

    name: str = setting("adam", f"optimizer: {', '.join(OPTIMIZERS)}")
    rate: float | None = setting(None, "learning rate", gt=0, shown=f"{RATE} (invariant)")
    schedule: Literal["cosine", "exponential", "constant"] = setting(
        "cosine", "how the rate falls: cosine to zero at the last step, exponential, or constant"
    )
    half_life: float | None = setting(None, "steps in which an exponential rate halves", gt=0)
    warmup: int = setting(0, "steps in which the rate grows from zero", ge=0, le=MOST_STEPS)
    weight_decay: float | None = setting(
        None, "weight decay, of adamw, lamb, lion and nadamw", ge=0, shown=f"{DECAY}"
    )
    momentum: float | None = setting(None, "momentum, of sgd and rmsprop", ge=0, lt=1, shown="0.0")
    clip: float | None = setting(None, "largest norm of the gradient; longer ones are scaled down", gt=0)
    ema: float | None = setting(
        0.999, "weight of the average of the parameters in each step; 0 for no average", ge=0, lt=1
    )

    @validator("name")
    @classmethod
    def _known(cls, name: str) -> str:
        return one_of(name, OPTIMIZERS)

    @model_validator(mode="after")
    def _fits(self) -> "TrainOptimizer":
        found = []
        for name in ("weight_decay", "momentum"):
            if getattr(self, name) is not None and name not in OPTIMIZERS[self.name]:
                found.append((name, f"is not of {self.name}"))
        if self.schedule == "exponential" and self.half_life is None:
            found.append(("half_life", "is missing: the exponential schedule needs it"))
        if self.schedule != "exponential" and self.half_life is not None:
            found.append(("half_life", f"is of the exponential schedule, not of {self.schedule}"))
        if found:
            raise Problems(found)
        return self


class TrainRun(Settings):
    """The table [run]."""

    n_steps: int | None = setting(None, "steps; or give epochs", ge=1, le=MOST_STEPS)
    epochs: int | None = setting(None, "epochs; or give n_steps", ge=1, le=MOST_STEPS)
    seed: int = setting(
        0, "seed of the first weights, the order of the data and a fraction", ge=0, le=MOST_SEED
    )
    validate_every: int | None = setting(
        None, "steps between validations", ge=1, le=MOST_STEPS, shown="an epoch"
    )
    patience: int | None = setting(
        None, "end after so many validations without a lower loss", ge=1, le=MOST_STEPS
    )
    keep: Literal["best", "last"] | None = setting(
        None, "the model that is kept: best on validation, or last", shown="best; last without validation"
    )
    log_every: int = setting(10, "steps between rows of log.csv", ge=1, le=MOST_STEPS)
    precision: Literal["bfloat16", "float16"] | None = setting(
        None, "a lower precision in which the model computes: bfloat16 or float16", shown="that of the data"
    )
    out: str = setting("alchemi-trained", "folder for the results")

    @validator("out")
    @classmethod
    def _path(cls, path: str) -> str:
        return usable_path(path)

    @model_validator(mode="after")
    def _length(self) -> "TrainRun":
        if self.n_steps is None and self.epochs is None:
            raise Problems([("n_steps", "is missing: give n_steps or epochs")])
        if self.n_steps is not None and self.epochs is not None:
            raise Problems([("epochs", "cannot be given beside n_steps: one of them says how long")])
        return self


class Training(Settings):
    """A training, as a TOML file describes it."""

    data: TrainData = setting(..., "the data")
    model: TrainModel = setting(TrainModel(), "the model")
    loss: TrainLoss = setting(TrainLoss(), "the loss")
    optimizer: TrainOptimizer = setting(TrainOptimizer(), "the optimizer")
    run: TrainRun = setting(..., "the run")

    @model_validator(mode="after")
    def _fits(self) -> "Training":
        found, run = [], self.run
        if self.data.validation is None:
            for name, given in (
                ("patience", run.patience is not None),
                ("validate_every", run.validate_every is not None),
                ("keep", run.keep == "best"),
            ):
                if given:
                    found.append((f"run.{name}", "needs data to validate on: give data.validation"))
        if self.optimizer.rate is None and self.model.kind != INVARIANT:
            found.append(("optimizer.rate", "is missing: only a new network has a rate by default"))
        if run.n_steps is not None and self.optimizer.warmup >= run.n_steps:
            found.append(("optimizer.warmup", f"must be less than run.n_steps, {run.n_steps}"))
        if found:
            raise Problems(found)
        return self

    @property
    def rate(self) -> float:
        """The learning rate."""
        return RATE if self.optimizer.rate is None else self.optimizer.rate

    @property
    def keeps_best(self) -> bool:
        """Whether the model of the best validation is kept, not that of the last step."""
        return self.run.keep != "last" and self.data.validation is not None


class TrainOptions(Options):
    """Arguments of `train` beside the settings in the file."""

    settings: str = setting(..., "a TOML file", positional=True)
    overrides: list[str] = setting(
        [], "settings in place of the file's, as in run.n_steps=8000", positional=True
    )
    devices: str | None = setting(
        None, "all, or how many devices; the cores of a CPU are its devices", "N", shown="one"
    )
    check: bool = setting(False, "read and check everything, say what would be done, and do nothing")
    report: bool = setting(False, "show what the training has reached, and do nothing")


#: Names of the tables, for the reference.
TABLES: dict[str, type[Settings]] = {
    "data": TrainData,
    "model": TrainModel,
    "loss": TrainLoss,
    "optimizer": TrainOptimizer,
    "run": TrainRun,
}
