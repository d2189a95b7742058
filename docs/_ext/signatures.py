"""Signatures as people would write them: short names, the types of fields, few digits."""

import dataclasses
import inspect
import re
from typing import Any

import equinox as eqx
from alchemi_jax.parameters import Parameter
from sphinx.util.typing import stringify_annotation

from fields import CLASSES
from names import places


_PATH = re.compile(
    r"~?\b(?:alchemi_jax|jaxlib|jax|numpy|ase|equinox|optax|collections|typing|pathlib)(?:\.\w+)*\.(\w+)"
)
_DIGITS = re.compile(r"\d+\.\d{7,}(?:e-?\d+)?")


def setup(app: Any) -> dict[str, Any]:
    """Changes what autodoc finds, and finds again where short names lead."""
    app.connect("autodoc-process-signature", _process)
    app.connect("missing-reference", _resolve)
    return {"parallel_read_safe": True, "version": "1"}


def _process(
    app: Any,
    what: str,
    name: str,
    obj: Any,
    options: Any,
    signature: str | None,
    returns: str | None,
) -> tuple[str | None, str | None]:
    if what == "class" and obj.__name__ in CLASSES and obj.__name__ != "AtomicData":
        # They are not made by hand, and a table of their fields follows.
        return "", None
    if what == "class" and inspect.isclass(obj) and issubclass(obj, eqx.Module) and signature:
        signature = _of_module(obj) or signature
    return _shortened(signature), _shortened(returns)


def _shortened(text: str | None) -> str | None:
    if text is None:
        return None
    text = _PATH.sub(r"\1", text)
    # " atoms": jaxtyping's mark of a single axis.
    text = re.sub(r"' (\w+)'", r"'\1'", text)
    return _DIGITS.sub(lambda number: f"{float(number[0]):.6g}", text)


def _of_module(kind: type) -> str | None:
    """The arguments of a Module with the types of its fields, which its converters make of any value."""
    fields = {f.name: f for f in dataclasses.fields(kind)}
    try:
        found = inspect.signature(kind)
    except (TypeError, ValueError):
        return None
    parameters = []
    for p in found.parameters.values():
        if p.annotation is Any and p.name in fields:
            p = p.replace(annotation=fields[p.name].type)
        parameters.append(_text(p))
    return f"({', '.join(_with_star(parameters, list(found.parameters.values())))})"


def _with_star(texts: list[str], parameters: list[inspect.Parameter]) -> list[str]:
    keyword = [p.kind is p.KEYWORD_ONLY for p in parameters]
    first = keyword.index(True) if any(keyword) else None
    if first is None or any(p.kind is p.VAR_POSITIONAL for p in parameters):
        return texts
    return [*texts[:first], "*", *texts[first:]]


def _text(parameter: inspect.Parameter) -> str:
    stars = {parameter.VAR_POSITIONAL: "*", parameter.VAR_KEYWORD: "**"}.get(parameter.kind, "")
    text = stars + parameter.name
    if parameter.annotation is not parameter.empty:
        text += f": {_type(parameter.annotation)}"
    if parameter.default is not parameter.empty:
        text += f" = {_value(parameter.default)}"
    return text


def _type(annotation: Any) -> str:
    if isinstance(annotation, str):
        return annotation
    if annotation == Parameter:
        return "Parameter"
    if annotation == Parameter | None:
        return "Parameter | None"
    return stringify_annotation(annotation, "smart")


def _value(value: Any) -> str:
    text = value.__name__ if inspect.isclass(value) or inspect.isfunction(value) else repr(value)
    # Objects without a form of their own.
    return re.sub(r"<(?:\w+\.)*(\w+)[^<>]*>", r"\1", text)


def _resolve(app: Any, env: Any, node: Any, content: Any) -> Any:
    """`Batch` in a signature leads to `alchemi_jax.Batch`."""
    if node.get("refdomain") != "py":
        return None
    path = places(env.srcdir / "reference").get(node["reftarget"].rpartition(".")[2])
    if path is None or path == node["reftarget"]:
        return None
    domain = env.get_domain("py")
    return domain.resolve_xref(env, node["refdoc"], app.builder, "obj", path, node, content)
