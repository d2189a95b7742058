"""Structures that come with the package: noble-gas clusters and crystals, a little out of shape.

`python -m alchemi_jax.samples.make` makes them.
"""

from importlib import resources
from pathlib import Path


def paths() -> list[Path]:
    """Paths of the files of the sample set, noble-gas clusters and crystals."""
    folder = Path(str(resources.files(__name__)))
    return sorted(folder.glob("*.extxyz"))
