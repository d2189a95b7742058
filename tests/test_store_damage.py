"""A damaged store is an error that names the file, never another number; others can read a whole one."""

import json

import numpy as np
import pytest

from alchemi_jax import AtomicData, HostBatch, Trajectory
from alchemi_jax.dynamics.sinks import ZarrData
from alchemi_jax.systems.levels import level_fields


def batch(seed):
    rng = np.random.default_rng(seed)
    data = [
        AtomicData(
            positions=rng.normal(size=(n, 3)),
            numbers=np.full(n, 18),
            velocities=rng.normal(size=(n, 3)),
            energy=rng.normal(),
            info={"label": f"{seed} {n}"},
            atom_extras={"site": rng.integers(0, 9, n)},
        )
        for n in (3, 5)
    ]
    return HostBatch.from_data_list(data)


@pytest.fixture(params=[None, 400], ids=["chunks", "shards"])
def store(request, tmp_path):
    path = tmp_path / "x.zarr"
    sink = ZarrData(path, chunk_bytes=120, shard_bytes=request.param)
    for k in range(2):
        sink.write(batch(k))
    return path


def contents(path):
    host = ZarrData(path, mode="r").read()
    own = {name: getattr(host, name) for name, _ in level_fields(host)}
    return own, [(m.name, dict(m.info)) for m in host.meta]


def same(a, b):
    np.testing.assert_equal(a[0], b[0])
    assert a[1] == b[1]


@pytest.mark.parametrize("every", [2, pytest.param(1, marks=pytest.mark.long)])
def test_a_flipped_bit_or_a_missing_file_is_named(store, every):
    whole, rng = contents(store), np.random.default_rng(0)
    files = sorted(p for p in store.rglob("*") if p.is_file())
    assert len([f for f in files if f.name != "zarr.json"]) > 10
    for file in files[::every]:
        raw = file.read_bytes()
        length = len(raw.rstrip())
        damaged = [None, raw[: length // 2]]
        for at in rng.integers(0, length, 3 if file.name == "zarr.json" else 1).tolist():
            damaged.append(raw[:at] + bytes([raw[at] ^ 1 << int(rng.integers(8))]) + raw[at + 1 :])
        for content in damaged:
            if content is None:
                file.unlink()
            else:
                file.write_bytes(content)
            message = None
            try:
                same(contents(store), whole)
            except ValueError as e:
                message = str(e)
            if message is None:
                # What says nothing about values: a unit, a name of a dimension, the shape.
                assert file.name == "zarr.json", file
                assert content is not None
            else:
                assert str(file.parent if file.name == "zarr.json" else file) in message
        file.write_bytes(raw)
    same(contents(store), whole)


def test_damage_elsewhere_does_not_matter_and_writing_on_finds_it(store):
    last = sorted((store / "positions").glob("c.*"), key=lambda f: int(f.name.split(".")[1]))[-1]
    raw = last.read_bytes()
    last.write_bytes(raw[:-1] + bytes([raw[-1] ^ 1]))
    assert Trajectory(store)[0].num_systems == 2
    with pytest.raises(ValueError, match=rf"{last.name} is damaged: its checksum"):
        ZarrData(store).write(batch(9))
    last.unlink()
    with pytest.raises(ValueError, match=rf"{last.name} is missing"):
        ZarrData(store).write(batch(9))
    with pytest.raises(ValueError, match=rf"{last.name} is missing"):
        Trajectory(store)["positions"][-1]
    last.write_bytes(raw)
    ZarrData(store).write(batch(9))
    assert Trajectory(store).n_frames == 3


def test_a_store_of_version_4_is_read_and_continued(tmp_path):
    """Without checksums, its `info` in the JSON of ASE."""
    path = tmp_path / "x.zarr"
    ZarrData(path, chunk_bytes=64, compression=None).write(batch(0))
    text = json.dumps({"name": "old", "info": {"when": {"__complex__": [1, 2]}}, "constraints": []}).encode()
    for folder in [path, *(p for p in path.iterdir() if p.is_dir())]:
        meta = json.loads((folder / "zarr.json").read_text())
        own = meta["attributes"]
        own.pop("crc32c")
        own.pop("chunk_files", None)
        if folder == path:
            own |= {"version": 4, "meta_bytes": 2 * len(text)}
        else:
            del meta["dimension_names"]
            meta["codecs"] = [c for c in meta["codecs"] if c["name"] != "crc32c"]
            for file in folder.glob("c.*"):
                file.write_bytes(file.read_bytes()[:-4])
        if folder.name in ("meta", "meta_end"):
            rows = np.frombuffer(2 * text, "u1") if folder.name == "meta" else np.array([1, 2]) * len(text)
            n = len(rows)
            meta |= {"shape": [n], "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [n]}}}
            for file in folder.glob("c.*"):
                file.unlink()
            (folder / "c.0").write_bytes(rows.tobytes())
        (folder / "zarr.json").write_text(json.dumps(meta))
    for _ in range(2):
        found = ZarrData(path).read()
        assert found.meta[0].name == "old"
        assert found.meta[0].info == {"when": 1 + 2j}
        np.testing.assert_array_equal(found.positions[:8], batch(0).positions)
        ZarrData(path).write(batch(1))
    np.testing.assert_array_equal(ZarrData(path).read().positions[8:16], batch(1).positions)


def test_xarray_opens_a_store(store):
    xarray = pytest.importorskip("xarray")
    found = xarray.open_zarr(store, consolidated=False)
    assert found["positions"].dims == ("atom", "xyz")
    assert found["stress"].attrs["units"] == "eV / angstrom^3"
    assert dict(found.sizes)["system"] == 4
    np.testing.assert_array_equal(found["energy"].values, ZarrData(store).read().energy)
