"""Tables of settings: `python -m alchemi_jax.cli.reference docs/reference/commands.md` renews the page."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

from pydantic.fields import FieldInfo

from alchemi_jax.cli.flags import COMMANDS, described_default, flag_of
from alchemi_jax.cli.settings import MD, MDOptions, Pipeline, Relax, Settings
from alchemi_jax.cli.train_settings import TABLES


BEGIN, END = "<!-- settings: made by alchemi_jax/cli/reference.py -->", "<!-- end of settings -->"
_TABLES: tuple[tuple[str, type[Settings], tuple[str, ...]], ...] = (
    ("Settings of a run", Pipeline, ("relax", "md")),
    ('Settings of a stage of kind "relax"', Relax, ("relax",)),
    ('Settings of a stage of kind "md"', MD, ("md",)),
    ("Flags of one call, which are not in files", MDOptions, ("relax", "md", "run", "train")),
)
BEGIN_TRAIN = "<!-- settings of a training: made by alchemi_jax/cli/reference.py -->"
_OF_TRAINING = tuple((f"Settings of a training, table [{name}]", model, ()) for name, model in TABLES.items())


def reference() -> str:
    """Markdown tables of all settings: key in files, flag, default, unit, bounds, what it is."""
    return "\n".join(line for table in _TABLES for line in _table(*table))


def reference_of_training() -> str:
    """The same of the settings of a training, which have no flags."""
    return "\n".join(line for table in _OF_TRAINING for line in _table(*table))


def _table(title: str, model: type[Settings], commands: tuple[str, ...]) -> Iterator[str]:
    yield f"**{title}**\n"
    flags = bool(commands)
    yield "| key | flag | default | bounds | what |" if flags else "| key | default | bounds | what |"
    yield "|---|---|---|---|---|" if flags else "|---|---|---|---|"
    for name, field in model.model_fields.items():
        if flags and name in ("kind", "stages"):
            continue
        extra: Any = field.json_schema_extra
        flag = "" if extra["positional"] or not flags else f"`{flag_of(name, field)}`"
        used_by = [c for c in commands if any(name in m.model_fields for m in COMMANDS[c].models.values())]
        if len(used_by) < len(commands):
            flag += f" ({', '.join(used_by)})"
        others = {COMMANDS[c].defaults[name]: c for c in used_by if name in COMMANDS[c].defaults}
        default = described_default(name, field).strip(" []")
        if not default and not field.is_required():
            default = "off" if field.annotation is bool else "none"
        default = "; ".join(filter(None, [default, *(f"{v} ({c})" for v, c in others.items())]))
        unit = f", {extra['unit']}" if extra["unit"] else ""
        key = "" if model is MDOptions else f"`{name}`"
        flag = f" {flag} |" if flags else ""
        yield f"| {key} |{flag} {default} | {_bounds(field)} | {field.description}{unit} |"
    yield ""


def _bounds(field: FieldInfo) -> str:
    signs = {"gt": ">", "ge": "≥", "lt": "<", "le": "≤"}
    found = [
        f"{sign} {getattr(limit, key):g}" if getattr(limit, key) < 10**6 else f"{sign} {getattr(limit, key)}"
        for limit in field.metadata
        for key, sign in signs.items()
        if isinstance(getattr(limit, key, None), int | float)
    ]
    types = get_args(field.annotation) or (field.annotation,)
    return ("whole, " if int in types and found else "") + ", ".join(found)


def renew(path: Path) -> None:
    """Put the tables between the marks of the page."""
    text = path.read_text()
    for begin, tables in ((BEGIN, reference()), (BEGIN_TRAIN, reference_of_training())):
        before, _, rest = text.partition(begin)
        _, _, after = rest.partition(END)
        text = f"{before}{begin}\n{tables}\n{END}{after}"
    path.write_text(text)


if __name__ == "__main__":
    renew(Path(sys.argv[1]))
