"""What a sink accepts it reads back: values and names of `info`, and arrays, drawn by hypothesis."""

import datetime
import string
import warnings

import numpy as np
import pytest
from ase import Atoms
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from alchemi_jax import AtomicData, Batch, HostBatch
from alchemi_jax.dynamics.sinks import AseTrajectory, ExtXYZ, ZarrData
from alchemi_jax.io.encoding import is_same


KINDS = {"extxyz": ExtXYZ, "traj": AseTrajectory, "zarr": ZarrData}

_text = st.text(max_size=12) | st.sampled_from(
    [
        "",
        " ",
        "7",
        "1.5",
        "nan",
        "T",
        "F F",
        "None",
        "a=b",
        "[1 2]",
        "{x}",
        '"',
        "'",
        "\\",
        "\\n",
        "a\nb",
        "\r",
    ]
)
_text |= st.sampled_from(
    ["_JSON 1", "_JSON {", "Å", "\x85", "\u2028", "\x00", "#", "a,b", "-", "inf", "1_000"]
)
_scalars = (
    st.none() | st.booleans() | st.integers() | st.floats() | _text | st.binary(max_size=6)
    | st.complex_numbers() | st.datetimes(timezones=st.none() | st.just(datetime.UTC)) | st.dates()
    | st.timedeltas()
)  # fmt: skip
_scalars |= st.sampled_from(
    [2**31, 2**53 + 1, 2**63, -(2**63) - 1, 2**64, np.int64(7), np.float32(0.1), np.bool_(True)]
)
_arrays = hnp.arrays(
    st.sampled_from(["<i8", "<i4", "u1", "<u8", "<f8", "<f4", "?", "<c16", "<U3"]),
    hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=3),
)
_values = st.recursive(
    _scalars | _arrays,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(_text | st.integers(), inner, max_size=3)
        | st.tuples(inner, inner)
    ),
    max_leaves=8,
)
#: Names that mean something to a format, to ASE or to us.
_KEYS = """Lattice Properties pbc energy forces stress virial uid UID step status system_name system_id
_arrays _alchemi_jax charge spin __type__ __ndarray__ 1 ndarray __datetime__ frame positions time_fs a:b"""
_NAMES = (
    """mace::forces mtt:q forces energies Z pos species charge move_mask é tags magmoms a a0 status cell"""
)
_keys = _text | st.sampled_from([*_KEYS.split(), "key with spaces"])
_names = st.text(string.ascii_letters + string.digits + "_-: =.", min_size=1, max_size=8)
_names |= st.sampled_from([*_NAMES.split(), "my charge"])


def columns(n: int):
    kinds = st.sampled_from(["<i8", "<i4", "<f8", "?", "<U4", "<u2", "<c16"])
    shapes = st.lists(st.integers(0, 3), max_size=2).map(lambda rest: (n, *rest))
    elements = {"<i8": st.integers(-(2**63), 2**63 - 1)}
    return kinds.flatmap(
        lambda kind: shapes.flatmap(lambda s: hnp.arrays(kind, s, elements=elements.get(kind)))
    )


@pytest.fixture(params=KINDS)
def kind(request):
    return request.param


def written(kind, folder, structures):
    path = folder / f"{np.random.default_rng().integers(1 << 60)}.{kind}"
    data = [AtomicData.from_ase(atoms, f"s{i}") for i, atoms in enumerate(structures)]
    KINDS[kind](path).write(HostBatch.from_data_list(data))
    return KINDS[kind](path, mode="r").read().to_ase()


def three(info=None, arrays=None):
    """A structure with these values between two without."""
    out = [Atoms("Ar2", positions=[[0, 0, 0], [3.8, 0, 0]], info={"place": k}) for k in range(3)]
    out[1].info |= info or {}
    for name, values in (arrays or {}).items():
        out[1].set_array(name, values)
    return out


SETTINGS = settings(
    # Shrinking takes minutes.
    phases=[Phase.explicit, Phase.generate],
    max_examples=25, derandomize=True, deadline=None, database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)  # fmt: skip


@SETTINGS
@given(info=st.dictionaries(_keys, _values, max_size=4))
def test_entries_of_info_come_back_equal(tmp_path, kind, info):
    given_ = three(info)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        # ASE 3.29 with numpy 2.5.
        warnings.filterwarnings("ignore", "Setting the shape on a NumPy array", DeprecationWarning)
        found = written(kind, tmp_path, given_)
    assert [a.info["place"] for a in found] == [0, 1, 2]
    for before, after in zip(given_, found, strict=True):
        assert before.info.keys() == after.info.keys()
        for key, value in before.info.items():
            assert is_same(after.info[key], value), (key, value, after.info[key])
        assert len(after) == 2


@SETTINGS
@given(arrays=st.dictionaries(_names, columns(2), max_size=3))
def test_arrays_come_back_equal(tmp_path, kind, arrays):
    odd = [k for k in arrays if k in ("numbers", "positions")]
    found = written(kind, tmp_path, three(arrays={k: v for k, v in arrays.items() if k not in odd}))
    for name in arrays.keys() - set(odd):
        values, back = arrays[name], found[1].arrays[name]
        assert back.shape == values.shape
        if values.dtype.kind == "f":
            np.testing.assert_allclose(back, values, rtol=1e-12, atol=1e-8)
        else:
            assert back.tolist() == values.tolist() or is_same(back, values)
    assert found[0].arrays.keys() == found[2].arrays.keys() == {"numbers", "positions"}


@pytest.mark.parametrize("value", [([1j], None), [[1], [2, 3]], {"a": 1}, "two"])
def test_a_spin_that_is_no_number_stays_where_it_is(value):
    """The entry of that name is a person's own: it is no spin, and no error."""
    atoms = Atoms("Ar", info={"spin": value})
    batch = Batch.from_ase(atoms).take()
    assert batch.spin.tolist() == [1]
    assert batch.to_ase()[0].info["spin"] == value
