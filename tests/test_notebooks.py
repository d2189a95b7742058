"""Every notebook runs from a clean kernel and ends in a picture."""

from pathlib import Path

import pytest
from cheap_xla import cheap_environment

import alchemi_jax


BOOKS = sorted((Path(alchemi_jax.__file__).parent.parent / "notebooks").glob("*.ipynb"))


#: They compile for half a minute; the tests of training and of `examples/` have the same parts.
LONG = ("10_train_a_potential",)


@pytest.mark.parametrize(
    "path",
    [pytest.param(p, id=p.stem, marks=[pytest.mark.long] if p.stem in LONG else []) for p in BOOKS],
)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_notebook_runs(path, tmp_path, monkeypatch):
    # They compile more than they compute.
    for name, value in cheap_environment().items():
        monkeypatch.setenv(name, value)
    nbformat = pytest.importorskip("nbformat")
    nbclient = pytest.importorskip("nbclient")
    book = nbformat.read(path, as_version=4)
    lines = sum(len(cell.source.splitlines()) for cell in book.cells)
    assert lines <= 150, "three screens"
    for cell in book.cells:
        # A cell may say how it is cut short here: smaller numbers, after its own.
        if "short" in cell.metadata:
            cell.source += "\n" + cell.metadata["short"]
    nbclient.NotebookClient(book, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    code = [cell for cell in book.cells if cell.cell_type == "code"]
    last = [output for output in code[-1].outputs if "image/png" in output.get("data", {})]
    assert last, "no picture at the end"
    printed = [o.text for cell in book.cells for o in cell.get("outputs", ()) if o.get("name") == "stderr"]
    assert not any("Warning" in text for text in printed), printed
