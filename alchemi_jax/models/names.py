"""Models by name, the same on the command line, in pipeline files and in Python.

    NAME                        lj, emt, sw, chgnet
    NAME:NUMBER=...,...         lj:epsilon=0.0104,sigma=3.4   morse:depth=0.01,width=1.5,r0=3.8
    NAME:VERSION                chgnet:0.2.0
    NAME:FILE                   eam:FILE  tersoff:FILE  sw:FILE  nequix:FILE  mlip:FILE  exported:FILE
    trained:FOLDER
    ase:MODULE:NAME             a calculator of ASE
    MODULE:NAME                 a function or class that returns a model, or a model

The name ends at the first colon, and what follows is one file name: it may hold colons, commas and `+`. A sum
is a list of names. Registered names come before modules of the same name. Nothing here imports JAX.
"""

import dataclasses
import hashlib
import importlib.util
import math
import re
from pathlib import Path

from alchemi_jax.io.replace import repair
from alchemi_jax.models.entries import ModelEntry
from alchemi_jax.models.registered import find, has_module, known_names
from alchemi_jax.spelling import did_you_mean


_PLACE = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*(\.[^\W\d]\w*)*")
#: What is not in the registry: a function, a class or a model of the user's own.
OWN = ModelEntry(
    "MODULE:NAME",
    "a function or class of yours that returns a model, or a model; the current folder is searched too",
    "",
    "place",
    covers="as the model says",
)


@dataclasses.dataclass(frozen=True)
class NamedModel:
    """A model as a text names it.

    Attributes:
        text: with the version, where the name alone stands for the default one.
        entry: of the registry, or `OWN`.
        rest: what stands behind the colon; "" for nothing.
        numbers: the parameters of entries that have such.
    """

    text: str
    entry: ModelEntry
    rest: str = ""
    numbers: dict[str, float] = dataclasses.field(default_factory=dict)

    @property
    def elements(self) -> frozenset[int] | None:
        """Atomic numbers that it knows; None if this is not known before it is made."""
        alone = not self.rest or self.entry.grammar == "version"
        return self.entry.elements if alone else None

    def hashes(self) -> dict[str, str]:
        """SHA-256 of the file or folder that it is read from, or of the module that makes it."""
        if not self.rest or self.entry.grammar not in ("file", "folder", "place"):
            return {}
        if self.entry.grammar != "place":
            found = {self.rest: content_hash(Path(self.rest))}
            # Metadata of an exported function may be in a file of its own.
            beside = Path(self.rest).with_suffix(".json")
            if self.entry.name == "exported" and beside.is_file():
                found[str(beside)] = content_hash(beside)
            return found
        module = self.rest.partition(":")[0]
        try:
            spec = importlib.util.find_spec(module)
        except (ImportError, ValueError):
            return {}
        path = None if spec is None or not spec.has_location else spec.origin
        return {} if path is None else {module: content_hash(Path(path))}


# -- reading names -------------------------------------------------------------------------------------


def parse(text: str, folder: str | None = None) -> NamedModel:
    """The model that a text names. Nothing is imported, except an entry of another package.

    Args:
        text: see the top of this module.
        folder: searched for modules of the user's, beside `sys.path`.

    Raises:
        ValueError: saying which part is wrong.
    """
    name, colon, rest = text.partition(":")
    entry = find(name)
    if entry is None:
        if _PLACE.fullmatch(text) and has_module(name, folder):
            return NamedModel(text, OWN, text)
        raise ValueError(
            f"{name!r} is unknown: it can be {', '.join(known_names())}, or MODULE:NAME for one of your own"
            f"{did_you_mean(name, known_names())}"
        )
    if entry.grammar == "numbers":
        return NamedModel(text, entry, rest, _numbers(entry, rest))
    if entry.grammar == "version":
        version = rest or entry.versions[0]
        if version not in entry.versions:
            raise ValueError(
                f"{name} has no version {version!r}: it has {', '.join(entry.versions)}"
                f"{did_you_mean(version, entry.versions)}"
            )
        return NamedModel(f"{name}:{version}", entry, version)
    if not rest and not entry.stands_alone:
        raise ValueError(f"{name} alone is no model: write {entry.form}")
    if colon and not rest and entry.grammar != "nothing":
        raise ValueError(f"{text} ends at the colon: write {entry.form}")
    if entry.grammar == "nothing" and colon:
        raise ValueError(f"{name} takes nothing behind its name, not {rest!r}")
    if entry.grammar == "place":
        if not _PLACE.fullmatch(rest):
            raise ValueError(f"{text}: {rest!r} is no place: write {entry.form}")
        if not has_module(rest.partition(":")[0], folder):
            raise ValueError(f"{text}: there is no module {rest.partition(':')[0]!r}")
    if rest and entry.grammar in ("file", "folder"):
        _check_path(rest, entry.grammar == "folder", text)
    return NamedModel(text, entry, rest)


def _numbers(entry: ModelEntry, rest: str) -> dict[str, float]:
    name, known = entry.name, (*entry.required, *entry.optional)
    found: dict[str, float] = {}
    for part in filter(None, rest.split(",")):
        key, _, value = part.partition("=")
        if key not in known:
            raise ValueError(
                f"{name} has no parameter {key!r}: it has {', '.join(known)}{did_you_mean(key, known)}"
            )
        if key in found:
            raise ValueError(f"{name} is given {key} twice")
        try:
            found[key] = float(value)
        except ValueError:
            raise ValueError(f"{name}:{rest}: {value!r} is no number") from None
        if not math.isfinite(found[key]):
            raise ValueError(f"{name}:{rest}: {key} must be finite, not {value}")
    missing = [key for key in entry.required if key not in found]
    if missing and not (entry.bare and len(missing) == len(entry.required)):
        raise ValueError(f"{name} needs {', '.join(missing)}")
    return found


def _check_path(path: str, folder: bool, text: str) -> None:
    what = "folder" if folder else "file"
    try:
        if folder and not Path(path).exists():
            # A process may have been killed while it was replaced.
            repair(path)
        there, right = Path(path).exists(), Path(path).is_dir() == folder
    except (OSError, ValueError):
        there, right = False, False
    if not there:
        raise ValueError(f"{text}: the {what} {path!r} does not exist")
    if not right:
        raise ValueError(f"{text}: {path!r} is no {what}")


# -- contents ------------------------------------------------------------------------------------------


def content_hash(path: Path) -> str:
    """SHA-256 of a file, or of the names and contents of all files in a folder.

    Raises:
        OSError: if it cannot be read.
    """
    if not path.is_dir():
        with path.open("rb") as f:
            return hashlib.file_digest(f, "sha256").hexdigest()
    total = hashlib.sha256()
    for file in sorted(p for p in path.rglob("*") if p.is_file()):
        total.update(f"{file.relative_to(path).as_posix()}\0{content_hash(file)}\0".encode())
    return total.hexdigest()


__all__ = ["OWN", "NamedModel", "content_hash", "parse"]
