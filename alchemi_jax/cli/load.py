"""Settings from files and flags, checked: all mistakes at once, each with the nearest valid name."""

import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from alchemi_jax.cli.outcome import Mistakes, UsageError, did_you_mean, one_line, os_reason
from alchemi_jax.cli.settings import MD, Pipeline, Problems, Relax, Settings
from alchemi_jax.cli.train_settings import Training


_S = TypeVar("_S", bound=Settings)
#: The name under which a user knows a field, from its place: ("stages", 0, "fmax") -> "stages.0.fmax".
NameOf = Callable[[tuple[Any, ...]], str]
#: Larger files hold no settings.
_MOST_BYTES = 1 << 22
#: So many mistakes are shown.
_SHOWN = 20


def load(path: str, overrides: list[str]) -> Pipeline:
    """The settings of a file, some of them replaced by `stages.0.fmax=0.02` and the like.

    Raises:
        UsageError: naming the file, and every setting that is wrong.
    """
    return check(Pipeline, _content(path, overrides, "run"), dotted, path, strict=True)


def load_training(path: str, overrides: list[str]) -> Training:
    """The settings of a training in a file, some of them replaced by `run.n_steps=100` and the like.

    Raises:
        UsageError: naming the file, and every setting that is wrong.
    """
    return check(Training, _content(path, overrides, "train"), dotted, path, strict=True)


#: Keys of the file that only one of the commands reads.
_OF_ONE = {"run": ("stages",), "train": ("data", "optimizer")}


def _content(path: str, overrides: list[str], command: str) -> dict[str, Any]:
    content = _read(path)
    for other, keys in _OF_ONE.items():
        if other != command and any(k in content for k in keys) and not _knows(content, command):
            raise UsageError(f"{path} has the settings of another command: alchemi-jax {other} {path}.")
    for text in overrides:
        _override(content, text, "stages.0.fmax=0.02" if command == "run" else "run.n_steps=8000")
    return content


def _knows(content: dict[str, Any], command: str) -> bool:
    return any(key in content for key in _OF_ONE[command])


def check(
    model: type[_S], content: dict[str, Any], name_of: NameOf, where: str = "", strict: bool = False
) -> _S:
    """The settings that the content describes.

    Args:
        content: names and values, from a file or from flags.
        name_of: how messages name a field.
        where: the file, for messages; "" for flags.
        strict: whether text is refused where a number is meant. Values of flags are text.

    Raises:
        UsageError: with all mistakes; in one line if there is one, otherwise Mistakes.
    """
    try:
        return model.model_validate(content, strict=strict)
    except ValidationError as e:
        # A mistake in several fields may be reported by each of them.
        found = list(dict.fromkeys(_mistakes(e, model, name_of)))
    if len(found) == 1:
        raise UsageError(f"{where}: {found[0]}." if where else f"{found[0]}.")
    shown = [f"  {' '.join(text.split())}" for text in found[:_SHOWN]]
    if len(found) > _SHOWN:
        shown.append(f"  and {len(found) - _SHOWN} more")
    raise Mistakes("\n".join([f"{where or 'arguments'}: {len(found)} mistakes:", *shown]))


def dotted(place: tuple[Any, ...]) -> str:
    """The name of a field in a TOML file: "stages.0.fmax"."""
    return ".".join(map(str, place)) or "the file"


def _read(path: str) -> dict[str, Any]:
    try:
        file = Path(path)
        if not file.exists():
            raise UsageError(f"{path} does not exist.")
        if not file.is_file() or file.stat().st_size > _MOST_BYTES:
            raise UsageError(f"{path} is no file of settings.")
        return tomllib.loads(file.read_bytes().decode("utf-8-sig").replace("\r\n", "\n"))
    except tomllib.TOMLDecodeError as e:
        raise UsageError(f"{path} is no TOML: {one_line(e)}.") from None
    except UnicodeDecodeError:
        raise UsageError(f"{path} is no TOML: it is not UTF-8 text.") from None
    except RecursionError:
        raise UsageError(f"{path} is nested too deeply for settings.") from None
    except OSError as e:
        raise UsageError(f"{path} cannot be read: {os_reason(e)}.") from None
    except ValueError as e:
        # A NUL in the path; a number of thousands of digits.
        raise UsageError(f"{path!r} cannot be read: {one_line(e)}.") from None


