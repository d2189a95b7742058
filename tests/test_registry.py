"""Models by name: the grammar, sums, models of the user's and of other packages, and what is chosen unasked.
Nothing here is compiled."""

import json
import os
import subprocess
import sys
from pathlib import Path

import ase.io
import pytest
from ase import Atoms
from ase.data import chemical_symbols

from alchemi_jax import Batch, models
from alchemi_jax.cli.load import load as load_settings
from alchemi_jax.cli.main import main
from alchemi_jax.cli.models import canonical, model_from, parse_models
from alchemi_jax.cli.outcome import UsageError
from alchemi_jax.models import EMT, ASEModel, LennardJones, Morse, StillingerWeber, SumModel, Tersoff
from alchemi_jax.models.chgnet import ELEMENTS, UNTRAINED
from alchemi_jax.models.chgnet_weights import VERSIONS
from alchemi_jax.models.elements import UnknownElementError
from alchemi_jax.models.entries import ENTRIES
from alchemi_jax.models.names import parse
from alchemi_jax.models.registry import advice, choose
from alchemi_jax.models.symbols import SYMBOLS, numbers_of, symbols_of


TERSOFF = "Si Si Si 3 1 1.3258 4.8381 2.0417 0 22.956 0.33675 1.3258 95.373 3.2 0.2 3.2394 3264.7\n"
#: Modules of a user's.
OWN = """
import own_helper
from alchemi_jax.models import LennardJones, Morse
made = LennardJones(epsilon=0.01, sigma=3.0)
class Mine(Morse):
    def __init__(self):
        super().__init__(depth=1.0, width=own_helper.width, r0=2.0)
def make(): return Mine()
def broken(): return 1 / 0
def number(): return 3
value = 3
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """With files of a potential, modules of a user's, and structures; and in it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    Path("a+b: c=1,2.tersoff").write_text(TERSOFF)
    Path("si.sw").write_text(
        "Si Si Si 2.1683 2.0951 1.8 21.0 1.2 -0.333333333333 7.049556277 0.6022245584 4 0 0\n"
    )
    Path("own_models.py").write_text(OWN)
    Path("own_helper.py").write_text("width = 1.5\n")
    ase.io.write("ar.extxyz", [Atoms("Ar2", [[0, 0, 0], [0, 0, 4]]), Atoms("Kr")])
    ase.io.write("si.extxyz", [Atoms("Ar"), Atoms("Si2", [[0, 0, 0], [0, 0, 2.4]])])
    yield tmp_path
    for name in ("own_models", "own_helper"):
        sys.modules.pop(name, None)


def test_symbols_are_those_of_ase():
    assert list(SYMBOLS) == chemical_symbols
    assert symbols_of(numbers_of("H-Bi Ac-Pu O Si")) == "H to Bi, Ac to Pu"
    assert symbols_of(numbers_of("O H Si")) == "H, O, Si"
    with pytest.raises(ValueError, match="'Xx' is no chemical symbol"):
        numbers_of("H-Xx")


def test_elements_of_entries_are_those_of_the_models():
    """They are known without importing the models; here both are compared."""
    for name in ("emt", "lj", "sw"):
        model, known = models.load(name), sorted(ENTRIES[name].elements)
        model.check(Batch.from_ase([Atoms(numbers=[z]) for z in known]))
        for odd in {2, 3, 9, 26, 32, 83, 95} - set(known):
            with pytest.raises(UnknownElementError, match=SYMBOLS[odd]):
                model.check(Batch.from_ase(Atoms(numbers=[odd])))
    assert ENTRIES["chgnet"].elements == set(ELEMENTS) - set(UNTRAINED["0.3.0"])
    assert set(ENTRIES["chgnet"].versions) == set(VERSIONS)


