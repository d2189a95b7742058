"""The README's first code runs as it stands, and the others are what they claim."""

import ast
import builtins
import dataclasses
import html
import inspect
import json
import os
import re
import subprocess
import sys
import warnings
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from cheap_xla import cheap_environment
from conftest import cluster, crystal, public
from following import CellSpring

import alchemi_jax
import alchemi_jax.training
from alchemi_jax import Batch
from alchemi_jax.dynamics import (
    FIRE,
    NVE,
    DynamicsStage,
    FIREVariableCell,
    NVTLangevin,
)
from alchemi_jax.hooks import TracedHook
from alchemi_jax.models import AbstractPair, CommitteeModel, HarmonicModel, LennardJones


ROOT = Path(alchemi_jax.__file__).parent.parent


def code(page):
    path = ROOT / page
    return re.findall(r"```python\n(.*?)```", path.read_text(), re.DOTALL) if path.exists() else []


def run_alone(page, skip=()):
    """Runs each block of a page by itself, as it is when it is pasted; returns all names, the last ones.

    Blocks with one of the words in `skip` are left out.
    """
    found = {}
    for block in code(page):
        if any(word in block for word in skip):
            continue
        names = {}
        exec(block, names)
        found |= names
    return found


BLOCKS = code("README.md")


@pytest.fixture(scope="module")
def blocks():
    if not BLOCKS:
        pytest.skip("installed without its repository")
    return BLOCKS


def test_every_block_runs_when_it_is_pasted_alone(blocks):
    """It has its imports and its data. Pages that are one script in parts say so."""
    pages = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")]
    for page in pages:
        if "are one script" in page.read_text() or "notebooks" in page.parts:
            continue
        for block in code(page.relative_to(ROOT)):
            missing = undefined(block)
            assert not missing, f"{page.relative_to(ROOT)}: {sorted(missing)} in\n{block}"


def check_printed(page, printed):
    """Each line that the blocks of a page print is in it; tests compute with more digits."""
    text = (ROOT / page).read_text()
    lines = [line for line in printed.replace("float64", "float32").splitlines() if line]
    for line in lines:
        assert line in text, line
    return len(lines)


