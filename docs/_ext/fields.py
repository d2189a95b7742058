"""`{fields} Batch`: a table of the fields of a class, whose shapes and levels are those of the code."""

import dataclasses
import re
import tomllib
from pathlib import Path
from typing import Any

import equinox as eqx
from docutils import nodes
from sphinx.util.docutils import SphinxDirective


PAGE = Path(__file__).with_name("fields.toml")
CLASSES = {
    "Batch": "alchemi_jax.systems.batch",
    "HostBatch": "alchemi_jax.systems.host",
    "AtomicData": "alchemi_jax.systems.atoms",
    "DynamicsState": "alchemi_jax.dynamics.state",
    "HookContext": "alchemi_jax.hooks.context",
}


@dataclasses.dataclass(frozen=True)
class Field:
    """One field of a class.

    Attributes:
        shape: axes, "atoms 3"; "" for a number, "-" for what is no array.
        level: "atom", "system", "shared", or "" where there is none.
        unit, by, what: from the file beside this one.
    """

    name: str
    shape: str
    level: str
    unit: str
    by: str
    what: str


def texts() -> dict[str, dict[str, list[str]]]:
    """What is written about the fields of each class."""
    found = tomllib.loads(PAGE.read_text())
    return found | {"HostBatch": found["Batch"]}


def fields_of(kind: type, written: dict[str, list[str]]) -> list[Field]:
    """The fields of a class, in its order.

    Raises:
        ValueError: if others are written about than there are.
    """
    known = {f.name: f for f in dataclasses.fields(kind)}
    if set(known) != set(written):
        difference = ", ".join(sorted(set(known) ^ set(written)))
        raise ValueError(f"{PAGE.name} and {kind.__name__} have different fields: {difference}.")
    found = []
    for name, field in known.items():
        unit, by, what, *shape = written[name]
        axes = shape[0] if shape else _axes(field)
        level = _level(field, axes)
        # AtomicData is a single system.
        level = "system" if level == "shared" and not issubclass(kind, eqx.Module) else level
        found.append(Field(name, axes, level, unit, by, what))
    return found


def _axes(field: dataclasses.Field) -> str:
    """The axes that the annotation names: `Float[Array, "atoms 3"]`."""
    kind = field.type
    named = getattr(kind, "dim_str", None)
    if named is None and isinstance(kind, str):
        inside = re.search(r"\[\w+, [\"']([^\"']*)[\"']\]", kind)
        named = inside[1] if inside else None
    return "-" if named is None else named.strip()


def _level(field: dataclasses.Field, axes: str) -> str:
    """What the field declares; where it declares none, what its first axis is called."""
    if "level" in field.metadata:
        return field.metadata["level"] or ""
    first = axes.split(" ")[0]
    return {"atoms": "atom", "systems": "system"}.get(first, "" if axes == "-" else "shared")


def table(kind: type, written: dict[str, list[str]]) -> str:
    """The fields as a table of Markdown."""
    lines = [
        "| field | shape | unit | level | filled by | what |",
        "|---|---|---|---|---|---|",
    ]
    for f in fields_of(kind, written):
        shape = "" if f.shape == "-" else f"[{', '.join(f.shape.split())}]" if f.shape else "number"
        lines.append(f"| `{f.name}` | {shape} | {f.unit} | {f.level} | {f.by} | {f.what} |")
    return "\n".join(lines)


class Fields(SphinxDirective):
    """The directive."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """The table."""
        from importlib import import_module

        (name,) = self.arguments
        self.env.note_dependency(str(PAGE))
        kind = getattr(import_module(CLASSES[name]), name)
        return self.parse_text_to_nodes(table(kind, texts()[name]))


def setup(app: Any) -> dict[str, Any]:
    """The directive."""
    app.add_directive("fields", Fields)
    return {"parallel_read_safe": True, "version": "1"}
