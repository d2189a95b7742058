"""The pages of the reference: they have every public name, and their tables are those of the code."""

import importlib
import sys
from pathlib import Path
from types import ModuleType

import pytest
from ase.build import molecule

import alchemi_jax
from alchemi_jax import AtomicData
from alchemi_jax.cli.flags import COMMANDS, parser_of


ROOT = Path(alchemi_jax.__file__).parent.parent
DOCS = ROOT / "docs"
# The directives of the pages, which need Sphinx.
pytest.importorskip("sphinx")
if not (DOCS / "_ext").exists():
    pytest.skip("installed without its repository", allow_module_level=True)
sys.path.append(str(DOCS / "_ext"))
commands, docstrings, fields, names = (
    importlib.import_module(name) for name in ("commands", "docstrings", "fields", "names")
)


def test_the_pages_have_every_public_name_once():
    """Under a path from which people import it; a name that two modules have is described once."""
    found = [entry for page in DOCS.rglob("*.md") for entry in names.documented(page.read_text())]
    assert len(found) == len(set(found)), "a name is described twice"
    objects = [getattr(importlib.import_module(module), name) for module, name in found]
    for path in names.MODULES:
        module = importlib.import_module(path)
        for name in module.__all__:
            value = getattr(module, name)
            known = (path, name) in found or any(value is other for other in objects)
            assert known or isinstance(value, ModuleType), (
                f"{path}.{name} is on no page: add it to a block {{public}} in docs/reference/api/"
            )


def test_every_public_class_and_function_is_described():
    for page in DOCS.rglob("*.md"):
        for module, name in names.documented(page.read_text()):
            value = getattr(importlib.import_module(module), name)
            assert names.kind_of(value) == "data" or value.__doc__, (module, name)


@pytest.mark.parametrize("name", sorted(fields.CLASSES))
def test_the_tables_of_fields(name):
    """All fields of the class and no others, each with words, and with a shape where it is an array."""
    kind = getattr(importlib.import_module(fields.CLASSES[name]), name)
    rows = {f.name: f for f in fields.fields_of(kind, fields.texts()[name])}
    assert all(row.by and row.what for row in rows.values())
    assert (
        any(f"```{{fields}} {name}" in page.read_text() for page in DOCS.rglob("*.md")) or name == "HostBatch"
    )
    if name == "Batch":
        assert (rows["forces"].shape, rows["forces"].level) == ("atoms 3", "atom")
        assert (rows["energy"].shape, rows["energy"].level) == ("systems", "system")
        assert rows["meta"].level == ""
    if name == "AtomicData":
        water = AtomicData.from_ase(molecule("H2O"))
        sizes = {"atoms": 3, "3": 3}
        for row in rows.values():
            if "..." not in row.shape and row.shape != "-":
                shape = tuple(sizes[axis] for axis in row.shape.split())
                assert getattr(getattr(water, row.name), "shape", ()) == shape, row.name


def test_the_page_of_options_has_every_flag():
    page = (DOCS / "reference" / "options.md").read_text()
    for name in COMMANDS:
        assert f"```{{command}} {name}\n" in page, name
        text = commands.described(parser_of(name))
        for action in parser_of(name)._actions:
            assert all(flag in text for flag in action.option_strings), (name, action.dest)


def test_docstrings_become_what_sphinx_reads():
    doi = docstrings.as_rst(["(doi:10.1016/S0009(99)1-9). See `f`."])[0]
    assert doi == "(`doi:10.1016/S0009(99)1-9 <https://doi.org/10.1016/S0009(99)1-9>`__). See ``f``."
    assert docstrings.as_rst(["    t: K. Or"]) == [r"    t: \K. Or"]
    lines = ["A list of |v|:", "- `a` times b*c", "", "    E = sum_i x_", "", "Args:", "    x: of `f`s."]
    assert docstrings.as_rst(lines) == [
        r"A list of \|v\|:",
        "",
        r"- ``a`` times b\*c",
        "",
        "::",
        "",
        "    E = sum_i x_",
        "",
        "Args:",
        r"    x: of ``f``\ s.",
    ]


def test_sources_have_a_doi():
    """All but books, reports and programs."""
    table = names.table_of_sources(DOCS / "reference")
    rows = [line for line in table.splitlines()[2:] if "doi.org" not in line]
    assert table.count("doi.org") > 30
    without = ("Ashcroft", "Ziegler", "optax")
    assert not [row for row in rows if not any(word in row for word in without)]


def test_every_page_is_in_the_navigation():
    """By its path, in the contents of an index page."""
    listed = {
        (page.parent / line if not line.startswith("/") else DOCS / line[1:]).relative_to(DOCS)
        for page in DOCS.rglob("*.md")
        if "notebooks" not in page.parts
        for block in page.read_text().split("```{toctree}")[1:]
        for line in block.partition("```")[0].split()
        if not line.startswith(":")
    }
    books = {Path("notebooks") / path.stem for path in (ROOT / "notebooks").glob("*.ipynb")}
    pages = {
        path.relative_to(DOCS).with_suffix("") for path in DOCS.rglob("*.md") if "notebooks" not in path.parts
    }
    missing = {str(path) for path in pages | books if path not in listed} - {"index"}
    assert not missing, f"add {missing} to the index page of one of {sorted({p.parts[0] for p in listed})}"
