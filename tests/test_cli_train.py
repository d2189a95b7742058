"""`alchemi-jax train`: its settings, what it reads, what it leaves in a folder, and that it goes on bit for
bit. One small training of Lennard-Jones is compiled."""

import json
import os
import signal
from pathlib import Path

import ase.io
import jax
import numpy as np
import optax
import pytest
from ase import Atoms
from ase.calculators.lj import LennardJones as AseLennardJones
from ase.calculators.singlepoint import SinglePointCalculator
from killing import on_disk, put_on_disk

from alchemi_jax import models
from alchemi_jax.cli import train_plan, train_plot
from alchemi_jax.cli.flags import parse
from alchemi_jax.cli.folder import find_store, is_ours
from alchemi_jax.cli.main import main
from alchemi_jax.cli.outcome import UsageError
from alchemi_jax.cli.results import Results
from alchemi_jax.cli.signals import Signals
from alchemi_jax.cli.train import RESULTS
from alchemi_jax.cli.train_begin import begin_training
from alchemi_jax.cli.train_data import Sets, files_of, labelled_hash, read_sets
from alchemi_jax.cli.train_plan import loss_of, optimizer_of, schedule_of
from alchemi_jax.cli.train_record import TrainRecord, difference
from alchemi_jax.cli.train_report import table
from alchemi_jax.cli.train_settings import OPTIMIZERS
from alchemi_jax.systems.atoms import AtomicData
from alchemi_jax.training.trainer import Trainer


SETTINGS = """
[data]
train = "train.extxyz"
validation = "valid.extxyz"
max_systems = 2
[model]
kind = "lj:epsilon=0.02,sigma=3.3,cutoff=8.5"
[optimizer]
rate = 0.01
schedule = "exponential"
half_life = 20
[run]
n_steps = 9
log_every = 2
out = "o"
"""


def structures(n, seed=0):
    """Trimers of argon with labels."""
    random, out = np.random.default_rng(seed), []
    for _ in range(n):
        atoms = Atoms("Ar3", 3.8 * np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0]]))
        atoms.positions += random.normal(0, 0.1, (3, 3))
        atoms.calc = AseLennardJones(epsilon=0.0104, sigma=3.4, rc=8.5, smooth=False)
        found = {"energy": atoms.get_potential_energy(), "forces": atoms.get_forces()}
        atoms.calc = SinglePointCalculator(atoms, **found)
        out.append(atoms)
    return out


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """With data and settings, and in it."""
    monkeypatch.chdir(tmp_path)
    ase.io.write("train.extxyz", structures(6))
    ase.io.write("valid.extxyz", structures(2, 1))
    Path("s.toml").write_text(SETTINGS)
    return tmp_path


def settings_of(text, *overrides):
    """Settings of a text of TOML."""
    Path("settings.toml").write_text(text)
    return parse("train", ["settings.toml", *overrides]).settings


SHORT = '[data]\ntrain = "a"\n[run]\nn_steps = 10\n'


