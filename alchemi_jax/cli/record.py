"""settings.json in a folder of results: what was run, with which model, and whether the run is complete."""

import dataclasses
import json
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from alchemi_jax.cli.inputs import Structure, change, read_inputs, read_json
from alchemi_jax.cli.outcome import UsageError
from alchemi_jax.cli.settings import MD, Pipeline, Relax
from alchemi_jax.cli.write import whole_file


SETTINGS = "settings.json"
#: What another call may change and still go on with the same results.
_FREE = ("out", "max_systems", "max_atoms", "policy")
#: How structures are found: what counts is which they are, where that is known.
_SOURCES = ("files", "format", "index")
#: Beside the settings: SHA-256 of each file of the model, why the model was chosen if none was given, the
#: command, and whether all its structures are finished and all files written.
_HASHES, _CHOSEN, _COMMAND, _COMPLETE = "model_files", "model_chosen", "command", "complete"
_BESIDE = (_HASHES, _CHOSEN, _COMMAND, _COMPLETE)
#: The commands that write the same files.
_KIND = {"relax": "relax", "md": "run", "run": "run"}
_OTHER_MODEL = "holds results of another {}, whose content has changed since"


@runtime_checkable
class AnyRecord(Protocol):
    """What a folder of results is the results of, whichever command wrote them."""

    @property
    def hashes(self) -> dict[str, str] | None: ...
    @property
    def structures(self) -> list[Structure] | None: ...
    @property
    def complete(self) -> bool: ...


@dataclasses.dataclass(frozen=True)
class Record:
    """What a folder of results is the results of.

    Attributes:
        settings: of the run, with the name of the model.
        hashes: of the files of the model; None if they are not known, or not compared.
        chosen: why the model was taken, "" if it was given.
        command: that wrote it.
        structures: None if they are not known, or not compared.
        complete: whether the run is, and all files are written.
    """

    settings: Pipeline
    hashes: dict[str, str] | None = None
    chosen: str = ""
    command: str = "run"
    structures: list[Structure] | None = None
    complete: bool = False


def write_settings(at: Path, record: Record) -> None:
    """Write the file into a folder. Structures have a file of their own, `inputs.json`."""
    content = record.settings.model_dump(mode="json")
    content |= {_HASHES: record.hashes or {}, _CHOSEN: record.chosen}
    content |= {_COMMAND: record.command, _COMPLETE: record.complete}
    with whole_file(at / SETTINGS) as part:
        part.write_text(json.dumps(content, indent=1) + "\n")


def read_record(at: Path) -> Record | None:
    """The record of a folder; None if nothing of a run was begun there.

    Raises:
        UsageError: if it cannot be read.
    """

    def parse(content: Any) -> tuple[Pipeline, dict[str, Any]]:
        if not isinstance(content, dict):
            raise ValueError
        if content.get(_COMMAND) == "train":
            raise UsageError(f"{at} holds results of alchemi-jax train: give another out.")
        return _settings(content), content

    found = read_json(at / SETTINGS, parse, "it holds no settings of a run", "what the results are of")
    if found is None:
        return None
    settings, content = found
    hashes = content.get(_HASHES)
    return Record(
        settings,
        hashes if isinstance(hashes, dict) else None,
        str(content.get(_CHOSEN) or ""),
        str(content.get(_COMMAND) or ""),
        read_inputs(at),
        content.get(_COMPLETE) is True,
    )


def read_settings(path: Path) -> Pipeline:
    """The settings in such a file. The model is not looked for: its file may be elsewhere.

    Raises:
        OSError, ValueError: if there are none.
    """
    content = json.loads(path.read_text())
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds no settings.")
    return _settings(content)


def is_complete(at: Path) -> bool:
    """Whether the folder says that its run is complete."""
    try:
        content = json.loads((at / SETTINGS).read_text())
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(content, dict) and content.get(_COMPLETE) is True


def _settings(content: dict[str, Any]) -> Pipeline:
    # A setting that was not known when the results were begun had its default.
    others = {k: v for k, v in content.items() if k != "model" and k not in _BESIDE}
    if isinstance(others.get("stages"), list):
        others["stages"] = [_given(stage) for stage in others["stages"]]
    return Pipeline.model_validate(others).model_copy(update={"model": content.get("model")})


