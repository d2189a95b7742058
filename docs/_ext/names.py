"""The pages of the API: a directive that documents public names, and links from code to them.

    ```{public} alchemi_jax.dynamics
    NVE
    FIRE
    ```

documents these names under the path that people import. Code in a sentence that is a public name, as in
`FIRE` or `Batch.from_ase(...)`, links to its description.
"""

import functools
import importlib
import inspect
import re
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx import addnodes
from sphinx.transforms import SphinxTransform
from sphinx.util.docutils import SphinxDirective


#: Modules whose public names (`__all__`) the pages have.
MODULES = (
    "alchemi_jax",
    "alchemi_jax.analysis",
    "alchemi_jax.distributed",
    "alchemi_jax.dynamics",
    "alchemi_jax.dynamics.hooks",
    "alchemi_jax.dynamics.sinks",
    "alchemi_jax.hooks",
    "alchemi_jax.io",
    "alchemi_jax.levels",
    "alchemi_jax.models",
    "alchemi_jax.neighbors",
    "alchemi_jax.observables",
    "alchemi_jax.parameters",
    "alchemi_jax.segments",
    "alchemi_jax.training",
    "alchemi_jax.training.hooks",
    "alchemi_jax.units",
)
_BLOCK = re.compile(r"^```\{public\} (\S+)\n(.*?)^```", re.DOTALL | re.MULTILINE)
#: `FIRE`, `Batch.from_ase(...)`, `alchemi_jax.dynamics.FIRE`.
_NAME = re.compile(r"(?:alchemi_jax(?:\.[a-z]+)*\.)?([A-Za-z_]\w*)((?:\.\w+)*)(\(.*\))?")


def documented(text: str) -> list[tuple[str, str]]:
    """Module and name of everything that the blocks of a page document."""
    return [(module, name) for module, names in _BLOCK.findall(text) for name in names.split()]


def kind_of(value: Any) -> str:
    """What autodoc calls an object."""
    if inspect.isclass(value):
        return "exception" if issubclass(value, BaseException) else "class"
    return "function" if inspect.isroutine(value) or hasattr(value, "__wrapped__") else "data"


def bases_apart(value: type, known: set[str]) -> str:
    """Bases whose members are described elsewhere. Those of a base without a description are shown."""
    described = [base for base in value.__mro__[1:] if base.__name__ in known]
    found = {base for base in value.__mro__[1:] if any(issubclass(other, base) for other in described)}
    found |= {base for base in value.__mro__ if not base.__module__.startswith("alchemi_jax")}
    return ", ".join(sorted(base.__name__ for base in found))


class Public(SphinxDirective):
    """`{public} module` with one name per line."""

    required_arguments = 1
    has_content = True

    def run(self) -> list[nodes.Node]:
        """Each name by the directive of autodoc for its kind."""
        (path,) = self.arguments
        module = importlib.import_module(path)
        known = set(places(Path(self.env.srcdir) / "reference"))
        lines = ["```{eval-rst}"]
        for name in " ".join(self.content).split():
            value = getattr(module, name)
            lines.append(f".. auto{kind_of(value)}:: {path}.{name}")
            if inspect.isclass(value):
                lines.append(f"   :inherited-members: {bases_apart(value, known)}")
            lines.append("")
        return self.parse_text_to_nodes("\n".join([*lines, "```"]))


@functools.cache
def places(folder: Path) -> dict[str, str]:
    """The full path of each documented name; None for those that two modules have."""
    found: dict[str, str] = {}
    several = set()
    for page in sorted(folder.rglob("*.md")):
        for module, name in documented(page.read_text()):
            if name in found:
                several.add(name)
            found[name] = f"{module}.{name}"
    return {name: path for name, path in found.items() if name not in several}


class Sources(SphinxDirective):
    """`{sources}`: the papers that the docstrings of the documented names give as their source."""

    def run(self) -> list[nodes.Node]:
        """A table of names and papers."""
        return self.parse_text_to_nodes(table_of_sources(Path(self.env.srcdir) / "reference"))


def table_of_sources(folder: Path) -> str:
    """Names and sources, in the order of the pages, as a table of Markdown."""
    found: dict[str, list[str]] = {}
    for page in sorted(folder.rglob("*.md")):
        for module, name in documented(page.read_text()):
            value = getattr(importlib.import_module(module), name)
            parts = vars(value).items() if inspect.isclass(value) else ()
            texts = [(name, value.__doc__)] if kind_of(value) != "data" else []
            texts += [
                (f"{name}.{part}", inspect.unwrap(v).__doc__) for part, v in parts if inspect.isroutine(v)
            ]
            for who, text in texts:
                for source in re.findall(
                    r"Source: (.+?)(?:\n\s*\n|\Z)", inspect.cleandoc(text or ""), re.DOTALL
                ):
                    found.setdefault(_with_links(" ".join(source.split())), []).append(f"`{who}`")
    rows = [f"| {', '.join(names)} | {source} |" for source, names in found.items()]
    return "\n".join(["| name | source |", "|---|---|", *rows])


def _with_links(source: str) -> str:
    return re.sub(
        r"doi:(10\.\d+/[^\s,;]*[^\s,;.])", lambda doi: f"[doi:{doi[1]}](<https://doi.org/{doi[1]}>)", source
    )


class LinkNames(SphinxTransform):
    """Links from code in sentences to the API."""

    default_priority = 500

    def apply(self, **kwargs: Any) -> None:
        """Wraps each literal that is a public name into a reference, which stays code if it leads nowhere."""
        known = places(Path(self.env.srcdir) / "reference")
        not_here = (
            nodes.reference,
            addnodes.pending_xref,
            nodes.title,
            addnodes.desc_signature,
        )
        for literal in list(self.document.findall(nodes.literal)):
            parts = _NAME.fullmatch(literal.astext())
            node, inside = literal.parent, False
            while node is not None and not inside:
                inside, node = isinstance(node, not_here), node.parent
            # Lower-case words, such as `errors`, are names of many things: only with parentheses.
            if inside or parts is None or parts[1] not in known or (parts[1].islower() and not parts[3]):
                continue
            target = known[parts[1]] + parts[2]
            link = addnodes.pending_xref(
                "",
                refdomain="py",
                reftype="obj",
                reftarget=target,
                refexplicit=True,
                refwarn=False,
                refdoc=self.env.current_document.docname,
            )
            literal.replace_self(link)
            link += literal


class LinkNotebooks(SphinxTransform):
    """Links to the notebooks of the repository lead to their pages.

    docs/notebooks is a link to their folder, and paths are resolved before they are looked up.
    """

    default_priority = 500

    def apply(self, **kwargs: Any) -> None:
        """Replaces the path of the folder by the name of the page."""
        folder = f"{(Path(self.env.srcdir) / 'notebooks').resolve()}/"
        for link in self.document.findall(addnodes.pending_xref):
            if str(link.get("reftarget", "")).startswith(folder):
                link["reftarget"] = "notebooks/" + link["reftarget"].removeprefix(folder)


def setup(app: Any) -> dict[str, Any]:
    """The directive and the links."""
    app.add_transform(LinkNotebooks)
    app.add_directive("public", Public)
    app.add_directive("sources", Sources)
    app.add_transform(LinkNames)
    return {"parallel_read_safe": True, "version": "1"}
