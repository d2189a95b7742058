"""The settings of every command: type, default, bounds, unit and text of each, in one place.

Flags and their help (`flags.py`), keys of TOML files and their checks (`load.py`), and the reference in
docs/reference/commands.md (`reference.py`) are made from these models. Nothing here imports JAX.
"""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic import field_validator as validator

from alchemi_jax.cli.models import parse_models
from alchemi_jax.cli.outcome import did_you_mean


#: Steps are counted in 32 bits, and the largest of these numbers means "no limit" to the driver.
MOST_STEPS = 2**31 - 2
#: Seeds are words of 32 bits.
MOST_SEED = 2**32 - 1
MOST_SYSTEMS = 10**6
MOST_ATOMS = 10**9

#: ensemble -> (parameters that it needs, further ones that it takes), apart from dt and n_steps. The engines
#: are in `alchemi_jax.dynamics.api.ENSEMBLES`; a test holds that both agree.
ENSEMBLES: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "nve": ((), ("temperature",)),
    "nvt": (("temperature",), ("friction",)),
    "nvt-langevin": (("temperature",), ("friction",)),
    "nvt-nose-hoover": (("temperature",), ("thermostat_time",)),
    "nvt-bussi": (("temperature",), ("thermostat_time",)),
    "nph": (("pressure",), ("temperature", "barostat_time")),
    "npt": (("temperature", "pressure"), ("thermostat_time", "barostat_time")),
}
#: optimizer -> (whether it has a dt, whether it relaxes cells). The engines are in `engines.py`.
OPTIMIZERS: dict[str, tuple[bool, bool]] = {
    "fire": (True, True),
    "fire2": (True, True),
    "lbfgs": (False, False),
    "bfgs": (False, False),
    "gradient-descent": (False, False),
}


def setting(
    default: Any, text: str, unit: str = "", *, flag: str = "", shown: str = "", **bounds: Any
) -> Any:
    """A field with its text.

    Args:
        default: `...` for none.
        text: what it is, in help and reference.
        unit: of numbers.
        flag: on the command line, if it is not the name with dashes; "" with `positional=True` in bounds.
        shown: the default as text, if its value does not say it.
        **bounds: gt, ge, lt, le of pydantic, `positional`, and `many`: the flag may be given several times.
    """
    extra: dict[str, Any] = {"unit": unit, "flag": flag, "shown": shown}
    extra |= {name: bounds.pop(name, False) for name in ("positional", "many")}
    return Field(default, description=text, json_schema_extra=extra, **bounds)