def _given(stage: Any) -> Any:
    """A stage without defaults, which the file has too: some settings may not be given to some stages."""
    fields = {"relax": Relax, "md": MD}.get(str(stage.get("kind"))) if isinstance(stage, dict) else None
    if fields is None:
        return stage
    known = fields.model_fields
    return {k: v for k, v in stage.items() if k == "kind" or k not in known or v != known[k].default}


def difference(found: Record, wanted: Record) -> str | None:
    """Why a run may not go on with what an earlier one left, the end of a sentence that begins with the
    folder; None if it may.

    The last stage may have more steps. What one of the two does not know is not compared.
    """
    before, now = (record.settings.model_dump(mode="json") for record in (found, wanted))
    known = found.structures is not None and wanted.structures is not None
    kinds = [_KIND.get(record.command, "") for record in (found, wanted)]
    if all(kinds) and kinds[0] != kinds[1]:
        return f"holds results of alchemi-jax {found.command}"
    free = {*_FREE, *(_SOURCES if known or wanted.structures is None else ())}
    if wanted.settings.model is None:
        free.add("model")
    odd = [name for name in now if name not in free and before[name] != now[name]]
    if odd == ["stages"]:
        steps = _steps(before["stages"], now["stages"])
        if steps is not None:
            return steps or other_content(found, wanted, _OTHER_MODEL)
    if odd:
        return f"holds results of other settings: {_changes(before, now, odd)}"
    return other_content(found, wanted, _OTHER_MODEL)


def _changes(before: dict[str, Any], now: dict[str, Any], names: list[str]) -> str:
    """Which settings are others, with both values, as the end of a sentence."""
    old, new = ({name: one[name] for name in names if name != "stages"} for one in (before, now))
    if "stages" in names:
        both = (before["stages"], now["stages"])
        if len(both[0]) != len(both[1]):
            return f"{len(both[0])} stages, and not {len(both[1])}"
        for stages, found in zip(both, (old, new), strict=True):
            for i, stage in enumerate(stages):
                at = f"stages.{i}." if len(stages) > 1 else ""
                found |= {f"{at}{key}": value for key, value in stage.items()}
    # Of another kind of stage nothing else can be compared.
    found = [name for name in new if old.get(name) != new[name]]
    found = [name for name in found if name.endswith("kind")] or found
    texts = [f"{name} was {_text(old.get(name))} and is {_text(new[name])}" for name in found[:3]]
    more = len(found) - 3
    return ", ".join(texts) + (f", and {more} more differ" if more > 0 else "")


def _text(value: Any) -> str:
    text = "not given" if value is None else str(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _steps(before: list[dict[str, Any]], now: list[dict[str, Any]]) -> str | None:
    """None if stages differ in more than their numbers of steps; "" if the run goes on with more of them."""
    if [{**stage, "n_steps": 0} for stage in before] != [{**stage, "n_steps": 0} for stage in now]:
        return None
    for i, (old, new) in enumerate(zip(before, now, strict=True)):
        was, wanted, of_stage = old["n_steps"], new["n_steps"], f" in stage {i}" if len(now) > 1 else ""
        if wanted < was:
            return f"was begun with {was} steps{of_stage}, and steps that were taken are kept: not {wanted}"
        if wanted > was and i + 1 < len(now):
            return f"was begun with {was} steps in stage {i}, where only the last can have more: not {wanted}"
    return ""


def other_content(found: AnyRecord, wanted: AnyRecord, model: str) -> str | None:
    """Which file of the model or which structure is another one, the end of a sentence; None if none is.

    What one of the two does not know is not compared.

    Args:
        model: what is said of a file whose content has changed, with a place for its name.
    """
    if found.hashes is not None and wanted.hashes is not None and found.hashes != wanted.hashes:
        names = [name for name in wanted.hashes if found.hashes.get(name) != wanted.hashes[name]]
        return model.format(*names[:1] or ["model"])
    if found.structures is not None and wanted.structures is not None:
        changed = change(found.structures, wanted.structures)
        if changed:
            return f"holds results of other structures: {changed}"
    return None


def extends(found: Record, wanted: Record) -> bool:
    """Whether the last stage gets more steps than before."""
    return wanted.settings.stages[-1].n_steps > found.settings.stages[-1].n_steps