def undefined(block):
    """Names that a block uses and does not define."""
    nodes = list(ast.walk(ast.parse(block)))
    used = {n.id for n in nodes if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Load)}
    bound = {n.id for n in nodes if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
    bound |= {n.name for n in nodes if isinstance(n, ast.FunctionDef | ast.ClassDef | ast.ExceptHandler)}
    bound |= {n.arg for n in nodes if isinstance(n, ast.arg)}
    imported = (n for n in nodes if isinstance(n, ast.Import | ast.ImportFrom))
    bound |= {(a.asname or a.name).partition(".")[0] for n in imported for a in n.names}
    return used - bound - set(dir(builtins))


def test_the_first_example(blocks, tmp_path):
    done = subprocess.run(
        [sys.executable, "-W", "error::UserWarning", "-c", blocks[0]],
        cwd=tmp_path,
        env=cheap_environment(),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("Batch(33 systems")
    assert "33 converged, 0 failed" in done.stdout
    # The page has the same code, and what it prints.
    page = (ROOT / "docs/start/first_run.md").read_text()
    assert blocks[0] in page
    assert f"```text\n{done.stdout}```" in page
    assert (tmp_path / "relax.csv").exists()


def test_the_start_page(capsys):
    """Its code prints what it says; tests compute with more digits."""
    run_alone("docs/index.md")
    page = (ROOT / "docs/index.md").read_text()
    assert capsys.readouterr().out.replace("float64", "float32") in page


def test_the_pieces(blocks):
    engine = FIRE(model=LennardJones(epsilon=0.0104, sigma=3.4), dt=1.0)
    names = {"engine": engine, "batch": Batch.from_ase(cluster(0, 4))}
    exec(blocks[1], names)
    assert int(names["state"].step_count) == 201


def test_a_model_and_a_hook_of_ones_own(blocks):
    names = {"AbstractPair": AbstractPair, "TracedHook": TracedHook, "DynamicsStage": DynamicsStage}
    names |= {"jax": jax, "jnp": jnp}
    exec(blocks[2], names)
    exec(blocks[3], names)
    model = names["Springs"](r0=jnp.asarray(3.8))
    engine = FIRE(model=model, dt=1.0, n_steps=5, hooks=[names["ClampForces"](limit=0.1)])
    out = engine.run(Batch.from_ase(cluster(0, 4))).take()
    assert np.linalg.norm(out.forces, axis=1).max() <= 0.1 + 1e-12


def test_the_page_on_hooks(blocks, capsys):
    """Its three hooks run; the page names every hook that there is."""
    names = run_alone("docs/explanation/hooks.md")
    hooks = [names["PrintFmax"](), names["Kick"](speed=1e-4, frequency=3), names["Record"]()]
    engine = NVE(model=LennardJones(epsilon=0.0104, sigma=3.4), dt=1.0, hooks=hooks)
    state = engine.advance(engine.init(Batch.from_ase(cluster(0, 4))), 11)
    assert int(state.memory[0]) == 4
    printed = capsys.readouterr().out.splitlines()
    # Rows come after the steps that a host hook cut the run into.
    assert [line.split()[0] for line in printed if line.startswith("10")] == ["10", "10"]
    page = (ROOT / "docs/explanation/hooks.md").read_text()
    for name in public(alchemi_jax.dynamics.hooks):
        assert not name.endswith("Hook") or f"`{name}" in page, name


def test_every_builtin_hook_has_an_example_that_runs(blocks, lj, tmp_path, monkeypatch):
    """All of the page's hooks on one engine; timing and profiling, which run it in parts, apart."""
    monkeypatch.chdir(tmp_path)
    # To write a trace takes longer than all else here; test_builtin_hooks does it.
    for name in ("start_trace", "stop_trace"):
        monkeypatch.setattr(jax.profiler, name, lambda *given, **more: None)
    three = Batch.from_ase([cluster(i, 5) for i in range(3)], system_capacity=3)
    hooks = {}
    for block in code("docs/reference/builtin-hooks.md"):
        names = {}
        exec(block, names)
        if "hook" in names:
            hooks.setdefault(type(names["hook"]).__name__, []).append(names["hook"])
    there = {name for name in public(alchemi_jax.dynamics.hooks) if name.endswith("Hook")}
    assert set(hooks) == there
    (squeeze,) = hooks.pop("PressureScheduleHook")
    spring = CellSpring(k=1.0, side=5.0)
    squeezed = FIREVariableCell(model=spring, n_steps=2, hooks=[squeeze]).run(Batch.from_ase(crystal(0, 1)))
    assert not squeezed.take().failed.any()
    drift = hooks.pop("EnergyDriftMonitorHook") + hooks.pop("UncertaintyHook")
    committee = CommitteeModel.of([HarmonicModel()] * 2)
    watched = NVE(model=committee, dt=1.0, n_steps=2, hooks=drift).run(three).take()
    assert not watched.failed.any()
    assert not watched["forces_spread"].any()
    apart = {"StageTimingHook", "ProfilerHook", "TemperatureScheduleHook"}
    together = [hook for name, made in hooks.items() if name not in apart for hook in made]
    engine = NVTLangevin(model=lj, dt=1.0, temperature=30.0, n_steps=22, hooks=together)
    out = engine.run(three).take()
    assert not out.failed.any()
    assert (tmp_path / "run.csv").exists()
    assert (tmp_path / "trajectory.zarr").exists()
    assert (tmp_path / "fmax.png").exists()
    assert hooks["ObservableHook"][0].table["T"].shape == (5, 3)
    plain = NVTLangevin(model=HarmonicModel(), dt=1.0, temperature=30.0, n_steps=22)
    plain.with_hooks(*(hook for name in sorted(apart) for hook in hooks[name])).run(three)
    assert "AFTER_COMPUTE" in hooks["StageTimingHook"][0].summary()


def test_the_page_for_assistants(lj, capsys):
    names = run_alone("docs/howto/assistants.md")
    assert capsys.readouterr().out.splitlines()[1].startswith("10 ")
    assert sum(len(part["step"]) for part in names["rows"].parts) == 20
    for link in re.findall(r"\((\S+\.md)\)", (ROOT / "llms.txt").read_text()):
        assert (ROOT / link).exists(), link


def test_the_page_on_failures(capsys):
    """Its code says what it says, and the tests that it names exist."""
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        names = run_alone("docs/explanation/failures.md")
    text = (ROOT / "docs/explanation/failures.md").read_text()
    joined = " ".join(text.split())
    assert str(seen[0].message) in joined
    assert capsys.readouterr().out.strip() in text
    assert "bond is broken" not in str(names["out"].outcome_text(0))
    named = re.findall(r"`(test_\w+\.py)::(test_\w+)`", text)
    assert len(named) > 9
    for path, test in named:
        assert f"def {test}(" in (ROOT / "tests" / path).read_text(), (path, test)


def test_the_page_on_checkpoints(tmp_path, monkeypatch, capsys):
    """Its code prints what it says."""
    monkeypatch.chdir(tmp_path)
    run_alone("docs/howto/checkpoints.md")
    text = (ROOT / "docs/howto/checkpoints.md").read_text()
    for line in capsys.readouterr().out.splitlines():
        assert f"`{line}`" in text


def test_the_page_on_training(tmp_path, monkeypatch, capsys):
    """It trains, and goes on from its checkpoints."""
    monkeypatch.chdir(tmp_path)
    names = run_alone("docs/howto/training.md")
    if names:
        assert int(names["state"].epoch) == 5
        assert len((tmp_path / "training.csv").read_text().splitlines()) == 11
        chosen = names["only_depth"].split()[0]
        assert chosen.epsilon is not None
        assert chosen.sigma is None
        printed = capsys.readouterr().out
        assert printed.startswith("LennardJones(epsilon=0.0125")
        assert "sigma=3.33" in printed
        assert "\nepoch 0: loss " in printed


def test_the_page_from_data_to_dynamics():
    """Its code is that of a notebook, which has a test of its own, and of scripts in `examples/`."""
    page = code("docs/tutorials/from_data_to_dynamics.md")
    if not page:
        pytest.skip("installed without its repository")
    cells = json.loads((ROOT / "notebooks/10_train_a_potential.ipynb").read_text())["cells"]
    shown = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    same = [ast.dump(ast.parse(text)) for text in page]
    assert same[: len(shown)] == [ast.dump(ast.parse(text)) for text in shown]
    scripts = [ast.parse(path.read_text()) for path in (ROOT / "examples").glob("*.py")]
    known = {ast.dump(node) for script in scripts for node in script.body}
    parts = [ast.dump(node) for text in page[len(shown) :] for node in ast.parse(text).body]
    assert len(parts) > 4
    assert set(parts) <= known


def test_the_page_on_errors(blocks, capsys):
    """Its code says what it says; every message that it quotes is one of ours, word for word."""
    for block in code("docs/reference/errors.md"):
        names = {}
        # A file of its own: the sentence names the line.
        exec(compile(block, "hooks.py", "exec"), names)
    text = (ROOT / "docs/reference/errors.md").read_text()
    said = re.sub(r"hooks\.py:\d+", "hooks.py:14", capsys.readouterr().out.strip())
    assert said in text.replace("\n", " ")
    assert not jnp.isnan(names["state"].batch.forces).any()
    ours = "\n".join(line for path in sorted((ROOT / "alchemi_jax").rglob("*.py")) for line in messages(path))
    quoted = re.findall(r"^\| `(.*?)`[^`|]*\|", text, re.MULTILINE)
    assert len(quoted) > 30
    for message in quoted:
        # What to do is filled in, too.
        for piece in re.split("…|: ", message):
            assert piece.strip() in ours, message


def messages(path):
    """String literals of a file, with … for what is filled in."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Constant):
            yield str(node.value)
        elif isinstance(node, ast.JoinedStr):
            yield "".join(str(p.value) if isinstance(p, ast.Constant) else "…" for p in node.values)


def test_the_pages_on_pipelines_and_many_structures(blocks, lj, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    names = run_alone("docs/howto/pipelines.md")
    assert names["out"].take().converged.all()
    assert (tmp_path / "pipeline.csv").exists()
    assert check_printed("docs/howto/pipelines.md", capsys.readouterr().out) == 1
    names = run_alone("docs/howto/many_structures.md")
    assert names["out"].take().converged.all()
    assert len(names["stored"]) == names["relaxed"].num_systems == names["moved"].num_systems == 9
    first, second = capsys.readouterr().out.splitlines()
    check_printed("docs/howto/many_structures.md", first)
    assert "9 systems" in second


def test_the_pipeline_of_the_page_on_commands(tmp_path):
    """It is the file that the command reads, and the tables of settings are those of the code."""
    from alchemi_jax.cli.load import load
    from alchemi_jax.cli.reference import BEGIN, END, reference

    text = (ROOT / "docs/reference/commands.md").read_text()
    (tmp_path / "p.toml").write_text(re.findall(r"```toml\n(.*?)```", text, re.DOTALL)[0])
    settings = load(str(tmp_path / "p.toml"), ["stages.0.fmax=0.05", "max_systems=16", "out=other"])
    assert (settings.stages[0].fmax, settings.max_systems, settings.out) == (0.05, 16, "other")
    tables = text.partition(BEGIN)[2].partition(END)[0]
    assert tables.strip() == reference().strip(), (
        "python -m alchemi_jax.cli.reference docs/reference/commands.md"
    )


def test_the_training_of_the_page_on_commands(tmp_path):
    """What it gives is the default, where there is one."""
    from alchemi_jax.cli.load import load_training
    from alchemi_jax.cli.reference import BEGIN_TRAIN, END, reference_of_training
    from alchemi_jax.cli.train_plan import loss_of

    text = (ROOT / "docs/reference/commands.md").read_text()
    (tmp_path / "s.toml").write_text(re.findall(r"```toml\n(.*?)```", text, re.DOTALL)[1])
    settings = load_training(str(tmp_path / "s.toml"), ["run.n_steps=8000", "run.out=short"])
    (tmp_path / "s.toml").write_text('[data]\ntrain = "a"\n[run]\nn_steps = 8000\n')
    least = load_training(str(tmp_path / "s.toml"), [])
    assert (settings.run.n_steps, settings.run.out) == (8000, "short")
    assert repr(loss_of(settings)) == repr(loss_of(least))
    assert settings.loss.deltas == least.loss.deltas
    assert settings.rate == least.rate
    for table in ("model", "optimizer"):
        for key, value in getattr(least, table).model_dump().items():
            given = getattr(getattr(settings, table), key)
            shown = type(getattr(least, table)).model_fields[key].json_schema_extra["shown"]
            assert value in (given, None), (table, key)
            assert value is not None or given is None or key == "rate" or str(given) == shown, (table, key)
    tables = text.partition(BEGIN_TRAIN)[2].partition(END)[0]
    assert tables.strip() == reference_of_training().strip()


#: Short pages, each one question: what their blocks print stands in them.
HOW_TO = [
    "choose",
    "compile_less",
    "debug_nan",
    "fit_dynamics",
    "fix_atoms",
    "relax_cell",
    "stop",
    "tensorboard",
    "trajectory",
]


@pytest.mark.parametrize("page", HOW_TO)
def test_a_short_how_to_prints_what_it_says(page, blocks, tmp_path, monkeypatch, capsys):
    """Each line, where tests compute with more digits; it warns where it says so, and only there."""
    if page == "tensorboard":
        pytest.importorskip("tensorboardX")
    monkeypatch.chdir(tmp_path)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        # numpy 2.5 deprecates what ASE does to arrays.
        warnings.filterwarnings("ignore", "Setting the shape", DeprecationWarning)
        run_alone(f"docs/howto/{page}.md")
    assert bool(seen) == (page == "debug_nan"), [str(warning.message) for warning in seen]
    assert check_printed(f"docs/howto/{page}.md", capsys.readouterr().out) > 0


def test_the_pages_on_sinks_and_formats(blocks, lj, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    run_alone("docs/reference/formats.md")
    assert check_printed("docs/reference/formats.md", capsys.readouterr().out) == 1
    names = run_alone("docs/howto/sinks.md")
    assert len(names["sink"]) == 120
    assert names["whole"].num_systems == 60
    assert len(names["traj"]) == 40
    assert names["path"].shape == (40, 4, 3)
    assert int(names["buffer"].batch.num_systems) + int(names["buffer"].missed) > 0
    assert names["msd"].shape == (40,)
    text = (ROOT / "docs/howto/sinks.md").read_text()
    for name in public(alchemi_jax.dynamics.sinks):
        assert not name[0].isupper() or name == "Sink" or f"`{name}" in text, name


def test_the_pages_build(tmp_path):
    """Without a warning: every link and every name of the reference is there. Notebooks are not run."""
    pytest.importorskip("myst_nb")
    pytest.importorskip("pydata_sphinx_theme")
    if not (ROOT / "docs" / "conf.py").exists():
        pytest.skip("installed without its repository")
    site = tmp_path / "site"
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", str(ROOT / "docs"), str(site)]
    # Links to other sites are those of a list, not of the network.
    environment = os.environ | {"SITE_OFFLINE": "true", "EXECUTE_NOTEBOOKS": "false"}
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    page = (site / "reference" / "api" / "runs.html").read_text()
    assert 'id="alchemi_jax.dynamics.Sampler"' in page
    books = sorted((ROOT / "notebooks").glob("*.ipynb"))
    assert len(books) >= 9
    for book in books:
        # The whole notebook, not just a link to it.
        cells = json.loads(book.read_text())["cells"]
        title = "".join(cells[0]["source"]).splitlines()[0].removeprefix("# ")
        page = (site / "notebooks" / f"{book.stem}.html").read_text()
        shown = html.unescape(re.sub("<[^>]*>", "", page))
        assert title in shown
        # With its stored pictures.
        pictures = [o for cell in cells for o in cell.get("outputs", ()) if "image/png" in o.get("data", {})]
        assert page.count("<img ") >= len(pictures), book
        for cell in cells:
            if cell["cell_type"] == "code":
                assert "".join("".join(cell["source"]).split()) in "".join(shown.split()), book


def test_the_pages_on_sweeps_gradients_and_transforms(capsys):
    names = {}
    for page in ("sweep", "gradients", "transforms"):
        names |= run_alone(f"docs/howto/{page}.md")
        assert check_printed(f"docs/howto/{page}.md", capsys.readouterr().out) > 0
    assert len(names["table"]["energy"]) == 6
    assert len(names["fitted"]["energy"]) == 2
    assert np.isfinite(names["slope"])
    assert names["out"].batch.positions.shape[0] == len(jax.devices())


def test_defaults_of_the_page_on_algorithms(blocks, lj):
    """Those of the classes, each number that stands behind a name."""
    seen = 0
    needed = {"dt": 1.0, "temperature": 1.0, "optimizer": optax.adam(0.01)}
    for line in (ROOT / "docs/reference/algorithms.md").read_text().splitlines():
        row = re.match(r"\| `(\w+)` \| [^|]* \| ([^|]*) \|", line)
        if row is None:
            continue
        kind = getattr(alchemi_jax.dynamics, row[1])
        taken = inspect.signature(kind).parameters
        engine = kind(model=lj, **{k: v for k, v in needed.items() if k in taken and k not in row[2]})
        for name, value in re.findall(r"`(\w+)` ([\d.]+)", row[2]):
            np.testing.assert_allclose(
                float(getattr(engine, name)), float(value), rtol=1e-3, err_msg=f"{row[1]}.{name}"
            )
            seen += 1
    assert seen > 15


def test_names_in_the_tables_of_other_codes_and_of_the_readme(blocks):
    """Every name that is called, or that is a class, in what a reader is told to write."""
    modules = [
        alchemi_jax,
        alchemi_jax.dynamics,
        alchemi_jax.models,
        alchemi_jax.hooks,
        alchemi_jax.neighbors,
    ]
    modules += [alchemi_jax.dynamics.hooks, alchemi_jax.dynamics.sinks, alchemi_jax.analysis]
    modules += [alchemi_jax.observables, alchemi_jax.training]
    known = {name for module in modules for name in public(module)} | {"FIRE", "CallbackHook"}
    methods = [
        dir(k) for k in (alchemi_jax.dynamics.AbstractDynamics, Batch, alchemi_jax.dynamics.ConvergenceHook)
    ]
    fields = [f.name for k in (Batch, alchemi_jax.dynamics.DynamicsState) for f in dataclasses.fields(k)]
    known |= {name for names in methods for name in names} | set(fields) | {"function", "hook", "model"}
    theirs = {"Propagator", "FixAtoms", "FixCartesian", "DynamicsContext"}
    checked = 0
    for line in (ROOT / "docs/start/coming-from.md").read_text().splitlines():
        cells = line.strip("|").split(" | ")
        if not line.startswith("| ") or len(cells) < 2:
            continue
        for code_ in re.findall(r"`([^`]*)`", cells[1]):
            for name in re.findall(r"(?<![\w\".])([A-Z]\w+)|\.(\w+)\(|(?<![\w.])([a-z_]+)\(", code_):
                name = next(filter(None, name))
                assert name in known | theirs or name.isupper(), (name, line)
                checked += 1
    for line in (ROOT / "README.md").read_text().partition("## The pieces")[2].splitlines():
        for name in re.findall(r"`([A-Z]\w+)`", line) if line.startswith("| ") else ():
            assert name in known, (name, line)
            checked += 1
    assert checked > 60


@pytest.mark.parametrize("page", ["compiling", "neighbors", "padding", "precision"])
def test_an_explanation_prints_what_it_says(page, blocks, capsys):
    """Each line, where tests compute with more digits."""
    run_alone(f"docs/explanation/{page}.md", skip=["jax_default_matmul_precision"])
    assert check_printed(f"docs/explanation/{page}.md", capsys.readouterr().out) > 0
