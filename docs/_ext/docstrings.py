"""Docstrings for Sphinx: they are written with single backticks and fences, as in Markdown."""

import re
from pathlib import Path
from typing import Any


#: Napoleon would read the first line of these as "type: description".
_PLAIN = ("attribute", "property", "data")
_FENCE = re.compile(r"^(\s*)```(\w*)\s*$")
_CODE = re.compile(r"(``.+?``|`[^`]+`)")
_DOI = re.compile(r"\bdoi:(10\.\d+/[^\s,;]+)")
_ITEM = re.compile(r"^(\s*)([-*]|\d+\.) ")


def setup(app: Any) -> dict[str, Any]:
    """Before napoleon, which has priority 500; and around it."""
    kept: list[str] = []

    def hide(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
        kept[:] = lines
        if what in _PLAIN:
            lines.clear()

    def show(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
        if what in _PLAIN:
            lines[:] = kept

    app.connect("autodoc-process-docstring", _process, priority=100)
    app.connect("autodoc-process-docstring", hide, priority=499)
    app.connect("autodoc-process-docstring", show, priority=501)
    return {"parallel_read_safe": True, "version": "1"}


def _process(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    if what == "data" and lines[:1] == (type(obj).__doc__ or "").splitlines()[:1]:
        lines[:] = text_of_constant(name)
    lines[:] = as_rst(lines)


def text_of_constant(name: str) -> list[str]:
    """The string below a constant, in the file of the package that defines it.

    Sphinx finds it only in the module of that path, and otherwise shows the text of the constant's class.
    """
    path, _, constant = name.rpartition(".")
    definition = re.compile(rf'^{constant}\b[^\n]*?=[^\n]*\n"""(.*?)"""', re.DOTALL | re.MULTILINE)
    package = Path(__file__).resolve().parents[2] / path.split(".")[0]
    for file in sorted(package.rglob("*.py")):
        found = definition.search(file.read_text())
        if found:
            return [*found[1].splitlines(), ""]
    return []


def as_rst(lines: list[str]) -> list[str]:
    """Code in double backticks, fences as literal blocks, and signs of mathematics as they are."""
    found: list[str] = []
    fenced = block = False
    for line in _joined_code(lines):
        fence = _FENCE.match(line)
        if fence:
            fenced = not fenced
            found += [f"{fence[1]}.. code-block:: {fence[2] or 'text'}", ""] if fenced else [""]
            continue
        if fenced:
            found.append(f"    {line}" if line.strip() else "")
            continue
        block = block and (not line.strip() or line.startswith("    "))
        if not block and line.startswith("    ") and _ends_paragraph(found):
            block = True
            found += ["::", ""]
        if block:
            found.append(line)
            continue
        item = _ITEM.match(line)
        # A list after a sentence needs an empty line.
        if item and found and found[-1].strip() and not _in_list(found, item[1]):
            found.append("")
        found.append(_escaped(line))
    return found


def _ends_paragraph(found: list[str]) -> bool:
    """Whether an empty line follows a paragraph that is not indented: what is indented then is a formula."""
    if not found or found[-1].strip():
        return False
    before = next((line for line in reversed(found) if line.strip()), " ")
    # The items of a section are indented, too.
    return not before.startswith(" ") and not re.fullmatch(r"\w+:", before)


def _in_list(found: list[str], indent: str) -> bool:
    """Whether the lines end with an item of a list of this indentation."""
    for line in reversed(found):
        item = _ITEM.match(line)
        if item:
            return item[1] == indent
        if not line.startswith(indent + " "):
            return False
    return False


def _joined_code(lines: list[str]) -> list[str]:
    """Lines of which none ends within a pair of backticks: such code is moved to the next line."""
    found = list(lines)
    for i in range(len(found) - 1):
        if "```" not in found[i] and found[i].count("`") % 2:
            before, _, code = found[i].rpartition("`")
            indent = re.match(r"\s*", found[i + 1])
            found[i] = before.rstrip()
            found[i + 1] = f"{indent[0] if indent else ''}`{code} {found[i + 1].strip()}"
    return found


def _escaped(line: str) -> str:
    parts = _CODE.split(line)
    for i, part in enumerate(parts):
        if i % 2:
            parts[i] = part if part.startswith("``") else f"`{part}`"
            continue
        item = _ITEM.match(part) if i == 0 else None
        start = item.end() if item else 0
        text = re.sub(r"([*|\\])", r"\\\1", part[start:])
        # "K." would begin a list with letters.
        text = re.sub(r"(^\s*|: )([A-Z]\.)(?=\s|$)", r"\1\\\2", text) if i == 0 else text
        parts[i] = part[:start] + re.sub(r"(?<=\w)_(?=\W|$)", r"\\_", text)
    return _DOI.sub(_link, _separated(parts))


def _link(found: re.Match) -> str:
    """A DOI as a link; a period after it, or a parenthesis around it, ends the sentence."""
    name = found[1].replace("\\", "").rstrip(".")
    while name.count(")") > name.count("("):
        name = name.rpartition(")")[0].rstrip(".")
    return f"`doi:{name} <https://doi.org/{name}>`__{found[1].replace(chr(92), '').removeprefix(name)}"


def _separated(parts: list[str]) -> str:
    """Code directly before or after letters needs a mark between them."""
    text = ""
    for i, part in enumerate(parts):
        if i % 2 == 0 and i and part[:1].isalnum():
            part = "\\ " + part
        if i % 2 and text[-1:].isalnum():
            text += "\\ "
        text += part
    return text
