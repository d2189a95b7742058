"""Signatures as people would write them: short names, the types of fields, few digits."""

import dataclasses
import inspect
import re
from typing import Any

import equinox as eqx
from docutils import nodes
from fields import CLASSES
from names import places
from sphinx import addnodes
from sphinx.ext.intersphinx import resolve_reference_detect_inventory
from sphinx.transforms import SphinxTransform
from sphinx.util.typing import stringify_annotation

from alchemi_jax.parameters import Parameter


_PATH = re.compile(
    r"~?\b(?:alchemi_jax|jaxlib|jaxtyping|jax|numpy|ase|equinox|optax|collections|typing|pathlib)(?:\.\w+)*\.(\w+)"
)
#: Where short names of other packages lead.
_FOREIGN = {
    "Any": "typing.Any",
    "Array": "jax.Array",
    "Atoms": "ase.Atoms",
    "Callable": "collections.abc.Callable",
    "GradientTransformation": "optax.GradientTransformation",
    "Iterable": "collections.abc.Iterable",
    "Iterator": "collections.abc.Iterator",
    "Mapping": "collections.abc.Mapping",
    "Module": "equinox.Module",
    "Path": "pathlib.Path",
    "Sequence": "collections.abc.Sequence",
    "dtype": "numpy.dtype",
    "ndarray": "numpy.ndarray",
}
#: Classes that nobody calls: other functions make their objects. The descriptions have the fields.
_MADE_HERE = {*CLASSES, "CHGNet", "EdgeList", "Graph", "Needs", "NeighborList", "NequixModel"} - {
    "AtomicData"
}
_MADE_HERE |= {"System", "TrainingBatch", "TrainingContext", "TrainingState", "Triplets"}
_MADE_HERE |= {"Capacity", "Drift", "Errors", "Exchange", "Footprint", "LearningRate", "Optimizer"}
_MADE_HERE |= {"Hook", "SystemSeries", "Uncertainty"}
_KEY = "Key[Array, ''] | UInt32[Array, '2'] | UInt32[Array, '4']"
_DIGITS = re.compile(r"\d+\.\d{7,}(?:e-?\d+)?")


class ShortenTypes(SphinxTransform):
    """Types of properties and fields, which autodoc writes with their paths."""

    default_priority = 400

    def apply(self, **kwargs: Any) -> None:
        """Shortens the text of references in signatures."""
        for link in self.document.findall(addnodes.pending_xref):
            if link.get("refdomain") == "py" and isinstance(link.parent, addnodes.desc_annotation):
                # Where there are two children they are the short name and the full one.
                text = _shortened(link.children[0].astext()) or ""
                link.clear()
                link += nodes.Text(text)


def setup(app: Any) -> dict[str, Any]:
    """Changes what autodoc finds, and finds again where short names lead."""
    app.add_transform(ShortenTypes)
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
    if what == "class" and obj.__name__ in _MADE_HERE:
        return "", None
    if what == "class" and inspect.isclass(obj) and issubclass(obj, eqx.Module) and signature:
        signature = _of_module(obj) or signature
    return _shortened(signature), _shortened(returns)


def _shortened(text: str | None) -> str | None:
    if text is None:
        return None
    text = _PATH.sub(r"\1", text)
    text = text.replace("<factory>", "...")
    # " atoms": jaxtyping's mark of a single axis.
    text = re.sub(r"' (\w+)'", r"'\1'", text)
    # jaxtyping's PRNGKeyArray, and the type of an object of the same class.
    text = re.sub(r"\b_[A-Z]\b", "Self", text.replace(_KEY, "PRNGKeyArray"))
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
    short = node["reftarget"].rpartition(".")[2]
    path = places(env.srcdir / "reference").get(short)
    if path is None and short in _FOREIGN:
        node["reftarget"] = _FOREIGN[short]
        return resolve_reference_detect_inventory(env, node, content)
    if path is None or path == node["reftarget"]:
        return None
    domain = env.get_domain("py")
    return domain.resolve_xref(env, node["refdoc"], app.builder, "obj", path, node, content)
