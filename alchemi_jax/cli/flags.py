"""Flags of the commands, made from the models in `settings.py`."""

import argparse
import dataclasses
import os
from typing import Any, NoReturn, get_args

from pydantic.fields import FieldInfo

from alchemi_jax.cli.load import check, load, load_training
from alchemi_jax.cli.outcome import UsageError, did_you_mean
from alchemi_jax.cli.settings import (
    MD,
    Convert,
    Info,
    MDOptions,
    Models,
    Options,
    Pipeline,
    ProcessOptions,
    Relax,
    Run,
    RunOptions,
    Settings,
    Show,
)
from alchemi_jax.cli.train_settings import Training, TrainOptions


@dataclasses.dataclass(frozen=True)
class Command:
    """One command.

    Attributes:
        run: `module:function`, imported when it is asked for; called with what `parse` returns.
        help: one line, for the list of commands. `description`: for its own help.
        models: whose fields are its flags, each with a heading for them.
        stage: the model of its stage. `options`: that of what is not in files.
        defaults: in place of those of the models.
        ends: the last words of the line on exit codes.
    """

    run: str
    help: str
    description: str
    models: dict[str, type[Settings]]
    defaults: dict[str, Any] = dataclasses.field(default_factory=dict)
    ends: str = ""
    stage: type[Settings] | None = None
    options: type[Options] = Options


_FAILED = ", 3 some failed or did not converge, 4 the time of --max-seconds is up"
COMMANDS = {
    "relax": Command(
        "alchemi_jax.cli.relax:relax",
        "relax structures, many at once",
        "Relaxes the structures in the files: their atoms, and with --cell their cells. "
        "The same command again goes on where it was interrupted, also within a structure, and with more "
        "--steps those go on that were out of steps. Without files: the sample set of noble-gas clusters and "
        "crystals.",
        {"relaxation": Relax, "run": Run, "this call": ProcessOptions},
        {"out": "alchemi-relaxed", "log_every": 1},
        _FAILED,
        Relax,
        ProcessOptions,
    ),
    "md": Command(
        "alchemi_jax.cli.run:md",
        "molecular dynamics of structures, many at once",
        "Molecular dynamics of the structures in the files; those at rest get velocities of the temperature. "
        "The same command again goes on where it was interrupted, also within a structure, and with more "
        "--steps all structures go on. Without files: the sample set.",
        {"dynamics": MD, "run": Pipeline, "this call": MDOptions},
        {"out": "alchemi-md", "n_steps": 1000},
        _FAILED,
        MD,
        MDOptions,
    ),
    "run": Command(
        "alchemi_jax.cli.run:run",
        "a pipeline from a file: relax, then dynamics, of many structures",
        "Runs the stages of a TOML file over all structures of its files. The same command again goes on "
        "where it was interrupted, also within a structure. docs/reference/commands.md has the settings.",
        {"this call": RunOptions},
        {},
        _FAILED,
        None,
        RunOptions,
    ),
    "train": Command(
        "alchemi_jax.cli.train:train",
        "a potential of your own: train a model on energies and forces, from a file",
        "Trains the model that a TOML file describes, and draws its loss and errors. The same command again "
        "goes on where it was interrupted. --model trained:FOLDER/model then names the model. "
        "docs/reference/commands.md has the settings.",
        {"this call": TrainOptions},
        {},
        ", 3 the loss is not finite, 4 the time of --max-seconds is up",
        None,
        TrainOptions,
    ),
    "show": Command(
        "alchemi_jax.cli.show:show",
        "what results hold: means with error bars, and a picture",
        "Prints what a folder of results, or a store of ZarrData, holds: systems, frames, and means over the "
        "frames with standard errors from blocks of them. Works while a run is still writing.",
        {"options": Show},
    ),
    "convert": Command(
        "alchemi_jax.cli.convert:convert",
        "frames as extxyz, .traj, or anything that ASE writes",
        "Writes the frames of a folder of results, or of a store of ZarrData, to a file whose name says the "
        "format.",
        {"options": Convert},
    ),
    "models": Command(
        "alchemi_jax.cli.models:models",
        "what --model takes; models get NAME fetches weights",
        "Lists the models that --model takes, with elements, licence, source and whether they are installed. "
        "alchemi-jax models get chgnet fetches the weights of CHGNet.",
        {"options": Models},
    ),
    "info": Command(
        "alchemi_jax.cli.info:info",
        "versions, devices, precision, and a check of this JAX",
        "Prints versions, devices and precision, and runs small computations that some versions of JAX got "
        "wrong.",
        {"options": Info},
        {},
        ", 3 this JAX is faulty",
    ),
}


@dataclasses.dataclass(frozen=True)
class TrainJob:
    """What `train` is asked to do.

    Attributes:
        settings: of the training; None if only the report of a folder is asked for.
        options: of this call.
    """

    settings: Training | None
    options: TrainOptions


@dataclasses.dataclass(frozen=True)
class Job:
    """What `relax`, `md` and `run` are asked to do.

    Attributes:
        settings: of the run. `options`: of this call.
    """

    settings: Pipeline
    options: ProcessOptions


