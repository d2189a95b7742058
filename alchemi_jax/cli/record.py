"""settings.json in a folder of results: what was run, with which model, and the contents of its files."""

import json
from pathlib import Path
from typing import Any

from alchemi_jax.cli.folder import Results
from alchemi_jax.cli.outcome import UsageError
from alchemi_jax.cli.settings import Pipeline
from alchemi_jax.cli.write import whole_file


SETTINGS = "settings.json"
#: What another call may change and still go on with the same results.
_FREE = ("out", "max_systems", "max_atoms", "policy")
#: Beside the settings: SHA-256 of each file of the model, and why the model was chosen if none was given.
_HASHES, _CHOSEN = "model_files", "model_chosen"


def write_settings(at: Path, settings: Pipeline, hashes: dict[str, str], chosen: str) -> None:
    """Write the file.

    Args:
        at: the folder. hashes: of the files of the model.
        chosen: why the model was taken, "" if it was given.
    """
    content = settings.model_dump(mode="json") | {_HASHES: hashes, _CHOSEN: chosen}
    with whole_file(at / SETTINGS) as part:
        part.write_text(json.dumps(content, indent=1) + "\n")


def read_settings(path: Path) -> Pipeline:
    """The settings in such a file. The model is not looked for: its file may be elsewhere.

    Raises:
        OSError, ValueError: if there are none.
    """
    content = json.loads(path.read_text())
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds no settings.")
    others = {k: v for k, v in content.items() if k not in ("model", _HASHES, _CHOSEN)}
    return Pipeline.model_validate(others).model_copy(update={"model": content.get("model")})


def check_same(results: Results, settings: Pipeline, hashes: dict[str, str] | None = None) -> None:
    """Whether an earlier call of the same run left these results.

    Args:
        results: of the folder. settings: of this call; without a model, models are not compared.
        hashes: of the files of the model; None if they are not compared.

    Raises:
        UsageError: naming the settings or the files that differ.
    """
    wanted = settings.model_dump(mode="json")
    try:
        found = json.loads((results.out / SETTINGS).read_text())
        assert isinstance(found, dict)
    except (OSError, ValueError, RecursionError, AssertionError):
        raise UsageError(
            f"{results.out / results.existing()[0]} exists: give another out, or --overwrite."
        ) from None
    # A setting that was not known when the results were begun had its default.
    found = {name: field.default for name, field in Pipeline.model_fields.items()} | found
    odd = [name for name in wanted if name not in _FREE and found[name] != wanted[name]]
    if settings.model is None:
        odd = [name for name in odd if name != "model"]
    if odd:
        raise UsageError(
            f"{results.out} holds results of other settings, {', '.join(odd)} "
            f"differ{'s' * (len(odd) == 1)}: give another out, or --overwrite."
        )
    before: Any = found.get(_HASHES)
    if hashes is None or not isinstance(before, dict):
        return
    changed = [name for name in hashes if before.get(name) != hashes[name]]
    if changed:
        raise UsageError(
            f"{results.out} holds results of another {changed[0]}, whose content has changed since: "
            "give another out, or --overwrite."
        )
