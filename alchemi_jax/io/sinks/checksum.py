"""Checksums of what ZarrData writes: CRC32C, as codec of zarr and of the metadata."""

import json
from typing import Any

import google_crc32c


#: The member of the attributes with the checksum of the metadata.
CHECKSUM = "crc32c"
CODEC = {"name": "crc32c"}
#: Attributes of the group: how much of its arrays is valid.
COUNTS = ("systems", "atoms", "frames", "meta_bytes")
#: Attribute of an array: the chunks that have files, as ranges. A chunk without has the fill value, so that
#: zarr would read that for a file that is lost.
FILES = "chunk_files"


class DamagedError(ValueError):
    """A file of a store is missing, or is not what was written; the message names it."""


def with_checksum(raw: bytes) -> bytes:
    """The bytes followed by their checksum, as the codec of zarr writes them."""
    return raw + google_crc32c.value(raw).to_bytes(4, "little")


def without_checksum(raw: bytes) -> bytes:
    """The inverse of `with_checksum`.

    Raises:
        ValueError: if the checksum is another.
    """
    content, found = raw[:-4], int.from_bytes(raw[-4:], "little")
    if len(raw) < 4 or google_crc32c.value(content) != found:
        raise ValueError("its checksum is not that of its contents")
    return content


def sign(metadata: dict[str, Any]) -> dict[str, Any]:
    """The metadata of a group or array with a checksum among its attributes."""
    attributes = {**metadata["attributes"], CHECKSUM: _of_metadata(metadata)}
    return {**metadata, "attributes": attributes}


def is_signed_right(metadata: dict[str, Any]) -> bool:
    """Whether the checksum of the metadata is right; true if there is none."""
    found = metadata.get("attributes", {}).get(CHECKSUM)
    return found is None or found == _of_metadata(metadata)


def _of_metadata(metadata: dict[str, Any]) -> int:
    """Of what would give other numbers; other programs may resize arrays and add attributes."""
    attributes, fill = metadata["attributes"], metadata.get("fill_value")
    counts = [attributes.get(k) for k in (*COUNTS, FILES)]
    fill = repr(float(fill)) if isinstance(fill, int | float) else fill
    places = [metadata.get(k) for k in ("data_type", "chunk_grid", "chunk_key_encoding")]
    text = json.dumps([counts, fill, *places], sort_keys=True)
    return int(google_crc32c.value(text.encode()))