def parse(command: str, arguments: list[str]) -> Any:
    """What the function of a command is called with: a Job, or its settings.

    Raises:
        UsageError: for what is no flag, and for every value that is wrong.
        SystemExit: with code 0 if help is asked for, which is printed.
    """
    known = COMMANDS[command]
    parser = parser_of(command)
    found, rest = parser.parse_known_intermixed_args(_join_numbers(arguments))
    for word in rest:
        name = word.partition("=")[0]
        raise UsageError(f"{name} is no option of {command}{did_you_mean(name, _flags(known))}.")
    given = {k: v for k, v in vars(found).items() if v is not None and v != []}
    if command == "run":
        options = check(RunOptions, given, _name_in(known))
        return Job(load(options.pipeline, options.overrides), options)
    if command == "train":
        options = check(TrainOptions, given, _name_in(known))
        only_shown = options.report and os.path.isdir(options.settings)
        settings = None if only_shown else load_training(options.settings, options.overrides)
        return TrainJob(settings, options)
    if known.stage is None:
        return check(known.models["options"], given, _name_in(known))
    given = known.defaults | given
    of_options = {k: given.pop(k) for k in known.options.model_fields if k in given}
    stage = {k: given.pop(k) for k in known.stage.model_fields if k in given}
    stages = [{"kind": command, **stage}]
    relax_first = of_options.get("relax")
    if relax_first is not None:
        stages.insert(0, {"kind": "relax", "fmax": relax_first})
    names = _name_in(known, relax_first is not None)
    settings = check(Pipeline, {**given, "stages": stages}, names)
    options: Any = check(known.options, of_options, names)
    return Job(settings, options)


def _name_in(command: Command, relaxes_first: bool = False) -> Any:
    """How messages name a field: by its flag."""
    fields = dict(_fields(command))

    def name_of(place: tuple[Any, ...]) -> str:
        if relaxes_first and place[:2] == ("stages", 0):
            return "--relax"
        name = str(place[-1]) if place else "arguments"
        if isinstance(place[-1] if place else None, int) and len(place) > 1:
            name = str(place[-2])
        return flag_of(name, fields[name]) if name in fields else name

    return name_of


def _fields(command: Command) -> list[tuple[str, FieldInfo]]:
    out: dict[str, FieldInfo] = {}
    for model in command.models.values():
        out |= {k: v for k, v in model.model_fields.items() if k not in ("kind", "stages")}
    return list(out.items())


def _extra(field: FieldInfo) -> dict[str, Any]:
    extra = field.json_schema_extra
    return extra if isinstance(extra, dict) else {}


def flag_of(name: str, field: FieldInfo) -> str:
    """The flag of a field, or its name if it is given by its position."""
    extra = _extra(field)
    if extra.get("positional"):
        return name
    return extra.get("flag") or "--" + name.replace("_", "-")


def _flags(command: Command) -> list[str]:
    return [flag_of(name, field) for name, field in _fields(command)] + ["--help"]


# -- argparse ------------------------------------------------------------------------------------------


class _Parser(argparse.ArgumentParser):
    """Raises instead of printing usage and leaving."""

    def error(self, message: str) -> NoReturn:
        text = message.removeprefix("argument ")
        text = text.replace(": expected one argument", " needs a value")
        text = text.replace("the following arguments are required:", "missing:")
        text = text.replace(": ignored explicit argument", " takes no value, not")
        raise UsageError(f"{' '.join(text.split())}; see alchemi-jax {self.prog.split()[-1]} --help.")


def parser_of(command: str) -> argparse.ArgumentParser:
    """The parser of a command. It only tells words apart: values are checked by the models."""
    known = COMMANDS[command]
    places = [name for name, field in _fields(known) if _extra(field).get("positional")]
    parser = _Parser(
        prog=f"alchemi-jax {command}",
        usage=" ".join([f"alchemi-jax {command} [options]", *(f"[{_metavar(name)} ...]" for name in places)])
        if command in ("relax", "md")
        else None,
        description=known.description,
        epilog=f"Exit code: 0 all is well, 2 bad usage or a file that cannot be read or written{known.ends}, "
        "130 interrupted by Ctrl-C, 143 by SIGTERM.",
        allow_abbrev=False,
    )
    groups = {}
    for heading, model in known.models.items():
        section = parser.add_argument_group(heading)
        groups |= dict.fromkeys(model.model_fields, section)
    for name, field in _fields(known):
        extra, group = _extra(field), groups[name]
        text = f"{field.description}{described_default(name, field, known)}".replace("%", "%%")
        if extra.get("positional"):
            many = field.annotation is not str
            group.add_argument(name, nargs="*" if many else None, help=text, metavar=_metavar(name))
        elif field.annotation is bool:
            group.add_argument(flag_of(name, field), dest=name, action="store_const", const=True, help=text)
        else:
            metavar, action = extra.get("unit") or _kind(field), "append" if extra.get("many") else "store"
            group.add_argument(flag_of(name, field), dest=name, help=text, metavar=metavar, action=action)
    return parser


def described_default(name: str, field: FieldInfo, command: Command | None = None) -> str:
    """ " [0.01]", or nothing for what has no default."""
    value = field.default if command is None else command.defaults.get(name, field.default)
    shown = _extra(field).get("shown") or value
    if shown in (None, ...) or shown is False or (field.is_required() and value is field.default):
        return ""
    return f" [{shown if not isinstance(shown, list) else 'none'}]"


def _metavar(name: str) -> str:
    return {"overrides": "FIELD=VALUE"}.get(name, name)


def _kind(field: FieldInfo) -> str:
    types = get_args(field.annotation) or (field.annotation,)
    return "N" if int in types else "X" if float in types else "NAME"


def _join_numbers(arguments: list[str]) -> list[str]:
    """`--pressure -1e-3` as `--pressure=-1e-3`, which argparse would take for a flag."""
    out: list[str] = []
    for word in arguments:
        if (
            out
            and out[-1].startswith("--")
            and len(out[-1]) > 2
            and "=" not in out[-1]
            and _is_negative(word)
        ):
            out[-1] += f"={word}"
        else:
            out.append(word)
    return out


def _is_negative(word: str) -> bool:
    if not word.startswith("-"):
        return False
    try:
        float(word)
    except ValueError:
        return False
    return True
