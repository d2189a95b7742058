"""Random flags and settings files: no traceback, no hang, no number that is not the one that was written.

Everything ends before anything compiles: the function that runs the engine is replaced.
"""

import random
import re
import time
import tomllib

import ase.io
import pytest
from ase import Atoms

from alchemi_jax.cli.flags import COMMANDS, parse
from alchemi_jax.cli.load import load
from alchemi_jax.cli.main import main
from alchemi_jax.cli.outcome import UsageError
from alchemi_jax.cli.settings import MD, Pipeline, Relax


#: Cases of flags, of files, and of settings that are right.
FLAGS, FILES, RIGHT = 250, 150, 60
#: Seconds for one case; the slowest takes less than a tenth of it on an idle machine.
MOST = 10.0

NUMBERS = [
    "0",
    "1",
    "-1",
    "7",
    "0.5",
    "-0.0",
    "1e-3",
    "-1e-3",
    "1e308",
    "1e309",
    "-1e400",
    "nan",
    "inf",
    "-inf",
    "2147483647",
    "2147483648",
    "4294967296",
    "99999999999999999999",
    "1_000",
    "0x10",
    "1e3",
    "+5",
    ".5",
    "5.",
    "١٢",
    "１",
    "1,5",
    "1.2.3",
    "--1",
    "-",
    "''",
]
WORDS = [
    *NUMBERS,
    "",
    " ",
    "a\nb",
    "nul\0",
    "Å",
    "\ud800",
    "true",
    "None",
    "[1]",
    "{}",
    "{a}",
    "%s",
    "%(prog)s",
    "../..",
    "/dev/null",
    "/proc/self/mem",
    "x" * 300,
    "=",
    "a=b",
    "lj:",
    "lj:epsilon",
    "lj:epsilon=1,sigma=1e400",
    "lj:sigma=-1,epsilon=1",
    "lj:cutoff=1e9",
    "morse:depth=1,width=1,r0=2,r0=3",
    "lj,morse",
    "chgnet:9",
    "eam:",
    "eam:nowhere:+,",
    "ase:os:path",
    "os:path",
    "nowhere:f",
    "trained:.",
    "exported:in.extxyz",
    "::",
    "npt",
    "nve",
    "lbfgs",
    "float16",
    "first come",
    "9" * 5000,
    "stages.0.fmax=1",
    "stages.9.fmax=1",
    "stages.-1.n_steps=3",
    ".=1",
    "a.b.c=2",
    "files=[[1]]",
]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """With an input and a settings file; runs stop before the engine does."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    ase.io.write("in.extxyz", Atoms("Ar2", [[0, 0, 0], [0, 0, 4]]))
    (tmp_path / "p.toml").write_text("files = ['in.extxyz']\n[[stages]]\nkind = 'relax'\n")

    def stop(*args, **kwargs):
        raise UsageError("nothing is computed in this test.")

    import alchemi_jax.cli.run

    monkeypatch.setattr(alchemi_jax.cli.run, "stream", stop)
    return tmp_path


def flags_of(command):
    text = " ".join(parser_text(command))
    return sorted(set(re.findall(r"--[a-z-]+", text)))


def parser_text(command):
    from alchemi_jax.cli.flags import parser_of

    yield parser_of(command).format_help()


def words(rng, command, flags):
    """A command line: flags that exist and mistyped ones, with values of all kinds."""
    out = []
    for _ in range(rng.randrange(6)):
        flag = rng.choice(flags)
        kind = rng.random()
        if kind < 0.15:
            at = rng.randrange(2, len(flag))
            flag = flag[:at] + rng.choice("axz-") + flag[at + 1 :]
        out += [f"{flag}={rng.choice(WORDS)}"] if rng.random() < 0.3 else [flag]
        if rng.random() < 0.7:
            out.append(rng.choice(WORDS))
    if rng.random() < 0.6:
        out.insert(rng.randrange(len(out) + 1), rng.choice(["in.extxyz", "p.toml", "nowhere", "."]))
    if rng.random() < 0.1:
        command = command[:-1] + rng.choice("xyz")
    return [command, *out]


def run(arguments, capsys, codes=(0, 2)):
    """The command ends soon, with one of the codes and few lines on stderr; what it printed there."""
    begun = time.perf_counter()
    code = main(arguments)
    took = time.perf_counter() - begun
    error = capsys.readouterr().err
    assert code in codes, (arguments, code, error)
    assert took < MOST, (arguments, took)
    assert "Traceback" not in error
    assert "object at 0x" not in error
    if code == 2:
        assert error.startswith("alchemi-jax"), (arguments, error)
        assert len(error) < 6000, (arguments, error[:200])
        # One sentence, or a list of mistakes.
        assert error.count("\n") == 1 or "mistakes:" in error.split("\n")[0], (arguments, error)
    return error


# A folder as input: what in it is no structure is left out, and said.
@pytest.mark.filterwarnings("ignore:.*left out")
def test_random_flags(folder, capsys):
    rng = random.Random(22)
    flags = {command: flags_of(command) for command in COMMANDS}
    for _ in range(FLAGS):
        # info computes; it has no flags.
        command = rng.choice([c for c in COMMANDS if c != "info"])
        run(words(rng, command, [*flags[command], "--version"]), capsys)
    assert {p.name for p in folder.iterdir()} >= {"in.extxyz", "p.toml"}
    assert len(ase.io.read(folder / "in.extxyz")) == 2


GOOD = """files = ["in.extxyz"]
model = "lj"
seed = 3
max_systems = 4
[[stages]]
kind = "relax"
fmax = 0.02
relax_cell = false
[[stages]]
kind = "md"
n_steps = 10
temperature = 20.0
"""
VALUES = [
    "true",
    "-1",
    "0",
    "1e400",
    "nan",
    "-inf",
    "99999999999999999999",
    "0x" + "f" * 400,
    "'x'",
    "[]",
    "[[[1]]]",
    "{}",
    "{a = {b = 1}}",
    "1979-05-27",
    "07:32:00",
    "'''\n'''",
    "[" * 400 + "]" * 400,
    "[" * 3000 + "]" * 3000,
    "0.1_0",
    "''",
    '"\\u0000"',
]


def mutated(rng):
    """A settings file with a value, a name or a few bytes changed."""
    lines = GOOD.splitlines()
    for _ in range(rng.randrange(1, 4)):
        i = rng.randrange(len(lines))
        key, equals, _ = lines[i].partition("=")
        kind = rng.random()
        if kind < 0.45 and equals:
            lines[i] = f"{key}= {rng.choice(VALUES)}"
        elif kind < 0.6 and equals:
            at = rng.randrange(max(len(key.strip()), 1))
            lines[i] = f"{key[:at]}{rng.choice('abxz_.')}{key[at + 1 :]}={lines[i].partition('=')[2]}"
        elif kind < 0.7:
            lines.insert(
                i, rng.choice(["[[stages]]", "[stages]", "kind = 'npt'", "out = 'in.extxyz'", "= 1"])
            )
        elif kind < 0.8:
            del lines[i]
            lines.append("")
        else:
            at = rng.randrange(len(lines[i]) + 1)
            lines[i] = (
                lines[i][:at]
                + rng.choice(["\0", "[", '"', "\ud7ff", "é", "=", "#", "\t", "."])
                + lines[i][at:]
            )
    return "\n".join(lines)


def test_random_settings_files(folder, capsys):
    rng = random.Random(23)
    for _ in range(FILES):
        text = mutated(rng)
        (folder / "p.toml").write_text(text, encoding="utf-8")
        run(["run", "p.toml"], capsys, codes=(2,))
        try:
            content = tomllib.loads(text)
            settings = load("p.toml", [])
        except (UsageError, ValueError, RecursionError):
            continue
        # What is accepted is what was written.
        for name, value in content.items():
            if name != "stages":
                assert getattr(settings, name) == value, (name, text)
        for stage, given in zip(settings.stages, content["stages"], strict=True):
            for name, value in given.items():
                # A whole number of many digits becomes the nearest float.
                wanted = float(value) if isinstance(getattr(stage, name), float) else value
                assert getattr(stage, name) == wanted, (name, text)
                assert isinstance(getattr(stage, name), bool) == isinstance(value, bool)


def test_right_settings_mean_the_same_as_flags_and_in_files(folder):
    rng = random.Random(24)
    choices = {
        "fmax": lambda: 10 ** rng.uniform(-6, 1),
        "n_steps": lambda: rng.randrange(1, 2**31 - 1),
        "optimizer": lambda: rng.choice(["fire", "fire2"]),
        "dt": lambda: rng.uniform(0.01, 5),
        "relax_cell": lambda: True,
        "ensemble": lambda: "nvt",
        "temperature": lambda: rng.uniform(1, 1e4),
        "friction": lambda: rng.uniform(0, 1),
        "model": lambda: rng.choice(["lj", "lj:epsilon=0.01,sigma=3.4", "morse:depth=1,width=2,r0=3"]),
        "out": lambda: rng.choice(["o", "a b", "ö", "-o", "x,y"]),
        "dtype": lambda: rng.choice(["float64", "float32"]),
        "max_systems": lambda: rng.randrange(1, 10**6),
        "max_atoms": lambda: rng.randrange(1, 10**9),
        "policy": lambda: rng.choice(["first come", "best fit", "largest first"]),
        "log_every": lambda: rng.randrange(1, 2**31 - 1),
        "seed": lambda: rng.randrange(2**32),
        "save_every": lambda: rng.randrange(2**31 - 1),
    }
    for _ in range(RIGHT):
        command, stage_type = rng.choice([("relax", Relax), ("md", MD)])
        own = {k: v() for k, v in choices.items() if k in stage_type.model_fields and rng.random() < 0.6}
        if command == "md":
            own |= {"temperature": choices["temperature"](), "n_steps": choices["n_steps"]()}
        known = [n for m in COMMANDS[command].models.values() for n in m.model_fields]
        run_wide = {
            k: v()
            for k, v in choices.items()
            if k in Pipeline.model_fields and k in known and rng.random() < 0.5
        }
        flags = []
        for name, value in (own | run_wide).items():
            flag = {"n_steps": "--steps", "relax_cell": "--cell"}.get(name, "--" + name.replace("_", "-"))
            flags.append(flag if value is True else f"{flag}={value}")
        rng.shuffle(flags)
        content = {**COMMANDS[command].defaults, **run_wide, "files": ["in.extxyz", "a b,c.xyz"]}
        content.pop("n_steps", None)
        lines = [f"{k} = {quoted(v)}" for k, v in content.items()]
        lines += ["[[stages]]", f"kind = '{command}'", *(f"{k} = {quoted(v)}" for k, v in own.items())]
        (folder / "q.toml").write_text("\n".join(lines), encoding="utf-8")
        job = parse(command, [flags[0], "in.extxyz", *flags[1:], "a b,c.xyz"] if flags else content["files"])
        assert job.settings == load("q.toml", []), (flags, lines)


def quoted(value):
    if isinstance(value, bool):
        return str(value).lower()
    return (
        repr(value)
        if not isinstance(value, str | list)
        else str(value)
        if isinstance(value, list)
        else f'"{value}"'
    )
