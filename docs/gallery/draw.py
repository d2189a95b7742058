"""Runs the scripts of the gallery and keeps their pictures beside them.

`python docs/gallery/draw.py` runs all of them, `python docs/gallery/draw.py
melting` one. Each is a process of its own in an empty folder, as if it had been
pasted.
"""

import argparse
import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image, ImageSequence


HERE = Path(__file__).parent
ROOT = HERE.parent.parent
ENTRIES = sorted(p.stem for p in HERE.glob("*.py") if p.stem != "draw")


def run(name, folder):
    """Runs an entry in a folder and returns its picture there.

    Warnings are errors here: a reader would see them, too.
    """
    environment = os.environ | {"MPLBACKEND": "Agg", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, str(HERE / f"{name}.py")],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
    )
    if done.returncode or "Warning" in done.stderr:
        raise RuntimeError(f"{name}: {done.stderr}")
    (picture,) = Path(folder).glob(f"{name}.*")
    return picture


def children_seconds():
    """CPU time of the processes that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def keep(made, kept):
    """Writes a picture with few colors; those of an animation share them."""
    with Image.open(made) as image:
        frames = [
            frame.convert("RGB") for frame in ImageSequence.Iterator(image)
        ]
        duration = image.info.get("duration")
    none, last = Image.Dither.NONE, frames[-1]
    if len(frames) == 1:
        last.quantize(128, dither=none).save(kept, optimize=True)
        return
    colors = last.quantize(32, dither=none)
    first, *others = (f.quantize(palette=colors, dither=none) for f in frames)
    first.save(
        kept, save_all=True, append_images=others, duration=duration, loop=0
    )


def draw(name):
    """Keeps the picture of an entry, as a small file."""
    before = children_seconds()
    with tempfile.TemporaryDirectory() as folder:
        made = run(name, folder)
        kept = HERE / made.name
        keep(made, kept)
    size = f"{kept.stat().st_size / 1000:.0f} kB"
    print(f"{kept.name}: {size}, {children_seconds() - before:.0f} s of CPU")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help="all if none is given"
    )
    for name in parser.parse_args().names or ENTRIES:
        draw(name)
