"""The table of LoggingHook as a file: NaN as a number, quoted names, and rows that a killed process left."""

import csv

import matplotlib.image
import numpy as np
import pytest

from alchemi_jax.cli.plot import convergence
from alchemi_jax.dynamics.hooks.writers import CSVWriter


COLUMNS = ["step", "energy", 'P, "total"\n(GPa)']
HEAD = 'step,energy,"P, ""total""\n(GPa)"\n'


def table(*rows):
    return {name: np.array([r[i] for r in rows]) for i, name in enumerate(COLUMNS)}


def test_what_is_not_a_number_is_read_as_one(tmp_path):
    path = tmp_path / "x.csv"
    writer = CSVWriter(path, COLUMNS, "a")
    writer.write(table((0, 1.5, np.nan), (1, np.inf, 0.1)))
    writer.write({k: v.astype(np.float32) if k != "step" else v for k, v in table((2, np.nan, 0.1)).items()})
    assert path.read_text() == HEAD + "0,1.5,NaN\n1,inf,0.1\n2,NaN,0.100000001\n"
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [float(r[COLUMNS[2]]) for r in rows[1:]] == [0.1, 0.100000001]
    polars = pytest.importorskip("polars")
    assert polars.read_csv(path).dtypes == [polars.Int64, polars.Float64, polars.Float64]


@pytest.mark.parametrize("tail", ["7,", "7,0.2", "7"])
def test_a_row_that_broke_off_is_removed_and_said(tmp_path, tail):
    path = tmp_path / "x.csv"
    path.write_text(HEAD + "0,1.5,2.5\n" + tail)
    with pytest.warns(RuntimeWarning, match=rf"x.csv: the last row, '{tail}', was not written to its end"):
        CSVWriter(path, COLUMNS, "a").write(table((1, 2.0, 3.0)))
    assert path.read_text() == HEAD + "0,1.5,2.5\n1,2.0,3.0\n"


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (HEAD + "0,1.5,2.5\n1,2.5,3.2", "ends in the row '1,2.5,3.2' without a line break"),
        (HEAD.rstrip("\n"), "without a line break"),
        ("step,energy\n1,2", "has the columns step,energy, this LoggingHook writes"),
        ("notes of mine", "has the columns notes of mine"),
        ("\0\n", "has the columns"),
    ],
)
def test_a_file_of_somebody_else_is_left_alone(tmp_path, text, sentence):
    path = tmp_path / "x.csv"
    path.write_text(text)
    with pytest.raises(ValueError, match=sentence):
        CSVWriter(path, COLUMNS, "a").open()
    assert path.read_text() == text


def test_a_picture_of_one_row_shows_its_point(tmp_path):
    log, picture = tmp_path / "log.csv", tmp_path / "x.png"
    log.write_text("step,system_id,status,energy,fmax,temperature\n0,0,0,-1.0,0.02,0.0\n")
    convergence(log, picture, 0.05, np.array([2]))
    drawn = matplotlib.image.imread(picture)[..., :3]
    height, width = drawn.shape[:2]
    for rows in ((0.1, 0.45), (0.57, 0.9)):
        inner = drawn[int(rows[0] * height) : int(rows[1] * height), int(0.2 * width) : int(0.8 * width)]
        assert (inner.min(axis=-1) < 0.8).sum() > 10


def test_two_logs_do_not_write_one_file_at_a_time(tmp_path):
    path = tmp_path / "x.csv"
    first = CSVWriter(path, COLUMNS, "a")
    first.open()
    for mode in ("a", "w"):
        with pytest.raises(ValueError, match=r"x\.csv is being written by another sink or log"):
            CSVWriter(path, COLUMNS, mode).open()
    first.write(table((0, 1.5, 2.5)))
    first.close()
    CSVWriter(path, COLUMNS, "a").write(table((1, 1.5, 2.5)))
    assert path.read_text() == HEAD + "0,1.5,2.5\n1,1.5,2.5\n"
