"""What a file of `alchemi-jax run` says: every field with its bounds, errors that name the field."""

import tomllib
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    ValidationError,
    field_validator,
    model_validator,
)

from alchemi_jax.cli.outcome import UsageError
from alchemi_jax.dynamics.api import ENSEMBLES


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Relax(_Strict):
    """A stage in which structures relax."""

    kind: Literal["relax"]
    fmax: PositiveFloat = 0.05
    n_steps: PositiveInt = 1000
    relax_cell: bool = False
    pressure: float = 0.0
    smax: PositiveFloat = 6e-4


class MD(_Strict):
    """A stage of molecular dynamics."""

    kind: Literal["md"]
    n_steps: PositiveInt
    ensemble: str = "nvt"
    dt: PositiveFloat = 1.0
    temperature: PositiveFloat | None = None
    pressure: float | None = None
    friction: NonNegativeFloat | None = None
    thermostat_time: PositiveFloat | None = None
    barostat_time: PositiveFloat | None = None

    _physical: ClassVar = ("temperature", "pressure", "friction", "thermostat_time", "barostat_time")

    @field_validator("ensemble")
    @classmethod
    def _known(cls, name: str) -> str:
        if name not in ENSEMBLES:
            raise ValueError(f"must be one of {', '.join(ENSEMBLES)}")
        return name

    @model_validator(mode="after")
    def _complete(self) -> "MD":
        engine, needs = ENSEMBLES[self.ensemble]
        for name in self._physical:
            if name in needs and getattr(self, name) is None:
                raise ValueError(f"ensemble {self.ensemble} needs a {name}")
            if name not in engine.__dataclass_fields__ and getattr(self, name) is not None:
                raise ValueError(f"ensemble {self.ensemble} has no {name}")
        return self


class Pipeline(_Strict):
    """A run: files, model, stages, and where results go."""

    files: list[str] = Field(default=[], description="anything that ASE reads; none: the sample set")
    model: str = "lj"
    stages: list[Annotated[Relax | MD, Field(discriminator="kind")]] = Field(min_length=1)
    out: str = "alchemi-run"
    dtype: Literal["float64", "float32"] = "float64"
    seed: NonNegativeInt = 0
    max_systems: PositiveInt = 64
    max_atoms: PositiveInt | None = None
    policy: Literal["first come", "best fit", "largest first"] = "first come"
    log_every: PositiveInt = 10
    save_every: NonNegativeInt = 100


def load(path: str, overrides: list[str]) -> Pipeline:
    """The file with fields replaced by `stages.0.fmax=0.02` and the like.

    Raises:
        UsageError: naming file and field.
    """
    try:
        content = tomllib.loads(Path(path).read_text())
    except FileNotFoundError:
        raise UsageError(f"{path} does not exist.") from None
    except (OSError, UnicodeDecodeError) as e:
        raise UsageError(f"{path} cannot be read: {getattr(e, 'strerror', None) or e}.") from None
    except tomllib.TOMLDecodeError as e:
        raise UsageError(f"{path} is no TOML: {e}.") from None
    for text in overrides:
        _override(content, text)
    return validate(content, path)


def validate(content: dict[str, Any], where: str) -> Pipeline:
    """A Pipeline from what a file says.

    Raises:
        UsageError: naming the field.
    """
    try:
        return Pipeline.model_validate(content)
    except ValidationError as e:
        first = e.errors()[0]
        # The kind of a stage is the discriminator, and no field.
        parts = [str(p) for p in first["loc"] if p not in ("relax", "md")]
        field = ".".join(parts) or "file"
        said = first["msg"].removeprefix("Value error, ")
        given = first.get("input")
        shown = "" if isinstance(given, dict | list) or first["type"] == "missing" else f", not {given!r}"
        raise UsageError(f"{where}: {field}: {said}{shown}.") from None


def _override(content: dict[str, Any], text: str) -> None:
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise UsageError(f"{text!r} is no override: write FIELD=VALUE, as in stages.0.fmax=0.02.")
    try:
        parsed: Any = tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        parsed = value
    place: Any = content
    *path, last = key.split(".")
    try:
        for part in path:
            place = place[int(part)] if isinstance(place, list) else place.setdefault(part, {})
        if isinstance(place, list):
            place[int(last)] = parsed
        else:
            place[last] = parsed
    except (ValueError, IndexError, TypeError, AttributeError):
        raise UsageError(f"{text!r}: the file has no {key}.") from None
