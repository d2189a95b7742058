"""Where lines may break: names of tests in tables after an underscore. Dashes between names and texts."""

from typing import Any

from docutils import nodes
from sphinx.transforms.post_transforms import SphinxPostTransform


class Breaks(SphinxPostTransform):
    """Browsers break a name only where they are told to."""

    default_priority = 900
    formats = ("html",)

    def run(self, **kwargs: Any) -> None:
        """Marks the places, and replaces hyphens."""
        for node in list(self.document.findall(nodes.literal)):
            text = node.astext()
            if "test_" in text and len(text) > 30 and _in_table(node):
                node.children.clear()
                for part in text.replace("/", "/\0").replace("_", "_\0").replace("::", "::\0").split("\0"):
                    node += [nodes.Text(part), nodes.raw("", "<wbr>", format="html")]
        # Two hyphens between a parameter and its description.
        for text in list(self.document.findall(nodes.Text)):
            if text.startswith(" -- "):
                text.parent.replace(text, nodes.Text(text.replace(" -- ", " \N{EN DASH} ", 1)))


def _in_table(node: nodes.Node) -> bool:
    while node is not None and not isinstance(node, nodes.entry):
        node = node.parent
    return node is not None


def setup(app: Any) -> dict[str, Any]:
    """The transform of all pages."""
    app.add_post_transform(Breaks)
    return {"parallel_read_safe": True, "version": "1"}
