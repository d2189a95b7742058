"""Files to which rows are appended: how far one is, and going back to that point.

A state has the length of the file, and a checksum of its end, so that another file at the same path is
not taken for it. Going back is one `truncate`, which a killed process has made or not.
"""

import os
import zlib
from pathlib import Path
from typing import Any


#: Bytes of the end of a file that the checksum is of.
_CHECKED = 1 << 16
#: What to do about a file that is not what the checkpoint says.
ADVICE = "put it back as the run left it, or begin again without the checkpoint"


def end_of_file(path: Path, length: int) -> dict[str, Any]:
    """The state of the first `length` bytes of a file."""
    return {"bytes": length, "crc32": _checksum(path, length)}


def check_end(path: Path, state: dict[str, Any], rows: str) -> None:
    """Check that a file begins with what the state is of.

    Args:
        rows: what the state is of, for the message: "20 rows".

    Raises:
        ValueError: if the file does not exist, is shorter, or differs before that point.
    """
    length = int(state["bytes"])
    size = path.stat().st_size if path.exists() else -1
    if size < length:
        has = "does not exist" if size < 0 else f"has {size} bytes"
        raise ValueError(f"{path} {has}, the checkpoint says {length} bytes with {rows}: {ADVICE}.")
    if _checksum(path, length) != state["crc32"]:
        raise ValueError(
            f"{path} is not the file of the checkpoint, which says {length} bytes with {rows}: its bytes "
            f"before this length are others; {ADVICE}."
        )


def cut_file(path: Path, length: int) -> None:
    """Remove what is after the first `length` bytes."""
    if path.stat().st_size > length:
        os.truncate(path, length)


def _checksum(path: Path, length: int) -> int:
    start = max(length - _CHECKED, 0)
    with open(path, "rb") as file:
        file.seek(start)
        return zlib.crc32(file.read(length - start))


__all__ = ["ADVICE", "check_end", "cut_file", "end_of_file"]
