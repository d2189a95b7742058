"""Every parameter of every public constructor refuses what it cannot mean, by its name, where it is made.

Engines have a table of their own in test_parameters.py. Here are models, hooks, sinks, readers, samplers and
structures. A class or a
parameter that is not in the tables below fails the test that they are complete.
"""

import inspect

import flax.linen as nn
import jax
import jaxtyping
import numpy as np
import pytest
from ase import Atoms
from ase.calculators.emt import EMT as AseEMT
from conftest import public
from potential_cases import eam_tables

import alchemi_jax.dynamics.hooks as hooks
import alchemi_jax.models as models
from alchemi_jax import AtomicData, Batch, Trajectory, dynamics
from alchemi_jax.dynamics import NVE, Sampler, initialize_velocities, sinks
from alchemi_jax.dynamics.hooks.convergence import Criterion
from alchemi_jax.dynamics.sinks import HostMemory, Sink
from alchemi_jax.models import EAM, AbstractModel, CommitteeModel, HarmonicModel, LennardJones
from alchemi_jax.models.tersoff import Tersoff
from alchemi_jax.neighbors import Requirements, allocate


NAN, INF = np.nan, np.inf
#: Values that nothing can be: not a number, infinite, complex, text, a bool, nothing.
NUMBER = [NAN, INF, -INF, 1j, "x", True, None]
NOT_NEGATIVE = [*NUMBER, -1.0]
POSITIVE = [*NOT_NEGATIVE, 0.0]
ONE = [*POSITIVE, [1.0, 2.0]]
OPTIONAL_POSITIVE = [v for v in POSITIVE if v is not None]
COUNT = [0, -1, 1.5, "x", True, None, NAN]
FLAG = [1, "yes", None, NAN]
CUTOFF = [*POSITIVE, 1e6]
SKIN = [*NOT_NEGATIVE, 1e6]
TABLE = np.full(119, NAN)
MEMORY = HostMemory()


def by_element(bad):
    """Bad numbers as they are, for an element, and in a table over atomic numbers."""
    tables = []
    for value in (v for v in bad if isinstance(v, float) and not np.isnan(v)):
        table = TABLE.copy()
        table[18] = value
        tables.append(table)
    return [*bad, *({"Ar": v} for v in bad), {}, {"Nope": 1.0}, {200: 1.0}, TABLE, np.ones(7), *tables]


def by_pair(bad):
    pair = ("Ar", "Ne")
    return [*bad, *({pair: v} for v in bad), {}, {"Ar": 1.0}, {("Ar", "Nope"): 1.0}, [1.0, 2.0]]


class Plain(nn.Module):
    def __call__(self, batch, neighbors):
        return batch.energy


def nothing(*_):
    return 0.0


SW = {name: ONE for name in ("sigma", "a")} | {
    name: [*NOT_NEGATIVE, [1.0, 2.0]] for name in ("epsilon", "lam", "gamma", "A", "B", "p", "q")
}
TERSOFF = Tersoff.silicon_carbide()


def tersoff(name, value):
    """Parameters with another value of one of them, for the first triple."""
    table = np.asarray(TERSOFF.parameters[name]).copy()
    table[0, 0, 0] = value
    return {**TERSOFF.parameters, name: table}