def test_names_make_models(folder):
    assert isinstance(models.load("emt"), EMT)
    assert isinstance(models.load("sw"), StillingerWeber)
    assert isinstance(models.load("sw:si.sw"), StillingerWeber)
    made = models.load("lj:epsilon=0.0104,sigma=3.4,cutoff=7")
    assert (made.cutoff, float(made.sigma)) == (7.0, 3.4)
    assert models.load("lj").epsilon.shape == (119,)
    # What stands behind the first colon is one name of a file.
    assert models.load("tersoff:a+b: c=1,2.tersoff").elements == Tersoff.read("a+b: c=1,2.tersoff").elements
    assert isinstance(models.load("ase:ase.calculators.lj:LennardJones"), ASEModel)
    both = models.load(["lj", "morse:depth=0.1,width=1.5,r0=3"])
    assert isinstance(both, SumModel)
    assert [type(part) for part in both.parts] == [LennardJones, Morse]


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("ljj", "'ljj' is unknown: it can be ase, chgnet, .* or MODULE:NAME .*; did you mean lj"),
        ("", "'' is unknown"),
        ("nowhere:function", "'nowhere' is unknown"),
        (
            "chgnet:0.4.0",
            r"chgnet has no version '0.4.0': it has 0.3.0, 0.2.0, r2scan; did you mean",
        ),
        ("emt:3", "emt takes nothing behind its name, not '3'"),
        ("eam", "eam alone is no model: write eam:FILE"),
        ("sw:", r"sw: ends at the colon: write sw\[:FILE\]"),
        ("eam:nowhere.eam", r"eam:nowhere\.eam: the file 'nowhere\.eam' does not exist"),
        ("tersoff:.", "'.' is no file"),
        ("tersoff:nul\0", "does not exist"),
        ("ase:EMT", "'EMT' is no place: write ase:MODULE:NAME"),
        ("ase:nowhere:EMT", "there is no module 'nowhere'"),
        ("lj:epsilon=1", "lj needs sigma"),
        ("lj:epsilon=nan,sigma=1", "epsilon must be finite, not nan"),
        ("morse", "morse needs depth, width, r0"),
        ("trained", "trained alone is no model: write trained:FOLDER"),
    ],
)
def test_wrong_names_are_one_sentence(folder, text, sentence):
    with pytest.raises(ValueError, match=sentence):
        models.load(text)
    with pytest.raises(UsageError, match=sentence):
        model_from(text)


def test_models_of_the_users_own(folder, monkeypatch):
    assert float(model_from("own_models:made").epsilon) == 0.01
    assert float(model_from("own_models:make").width) == 1.5
    assert float(model_from("own_models:Mine").width) == 1.5
    cases = {
        "own_models:mak": "own_models has no mak; did you mean make?",
        "own_models:broken": r"ZeroDivisionError at own_models\.py:\d+: division by zero",
        "own_models:number": "must give an AbstractModel, not a value of type int",
        "own_models:value": "must give an AbstractModel, not a value of type int",
        "ase.calculators.lj:LennardJones": "for a calculator of ASE write ase:ase.calculators",
        "ase:own_models:broken": "ZeroDivisionError",
    }
    for text, sentence in cases.items():
        with pytest.raises(UsageError, match=sentence):
            model_from(text)


def test_packages_that_are_missing_are_named_with_their_command(folder, monkeypatch):
    monkeypatch.setattr("alchemi_jax.models.registry.has_module", lambda *_: False)
    Path("x").touch()
    for name in ("nequix", "mlip"):
        with pytest.raises(ImportError, match=f"{name}:x needs {name}.*: pip install"):
            models.load(f"{name}:x")


def test_sums_are_flags_given_twice_and_lists(folder):
    from alchemi_jax.cli.flags import parse as parse_flags

    one, two = "lj", "tersoff:a+b: c=1,2.tersoff"
    job = parse_flags("relax", ["--model", one, "--model", two])
    Path("p.toml").write_text(f"model = ['{one}', '{two}']\n[[stages]]\nkind = 'relax'\n")
    assert job.settings.model == load_settings("p.toml", []).model == [one, two]
    assert load_settings("p.toml", ["model=sw"]).model == "sw"
    assert load_settings("p.toml", ["model=['sw']"]).model == "sw"
    assert parse_flags("relax", []).settings.model is None
    assert isinstance(model_from(job.settings.model), SumModel)
    for value in ([], [[]], 3, True, {}):
        with pytest.raises(ValueError, match="must be the name of a model, or a list of names"):
            parse_models(value)


# -- elements ------------------------------------------------------------------------------------------


