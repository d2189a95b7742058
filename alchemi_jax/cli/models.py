"""`--model` and `alchemi-jax models`: names of the registry, checked without importing JAX."""

import os
import sys
from collections.abc import Sequence
from typing import Any

from alchemi_jax.cli.outcome import OK, UsageError, one_line, os_reason
from alchemi_jax.models import registry
from alchemi_jax.models.registry import ModelEntry, NamedModel
from alchemi_jax.models.symbols import symbols_of


def parse_models(value: Any) -> str | list[str] | None:
    """The names of models as a setting holds them: one name, or a list of them for a sum.

    Raises:
        ValueError: saying which part is wrong.
    """
    if value is None:
        return None
    names = [value] if isinstance(value, str) else value
    if not isinstance(names, list | tuple) or not names or not all(isinstance(n, str) for n in names):
        raise ValueError("must be the name of a model, or a list of names for their sum")
    for name in names:
        registry.parse(name, os.getcwd())
    return names[0] if len(names) == 1 else list(names)


def named_models(setting: str | Sequence[str]) -> list[NamedModel]:
    """The models that a setting names.

    Raises:
        UsageError: saying which part is wrong.
    """
    names = [setting] if isinstance(setting, str) else list(setting)
    try:
        return [registry.parse(name, os.getcwd()) for name in names]
    except ValueError as e:
        raise UsageError(f"--model {e}.") from None


def canonical(setting: str | Sequence[str] | None) -> Any:
    """A setting with the versions that its names stand for, as results keep it."""
    if setting is None:
        return None
    texts = [named.text for named in named_models(setting)]
    return texts[0] if len(texts) == 1 else texts


def model_files(setting: str | Sequence[str] | None) -> list[str]:
    """The files that models are read from."""
    named = [] if setting is None else named_models(setting)
    return [model.rest for model in named if model.rest and model.entry.grammar in ("file", "folder")]


def model_hashes(setting: str | Sequence[str]) -> dict[str, str]:
    """SHA-256 of what the models are read from, see `NamedModel.hashes`.

    Raises:
        UsageError: if a file cannot be read.
    """
    found: dict[str, str] = {}
    for named in named_models(setting):
        try:
            found |= named.hashes()
        except OSError as e:
            raise UsageError(f"--model {named.text}: {e.filename} cannot be read: {os_reason(e)}.") from None
    return found


def model_from(setting: str | Sequence[str]) -> Any:
    """The model that a text names; of a list of texts the sum.

    Raises:
        UsageError: saying which part is wrong.
    """
    return registry.add([_make(named) for named in named_models(setting)])


def _make(named: NamedModel) -> Any:
    if named.entry.grammar == "place" and os.getcwd() not in sys.path:
        # Modules of the user's may import others that lie beside them, also later.
        sys.path.insert(0, os.getcwd())
    try:
        return registry.make(named)
    except (ValueError, ImportError, OSError) as e:
        text = one_line(e).rstrip(".")
        text = text if text.startswith(named.text) else f"{named.text}: {text}"
        raise UsageError(f"--model {text}.") from None
    except Exception as e:
        # Code of the user's, of a calculator of ASE, or of another package.
        where = f" at {_line(e)}" if _line(e) else ""
        raise UsageError(
            f"--model {named.text}: {type(e).__name__}{where}: {one_line(e).rstrip('.')}."
        ) from None


def _line(error: BaseException) -> str:
    """File and line of the innermost frame that is not of this package."""
    found, tb = "", error.__traceback__
    while tb is not None:
        if not str(tb.tb_frame.f_globals.get("__name__", "")).startswith("alchemi_jax"):
            found = f"{os.path.basename(tb.tb_frame.f_code.co_filename)}:{tb.tb_lineno}"
        tb = tb.tb_next
    return found


# -- the command ---------------------------------------------------------------------------------------


def models(args: Any, signals: Any = None) -> int:
    """`alchemi-jax models [get NAME ...]`: lists what `--model` takes, or fetches weights.

    Raises:
        UsageError: for another word, or weights that cannot be had.
    """
    if not args.words:
        _list()
        return OK
    action, *names = args.words
    if action != "get" or not names:
        have = ", ".join(entry.name for entry in registry.entries() if entry.fetch)
        raise UsageError(f"write alchemi-jax models, or alchemi-jax models get NAME, where NAME is {have}.")
    for name in names:
        try:
            print(f"{name}: {registry.fetch(name)}", flush=True)
        except (ValueError, ImportError, OSError) as e:
            raise UsageError(f"{one_line(e).rstrip('.')}.") from None
    return OK


def _list() -> None:
    for entry in registry.entries():
        print(entry.form)
        for name, text in _rows(entry):
            print(f"    {name:11}{text}")
    print(f"{registry.OWN.form}\n    {registry.OWN.text}")
    print("\n--model given twice is a sum. docs/reference/commands.md has the grammar.")
    for problem in registry.problems():
        print(f"alchemi-jax: warning: {problem}", file=sys.stderr)


def _rows(entry: ModelEntry) -> list[tuple[str, str]]:
    elements = entry.covers if entry.elements is None else symbols_of(entry.elements)
    if entry.elements is not None and entry.grammar == "file":
        elements += "; of a file: as it says"
    if entry.elements is not None and entry.grammar == "numbers":
        elements += "; with parameters: any"
    rows = [("", entry.text), ("elements", elements), ("licence", entry.licence), ("source", entry.source)]
    if len(entry.versions) > 1:
        rows.insert(1, ("versions", ", ".join(entry.versions)))
    here = registry.is_installed(entry)
    rows.append(("installed", "yes" if here else f"no: {entry.install}" if entry.install else "no"))
    return [(name, text) for name, text in rows if text]
