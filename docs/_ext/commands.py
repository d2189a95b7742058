"""`{command} relax`: the options of a command, from its own parser."""

import argparse
import re
from typing import Any

from docutils import nodes
from sphinx.util.docutils import SphinxDirective


class Command(SphinxDirective):
    """Usage, description, options and exit codes of one command of `alchemi-jax`."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """As Markdown, which the page's own parser reads."""
        from alchemi_jax.cli.flags import parser_of

        (name,) = self.arguments
        return self.parse_text_to_nodes(described(parser_of(name)))


def described(parser: argparse.ArgumentParser) -> str:
    """A parser as Markdown."""
    usage = " ".join(parser.format_usage().removeprefix("usage: ").split())
    lines = [
        _text(parser.description),
        "",
        "```text",
        *_wrapped(usage),
        "```",
        "",
    ]
    for group in parser._action_groups:
        actions = [a for a in group._group_actions if a.help is not argparse.SUPPRESS]
        if not actions:
            continue
        lines += [f"**{str(group.title).capitalize()}**", ""]
        for action in actions:
            lines += [f"`{_shown(action)}`", f": {_text(action.help)}", ""]
    return "\n".join([*lines, _text(parser.epilog)])


def _shown(action: argparse.Action) -> str:
    value = action.metavar or action.dest
    if not action.option_strings:
        return str(value)
    # Flags that take nothing have no metavar of their own.
    return ", ".join(action.option_strings) + ("" if action.nargs == 0 else f" {value}")


def _text(text: str | None) -> str:
    """A sentence, with flags as code."""
    text = (text or "").replace("%%", "%").replace("<", "&lt;").replace("[", r"\[").replace("*", r"\*")
    return re.sub(r"(?<!\S)--[a-z][\w-]*", r"`\g<0>`", text)


def _wrapped(usage: str, width: int = 78) -> list[str]:
    lines, line = [], ""
    for word in usage.split(" "):
        if len(line) + len(word) + 1 > width:
            lines.append(line)
            line = "   "
        line = f"{line} {word}" if line else word
    return [*lines, line]


def setup(app: Any) -> dict[str, Any]:
    """The directive."""
    app.add_directive("command", Command)
    return {"parallel_read_safe": True, "version": "1"}