def _override(content: dict[str, Any], text: str, example: str) -> None:
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise UsageError(f"{text!r} is no setting: write FIELD=VALUE, as in {example}.")
    try:
        parsed: Any = tomllib.loads(f"value = {value}")["value"]
    except (ValueError, RecursionError):
        # Text without quotation marks, such as out=folder.
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


# -- what is wrong, in words ---------------------------------------------------------------------------


def _mistakes(error: ValidationError, model: type[Settings], name_of: NameOf) -> Iterator[str]:
    for found in error.errors(include_url=False):
        place, kind = tuple(found["loc"]), _table_of(model, found["loc"])
        if len(place) > 2 and place[0] == "stages":
            # Behind the number stands the kind of the stage, which is no field.
            kind = {"relax": Relax, "md": MD}.get(str(place[2]), model)
            place = place[:2] + place[3:]
        problems = found.get("ctx", {}).get("error")
        if isinstance(problems, Problems):
            for line in str(problems).split("\n"):
                field, _, text = line.partition("\t")
                cell = name_of((*place, "relax_cell"))
                yield f"{name_of((*place, field))} {text.format(relax_cell=cell)}"
            continue
        name = name_of(place)
        if found["type"] == "extra_forbidden":
            yield f"{name} is unknown{did_you_mean(name.rpartition('.')[2], kind.model_fields)}"
            continue
        text = _wrong(found)
        given = found.get("input")
        shown = found["type"] not in ("missing", "value_error") and not isinstance(given, list | dict)
        expected = _quoted(found.get("ctx", {})["expected"]) if found["type"] == "literal_error" else []
        near = did_you_mean(given, expected) if isinstance(given, str) else ""
        yield f"{name} {text}{f', not {_short(given)}' if shown else ''}{near}"


def _table_of(model: type[Settings], place: tuple[Any, ...]) -> type[Settings]:
    """The model of the table in which a place is."""
    for part in place[:-1]:
        field = model.model_fields.get(str(part))
        inner = None if field is None else field.annotation
        if not (isinstance(inner, type) and issubclass(inner, Settings)):
            break
        model = inner
    return model


_WORDS = {
    "missing": "is missing",
    "finite_number": "must be finite",
    "list_type": "must be a list, in brackets",
    "too_short": "must not be empty",
    "model_type": "must be a table",
    "model_attributes_type": "must be a table",
    "union_tag_not_found": 'needs a kind, "relax" or "md"',
}


def _wrong(found: Any) -> str:
    kind, ctx = found["type"], found.get("ctx", {})
    if kind in _WORDS:
        return _WORDS[kind]
    if kind == "greater_than":
        return "must be positive" if ctx["gt"] == 0 else f"must be greater than {ctx['gt']}"
    if kind == "greater_than_equal":
        return f"must be at least {ctx['ge']}"
    if kind == "less_than":
        return f"must be less than {ctx['lt']:g}"
    if kind == "less_than_equal":
        return f"must be at most {ctx['le']}"
    if kind == "literal_error":
        return f"must be {ctx['expected']}"
    if kind == "union_tag_invalid":
        return f'has the kind {_short(ctx["tag"])}, it must be "relax" or "md"'
    if kind == "too_long":
        return f"must have at most {ctx['max_length']} entries"
    if kind == "value_error":
        return one_line(ctx["error"]).rstrip(".")
    for start, word in (
        ("int_", "a whole number"),
        ("float_", "a number"),
        ("bool_", "true or false"),
        ("string_", "text"),
    ):
        if kind.startswith(start):
            return f"must be {word}"
    return one_line(ValueError(found["msg"]))


def _quoted(text: str) -> list[str]:
    """The names in "'a', 'b' or 'c'"."""
    return text.split("'")[1::2]


def _short(value: Any) -> str:
    """The value as Python writes it, cut to one short line."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):
        # A whole number of too many digits.
        return "what is given"
    return text if len(text) <= 60 else f"{text[:57]}..."