# -- settings ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("[data]\ntrain = 'a'\n", "run is missing"),
        ("[data]\ntrain = 3\n[run]\nn_steps = 1\n", "data.train must be a list, in brackets, not 3"),
        ("[data]\ntrain = []\n[run]\nn_steps = 1\n", "data.train must not be empty"),
        (SHORT + "n_step = 3\n", "run.n_step is unknown; did you mean n_steps?"),
        (SHORT + "epochs = 3\n", "run.epochs cannot be given beside n_steps"),
        (SHORT + "patience = 3\n", "run.patience needs data to validate on: give data.validation"),
        (SHORT + "keep = 'best'\n", "run.keep needs data to validate on"),
        (SHORT + "out = ''\n", "run.out is no path: ''"),
        (SHORT + "[optimiser]\nrate = 1\n", "optimiser is unknown; did you mean optimizer?"),
        (SHORT + "[optimizer]\nname = 'adm'\n", "did you mean adam?"),
        (SHORT + "[optimizer]\nweight_decay = 0.1\n", "optimizer.weight_decay is not of adam"),
        (SHORT + "[optimizer]\nschedule = 'cosin'\n", "not 'cosin'; did you mean cosine?"),
        (SHORT + "[optimizer]\nhalf_life = 3\n", "optimizer.half_life is of the exponential schedule"),
        (SHORT + "[optimizer]\nschedule = 'exponential'\n", "optimizer.half_life is missing"),
        (SHORT + "[optimizer]\nwarmup = 10\n", "optimizer.warmup must be less than run.n_steps, 10"),
        (SHORT + "[optimizer]\nema = 1\n", "optimizer.ema must be less than 1, not 1"),
        (SHORT + "[model]\nkind = 'invarient'\n", "did you mean invariant?"),
        (SHORT + "[model]\nkind = 'chgnt'\n", "did you mean chgnet?"),
        (SHORT + "[model]\nkind = 'trained:none'\n", "the folder 'none' does not exist"),
        (SHORT + "[model]\nkind = 'lj'\n", "optimizer.rate is missing: only a new network has"),
        (
            SHORT + "[model]\nkind = 'lj'\ncutoff = 3.0\n[optimizer]\nrate = 1e-3\n",
            "model.cutoff is of kind 'invariant', the model that is given has its own",
        ),
        (SHORT + "[model]\nhidden = [0]\n", "model.hidden must have positive whole numbers"),
        (SHORT + "[loss]\nforcs = 1.0\n", "loss.forcs is unknown; did you mean forces?"),
        (SHORT + "[loss]\nkind = 'hubr'\n", "loss.kind must be huber, mse, mae, not 'hubr'; did you mean"),
        (SHORT + "[loss]\nkind = {energi = 'mse'}\n", "loss.kind.energi is of a result that has no weight"),
        (SHORT + "[loss]\ndelta = -1\n", "loss.delta must be a positive number"),
        (SHORT + "[loss]\nothers = {forces = 1.0}\n", "loss.others.forces has a key of its own"),
        ("[data]\ntrain='a'\nsubtract='fitt'\n[run]\nepochs=1\n", 'data.subtract must be "fit", or a table'),
        (SHORT.replace("'a'", '"a"') + "[data.x]\n", "data.x is unknown"),
        ("[data]\ntrain='a'\nvalidation=1.5\n[run]\nepochs=1\n", "data.validation must be between 0 and 1"),
        ("[data]\ntrain='a'\nweights=[1, 2]\n[run]\nepochs=1\n", "each of the 1 entries of train, not 2"),
        ("[[stages]]\nkind = 'relax'\n", "has the settings of another command: alchemi-jax run settings"),
    ],
)
def test_one_sentence_for_what_is_wrong(text, sentence, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("settings.toml").write_text(text)
    assert main(["train", "settings.toml"]) == 2
    error = capsys.readouterr().err
    assert sentence in error
    assert error.startswith("alchemi-jax train: error: settings.toml")
    assert error.count("\n") == 1


def test_settings_of_a_training_are_no_pipeline(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("s.toml").write_text(SHORT)
    assert main(["run", "s.toml"]) == 2
    assert "another command: alchemi-jax train s.toml." in capsys.readouterr().err
    assert main(["train", "s.toml", "run.n_steps"]) == 2
    assert "write FIELD=VALUE, as in run.n_steps=8000." in capsys.readouterr().err


def test_what_is_left_out_has_the_values_of_the_recipe(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    settings = settings_of(SHORT, "run.n_steps=7", "loss.forces=2")
    assert (settings.run.n_steps, settings.rate, settings.keeps_best) == (7, 5e-3, False)
    assert settings.loss.weights == {"forces": 2.0}, "one weight in the file is all there are"
    assert settings_of(SHORT).loss.weights == {"energy": 5.0, "forces": 1.0}
    assert settings_of(SHORT).loss.deltas == {"energy": 0.01, "forces": 0.05}
    loss = loss_of(
        settings_of(SHORT + "[loss]\nenergy = 1\nstress = 3\nkind = {stress = 'mae'}\ndelta = 0.5\n")
    )
    assert dict(loss.kind) == {"energy": "huber", "stress": "mae"}
    assert loss.needs_stress
    assert {name: float(d) for name, d in loss.delta.items()} == {"energy": 0.5, "stress": 0.5}


def test_schedules(tmp_path, monkeypatch):
    """Each begins with the rate, or with zero where it warms up; a cosine is zero after the last step."""
    monkeypatch.chdir(tmp_path)

    def schedule(text, n_steps):
        return schedule_of(settings_of(SHORT + "[optimizer]\nrate = 0.5\n" + text), n_steps)

    assert schedule("schedule = 'constant'", 10) is None
    cosine = schedule("", 10)
    np.testing.assert_allclose([cosine(0), cosine(5), cosine(10)], [0.5, 0.25, 0], atol=1e-7)
    halves = schedule("schedule = 'exponential'\nhalf_life = 1000", 10)
    np.testing.assert_allclose(
        [halves(n) for n in (0, 1000, 50000)], 0.5 * 0.5 ** np.array([0, 1, 50]), rtol=1e-5
    )
    for kind in ("'constant'", "'cosine'", "'exponential'\nhalf_life = 1000000"):
        warm = schedule(f"warmup = 4\nschedule = {kind}", 10)
        np.testing.assert_allclose([warm(0), warm(2), warm(4)], [0, 0.25, 0.5], atol=1e-7)
    assert float(schedule("warmup = 4", 10)(10)) == pytest.approx(0, abs=1e-7)


def test_optimizers_are_those_of_optax(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, takes in OPTIMIZERS.items():
        more = "".join(f"{number} = 0.25\n" for number in takes)
        found = optimizer_of(settings_of(SHORT + f"[optimizer]\nname = '{name}'\nrate = 0.5\n{more}"))
        shapes = jax.eval_shape(found.init, {"x": np.zeros(2, np.float32)})
        assert {"learning_rate", *takes} <= set(shapes.hyperparams), name
        assert isinstance(found, optax.GradientTransformation)


# -- data ----------------------------------------------------------------------------------------------


def test_files_by_wildcards_and_fractions_by_seed(folder):
    for k in range(3):
        ase.io.write(f"run{k}.extxyz", structures(4, 10 + k))
    data = settings_of(SHORT, 'data.train=["run[0-9].extxyz", "train.extxyz@:2"]').data
    assert files_of(data) == ["run0.extxyz", "run1.extxyz", "run2.extxyz", "train.extxyz@:2"]
    whole = read_sets(data, 0)
    assert [len(part) for part in whole.train] == [12, 2]
    assert whole.validation is None
    parts = {}
    for seed in (0, 0, 1):
        sets = read_sets(data.model_copy(update={"validation": 0.25}), seed)
        assert [len(part) for part in sets.train] == [9, 2]
        found = [[s.sha256 for s, _ in part] for part in (*sets.train, sets.validation)]
        assert sorted(sha for part in found for sha in part) == sorted(
            s.sha256 for part in whole.train for s, _ in part
        )
        assert parts.setdefault(seed, found) == found
    assert parts[0] != parts[1]
    with pytest.raises(UsageError, match=r"no file matches 'runs\*'"):
        files_of(data.model_copy(update={"train": ["runs*"]}))


def test_structures_in_both_sets_are_said(folder, capsys):
    assert read_sets(settings_of(SETTINGS).data, 0).twice == 0
    assert read_sets(settings_of(SETTINGS, 'data.validation="train.extxyz@:2"').data, 0).twice == 2
    with pytest.warns(UserWarning, match=r"2 structures are in data.validation and also in data.train"):
        assert main(["train", "s.toml", "--check", "--no-cache", 'data.validation="train.extxyz@:2"']) == 0


def test_the_hash_is_of_labels_too_and_of_what_a_structure_is_for():
    base = AtomicData(positions=np.arange(6.0).reshape(2, 3), numbers=[18, 18], energy=1.0)
    others = [{"energy": 2.0}, {"forces": np.ones((2, 3))}, {"stress": np.eye(3)}, {"numbers": [18, 10]}]
    hashes = {labelled_hash(base)}
    for other in others:
        fields = {"positions": base.positions, "numbers": base.numbers, "energy": 1.0, **other}
        hashes.add(labelled_hash(AtomicData(**fields)))
    assert len(hashes) == len(others) + 1
    from alchemi_jax.cli.inputs import Structure

    one = (Structure("f", 0, "a"), base)
    roles = [Sets([[one]], None), Sets([[]], [one]), Sets([[], [one]], None, weighted=True)]
    assert len({sets.structures[0].sha256 for sets in roles}) == 3


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (['data.train="none.extxyz"'], "none.extxyz does not exist."),
        (["loss.stress=1"], "no structure of data.train has a label 'stress', which the loss asks for"),
        (["loss.magmoms=1"], "the loss has a weight for 'magmoms', but LennardJones gives only"),
        (['model.frozen="sgma"'], "model: frozen 'sgma' is no path of LennardJones, whose floats are"),
        (['model.frozen=["epsilon", "sigma"]'], "model: there is nothing to train"),
        (['model.kind="ase:ase.calculators.emt:EMT"'], "ASEModel has no arrays of floats"),
        (['model.kind="emt"'], "EMT has no parameters for Ar (atom 0)"),
        (["data.max_atoms=2"], "more than max_atoms=2 of a batch"),
        (["--devices", "99999"], "--devices is 99999, but there are"),
    ],
)
def test_what_is_wrong_is_said_before_anything_is_written(overrides, sentence, folder, capsys):
    before = sorted(os.listdir())
    for flags in ([], ["--check"]):
        assert main(["train", "s.toml", "--no-cache", *overrides, *flags]) == 2
        error = capsys.readouterr().err
        if sentence not in error:
            pytest.fail(error)
        assert error.count("\n") == 1
    assert sorted(os.listdir()) == before


def test_check_says_what_would_be_done_and_writes_nothing(folder, capsys):
    before = on_disk(folder)
    more = ['data.train=["train.extxyz@:4", "train.extxyz@4:"]', "data.weights=[0.75, 0.25]"]
    assert main(["train", "s.toml", "--check", "--no-cache", *more]) == 0
    text = " ".join(capsys.readouterr().out.split())
    for part in (
        "Train lj:epsilon=0.02,sigma=3.3,cutoff=8.5 for 9 steps on 6 structures, validated on 2.",
        "6 structures of 3 atoms, from 2 files labels energy of all, forces of all",
        "elements Ar",
        "3 an epoch; shapes, each compiled once: 2 x 3 atoms, 2 x 3 atoms",
        "2 of LennardJones are trained",
        "9, 3 epochs",
        "begins in o",
    ):
        assert part in text, (part, text)
    assert on_disk(folder) == before
    assert main(["train", "s.toml", "--check", "--no-cache", *more, 'data.subtract="fit"']) == 0
    assert "subtracted  Ar " in capsys.readouterr().out
    assert (
        main(["train", "s.toml", "--check", "--no-cache", 'model.kind="invariant"', "model.hidden=[4]"]) == 0
    )
    # 32 Gaussians of one element, 4 hidden: 32 * 4 + 4 + 4 + 1.
    assert "137 of InvariantNetwork are trained, 66 are not" in capsys.readouterr().out


# -- what another call may change ----------------------------------------------------------------------


def test_what_may_change_and_what_may_not(folder):
    def record(*overrides, text=SETTINGS, **fields):
        return TrainRecord(settings_of(text, *overrides), **fields)

    assert difference(record(), record('run.out="other"', 'data.train="elsewhere"')) is None
    assert difference(record(), record('data.validation="elsewhere"')) is None
    for override, name in (
        ("run.seed=1", "run.seed differs"),
        ("data.max_systems=3", "data.max_systems differs"),
        ("optimizer.rate=0.5", "optimizer.rate differs"),
        ("loss.energy=1", "loss.energy differs"),
        ("data.validation=0.5", "data.validation differs"),
        ('model.kind="emt"', "model.kind differs"),
    ):
        assert name in (difference(record(), record(override)) or ""), override
    assert difference(record(), record("run.n_steps=10")) is None, "the rate does not depend on the end"
    assert "was begun with 9 steps, and what was trained is kept: not 8" in difference(
        record(), record("run.n_steps=8")
    )
    cosine = SETTINGS.replace('"exponential"\nhalf_life = 20', '"cosine"')
    assert "with a cosine schedule, which falls to zero at the last" in difference(
        record(text=cosine), record("run.n_steps=10", text=cosine)
    )
    epochs = SETTINGS.replace("n_steps = 9", "epochs = 3")
    assert "was begun with run.n_steps = 9, not with epochs" in difference(record(), record(text=epochs))
    assert difference(record(text=epochs), record("run.epochs=4", text=epochs)) is None
    hashes = [{"f": "1"}, {"f": "2"}]
    assert "began with another f, whose content has changed" in difference(
        *(record(hashes=found) for found in hashes)
    )
    sets = [read_sets(settings_of(SETTINGS).data, 0) for _ in range(2)]
    sets[1].validation.pop()
    assert "holds results of other structures: valid.extxyz, structure 1 is missing" in difference(
        *(record(structures=found.structures) for found in sets)
    )


# -- a training ----------------------------------------------------------------------------------------


@pytest.fixture
def compiled_once(monkeypatch):
    """Trainings of the same settings share functions, and so their programs."""
    known = {}
    for name in ("optimizer_of", "schedule_of", "_error"):
        made = getattr(train_plan, name)
        monkeypatch.setattr(
            train_plan,
            name,
            lambda *args, made=made, name=name: known.setdefault((name, str(args)), made(*args)),
        )


class Stops(Signals):
    """A Ctrl-C at the n-th time that somebody asks."""

    def __init__(self, at):
        super().__init__()
        self.at = at

    def should_stop(self):
        self.at -= 1
        if self.at <= 0:
            self.number = signal.SIGINT
        return super().should_stop()


def contents(out):
    """What a training leaves, apart from checkpoints."""
    found = on_disk(Path(out))
    return {
        os.path.relpath(path, out): content
        for path, content in found.items()
        if "checkpoints" not in path and content is not None
    }


def test_a_training_goes_on_bit_for_bit_from_wherever_it_was_killed(
    folder, compiled_once, capsys, monkeypatch
):
    command = ["train", "s.toml", "--checkpoint-every", "0", "--no-cache"]
    # Each change of the disk between two steps, of a run with a checkpoint in each step.
    moments = []

    def look():
        moments.append(on_disk(folder / "o"))

    from alchemi_jax.training.saver import TrainingSaver

    save = TrainingSaver.save

    def save_and_look(self, *args, **kwargs):
        look()
        save(self, *args, **kwargs)
        self.store.wait()
        look()

    with monkeypatch.context() as patched:
        patched.setattr(TrainingSaver, "save", save_and_look)
        assert main(command) == 0
    look()
    out = capsys.readouterr().out
    assert "energy, meV/atom" in out
    assert "--model trained:o/model" in out
    wanted = contents("o")
    assert set(wanted) == {
        *(
            "log.csv",
            "validation.csv",
            "report.json",
            "loss.png",
            "parity.png",
            "settings.json",
            "inputs.json",
        ),
        *("model/model.json", "model/arrays.npz"),
    }
    assert len(moments) > 9
    model = models.load("trained:o/model")
    assert float(model.sigma) != np.float32(3.3)
    assert json.loads(wanted["report.json"])["steps"] == 9
    rows = wanted["validation.csv"].decode().split()
    assert [row.partition(",")[0] for row in rows[1:]] == ["3", "6", "9"]
    assert rows[0].endswith("energy_mae,energy_rmse,forces_mae,forces_rmse")
    assert all(is_ours(folder / "o" / name) for name in RESULTS)

    # Called again it shows the report and computes nothing.
    with monkeypatch.context() as patched:
        patched.setattr(Trainer, "run", None)
        assert main(command) == 0
        assert main(["train", "o", "--report"]) == 0
        assert main(["train", "s.toml", "--report"]) == 0
        assert main([*command, "--check"]) == 0
    text = capsys.readouterr().out
    assert text.count("energy, meV/atom") == 3
    assert "complete before" in text
    assert "o is complete" in text
    assert contents("o") == wanted
    (folder / "o" / "model").rename(folder / "gone")
    assert main(command) == 2
    assert "model.json is missing, and the run in o was complete: put it back" in capsys.readouterr().err
    (folder / "gone").rename(folder / "o" / "model")
    # Pictures follow from the logs; drawing takes longer than all else here.
    monkeypatch.setattr(train_plot, "save_figure", lambda figure, path: path.write_bytes(b"alchemi-jax"))
    wanted |= {name: b"alchemi-jax" for name in ("loss.png", "parity.png")}
    # The last one: with the logs of much later, of which the first checkpoint knows nothing.
    late = {path: content for path, content in moments[-1].items() if path.endswith(".csv")}
    for moment in (moments[0], moments[len(moments) // 2], moments[1] | late):
        put_on_disk(folder / "o", moment)
        assert main(["train", "o", "--report"]) == 0
        assert main(command) == 0
        assert contents("o") == wanted
    capsys.readouterr()

    # Ctrl-C, twice, into a folder that replaces the old results at the end.
    for at, code in ((1, 130), (3, 130), (99, 0)):
        assert main([*command, "--overwrite"], Stops(at)) == code
        if code:
            assert "the older results in o are kept; the same command goes on" in capsys.readouterr().err
            assert contents("o/unfinished").keys() >= {"settings.json"}
            old = {k: v for k, v in contents("o").items() if "unfinished" not in k}
            assert old == wanted
    assert contents("o") == wanted

    # More steps of a rate that does not depend on the end; and another command on the folder.
    assert main([*command, "run.n_steps=12"]) == 0
    assert contents("o")["log.csv"].startswith(wanted["log.csv"])
    capsys.readouterr()
    assert main(command) == 2
    assert "was begun with 12 steps, and what was trained is kept: not 9" in capsys.readouterr().err
    assert main(["relax", "train.extxyz", "--out", "o", "--no-cache"]) == 2
    assert "o holds results of alchemi-jax train: give another out." in capsys.readouterr().err
    with pytest.raises(UsageError, match="holds a training: alchemi-jax train o --report shows it"):
        find_store("o")


def test_a_loss_that_is_not_finite_ends_with_code_3(folder, capsys, monkeypatch):
    def run(self, data, *args, **kwargs):
        error = FloatingPointError("the loss or a gradient of batch 2 of epoch 0 is not finite: look at it.")
        error.state = Trainer.init(self, next(iter(data.in_order())))
        raise error

    monkeypatch.setattr(Trainer, "run", run)
    assert main(["train", "s.toml", "--no-cache"]) == 3
    error = capsys.readouterr().err
    assert "batch 2 of epoch 0 is not finite: look at the labels of these structures, or begin again" in error


def test_whatever_a_kill_leaves_is_begun_or_gone_on_with(folder, monkeypatch):
    """At each change of a file before the first step."""
    from killing import every_moment

    (folder / "o").mkdir()
    job = parse("train", ["s.toml", "--no-cache", "run.out=o/r"])

    def work():
        with Results("o/r", RESULTS) as results:
            begin_training(job, results)

    n = 0
    for _ in every_moment(folder / "o", work):
        n += 1
        with Results("o/r", RESULTS) as results:
            begun = begin_training(job, results)
            assert not begun.complete
            assert {"settings.json", "inputs.json"} <= {p.name for p in Path("o/r").iterdir()}
    assert n > 5


def test_the_table_of_a_report():
    report = {
        "train": {"energy": {"mae": 1e-3, "rmse": 2e-3, "labels": 4}},
        "validation": {"energy": {"mae": 3e-3, "rmse": 0.004}, "dipole": {"mae": 0.5, "rmse": 1.0}},
    }
    lines = [line.split() for line in table(report)]
    assert lines[2:] == [["energy,", "meV/atom", "1", "2", "3", "4"], ["dipole", "0.5", "1"]]
    assert table({"train": {}}) == []
