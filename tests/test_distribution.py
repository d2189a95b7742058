"""What an installed package has: its data, its types, its command. Nothing is compiled."""

import re
import tarfile
import tomllib
import zipfile
from importlib import resources
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

import alchemi_jax
from alchemi_jax import samples


ROOT = Path(alchemi_jax.__file__).parent.parent


@pytest.fixture(scope="module")
def project():
    path = ROOT / "pyproject.toml"
    if not path.exists():
        pytest.skip("installed without its repository")
    return tomllib.loads(path.read_text())


def test_data_and_the_mark_of_types_are_there():
    assert resources.files("alchemi_jax").joinpath("py.typed").is_file()
    assert [path.name for path in samples.paths()] == [
        "clusters.extxyz",
        "crystals.extxyz",
        "mixtures.extxyz",
    ]


def test_the_command_is_a_function(project):
    for name, value in project["project"]["scripts"].items():
        assert callable(EntryPoint(name, value, "console_scripts").load())


def test_files_that_the_project_names_exist(project):
    named = [*project["tool"]["hatch"]["build"]["targets"]["sdist"]["include"]]
    named += [project["project"]["readme"], *project["project"]["license-files"]]
    assert all((ROOT / name).exists() for name in named)


def test_the_citation_has_the_version_and_the_licence(project):
    said = dict(re.findall(r"^([\w-]+): (.+)$", (ROOT / "CITATION.cff").read_text(), re.MULTILINE))
    assert said["version"] == alchemi_jax.__version__
    assert said["license"] == project["project"]["license"]
    assert f"## {said['version']}" in (ROOT / "CHANGELOG.md").read_text()


def test_links_and_pictures_of_the_readme_are_files(project):
    text = re.sub(r"```.*?```", "", (ROOT / "README.md").read_text(), flags=re.DOTALL)
    links = [link.partition("#")[0] for link in re.findall(r"\]\(([^)]+)\)", text)]
    links = [link for link in links if link and "://" not in link]
    assert len(links) > 20
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_the_page_on_versions_excludes_what_pip_excludes(project):
    """The extras for GPUs have the same bounds."""
    (wanted,) = (line for line in project["project"]["dependencies"] if re.match(r"jax[><=!]", line))
    extras = project["project"]["optional-dependencies"]
    for name in ("cuda12", "cuda13"):
        assert extras[name] == [wanted.replace("jax", f"jax[{name}]", 1)]
    page = (ROOT / "docs/reference/versions.md").read_text()
    excluded = re.findall(r"^\| ([\d.]+) \|.*\| excluded:", page, re.MULTILINE)
    assert excluded == re.findall(r"!=([\d.]+)", wanted)
    assert f"before {re.findall(r'>=([0-9.]+)', wanted)[0]} " in page


def test_the_wheel_and_the_sdist_have_what_they_should(project, tmp_path):
    """As `pip wheel` and `python -m build` make them."""
    wheels = pytest.importorskip("hatchling.builders.wheel")
    sdists = pytest.importorskip("hatchling.builders.sdist")
    (wheel,) = wheels.WheelBuilder(str(ROOT)).build(directory=str(tmp_path), versions=["standard"])
    with zipfile.ZipFile(wheel) as file:
        names = set(file.namelist())
    package = {
        str(path.relative_to(ROOT))
        for path in (ROOT / "alchemi_jax").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    info = f"alchemi_jax-{alchemi_jax.__version__}.dist-info"
    assert {name for name in names if not name.startswith(info)} == package
    assert {f"{info}/entry_points.txt", f"{info}/licenses/LICENSE", f"{info}/METADATA"} <= names
    (sdist,) = sdists.SdistBuilder(str(ROOT)).build(directory=str(tmp_path), versions=["standard"])
    with tarfile.open(sdist) as file:
        inside = {name.partition("/")[2] for name in file.getnames()}
    assert package <= inside
    assert {"CITATION.cff", "LICENSE", "docs/pictures/atoms.png", "tests/conftest.py"} <= inside
    books = {str(path.relative_to(ROOT)) for path in (ROOT / "notebooks").glob("*.ipynb")}
    assert books <= inside
    assert {f"docs/{name}" for name in books} <= inside
