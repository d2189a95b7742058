"""Models by name: `lj`, `morse:depth=0.01,width=1.5,r0=3.8`. Checked without importing JAX."""

import dataclasses
import math
from importlib import import_module
from typing import Any

from alchemi_jax.cli.outcome import UsageError, did_you_mean


@dataclasses.dataclass(frozen=True)
class ModelName:
    """A model that the command line knows.

    Attributes:
        place: `module:class`, imported when the model is made.
        required: names of the parameters that must be given.
        optional: names of those that may be given.
        without_parameters: name of a class method that makes the model if no required parameter is given.
        text: what it is, for help and reference.
    """

    place: str
    required: tuple[str, ...]
    optional: tuple[str, ...]
    text: str
    without_parameters: str | None = None


MODELS = {
    "lj": ModelName(
        "alchemi_jax.models:LennardJones",
        ("epsilon", "sigma"),
        ("cutoff",),
        "Lennard-Jones: of noble gases, or lj:epsilon=EV,sigma=Å[,cutoff=Å] for any atoms",
        "noble_gases",
    ),
    "morse": ModelName(
        "alchemi_jax.models:Morse",
        ("depth", "width", "r0"),
        ("cutoff",),
        "Morse: morse:depth=EV,width=1/Å,r0=Å[,cutoff=Å] for any atoms",
    ),
}


def parse_model(text: str) -> tuple[str, dict[str, float]]:
    """Name and parameters from `name` or `name:parameter=number,...`.

    Raises:
        ValueError: saying which part is wrong.
    """
    name, _, rest = text.partition(":")
    if name not in MODELS:
        raise ValueError(f"{name!r} is unknown: it can be {' or '.join(MODELS)}{did_you_mean(name, MODELS)}")
    model = MODELS[name]
    known = (*model.required, *model.optional)
    parameters: dict[str, float] = {}
    for part in filter(None, rest.split(",")):
        key, _, value = part.partition("=")
        if key not in known:
            raise ValueError(
                f"{name} has no parameter {key!r}: it has {', '.join(known)}{did_you_mean(key, known)}"
            )
        if key in parameters:
            raise ValueError(f"{name} is given {key} twice")
        try:
            parameters[key] = float(value)
        except ValueError:
            raise ValueError(f"{text}: {value!r} is no number") from None
        if not math.isfinite(parameters[key]):
            raise ValueError(f"{text}: {key} must be finite, not {value}")
    missing = [key for key in model.required if key not in parameters]
    if missing and not (model.without_parameters and len(missing) == len(model.required)):
        raise ValueError(f"{name} needs {', '.join(missing)}")
    return name, parameters


def model_from(text: str) -> Any:
    """The model that a text names.

    Raises:
        UsageError: saying which part is wrong.
    """
    try:
        name, parameters = parse_model(text)
    except ValueError as e:
        raise UsageError(f"--model {e}.") from None
    model = MODELS[name]
    try:
        module, _, kind = model.place.partition(":")
        make = getattr(import_module(module), kind)
        if not set(model.required) & set(parameters) and model.without_parameters:
            make = getattr(make, model.without_parameters)
        return make(**parameters)
    except ValueError as e:
        raise UsageError(f"--model {text}: {str(e).rstrip('.')}.") from None
