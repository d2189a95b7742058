"""What the configuration asks of its surroundings: flags, and the state of the package."""

import hashlib
import os
from pathlib import Path


def asked(name: str) -> bool:
    """Whether an environment variable is set to true."""
    return os.environ.get(name, "").lower() in ("1", "true", "yes")


def digest(folder: Path) -> str:
    """A hash of the names and contents of the Python files in a folder."""
    found = hashlib.sha256()
    for path in sorted(folder.rglob("*.py")):
        found.update(str(path.relative_to(folder)).encode() + b"\0" + path.read_bytes())
    return found.hexdigest()[:16]