class Settings(BaseModel):
    """The base of all: unknown names are mistakes, and numbers are finite."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Problems(ValueError):
    """Mistakes that concern several fields: pairs of a field and what is wrong with it."""

    def __init__(self, found: list[tuple[str, str]]):
        super().__init__("\n".join(f"{field}\t{text}" for field, text in found))


class Relax(Settings):
    """A stage of kind "relax"."""

    kind: Literal["relax"]
    fmax: float = setting(0.01, "largest force at which a structure has converged", "eV/Å", gt=0)
    n_steps: int = setting(1000, "most steps of each structure", flag="--steps", ge=1, le=MOST_STEPS)
    optimizer: str = setting("fire", f"optimizer: {', '.join(OPTIMIZERS)}")
    dt: float | None = setting(None, "first time step of fire and fire2", "fs", shown="1.02, as in ASE", gt=0)
    relax_cell: bool = setting(False, "relax cells too, with fire or fire2", flag="--cell")
    pressure: float = setting(0.0, "pressure under which cells relax", "GPa")
    smax: float = setting(6e-4, "largest stress at which a cell has converged", "eV/Å³", gt=0)

    @validator("optimizer")
    @classmethod
    def _known(cls, name: str) -> str:
        return one_of(name, OPTIMIZERS)

    @model_validator(mode="after")
    def _fits(self) -> "Relax":
        has_dt, cells = OPTIMIZERS[self.optimizer]
        found = []
        if self.dt is not None and not has_dt:
            found.append(("dt", f"is of fire and fire2, {self.optimizer} has none"))
        if self.relax_cell and not cells:
            found.append(("optimizer", f"must be fire or fire2 to relax cells, not {self.optimizer!r}"))
        for name in ("pressure", "smax"):
            if name in self.model_fields_set and not self.relax_cell:
                found.append((name, "is only for relaxations of the cell ({relax_cell})"))
        if found:
            raise Problems(found)
        return self


class MD(Settings):
    """A stage of kind "md"."""

    kind: Literal["md"]
    n_steps: int = setting(..., "steps of each structure", flag="--steps", ge=1, le=MOST_STEPS)
    ensemble: str = setting("nvt", f"ensemble: {', '.join(ENSEMBLES)}; nvt is Langevin")
    dt: float = setting(1.0, "time step", "fs", gt=0)
    temperature: float | None = setting(
        None, "temperature, also of the velocities that structures at rest get", "K", gt=0
    )
    pressure: float | None = setting(None, "pressure, of nph and npt", "GPa")
    friction: float | None = setting(None, "friction, of nvt", "1/fs", ge=0, shown="0.01")
    thermostat_time: float | None = setting(
        None, "period of the thermostat, of nvt-nose-hoover, nvt-bussi and npt", "fs", gt=0, shown="100"
    )
    barostat_time: float | None = setting(
        None, "period of the barostat, of nph and npt", "fs", gt=0, shown="1000"
    )

    _physical: ClassVar = ("temperature", "pressure", "friction", "thermostat_time", "barostat_time")

    @validator("ensemble")
    @classmethod
    def _known(cls, name: str) -> str:
        return one_of(name, ENSEMBLES)

    @model_validator(mode="after")
    def _complete(self) -> "MD":
        needed, taken = ENSEMBLES[self.ensemble]
        found = []
        for name in self._physical:
            given = getattr(self, name) is not None
            if name in needed and not given:
                found.append((name, f"is missing: ensemble {self.ensemble} needs it"))
            if given and name not in needed + taken:
                found.append((name, f"is not of ensemble {self.ensemble}"))
        if found:
            raise Problems(found)
        return self


Stage = Annotated[Relax | MD, Field(discriminator="kind")]


class Run(Settings):
    """What all runs have: structures, model, results, precision, and what is computed at once."""

    files: list[str] = setting(
        [], "files that ASE reads, or folders of them", positional=True, shown="the sample set"
    )
    format: str | None = setting(
        None, "format of the files, as ASE calls it", shown="by their names and contents"
    )
    index: str | None = setting(None, "structures of each file, as in -1 or ::10", shown="all of them")
    model: str | list[str] | None = setting(
        None,
        "name of a model, as in chgnet, lj:epsilon=0.01,sigma=3.4, eam:FILE or mymodule:function; given "
        "twice, or a list, their sum; alchemi-jax models lists them",
        shown="lj for noble gases, else chgnet where it knows every element",
        many=True,
    )
    out: str = setting("alchemi-run", "folder for the results")
    dtype: Literal["float64", "float32"] = setting("float64", "precision: float64 or float32")
    max_systems: int = setting(64, "structures in one batch, at most", ge=1, le=MOST_SYSTEMS)
    max_atoms: int | None = setting(
        None, "atoms in one batch, at most", ge=1, le=MOST_ATOMS, shown="enough for structures of mean size"
    )
    policy: Literal["first come", "best fit", "largest first"] = setting(
        "first come", "which structure is next: first come, best fit or largest first"
    )
    constraints: Literal["refuse", "drop"] = setting(
        "refuse", "constraints that no engine applies: refuse the structure, or drop them"
    )
    log_every: int = setting(10, "steps between rows of log.csv", ge=1, le=MOST_STEPS)

    @validator("model", mode="plain")
    @classmethod
    def _model(cls, value: Any) -> str | list[str] | None:
        return parse_models(value)

    @validator("out")
    @classmethod
    def _path(cls, path: str) -> str:
        return usable_path(path)


class Pipeline(Run):
    """A run of one or more stages, as a TOML file describes it."""

    seed: int = setting(0, "seed of velocities and noise", ge=0, le=MOST_SEED)
    save_every: int = setting(100, "steps between frames of trajectory.zarr, 0 for none", ge=0, le=MOST_STEPS)
    stages: list[Stage] = setting(..., "the parts of the pipeline, in order", min_length=1, max_length=100)

    @model_validator(mode="after")
    def _countable(self) -> "Pipeline":
        if sum(stage.n_steps for stage in self.stages) > MOST_STEPS:
            raise Problems([("stages", f"must take no more than {MOST_STEPS} steps together")])
        return self


def _word_or_number(given: str | None, word: str, things: str) -> str | None:
    if given is not None and given != word and not (given.isdecimal() and int(given) > 0):
        raise ValueError(f"must be {word} or a number of {things}, not {given[:80]!r}")
    return given


class Options(Settings):
    """Flags of commands that make results; not in files."""

    overwrite: bool = setting(False, "replace what this program wrote in that folder, once the new is whole")
    max_seconds: float | None = setting(
        None, "save and leave before this time since the start of the process, with exit code 4", "s", gt=0
    )
    checkpoint_every: float = setting(
        60.0, "time between checkpoints, from which the same command goes on", "s", ge=0
    )
    devices: str | None = setting(
        None,
        "all, or how many devices; the cores of a CPU are its devices",
        "N",
        shown="as many as pay; train: one",
    )
    no_cache: bool = setting(False, "do not keep compiled programs on disk")

    @validator("devices")
    @classmethod
    def _devices(cls, given: str | None) -> str | None:
        return _word_or_number(given, "all", "devices")


class DynamicsOptions(Options):
    """Flags of `relax`, `md` and `run` that are not in files."""

    cluster: str | None = setting(
        None,
        "a Dask cluster that computes the structures: address of its scheduler, or local:N for N processes",
        "ADDRESS",
    )

    @validator("cluster")
    @classmethod
    def _cluster(cls, given: str | None) -> str | None:
        number = (given or "").removeprefix("local:")
        if given is not None and (
            not given or (number != given and not (number.isdecimal() and int(number)))
        ):
            raise ValueError(f"must be an address, as in tcp://host:8786, or local:N, not {given[:80]!r}")
        return given

    @model_validator(mode="after")
    def _one_of_two(self) -> "DynamicsOptions":
        if self.cluster is not None and self.devices is not None:
            raise Problems([("devices", "is for this machine: leave it or --cluster out")])
        return self


class ProcessOptions(DynamicsOptions):
    """Flags of commands that several processes can run together."""

    processes: str | None = setting(
        None,
        "launched, if mpirun or srun starts them, or their number, with --rank and --coordinator",
        "N",
        shown="1",
    )
    rank: int | None = setting(None, "which of several processes this is, from 0", "N", ge=0)
    coordinator: str | None = setting(None, "the host of process 0, and a port that is free", "HOST:PORT")

    @validator("processes")
    @classmethod
    def _processes(cls, given: str | None) -> str | None:
        return _word_or_number(given, "launched", "processes")

    @model_validator(mode="after")
    def _in_one_way(self) -> "ProcessOptions":
        if self.cluster is not None and self.processes is not None:
            raise Problems([("processes", "is another way to share the work: leave it or --cluster out")])
        return self


class RunOptions(ProcessOptions):
    """Arguments of `run` beside the settings in the file."""

    pipeline: str = setting(..., "a TOML file", positional=True)
    overrides: list[str] = setting(
        [], "settings in place of the file's, as in stages.0.fmax=0.02", positional=True
    )


class MDOptions(ProcessOptions):
    """Flags of `md` beside those of its stage."""

    relax: float | None = setting(None, "relax to this fmax first", "eV/Å", gt=0)


class Show(Settings):
    """Arguments of `show`."""

    trajectory: str = setting(..., "a folder of results, or a store that ZarrData wrote", positional=True)
    out: str | None = setting(None, "a picture of the quantities over the time, PNG, PDF or SVG")
    skip: int = setting(0, "leave out each system's first frames", ge=0, le=MOST_STEPS)
    overwrite: bool = setting(False, "replace the picture")


class Convert(Settings):
    """Arguments of `convert`."""

    trajectory: str = setting(..., "a folder of results, or a store that ZarrData wrote", positional=True)
    out: str = setting(..., "the file to write, out.extxyz for example", positional=True)
    frames: str = setting(":", "a frame, or first:last:step as in Python; --frames=-9: are the last nine")
    system: str | None = setting(
        None, "system_ids of the systems to write, as in 3 or 0,4,7", shown="all systems"
    )
    overwrite: bool = setting(False, "replace the file")


class Models(Settings):
    """Arguments of `models`."""

    words: list[str] = setting([], "get NAME ...: get the weights of these models", positional=True)


class Info(Settings):
    """Arguments of `info`: none."""


def one_of(name: str, known: Any) -> str:
    """The name, if it is one of those that are known."""
    if name not in known:
        raise ValueError(f"must be {', '.join(known)}, not {name[:80]!r}{did_you_mean(name, known)}")
    return name


def usable_path(path: str) -> str:
    """The path, if it may be one."""
    if not path or "\0" in path:
        raise ValueError(f"is no path: {path!r}")
    return path


def describe(settings: Pipeline) -> str:
    """What a run does, in a line."""
    parts = []
    for stage in settings.stages:
        if isinstance(stage, Relax):
            cells = " with cells" if stage.relax_cell else ""
            under = f" at {stage.pressure:g} GPa" if stage.pressure else ""
            parts.append(f"relax{cells} to {stage.fmax:g} eV/Å{under}")
        else:
            at = "" if stage.temperature is None else f" at {stage.temperature:g} K"
            at += "" if stage.pressure is None else f" and {stage.pressure:g} GPa"
            parts.append(f"{stage.n_steps} steps of {stage.dt:g} fs {stage.ensemble}{at}")
    text = ", then ".join(parts)
    return text[0].upper() + text[1:]