def test_what_is_taken_if_no_model_is_named():
    assert choose([18, 54])[0] == "lj"
    assert choose([2])[0] == "lj"
    assert choose([18, 8, 22]) == ("chgnet:0.3.0", "it knows every element of the input")
    with pytest.raises(ValueError, match=r"chgnet, the default, does not know Am\. No registered model"):
        choose([95, 8])


def test_an_unknown_element_names_the_models_that_know_it():
    both = advice([29, 47])
    assert both.startswith("All elements of the input are known to --model ")
    assert "--model emt" in both
    assert "--model chgnet" in both
    with pytest.raises(UnknownElementError, match=r"it has Si\. All elements .* --model chgnet"):
        StillingerWeber().check(Batch.from_ase([Atoms("Cu"), Atoms("SiGe", [[0, 0, 0], [0, 0, 2]])][1:]))
    with pytest.raises(ValueError, match=r"No registered model knows all of Am: .*--model eam:FILE"):
        EMT().check(Batch.from_ase(Atoms("Am")))


def test_the_command_advises_on_all_elements_of_its_input(folder, capsys):
    ase.io.write("cu.extxyz", [Atoms("Cu"), Atoms("SiO", [[0, 0, 0], [0, 0, 2]])])
    assert main(["relax", "cu.extxyz", "--model", "sw"]) == 2
    error = capsys.readouterr().err
    assert "cu.extxyz:0: StillingerWeber has no parameters for Cu" in error
    # EMT knows the first structure, but not all of them.
    assert "known to --model chgnet" in error
    # A structure that comes later is refused as well, before anything is computed.
    assert main(["relax", "si.extxyz", "--model", "lj"]) == 2
    assert "si.extxyz:1: LennardJones has no epsilon for Si" in capsys.readouterr().err
    ase.io.write("am.extxyz", [Atoms("Ar"), Atoms("Am")])
    assert main(["relax", "am.extxyz"]) == 2
    assert "--model is missing: chgnet, the default, does not know Am." in capsys.readouterr().err
    assert not Path("alchemi-relaxed").exists()


# -- what results say ----------------------------------------------------------------------------------


@pytest.fixture
def no_engine(monkeypatch):
    """Runs end at once, without a step."""
    import alchemi_jax.cli.run
    from alchemi_jax.cli.stream import Ended

    monkeypatch.setattr(alchemi_jax.cli.run, "stream", lambda *_, **__: Ended(False, 0.0, 0.0))


def test_the_first_line_and_the_results_name_the_model(folder, no_engine, capsys):
    md = ["md", "ar.extxyz", "--temperature", "9", "--out", "o"]
    main(md)
    first, *rest = capsys.readouterr().out.splitlines()
    assert first.endswith("Model: lj, since none was given and all atoms are noble gases.")
    assert "  model         lj" in rest
    kept = json.loads(Path("o/settings.json").read_text())
    assert (kept["model"], kept["model_chosen"]) == ("lj", "all atoms are noble gases")
    # The same again, and with the model named, goes on; another model does not.
    main(md)
    assert main([*md, "--model", "lj"]) == 3
    capsys.readouterr()
    assert main([*md, "--model", "emt"]) == 2
    assert "results of other settings: model was lj and is emt" in capsys.readouterr().err
    assert main(["show", "o"]) == 2


def test_a_file_that_changed_is_told(folder, no_engine, capsys):
    ase.io.write("s.extxyz", Atoms("Si2", [[0, 0, 0], [0, 0, 2.4]]))
    name = "a+b: c=1,2.tersoff"
    md = ["md", "s.extxyz", "--temperature", "9", "--out", "o", "--model", f"tersoff:{name}"]
    assert main(md) == 3
    assert set(json.loads(Path("o/settings.json").read_text())["model_files"]) == {name}
    assert main(md) == 3
    capsys.readouterr()
    Path(name).write_text(TERSOFF.replace("0.33675", "0.33676"))
    assert main(md) == 2
    assert f"results of another {name}, whose content has changed since" in capsys.readouterr().err
    # A module of the user's counts by its content, too.
    md[-1], md[-3] = "own_models:make", "p"
    assert main(md) == 3
    assert set(json.loads(Path("p/settings.json").read_text())["model_files"]) == {"own_models"}
    assert main(md) == 3
    Path("own_models.py").write_text(OWN + "\n# another\n")
    assert main(md) == 2
    assert "results of another own_models" in capsys.readouterr().err


