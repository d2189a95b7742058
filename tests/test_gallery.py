"""The gallery: each entry has a page, a picture and a script that runs when it is pasted."""

import ast
import importlib
import re
import sys
from pathlib import Path

import pytest
from PIL import Image

import alchemi_jax


ROOT = Path(alchemi_jax.__file__).parent.parent
GALLERY = ROOT / "docs" / "gallery"
if not GALLERY.exists():
    pytest.skip("installed without its repository", allow_module_level=True)
sys.path.append(str(GALLERY))
draw = importlib.import_module("draw")
entries = pytest.mark.parametrize("name", draw.ENTRIES)


def test_there_are_twelve_pictures_on_the_first_page():
    """A card for each entry, and no others."""
    index = (GALLERY / "index.md").read_text()
    assert len(draw.ENTRIES) >= 12
    linked = re.findall(r"^:link: (\w+)\n:link-type: doc\n:img-top: (\w+)\.\w+$", index, re.MULTILINE)
    assert sorted(linked) == [(name, name) for name in draw.ENTRIES]


@entries
def test_an_entry_has_its_picture_and_shows_its_script(name):
    (picture,) = (p for p in GALLERY.glob(f"{name}.*") if p.suffix in (".png", ".gif"))
    assert picture.stat().st_size < (400e3 if picture.suffix == ".gif" else 100e3)
    with Image.open(picture) as image:
        assert image.width >= 500
    page = (GALLERY / f"{name}.md").read_text()
    assert f"]({picture.name})" in page.splitlines()[2]
    assert f"```{{literalinclude}} {name}.py\n" in page


@entries
def test_a_script_has_public_names_and_short_lines(name):
    """It compiles, and what it imports of ours is what the packages offer."""
    text = (GALLERY / f"{name}.py").read_text()
    compile(text, name, "exec")
    assert max(map(len, text.splitlines())) <= 80
    assert len(text.splitlines()) <= 65
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            assert not any(a.name.startswith("alchemi_jax") for a in node.names), name
        elif isinstance(node, ast.ImportFrom) and node.module.split(".")[0] == "alchemi_jax":
            offered = importlib.import_module(node.module).__all__
            assert {a.name for a in node.names} <= set(offered), (name, node.module)


@pytest.mark.long
@entries
def test_a_script_makes_its_picture(name, tmp_path):
    """Alone, in an empty folder, without a warning."""
    made = draw.run(name, tmp_path)
    with Image.open(made) as new, Image.open(GALLERY / made.name) as kept:
        assert new.size == kept.size
