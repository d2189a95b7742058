"""Formulas as MathML, which browsers draw without a script: pages are the same without a network."""

from html import escape
from typing import Any

from docutils import nodes
from docutils.utils.math import MathError
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx.util import logging


_logger = logging.getLogger(__name__)


def _mathml(node: Any, as_block: bool = False) -> str:
    """The formula, or a warning that says where it is, and its text."""
    try:
        return tex2mathml(node.astext(), as_block=as_block)
    except (MathError, IndexError) as error:
        _logger.warning("the formula %r cannot be drawn: %s", node.astext(), error, location=node)
        return escape(node.astext())


def _inline(writer: Any, node: nodes.math) -> None:
    writer.body.append(_mathml(node))
    raise nodes.SkipNode


def _block(writer: Any, node: nodes.math_block) -> None:
    writer.body.append(f'<div class="math">{_mathml(node, as_block=True)}</div>')
    raise nodes.SkipNode


def setup(app: Any) -> dict[str, Any]:
    """`html_math_renderer = "mathml"` takes these."""
    app.add_html_math_renderer("mathml", (_inline, None), (_block, None))
    return {"parallel_read_safe": True, "version": "1"}