#: class -> arguments that are right, and bad values of each parameter. None: parameters that take anything.
MODELS = {
    "LennardJones": (
        {"epsilon": 0.01, "sigma": 3.4},
        {
            "epsilon": by_element(NOT_NEGATIVE),
            "sigma": by_element(POSITIVE),
            "cutoff": CUTOFF,
            "shift": FLAG,
            "skin": SKIN,
        },
    ),
    "Morse": (
        {"depth": 1.0, "width": 1.0, "r0": 2.0},
        {
            "depth": [*NOT_NEGATIVE, [1.0, 2.0]],
            "width": ONE,
            "r0": [*NOT_NEGATIVE, [1.0, 2.0]],
            "cutoff": CUTOFF,
            "onset": [*(v for v in NOT_NEGATIVE if v is not None), 6.0, 7.0],
            "skin": SKIN,
        },
    ),
    "Buckingham": (
        {"A": 1000.0, "rho": 0.3, "C": 1.0},
        {
            "A": by_pair(NOT_NEGATIVE),
            "rho": by_pair(POSITIVE),
            "C": by_pair(NUMBER),
            "cutoff": CUTOFF,
            "shift": FLAG,
            "skin": SKIN,
        },
    ),
    "SoftSphere": (
        {},
        {
            "epsilon": by_element(NOT_NEGATIVE),
            "sigma": by_element(POSITIVE),
            "alpha": ONE,
            "cutoff": [v for v in CUTOFF if v is not None],
            "skin": SKIN,
        },
    ),
    "ZBL": (
        {},
        {
            "onset": [*NOT_NEGATIVE, 4.0],
            "cutoff": CUTOFF,
            "charges": [v for v in by_element(NOT_NEGATIVE) if v is not None],
            "skin": SKIN,
        },
    ),
    "StillingerWeber": (
        {},
        {
            **SW,
            "cos0": [*NUMBER, -1.1, 1.1],
            "element": ["Nope", 300, None, 1.5],
            "cutoff": [v for v in CUTOFF if v is not None],
            "skin": SKIN,
        },
    ),
    "Tersoff": (
        {"elements": ("C", "Si"), "parameters": TERSOFF.parameters},
        {
            "elements": [("C", "Nope"), ("C",)],
            "parameters": [
                *(tersoff("A", v) for v in (NAN, INF, -1.0)),
                *(tersoff("R", v) for v in (NAN, 0.0, -1.0)),
                *(tersoff("n", v) for v in (NAN, 0.0)),
                tersoff("m", 2.0),
                tersoff("cos0", INF),
                {**TERSOFF.parameters, "A": np.full((2, 2, 2), 1j)},
                {k: v for k, v in TERSOFF.parameters.items() if k != "lam3"},
            ],
            "cutoff": [v for v in CUTOFF if v is not None],
            "skin": SKIN,
        },
    ),
    "EMT": (
        {},
        {
            "elements": [("Fe",), ("Nope",), ()],
            "parameters": [np.full((11, 7), NAN), np.ones((2, 7)), "x"],
            "skin": SKIN,
        },
    ),
    "Ewald": (
        {},
        {
            "charges": by_element(NUMBER[:4]),
            "cutoff": CUTOFF,
            "accuracy": [*POSITIVE, 0.5],
            "waves": [(1, 2), (0, 1, 1), (1.5, 1, 1), None, 3],
            "skin": SKIN,
        },
    ),
    "HarmonicModel": ({}, {"k": NUMBER, "center": [NAN, [0.0, INF, 0.0], 1j, None], "cutoff": None}),
    "InvariantNetwork": (
        {"elements": ["Cu", "Ni"], "key": jax.random.key(0)},
        {
            "elements": ["Nope", (), ("Cu", "Cu"), None, 3.5, 300],
            "key": ["x", 1.5, np.ones(3)],
            "cutoff": CUTOFF,
            "gaussians": COUNT,
            "angular": [n for n in COUNT if n != 0],
            "hidden": [[n] for n in COUNT] + [3, None, "x"],
            "energies": [NAN, [1.0], [INF, 0.0], "x", 1j],
            "scale": ONE,
            "mean": [np.zeros(3), np.full((2, 64), NAN), "x"],
            "spread": [np.zeros((2, 64)), np.ones(3), -np.ones((2, 64)), "x"],
            "skin": SKIN,
        },
    ),
    "FlaxModel": (
        {"module": Plain(), "variables": {}},
        {"module": ["x", None, Plain], "variables": None, "cutoff": CUTOFF, "skin": SKIN},
    ),
    "FunctionModel": (
        {"function": nothing},
        {
            "function": [None, 3, "x", HarmonicModel()],
            "params": None,
            "cutoff": [v for v in CUTOFF if v is not None],
            "skin": SKIN,
        },
    ),
    "GraphFunctionModel": (
        {"function": nothing, "params": {"k": 1.0}, "cutoff": 5.0},
        {
            "function": [None, 3, "x", jax.tree_util.Partial(nothing, np.ones(3))],
            "params": None,
            "cutoff": CUTOFF,
            "skin": SKIN,
            "elements": ["Ar", (), ("Nope",), ("Ar", "Ar"), 3, (1.5,)],
            "inner_cutoff": [*(v for v in CUTOFF if v is not None), 6.0],
            "long_cutoff": [v for v in CUTOFF if v is not None],
            "reverse_edges": FLAG,
            "per_atom": FLAG,
        },
    ),
    "CommitteeModel": (
        {"members": CommitteeModel.of([HarmonicModel()] * 2).members},
        {"members": [None, "x", HarmonicModel, HarmonicModel(), [HarmonicModel()], LennardJones(1.0, 3.4)]},
    ),
    "ASEModel": ({"calculator": AseEMT()}, {"calculator": ["x", None, AseEMT], "cutoff": None}),
    "SumModel": ({"parts": (HarmonicModel(),)}, {"parts": [(), (HarmonicModel(), "x"), (HarmonicModel,)]}),
    "EAM": (
        {k: getattr(EAM.from_tables(eam_tables(points=51)), k) for k in inspect.signature(EAM).parameters},
        {
            "elements": [("Nope", "Ni"), ("Al",)],
            "embedding": [NAN, np.ones(3), np.full((2, 9, 4), INF), 1j],
            "density": [NAN, np.ones((2, 9, 4)), 1j],
            "pair": [NAN, np.ones((1, 2, 9, 4)), 1j],
            "density_step": POSITIVE,
            "distance_step": POSITIVE,
            "largest_density": [v for v in POSITIVE if v is not None],
            "cutoff": CUTOFF,
            "skin": SKIN,
        },
    ),
}
#: What is no path, and what is no way to open a file.
PATH = [None, 3, 1.5, True, b"x", "", "a\0b", [], ["x"], np.zeros(2)]
MODE = ["q", "", "rw", None, 3, True, b"w", ["w"], np.array(["w", "a"])]
ROOM = [*COUNT, INF, 1j, [1], np.array([1, 2])]
BYTES = [v for v in [*ROOM, 2**31] if v is not None]
SINKS = {
    "HostMemory": ({}, {"capacity": [v for v in ROOM if v is not None]}),
    "DeviceBuffer": ({"systems": 2, "atoms": 3}, {"systems": [*ROOM, 2**31], "atoms": [*ROOM, 10**12]}),
    "ExtXYZ": ({"path": "x.xyz"}, {"path": PATH, "mode": MODE}),
    "AseTrajectory": ({"path": "x.traj"}, {"path": PATH, "mode": MODE}),
    "ZarrData": (
        {"path": "x.zarr"},
        {
            "path": PATH,
            "mode": MODE,
            "chunk_bytes": BYTES,
            "shard_bytes": BYTES,
            "compression": ["gzip", "LZ4", 3, True, ["lz4"]],
        },
    ),
    "SinkChain": (
        {"sinks": [HostMemory()]},
        {"sinks": [[], "x", None, 3, [3], [HostMemory], HostMemory(), [HostMemory(), None], [MEMORY] * 2]},
    ),
}
SOURCE = [None, 3, 1.5, Atoms("Ar"), "nowhere.xyz"]
OPTIONAL_ROOM = [v for v in ROOM if v is not None]
SAMPLERS = {
    "Sampler": (
        {"source": [Atoms("Ar")]},
        {
            "source": SOURCE,
            "max_systems": [*ROOM, 2**31],
            "max_atoms": [*OPTIONAL_ROOM, 2**31],
            "max_pairs": OPTIONAL_ROOM,
            "policy": ["x", None, 3, ["best fit"]],
            "unfit": ["x", None, True],
            "window": ROOM,
            "dtype": ["x", "int32", "float16", 3],
            "refill_share": [0.0, 1.1, NAN, "x", 1j, [0.5]],
            "shrink": FLAG,
            "skip": [3, "x", ["x"], [1.5], [True], [-1], None],
            "prepare": ["x", 3],
            "devices": [0, -1, True, 1.5, "x", [], [3], 10**6],
        },
    ),
}
STAGE = {"stage": None}
FREQUENCY = [0, -1, 1.5, True, "x", None]


