"""Flags and settings files: one definition, all mistakes at once, answers before JAX is imported."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from alchemi_jax.cli.engines import OPTIMIZERS
from alchemi_jax.cli.flags import COMMANDS, parse, parser_of
from alchemi_jax.cli.load import load
from alchemi_jax.cli.main import main
from alchemi_jax.cli.models import model_from
from alchemi_jax.cli.outcome import UsageError
from alchemi_jax.cli.settings import ENSEMBLES, MD, MOST_STEPS, Pipeline, Relax
from alchemi_jax.cli.settings import OPTIMIZERS as KNOWN_OPTIMIZERS
from alchemi_jax.dynamics.api import ENSEMBLES as ENGINES
from alchemi_jax.models.registry import ENTRIES, known_names


def test_flags_and_keys_are_the_same_settings(tmp_path):
    flags = ["a.xyz", "b, c.xyz", "--fmax", "0.02", "--steps", "7", "--cell", "--pressure", "-1e-3"]
    flags += ["--smax=1e-4", "--optimizer", "fire2", "--dt", "2", "--max-systems", "3", "d.xyz"]
    job = parse("relax", [*flags, "--out", "o", "--overwrite"])
    (tmp_path / "p.toml").write_text(
        'files = ["a.xyz", "b, c.xyz", "d.xyz"]\nout = "o"\nmax_systems = 3\nlog_every = 1\n'
        '[[stages]]\nkind = "relax"\nfmax = 0.02\nn_steps = 7\nrelax_cell = true\npressure = -1e-3\n'
        'smax = 1e-4\noptimizer = "fire2"\ndt = 2\n'
    )
    assert job.settings == load(str(tmp_path / "p.toml"), [])
    assert (job.options.overwrite, job.options.no_cache) == (True, False)
    job = parse("md", ["--temperature", "9", "--relax", "0.1", "--seed", "4294967295"])
    assert [stage.kind for stage in job.settings.stages] == ["relax", "md"]
    assert job.settings.stages[0] == Relax(kind="relax", fmax=0.1)
    assert job.settings.stages[1] == MD(kind="md", n_steps=1000, temperature=9)


#: What is said of --model ljj.
MODEL = f"model 'ljj' is unknown: it can be {', '.join(known_names())}, or MODULE:NAME for one of your own; "
MODEL += "did you mean lj?"


def test_all_mistakes_of_a_file_at_once(tmp_path):
    path = tmp_path / "p.toml"
    path.write_text(
        "max_system = 3\nseed = 99999999999999999999\nlog_every = true\nmodel = 'ljj'\n"
        "[[stages]]\nkind = 'relax'\nfmx = 0.1\nn_steps = 2147483648\noptimizer = 'lbgfs'\n"
        "[[stages]]\nkind = 'md'\nn_steps = '5'\ntemperature = nan\n"
        "[[stages]]\nkind = 'mdd'\n[[stages]]\nkind = 'relax'\noptimizer = 'lbfgs'\ndt = 1\npressure = 1\n"
    )
    with pytest.raises(UsageError) as e:
        load(str(path), [])
    first, *lines = str(e.value).split("\n")
    assert first == f"{path}: 12 mistakes:"
    for line in (
        "max_system is unknown; did you mean max_systems?",
        "seed must be at most 4294967295, not 99999999999999999999",
        "log_every must be a whole number, not True",
        MODEL,
        "stages.0.fmx is unknown; did you mean fmax?",
        f"stages.0.n_steps must be at most {MOST_STEPS}, not 2147483648",
        "stages.0.optimizer must be fire, fire2, lbfgs, bfgs, gradient-descent, not 'lbgfs'; "
        "did you mean lbfgs?",
        "stages.1.n_steps must be a whole number, not '5'",
        "stages.1.temperature must be finite, not nan",
        'stages.2 has the kind \'mdd\', it must be "relax" or "md"',
        "stages.3.dt is of fire and fire2, lbfgs has none",
        "stages.3.pressure is only for relaxations of the cell (stages.3.relax_cell)",
    ):
        assert f"  {line}" in lines, line


def test_files_that_hold_no_settings(tmp_path):
    (tmp_path / "deep.toml").write_text("a = " + "[" * 20000 + "]" * 20000)
    (tmp_path / "deep_table.toml").write_text("[" + ".".join("a" * 5000) + "]\nb = 1\n")
    (tmp_path / "digits.toml").write_text("seed = " + "9" * 6000)
    (tmp_path / "hex.toml").write_text("seed = 0x" + "f" * 6000 + "\nstages = [{kind='relax'}]\n")
    (tmp_path / "bytes.toml").write_bytes(b"\xff\xfe\x00")
    (tmp_path / "list.toml").write_text("stages = 3")
    for name in ("deep.toml", "deep_table.toml", "digits.toml", "hex.toml", "bytes.toml", "list.toml"):
        with pytest.raises(UsageError) as e:
            load(str(tmp_path / name), [])
        assert name in str(e.value)
        assert len(str(e.value)) < 400 + len(str(tmp_path))
    for path in (str(tmp_path), "/dev/zero", "nul\0", "x" * 5000):
        with pytest.raises(UsageError):
            load(path, [])


def test_one_sentence_for_flags(capsys):
    cases = {
        ("relax", "--steps", "2147483648"): f"--steps must be at most {MOST_STEPS}, not '2147483648'.",
        ("md", "--temperature", "1", "--seed", "9" * 20): "--seed must be at most 4294967295, not '9999",
        ("relax", "--fmx", "1"): "--fmx is no option of relax; did you mean --fmax?",
        ("rlax",): "there is no command 'rlax', the commands are relax, md, run, train, show, "
        "convert, models, info; did you mean relax?",
        ("relax", "--steps"): "--steps needs a value",
        ("relax", "--cell", "--optimizer", "bfgs"): "--optimizer must be fire or fire2 to relax cells",
        ("relax", "--pressure", "1"): "--pressure is only for relaxations of the cell (--cell)",
        ("md", "--ensemble", "ntp"): "did you mean npt?",
        ("relax", "--dtype", "float16"): "--dtype must be 'float64' or 'float32', not 'float16'",
        ("relax", "--model", "lj:epsilon=nan,sigma=1"): "epsilon must be finite, not nan",
    }
    for arguments, sentence in cases.items():
        assert main(list(arguments)) == 2, arguments
        error = capsys.readouterr().err
        assert sentence in error, (arguments, error)
        assert error.count("\n") == 1
        assert not error.rstrip().endswith("?.")


def test_help_names_every_setting():
    for command, known in COMMANDS.items():
        text = " ".join(parser_of(command).format_help().split())
        for model in known.models.values():
            for name, field in model.model_fields.items():
                if name not in ("kind", "stages"):
                    assert " ".join(field.description.split())[:30] in text, (command, name)


def test_registers_are_those_of_the_engines():
    """Names are known without importing engines; here both are compared."""
    assert ENSEMBLES.keys() == ENGINES.keys()
    for name, (engine, needs) in ENGINES.items():
        assert ENSEMBLES[name][0] == needs
        taken = {f for f in MD._physical if f in engine.__dataclass_fields__}
        assert set(ENSEMBLES[name][0] + ENSEMBLES[name][1]) == taken, name
    assert KNOWN_OPTIMIZERS.keys() == OPTIMIZERS.keys()
    for name, (fixed, variable) in OPTIMIZERS.items():
        has_dt, cells = KNOWN_OPTIMIZERS[name]
        assert has_dt == ("dt" in fixed.__dataclass_fields__)
        assert cells == (variable is not None)
    for name, model in ENTRIES.items():
        if model.grammar != "numbers":
            continue
        assert model_from(f"{name}:{','.join(f'{p}=1.5' for p in model.required)},cutoff=6.0").cutoff == 6.0
    with pytest.raises(UsageError, match="--model lj"):
        model_from("lj:epsilon=-1,sigma=1")
    assert Pipeline(stages=[{"kind": "relax"}]).stages[0].fmax == 0.01


@pytest.mark.parametrize("words", ["--help", "relx", "relax --help", "relax --model magic"])
def test_answers_come_before_jax_is_imported(words, tmp_path):
    """The times are of `python -m`, on a machine that others use: 0.14 s if it is idle."""
    command = [sys.executable, "-X", "importtime", "-m", "alchemi_jax.cli.main", *words.split()]
    root = str(Path(__file__).parent.parent)
    begun = time.perf_counter()
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=tmp_path, env={**os.environ, "PYTHONPATH": root}
    )
    took = time.perf_counter() - begun
    assert done.returncode == (0 if "help" in words else 2)
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert not imported & {"jax", "numpy", "ase", "matplotlib", "zarr", "equinox"}
    # Ten times the idle time: this only finds what is imported without need.
    assert took < 1.5
