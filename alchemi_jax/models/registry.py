"""One registry of models: the same names on the command line, in pipeline files and in Python.

The grammar of the names is in `names`, the models of this package are in `entries`, and those that other
packages register are found by `registered`. Nothing here imports JAX until a model is made.
"""

from collections.abc import Iterable, Sequence
from typing import Any

from alchemi_jax.models.entries import ENTRIES, NOBLE_GASES, ModelEntry
from alchemi_jax.models.names import OWN, NamedModel, content_hash, parse
from alchemi_jax.models.registered import (
    GROUP,
    entries,
    find,
    has_module,
    is_installed,
    known_names,
    problems,
    resolve,
)
from alchemi_jax.models.symbols import symbols_of


# -- choosing ------------------------------------------------------------------------------------------


def choose(numbers: Iterable[int]) -> tuple[str, str]:
    """The model for structures of these elements if none is named, and why.

    Raises:
        ValueError: naming the elements and models that fit.
    """
    wanted = frozenset(numbers)
    if wanted <= NOBLE_GASES:
        return "lj", "all atoms are noble gases"
    named, known = parse("chgnet"), ENTRIES["chgnet"].elements or frozenset()
    if wanted <= known:
        return named.text, "it knows every element of the input"
    raise ValueError(f"chgnet, the default, does not know {symbols_of(wanted - known)}. {advice(wanted)}")


def advice(numbers: Iterable[int]) -> str:
    """A sentence, without the stop, on which models know all of these elements, with commands."""
    wanted = frozenset(numbers)
    fits = [entry for entry in entries() if entry.elements is not None and wanted <= entry.elements]
    fits.sort(key=lambda entry: not is_installed(entry))
    if not fits:
        return (
            f"No registered model knows all of {symbols_of(wanted)}: give one that does by its file, as in "
            "--model eam:FILE or --model nequix:FILE, or one of your own, --model MODULE:NAME"
        )
    shown = [
        f"--model {entry.name}" + ("" if is_installed(entry) else f" (first: {entry.install})")
        for entry in fits
    ]
    return f"All elements of the input are known to {' and '.join(shown)}"


# -- making --------------------------------------------------------------------------------------------


def fetch(text: str) -> str:
    """Get the weights of a model, such as "chgnet" or "chgnet:0.2.0"; where they are.

    Raises:
        ValueError: if there are none to get, or they cannot be had.
        ImportError: if a package is missing, with the command that installs it.
    """
    named = parse(text)
    _check_modules(named)
    if not named.entry.fetch:
        raise ValueError(f"{text} has nothing to get: {named.entry.form} can be used as it is")
    return str(resolve(named.entry.fetch)(named.rest))


def load(model: str | Sequence[str]) -> Any:
    """The model with a name, as `--model` takes it; for several names their sum.

    `load("chgnet")`, `load("lj:epsilon=0.0104,sigma=3.4")`, `load("eam:Cu_mishin.eam.alloy")`,
    `load("trained:copper")`, `load(["chgnet", "mymodule:dispersion"])`. `alchemi-jax models` lists the names.

    Args:
        model: a name, or a list of names.

    Raises:
        ValueError: saying which part of a name is wrong, or what is wrong with its file.
        ImportError: if a package is missing, with the command that installs it.
        TypeError: if a function of the user does not return a model.
    """
    names = [model] if isinstance(model, str) else list(model)
    if not names:
        raise ValueError("models.load needs a name, the list is empty.")
    try:
        chosen = [parse(name) for name in names]
    except ValueError as e:
        raise ValueError(f"{e}.".replace("?.", "?")) from None
    return add([make(named) for named in chosen])


def add(parts: Sequence[Any]) -> Any:
    """The sum of models; of one model itself."""
    from alchemi_jax.models.base import SumModel

    return parts[0] if len(parts) == 1 else SumModel(parts=tuple(parts))  # pyright: ignore[reportCallIssue]


def make(named: NamedModel) -> Any:
    """The model.

    Raises:
        ValueError, ImportError, TypeError: as `load`.
    """
    from alchemi_jax.models.base import AbstractModel

    _check_modules(named)
    made = _made(named)
    if not isinstance(made, AbstractModel):
        hint = ""
        if hasattr(made, "get_potential_energy"):
            hint = f": for a calculator of ASE write ase:{named.rest}"
        raise TypeError(f"{named.text} must give an AbstractModel, not {_kind(made)}{hint}.")
    return made


def _made(named: NamedModel) -> Any:
    from alchemi_jax.models.base import AbstractModel

    entry, rest = named.entry, named.rest
    if entry is OWN:
        found = resolve(rest)
        return found if isinstance(found, AbstractModel) or not callable(found) else found()
    alone = not rest and entry.bare
    if entry.grammar == "numbers" and not set(entry.required) & set(named.numbers) and entry.bare:
        alone = True
    create = resolve(entry.bare if alone else entry.place)
    if entry.grammar == "numbers":
        return create(**named.numbers)
    if alone or not rest:
        return create()
    if entry.grammar == "version":
        return create(version=rest)
    if entry.grammar == "place":
        calculator = resolve(rest)
        return create(calculator() if callable(calculator) else calculator)
    return create(rest)


def _check_modules(named: NamedModel) -> None:
    missing = [name for name in named.entry.modules if not has_module(name, None)]
    if missing:
        raise ImportError(f"{named.text} needs {', '.join(missing)}: {named.entry.install}")


def _kind(value: Any) -> str:
    name = type(value).__name__
    return f"the class {value.__name__}" if isinstance(value, type) else f"a value of type {name}"


__all__ = [
    "GROUP",
    "OWN",
    "ModelEntry",
    "NamedModel",
    "add",
    "advice",
    "choose",
    "content_hash",
    "entries",
    "fetch",
    "find",
    "is_installed",
    "known_names",
    "load",
    "make",
    "parse",
    "problems",
]