HOOKS = {
    "FreezeAtomsHook": ({"atoms": [0]}, {"atoms": ["x", None, [0.5], [], 1.5, [[True]]]}),
    "WrapPeriodicHook": ({}, {}),
    "ConvergenceHook": (
        {},
        {
            "criteria": [
                [],
                "fmax",
                3,
                [3],
                {"threshold": 1.0},
                {"key": "fmax"},
                {"key": "fmax", "thresh": 1},
            ],
            "source_status": [-1, 1.5, "x", True],
            "target_status": [-1, 1.5, "x", True],
            "cell": FLAG,
        },
    ),
    "MaxForceClampHook": ({"limit": 1.0}, {"limit": ONE}),
    "BiasedPotentialHook": (
        {"bias": nothing, "memory": 0.0},
        {"bias": [None, 1.0, "x"], "memory": None, "deposit": [1.0, "x"], "every": COUNT},
    ),
    "NaNDetectorHook": ({}, {"keys": [(), None, 3, [3]]}),
    "UncertaintyHook": (
        {"limit": 0.3},
        {"limit": ONE, "key": [None, 3, ["energy"]], "action": ["fail", None, 3, True]},
    ),
    "GuardHook": (
        {"condition": nothing, "reason": "far away"},
        {"condition": [None, 1.0, "x"], "reason": [None, "", " ", 3, b"x"]},
    ),
    "EnergyDriftMonitorHook": ({}, {"threshold": [v for v in ONE if v is not None]}),
    "TemperatureScheduleHook": ({"schedule": nothing}, {"schedule": [None, 300.0, "x"]}),
    "PressureScheduleHook": ({"schedule": nothing}, {"schedule": [None, 300.0, "x"]}),
    "ReplicaExchangeHook": (
        {"temperatures": [50.0, 80.0]},
        {
            "temperatures": [*POSITIVE, [50.0], [50.0, -1.0], [50.0, NAN], [50.0, 1j]],
            "every": [v for v in COUNT if v is not None],
            "seed": [-1, 1.5, "x", 10**20, None],
        },
    ),
    "ObservableHook": (
        {"observables": {"x": nothing}},
        {"observables": [{}, None, "x", {"x": 1.0}, {"step": nothing}], "stress": FLAG},
    ),
    "ProgressHook": ({}, {"options": None}),
    "CallbackHook": ({"function": nothing}, {"function": [None, 1.0, "x"]}),
    "LoggingHook": (
        {},
        {
            "backend": ["excel", None, 3],
            "log_path": PATH[1:],
            "custom_scalars": [{"x": 1.0}, {"energy": nothing}],
            "mode": MODE,
            "stress": FLAG,
        },
    ),
    "SnapshotHook": (
        {"sink": HostMemory()},
        {"sink": ["x.zarr", None, 3, HostMemory], "finished": FLAG},
    ),
    "ConvergedSnapshotHook": ({"sink": HostMemory()}, {"sink": ["x.zarr", None, 3, HostMemory]}),
    "CheckpointHook": (
        {"folder": "x"},
        {
            "folder": PATH,
            "every_seconds": [v for v in NOT_NEGATIVE if v is not None],
            "keep": COUNT,
            "should_stop": [3, "x"],
        },
    ),
    "LivePlotHook": (
        {},
        {
            "observable": [None, 1.0],
            "label": [None, 3, b"x"],
            "path": [*PATH[1:], "x.foo", "x"],
            "seconds": NOT_NEGATIVE,
            "log": FLAG,
        },
    ),
    "StageTimingHook": ({}, {}),
    "ProfilerHook": ({"folder": "x"}, {"folder": PATH}),
}