def test_the_file_of_a_model_is_not_overwritten(folder, no_engine, capsys):
    os.makedirs("o")
    os.rename("a+b: c=1,2.tersoff", "o/settings.json")
    assert main(["md", "si.extxyz", "--temperature", "9", "--out", "o", "--overwrite"]) == 2
    arguments = ["--temperature", "9", "--out", "o", "--overwrite", "--model", "tersoff:o/settings.json"]
    assert main(["md", "si.extxyz", *arguments]) == 2
    assert "o/settings.json is an input of this run" in capsys.readouterr().err


# -- other packages, and the list ----------------------------------------------------------------------


def test_other_packages_add_models(tmp_path):
    """Two packages by their metadata: an entry with its elements, a function, a name that is taken, a broken
    one, and one that both have."""
    for package, points in {
        "aaa": "uranium = aaa_models:entry\nfive = aaa_models:five\nlj = aaa_models:five\n"
        "broken = nowhere:x\ntwice = aaa_models:five",
        "bbb": "twice = bbb_models:five",
    }.items():
        info = tmp_path / f"{package}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1\nLicense: MIT\n")
        (info / "entry_points.txt").write_text(f"[alchemi_jax.models]\n{points}\n")
    (tmp_path / "aaa_models.py").write_text(
        "from alchemi_jax.models import ModelEntry\n"
        "entry = ModelEntry('x', 'of uranium', 'aaa_models:five', 'text', elements=frozenset([92, 95]))\n"
        "def five(text='5'):\n"
        "    'A pair potential.'\n"
        "    from alchemi_jax.models import Morse\n"
        "    return Morse(depth=float(text), width=1.0, r0=3.0)\n"
    )
    program = (
        "import sys\n"
        "from alchemi_jax.cli.main import main\n"
        "assert main(['models']) == 0\n"
        "assert not {'jax', 'ase'} & set(sys.modules)\n"
        "from alchemi_jax import models\n"
        "from alchemi_jax.models.registry import advice\n"
        "print([float(models.load(name).depth) for name in ('uranium', 'five:3')])\n"
        "print(advice([95]))\n"
        "for name in ('broken', 'twice'):\n"
        "    try: models.load(name)\n"
        "    except ValueError as e: print(e)\n"
    )
    root = str(Path(__file__).parent.parent)
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), root])}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr
    out = done.stdout
    assert "uranium[:...]\n               of uranium\n    elements   U, Am\n" in out
    assert "five[:...]\n               A pair potential\n" in out
    assert "licence    MIT\n    source     the package aaa" in out
    assert "aaa registers lj, which is a name of alchemi_jax." in done.stderr
    assert "[5.0, 3.0]" in out
    assert "known to --model uranium" in out
    assert "broken is registered by aaa, whose nowhere:x cannot be imported: No module named" in out
    assert "twice is registered by several packages, aaa, bbb: uninstall all but one." in out


def test_the_list_of_models(capsys):
    assert main(["models"]) == 0
    text = capsys.readouterr().out
    for entry in ENTRIES.values():
        assert f"{entry.form}\n               {entry.text}" in text
    assert "lj[:epsilon=...,sigma=...[,cutoff=...]]" in text
    assert "MODULE:NAME\n" in text
    for words, sentence in {
        ("get",): "write alchemi-jax models, or alchemi-jax models get NAME, where NAME is chgnet.",
        ("list",): "write alchemi-jax models",
        ("get", "lj"): "lj has nothing to get",
        ("get", "ljj"): "did you mean lj?",
    }.items():
        assert main(["models", *words]) == 2
        assert sentence in capsys.readouterr().err


def test_versions_are_in_the_name():
    assert parse("chgnet").text == parse("chgnet:0.3.0").text == "chgnet:0.3.0"
    assert parse("chgnet:0.2.0").rest == "0.2.0"
    assert canonical(["lj", "chgnet"]) == ["lj", "chgnet:0.3.0"]
