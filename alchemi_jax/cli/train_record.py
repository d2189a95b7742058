"""settings.json in a folder of a training: what was trained, and whether the training is complete."""

import dataclasses
import json
from pathlib import Path
from typing import Any

from alchemi_jax.cli.inputs import Structure, read_inputs, read_json
from alchemi_jax.cli.outcome import UsageError
from alchemi_jax.cli.record import SETTINGS, other_content
from alchemi_jax.cli.train_settings import TABLES, Training
from alchemi_jax.cli.write import whole_file


_TRAINING, _HASHES, _COMMAND, _COMPLETE = "training", "model_files", "command", "complete"
#: Settings that another call may change and still go on with the same results. Files may be moved: which
#: structures they have counts.
_FREE = (("run", "out"), ("data", "train"))
_LENGTH = (("run", "n_steps"), ("run", "epochs"))
_OTHER_MODEL = "holds results that began with another {}, whose content has changed"


@dataclasses.dataclass(frozen=True)
class TrainRecord:
    """What a folder is the results of.

    Attributes:
        settings: of the training, with the model by name.
        hashes: of the files of the model from which it begins; None if they are not compared.
        structures: None if they are not compared.
        complete: whether the training is, and all files are written.
    """

    settings: Training
    hashes: dict[str, str] | None = None
    structures: list[Structure] | None = None
    complete: bool = False


def write_record(at: Path, record: TrainRecord) -> None:
    """Write the file. Structures have a file of their own, `inputs.json`."""
    content = {
        _TRAINING: record.settings.model_dump(mode="json"),
        _HASHES: record.hashes or {},
        _COMMAND: "train",
        _COMPLETE: record.complete,
    }
    with whole_file(at / SETTINGS) as part:
        part.write_text(json.dumps(content, indent=1) + "\n")


def read_train_record(at: Path) -> TrainRecord | None:
    """The record of a folder; None if nothing was begun there.

    Raises:
        UsageError: if it cannot be read, or is of another command.
    """

    def parse(content: Any) -> TrainRecord:
        if isinstance(content, dict) and "stages" in content:
            command = content.get(_COMMAND) or "run"
            raise UsageError(f"{at} holds results of alchemi-jax {command}: give another run.out.")
        settings, hashes = _settings(content[_TRAINING]), dict(content[_HASHES])
        return TrainRecord(settings, hashes, complete=content.get(_COMPLETE) is True)

    odd, unknown = "it holds no settings of a training", "what the results are of"
    found = read_json(at / SETTINGS, parse, odd, unknown, "another run.out")
    return None if found is None else dataclasses.replace(found, structures=read_inputs(at))


def _settings(content: dict[str, Any]) -> Training:
    # Files of the model may be elsewhere now: the name is not looked for.
    kind = content["model"]["kind"]
    others = {**content, "model": {**content["model"], "kind": "invariant"}}
    if kind == "invariant":
        return Training.model_validate(others)
    others["model"] |= {"cutoff": None, "gaussians": None, "hidden": None}
    found = Training.model_validate(others)
    return found.model_copy(update={"model": found.model.model_copy(update={"kind": kind})})


def flat(settings: Training) -> dict[tuple[str, str], Any]:
    """Settings by table and key."""
    content = settings.model_dump(mode="json")
    return {(table, key): content[table][key] for table in TABLES for key in content[table]}


def difference(found: TrainRecord, wanted: TrainRecord) -> str | None:
    """Why a training may not go on with what an earlier one left, the end of a sentence that begins with the
    folder; None if it may. What one of the two does not know is not compared."""
    before, now = flat(found.settings), flat(wanted.settings)
    odd = [name for name in now if name not in (*_FREE, *_LENGTH) and before.get(name) != now[name]]
    moved = [isinstance(values.get(("data", "validation")), list) for values in (before, now)]
    if all(moved):
        odd = [name for name in odd if name != ("data", "validation")]
    if odd:
        names = ", ".join(".".join(name) for name in odd)
        return f"holds results of other settings, {names} differ{'s' * (len(odd) == 1)}"
    length = _length(found, wanted)
    if length:
        return length
    return other_content(found, wanted, _OTHER_MODEL)


def _length(found: TrainRecord, wanted: TrainRecord) -> str | None:
    """Why the training may not be as long as asked for."""
    before, now = found.settings.run, wanted.settings.run
    for name, other in (("n_steps", "epochs"), ("epochs", "n_steps")):
        was, new = getattr(before, name), getattr(now, name)
        if was is not None and new is None:
            return f"was begun with run.{name} = {was}, not with {other}"
        if was is None or new is None or new == was:
            continue
        word = "steps" if name == "n_steps" else name
        if new < was:
            return f"was begun with {was} {word}, and what was trained is kept: not {new}"
        if found.settings.optimizer.schedule == "cosine":
            return (
                f"is of {was} {word} with a cosine schedule, which falls to zero at the last of them, so "
                f"{new} would be another training: to train on, begin one with "
                'model.kind = "trained:FOLDER/model" of this folder'
            )
    return None


def is_longer(found: TrainRecord, wanted: TrainRecord) -> bool:
    """Whether more steps or epochs are asked for than before."""
    before, now = found.settings.run, wanted.settings.run
    return any((getattr(now, key) or 0) > (getattr(before, key) or 0) for key in ("n_steps", "epochs"))