@pytest.fixture(autouse=True)
def as_users_call():
    """Without the checks of types at run time, which would find some of these mistakes before the package."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


def made(kind, arguments):
    """The object; a hook is attached to an engine, where its frequency and stage are checked."""
    found = kind(**arguments)
    if not isinstance(found, AbstractModel | Sink | Sampler):
        NVE(HarmonicModel(), dt=1.0, hooks=[found, hooks.ConvergenceHook()])
    return found


TABLES = {"models": MODELS, "hooks": HOOKS, "sinks": SINKS, "samplers": SAMPLERS}
MODULES = {"models": models, "hooks": hooks, "sinks": sinks, "samplers": dynamics}


def cases():
    for module, table in zip(MODULES.values(), TABLES.values(), strict=True):
        for name, (good, bad) in table.items():
            yield pytest.param(getattr(module, name), good, bad, id=name)


@pytest.mark.parametrize(("kind", "good", "bad"), list(cases()))
def test_a_bad_value_is_refused_by_its_name(kind, good, bad, tmp_path, monkeypatch):
    """And the arguments that are right are taken. Nothing is written."""
    monkeypatch.chdir(tmp_path)
    if kind.__name__ in ("TemperatureScheduleHook", "PressureScheduleHook", "ReplicaExchangeHook"):
        kind(**good)
    else:
        made(kind, good)
    for parameter, values in bad.items():
        for value in values or ():
            with pytest.raises((ValueError, TypeError)) as caught:
                made(kind, {**good, parameter: value})
            # An element or a part of a table is named by itself.
            known = (
                parameter,
                "chemical symbol",
                "atomic number",
                "needs a key",
                "criteri",
                "Tersoff",
                "model",
            )
            known += ("EMT has", "of EAM", "column")
            known += ("nowhere.xyz",)
            assert any(word in str(caught.value) for word in known), (parameter, value, str(caught.value))
            assert "\n" not in str(caught.value).strip()
    assert not list(tmp_path.iterdir())


#: What users do not make, exceptions, and what has tests elsewhere (test_registry, test_chgnet) or below.
NOT_MADE = ("Results", "Requirements", "Graph", "ModelEntry", "CHGNet", "SinkFull", "SystemBuffer")


@pytest.mark.parametrize("name", TABLES)
def test_the_tables_are_complete(name):
    table, module = TABLES[name], MODULES[name]
    kinds = {n: k for n, k in public(module).items() if isinstance(k, type) and not inspect.isabstract(k)}
    kinds = {n: k for n, k in kinds.items() if n not in NOT_MADE}
    if name == "samplers":
        kinds = {n: k for n, k in kinds.items() if n == "Sampler"}
    assert set(kinds) == set(table)
    for name, (_, bad) in table.items():
        parameters = set(inspect.signature(kinds[name]).parameters) - {"stage", "frequency", "final"}
        assert parameters == set(bad), name


@pytest.mark.parametrize("name", HOOKS)
def test_a_frequency_that_is_none(name):
    """Where the hook is made or attached."""
    kind, good = getattr(hooks, name), HOOKS[name][0]
    for value in FREQUENCY:
        if value is None and name == "CheckpointHook":
            # It may go by time alone.
            continue
        with pytest.raises((ValueError, TypeError), match="frequency"):
            made(kind, {**good, "frequency": value})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"threshold": NAN}, "threshold must be"),
        ({"threshold": -1.0}, "threshold must be"),
        ({"threshold": 1j}, "threshold must be"),
        ({"threshold": [[1.0]]}, "threshold of the criterion"),
        ({"reduce_op": "median"}, "reduce_op must be one of"),
        ({"reduce_dims": 1.5}, "reduce_dims of the criterion"),
    ],
)
def test_a_criterion(arguments, message):
    with pytest.raises((ValueError, TypeError), match=message):
        Criterion(**arguments)


ATOMS = {"positions": np.eye(3), "numbers": [18] * 3}


@pytest.mark.parametrize(
    ("field", "values"),
    {
        "positions": [np.full((3, 3), NAN), np.ones((2, 3)), "x", None, np.full((3, 3), 1e300)],
        "numbers": [[18, 18, 119], [-1] * 3, [1.5] * 3],
        "cell": [np.full((3, 3), INF), np.ones(3)],
        "pbc": [[True] * 4],
        "masses": [[1.0, 2.0], [1.0, 2.0, -1.0], [1.0, NAN, 1.0], 0.0],
        "velocities": [np.full((3, 3), NAN), np.ones((2, 3))],
        "fixed": [[True], np.ones((3, 3), bool)],
        "fixed_components": [[True] * 3, np.ones((2, 3), bool)],
        "forces": [np.ones((2, 3))],
        "stress": [np.ones(6)],
        "atom_extras": [{"q": np.ones(2)}, {"q": 1.0}],
    }.items(),
)
def test_structures_of_another_length_or_value(field, values):
    """Also what would shift to the atoms of other systems, silently."""
    for value in values:
        with pytest.raises((ValueError, TypeError), match=field if field != "atom_extras" else "'q'"):
            Batch.from_data_list([AtomicData(**{**ATOMS, field: value})])


def test_masks_and_values_of_another_length():
    batch = Batch.from_ase([Atoms("Ar9", np.random.default_rng(0).random((9, 3)) * 9)] * 2)
    engine = NVE(HarmonicModel(), dt=1.0)
    for mask in ([True], [True] * 17, [True] * 19):
        with pytest.raises(ValueError, match="atoms of FreezeAtomsHook is a mask of shape"):
            engine.with_hooks(hooks.FreezeAtomsHook(mask)).init(batch)
    for model, message in (
        (HarmonicModel(k=[1.0, 2.0, 3.0]), "k has 3 values"),
        (HarmonicModel(center=np.zeros((4, 3))), "center has 4 rows"),
        (LennardJones(epsilon={"Ne": 1.0}, sigma=3.4), "no epsilon for Ar"),
    ):
        with pytest.raises(ValueError, match=message):
            NVE(model, dt=1.0).init(batch)


@pytest.mark.parametrize("value", [NAN, -1.0, 1j, "x"])
def test_functions_with_parameters(value):
    batch = Batch.from_ase(Atoms("Ar"))
    with pytest.raises(ValueError, match="temperature"):
        initialize_velocities(batch, value)


@pytest.mark.parametrize("value", PATH)
def test_a_trajectory(value):
    with pytest.raises(ValueError, match="path of Trajectory must be"):
        Trajectory(value)


@pytest.mark.parametrize("value", [*ROOM, 2**31])
@pytest.mark.parametrize("name", ["systems", "atoms"])
def test_a_buffer_of_systems(name, value):
    with pytest.raises(ValueError, match=f"{name} of SystemBuffer.like must be"):
        sinks.SystemBuffer.like(Batch.from_ase(Atoms("Ar")), **{"systems": 2, "atoms": 3, name: value})


def sinks_of_each_kind(folder):
    yield from (HostMemory(), sinks.DeviceBuffer(2, 3), sinks.SinkChain([HostMemory()]))
    yield from (sinks.ExtXYZ(folder / "x.xyz"), sinks.AseTrajectory(folder / "x.traj"))
    yield sinks.ZarrData(folder / "x.zarr")


def test_what_sinks_do_not_take(tmp_path):
    """Before a file is made: what is no batch, and masks that may be meant as indices."""
    batch = Batch.from_ase([Atoms("Ar")] * 2)
    for sink in sinks_of_each_kind(tmp_path):
        for given in (None, Atoms("Ar"), [Atoms("Ar")], "x", {}):
            with pytest.raises(TypeError, match=rf"{type(sink).__name__}.write takes a Batch .*from_ase"):
                sink.write(given)
        for mask in ([0, 1], [1.0, 0.0], ["x", "y"], 3, [True], [[True, False]]):
            with pytest.raises(ValueError, match=r"^mask "):
                sink.write(batch, mask)
        assert len(sink) == 0
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("value", [NAN, -1.0, 0.0, INF, 1e6])
def test_a_list_of_its_own(value):
    batch = Batch.from_ase(Atoms("Ar"))
    with pytest.raises(ValueError, match="cutoff"):
        allocate(batch, value)
    with pytest.raises(ValueError, match="cutoff"):
        Requirements(value)
    if value:
        with pytest.raises(ValueError, match="skin"):
            Requirements(5.0, skin=value)


def test_what_functions_of_users_return():
    """Where they are called first, before anything runs."""
    engine = NVE(HarmonicModel(), dt=1.0, n_steps=1)
    for answer in (None, 3, [], Batch.from_ase([Atoms("Ar")] * 2)):
        with pytest.raises(TypeError, match=r"^prepare must return the Batch that it was given"):
            engine.run(sampler=Sampler([Atoms("Ar")], prepare=lambda batch, answer=answer: answer))
    whole = engine.with_hooks(hooks.BiasedPotentialHook(lambda batch: batch.steps_taken))
    with pytest.raises(TypeError, match=r"bias of BiasedPotentialHook gives int32\[8\], expected one"):
        whole.init(Batch.from_ase(Atoms("Ar"), system_capacity=8))
