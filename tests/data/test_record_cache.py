"""The cached index, and reading in other processes."""

import pickle
import time
from multiprocessing import get_context

import pytest
from record_helpers import raw, read_all, small

from facetrain import atomic
from facetrain.data import record_cache
from facetrain.data.record_format import image_payload
from facetrain.data.recordio import RecordFile
from facetrain.errors import InputError


@pytest.fixture
def rec(tmp_path):
    return tmp_path / "set" / "train.rec"


@pytest.fixture
def caching(monkeypatch, tmp_path):
    monkeypatch.setattr(record_cache, "CACHE_FROM", 1)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def forbid_building(monkeypatch):
    def build(*_):
        raise AssertionError("read again")

    monkeypatch.setattr(record_cache, "build_index", build)


@pytest.mark.parametrize("numbers", [None, [7, 0, 3, 5, 12]])
def test_second_opening_maps_the_cache(rec, caching, monkeypatch, numbers):
    raw(rec, [image_payload(float(n % 3), n, b"image%d" % n) for n in range(5)], numbers)
    first = RecordFile(rec)
    forbid_building(monkeypatch)
    second = RecordFile(rec)
    for file in (first, second):
        assert not file.labels.flags.writeable  # a map, not a copy
        assert file.labels.tolist() == [0, 1, 2, 0, 1]
        assert [file.record_number(i) for i in range(5)] == (numbers or list(range(5)))
        assert read_all(file) == [b"image%d" % n for n in range(5)]
    assert len(pickle.dumps(second)) < 1000


def test_changed_files_are_read_again(rec, caching):
    raw(rec, [image_payload(0.0, 0, b"abcd")])
    old = RecordFile(rec)
    frozen = pickle.dumps(old)
    raw(rec, [image_payload(0.0, 0, b"abcd"), image_payload(1.0, 1, b"efgh")])
    assert RecordFile(rec).num_classes == 2
    with pytest.raises(InputError, match="changed while it was in use"):
        pickle.loads(frozen)
    time.sleep(0.02)
    raw(rec, [image_payload(1.0, 0, b"abcd"), image_payload(0.0, 1, b"efgh")])  # same sizes
    assert RecordFile(rec).labels.tolist() == [1, 0]


def test_read_only_folder_uses_the_users_cache(rec, caching, monkeypatch, tmp_path):
    small(rec)
    real = atomic.uuid.uuid4

    class Blocked:
        """A name that no file can be made under in the data folder, as root may write anywhere."""

        hex = "a" * 300

    calls = iter([Blocked, real()])
    monkeypatch.setattr(atomic.uuid, "uuid4", lambda: next(calls))
    RecordFile(rec)
    assert not list(rec.parent.glob("*.npy"))
    assert len(list((tmp_path / "cache" / "facetrain").glob("*.npy"))) == 1
    forbid_building(monkeypatch)
    assert len(RecordFile(rec)) == 4


@pytest.mark.parametrize("keep", [0, 5, 100, -1])
def test_damaged_cache_is_made_again(rec, caching, keep):
    small(rec)
    RecordFile(rec)
    cache = rec.with_name("train.index.npy")
    whole = cache.read_bytes()
    cache.write_bytes(whole[:keep])
    assert read_all(RecordFile(rec))[0] == b"first"
    assert cache.read_bytes() == whole


def _digest(file):
    return b"|".join(bytes(file.encoded(i)) for i in range(len(file)))


def _open_and_digest(path):
    return _digest(RecordFile(path))


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_other_processes_read_the_same(rec, method, monkeypatch):
    small(rec)
    file = RecordFile(rec)
    with get_context(method).Pool(2) as pool:
        assert pool.map(_digest, [file, file]) == [_digest(file)] * 2


def test_racing_processes(rec, caching):
    small(rec)
    with get_context("fork").Pool(4) as pool:
        assert len(set(pool.map(_open_and_digest, [rec] * 16, chunksize=1))) == 1
    assert sorted(p.name for p in rec.parent.iterdir()) == ["property", "train.idx", "train.index.npy", "train.rec"]
