"""Every notebook runs from a clean kernel and ends in a picture; its stored outputs are those of its code."""

import importlib.util
from pathlib import Path

import pytest
from cheap_xla import cheap_environment

import alchemi_jax
from alchemi_jax.models import chgnet_weights


BOOKS = sorted((Path(alchemi_jax.__file__).parent.parent / "notebooks").glob("*.ipynb"))


#: They compile for half a minute; the tests of training, of `examples/` and of CHGNet have the same parts.
LONG = ("10_train_a_potential", "11_a_real_material")
#: They need the weights of CHGNet.
WEIGHTS = ("11_a_real_material",)


@pytest.mark.parametrize(
    "path",
    [pytest.param(p, id=p.stem, marks=[pytest.mark.long] if p.stem in LONG else []) for p in BOOKS],
)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_notebook_runs(path, tmp_path, monkeypatch):
    if path.stem in WEIGHTS and not chgnet_weights.found():
        pytest.skip("no weights of CHGNet: alchemi-jax models get chgnet")
    # They compile more than they compute.
    for name, value in cheap_environment().items():
        monkeypatch.setenv(name, value)
    nbformat = pytest.importorskip("nbformat")
    nbclient = pytest.importorskip("nbclient")
    book = nbformat.read(path, as_version=4)
    lines = sum(len(cell.source.splitlines()) for cell in book.cells if cell.cell_type == "code")
    assert lines <= 150, "three screens of code"
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


@pytest.fixture(scope="module")
def runner():
    """The script that stores outputs."""
    pytest.importorskip("nbformat")
    spec = importlib.util.spec_from_file_location("run_notebooks", BOOKS[0].parent / "run.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("path", BOOKS, ids=lambda path: path.stem)
def test_stored_outputs_are_those_of_the_code(path, runner):
    book = runner.nbformat.read(path, as_version=4)
    assert not runner.faults(book), "python notebooks/run.py " + path.stem[:2]
    runner.nbformat.validate(book)
    shown = [o for cell in book.cells for o in cell.get("outputs", ()) if "image/png" in o.get("data", {})]
    assert shown, "no picture"


def test_faults_of_stored_outputs_are_found(runner):
    book = runner.nbformat.read(BOOKS[0], as_version=4)
    code = next(cell for cell in book.cells if cell.cell_type == "code")
    v4 = runner.nbformat.v4
    code.outputs = [
        v4.new_output("error", ename="ValueError", evalue="", traceback=[]),
        v4.new_output("stream", name="stderr", text="UserWarning: slow"),
        v4.new_output("stream", name="stdout", text="written to /tmp/abc/run.zarr"),
        v4.new_output("execute_result", {"text/plain": "<object at 0x7f1e5e3b50>"}),
    ]
    code.source += "\nchanged = 1"
    found = " ".join(runner.faults(book))
    for word in ("ValueError", "stderr", "/tmp/abc", "0x7f1e5e3b50", "other code"):
        assert word in found
    code.outputs = [v4.new_output("stream", name="stdout", text="1/2 </tr> 3 eV/Å x" * 30_000)]
    assert "bytes" in " ".join(runner.faults(book))
