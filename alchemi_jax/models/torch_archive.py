"""Arrays of a file that `torch.save` wrote, read without torch and without running what the file says.

Such a file is a zip with a pickle that names tensors, and one entry of raw bytes per storage. A pickle can
call any function that it names. This reader knows the three names that archives of plain weights have, puts
its own functions in their place, and refuses every other name.
"""

import collections
import io
import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np


_DTYPES = {
    "FloatStorage": np.dtype("<f4"),
    "DoubleStorage": np.dtype("<f8"),
    "LongStorage": np.dtype("<i8"),
    "IntStorage": np.dtype("<i4"),
}


class _Storage:
    """The name of a storage type."""

    def __init__(self, dtype: np.dtype):
        self.dtype = dtype


class _Reader(pickle.Unpickler):
    """An unpickler that makes dictionaries, numbers, texts and arrays, and nothing else."""

    def __init__(self, archive: zipfile.ZipFile, folder: str):
        self.archive, self.folder = archive, folder
        super().__init__(io.BytesIO(archive.read(f"{folder}/data.pkl")))

    def find_class(self, module_name: str, global_name: str) -> Any:
        if (module_name, global_name) == ("collections", "OrderedDict"):
            return collections.OrderedDict
        if (module_name, global_name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _array
        if module_name == "torch" and global_name in _DTYPES:
            return _Storage(_DTYPES[global_name])
        raise pickle.UnpicklingError(f"it names {module_name}.{global_name}, which weights do not need")

    def persistent_load(self, pid: Any) -> np.ndarray:
        kind, storage, key, _, size = pid
        if kind != "storage" or not isinstance(storage, _Storage) or not str(key).isalnum():
            raise pickle.UnpicklingError(f"it has an entry {kind!r} that is no storage")
        data = np.frombuffer(self.archive.read(f"{self.folder}/data/{key}"), storage.dtype)
        if len(data) != size:
            raise pickle.UnpicklingError(f"its storage {key} has {len(data)} numbers, not {size}")
        return data


def _array(
    storage: np.ndarray, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: Any
) -> np.ndarray:
    """A tensor as a copy of the part of its storage that it shows."""
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    if min((*size, *stride, offset, 0)) < 0 or (size and last >= len(storage) and min(size) > 0):
        raise pickle.UnpicklingError("it has a tensor that reaches beyond its storage")
    strides = [step * storage.itemsize for step in stride]
    return np.lib.stride_tricks.as_strided(storage[offset:], size, strides, writeable=False).copy()


def read_torch_archive(file: Path | io.IOBase) -> Any:
    """What `torch.save` wrote, with numpy arrays in place of tensors.

    Raises:
        ValueError: if it is no such archive, is damaged, or has anything but plain data in it.
    """
    name = file if isinstance(file, Path) else "the archive"
    try:
        with zipfile.ZipFile(file) as archive:  # pyright: ignore[reportArgumentType]
            entries = [n for n in archive.namelist() if n.endswith("/data.pkl")]
            if len(entries) != 1:
                raise ValueError(f"{name} is no archive of torch.save: it has no data.pkl.")
            folder = entries[0].removesuffix("/data.pkl")
            order = f"{folder}/byteorder"
            if order in archive.namelist() and archive.read(order).strip() != b"little":
                raise ValueError(f"{name} was written on a big-endian machine, which is not supported.")
            return _Reader(archive, folder).load()
    except (zipfile.BadZipFile, KeyError, EOFError, pickle.UnpicklingError, IndexError, TypeError) as e:
        raise ValueError(f"{name} cannot be read as an archive of torch.save: {e}.") from None


__all__ = ["read_torch_archive"]
