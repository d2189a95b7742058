"""Runs notebooks and stores their outputs: `python notebooks/run.py 01 06`.

Names are beginnings of file names; without any, all are run. Each runs in a
fresh kernel and in an empty folder. What is stored are small pictures and
text: no times, no addresses in memory. The metadata gets a digest of the code,
by which `tests/test_notebooks.py` finds outputs of other code than that of the
cells. So format first, then run.
"""

import argparse
import base64
import hashlib
import io
import os
import re
import sys
import tempfile
import time
from pathlib import Path

import nbformat


HERE = Path(__file__).resolve().parent
#: Pixels per inch of the pictures: 640 pixels for a figure 8 inches wide.
DPI = 80
#: Bytes that a notebook may have with its outputs.
MOST = 400_000
#: Seconds for a cell.
TIMEOUT = 900
#: Paths of this machine, and what is different each time.
_LOCAL = re.compile(
    r"(?<![\w.<])/(?:home|root|tmp|usr|work|Users|var)/\S+|\bat 0x[0-9a-f]{6,}"
)
_ADDRESS = re.compile(r"\s*<[\w.]+(?: object)? at 0x[0-9a-f]+>\s*")
_VIEWER = re.compile(r"(viewer\w*_|3dmolwarning_)\d{10,}")


def code_digest(book):
    """A hash of the code cells, in their order."""
    found = hashlib.sha256()
    for cell in book.cells:
        if cell.cell_type == "code":
            found.update(cell.source.encode() + b"\0")
    return found.hexdigest()[:16]


def texts(output):
    """The texts of an output, pictures left out."""
    if output.output_type == "stream":
        return [output.text]
    data = output.get("data", {})
    return [str(v) for kind, v in data.items() if not kind.startswith("image/")]


def faults(book):
    """What is wrong with stored outputs, a sentence each."""
    found = []
    outputs = 0
    for k, cell in enumerate(book.cells):
        for output in cell.get("outputs", ()):
            outputs += 1
            kind = output.output_type
            if kind == "error":
                found.append(f"cell {k} ends in {output.ename}.")
            elif output.get("name") == "stderr":
                found.append(f"cell {k} writes to stderr: {output.text[:200]}")
            if any("widget-view" in kind for kind in output.get("data", {})):
                found.append(f"cell {k} shows a widget, which needs a kernel.")
            for text in texts(output):
                if local := _LOCAL.search(text):
                    found.append(f"cell {k} shows {local.group()!r}.")
    if not outputs and any(cell.cell_type == "code" for cell in book.cells):
        found.append("it has no outputs.")
    if book.metadata.get("alchemi_jax", {}).get("code") != code_digest(book):
        found.append("its outputs are those of other code.")
    if len(nbformat.writes(book)) > MOST:
        found.append(f"it has more than {MOST} bytes.")
    return found


def _small(png):
    """A PNG with 128 colors, in base64 as `png` is: a third of the bytes."""
    from PIL import Image

    image = Image.open(io.BytesIO(base64.b64decode(png))).convert("RGB")
    written = io.BytesIO()
    image = image.quantize(128, dither=Image.Dither.NONE)
    image.save(written, "PNG", optimize=True)
    return base64.b64encode(written.getvalue()).decode()


def _tidy(book):
    """Leaves out what differs from run to run, and makes pictures small."""
    book.metadata["language_info"] = {"name": "python"}
    for cell in book.cells:
        cell.metadata.pop("execution", None)
        kept = []
        for k, output in enumerate(cell.get("outputs", ())):
            data = output.get("data", {})
            if "image/png" in data:
                data["image/png"] = _small(data["image/png"])
            plain = data.get("text/plain", "")
            if _ADDRESS.fullmatch(plain):
                if len(data) == 1:
                    continue
                del data["text/plain"]
            # The text of the HTML again; only an old extension reads this one.
            data.pop("application/3dmoljs_load.v0", None)
            # py3Dmol names its panels by the time.
            if "text/html" in data:
                name = rf"\g<1>{cell.id.replace('-', '_')}_{k}"
                data["text/html"] = _VIEWER.sub(name, data["text/html"])
            kept.append(output)
        if cell.cell_type == "code":
            cell.outputs = kept


def run(path):
    """Runs a notebook and writes it with its outputs, if these are right."""
    from nbclient import NotebookClient

    book = nbformat.read(path, as_version=4)
    with tempfile.TemporaryDirectory() as folder:
        # Only for the kernel: readers keep their own size of pictures.
        style = Path(folder) / "matplotlibrc"
        style.write_text(f"figure.dpi: {DPI}\n")
        roots = [str(HERE.parent), os.environ.get("PYTHONPATH", "")]
        environment = {
            "JAX_PLATFORMS": "cpu",
            # XLA tells of a slow machine otherwise.
            "TF_CPP_MIN_LOG_LEVEL": "3",
            **os.environ,
            "MATPLOTLIBRC": str(style),
            "PYTHONPATH": os.pathsep.join(filter(None, roots)),
        }
        work = Path(folder) / "work"
        work.mkdir()
        client = NotebookClient(
            book,
            timeout=TIMEOUT,
            record_timing=False,
            resources={"metadata": {"path": str(work)}},
        )
        client.execute(env=environment)
    _tidy(book)
    book.metadata["alchemi_jax"] = {"code": code_digest(book)}
    if wrong := faults(book):
        raise SystemExit(f"{path.name} is not written: " + " ".join(wrong))
    nbformat.validate(book)
    nbformat.write(book, path)


def main():
    """Runs the notebooks of the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help="beginnings of file names")
    names = parser.parse_args().names
    books = sorted(HERE.glob("*.ipynb"))
    for name in names:
        if not any(path.name.startswith(name) for path in books):
            sys.exit(f"no notebook begins with {name!r}.")
    for path in books:
        if not names or path.name.startswith(tuple(names)):
            begun = time.perf_counter()
            run(path)
            taken = time.perf_counter() - begun
            size = path.stat().st_size
            print(f"{path.name}: {taken:.0f} s, {size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
