"""Embeddings on disk: what is written, what is believed of it afterwards, and who may write."""

from __future__ import annotations

import errno
import io
import json
import os
import threading
from collections import namedtuple
from datetime import datetime

import numpy as np
import pytest
from embedding_toys import on_ranks

from facetrain.distributed import World
from facetrain.errors import InputError
from facetrain.evaluation import embedding_cache
from facetrain.evaluation.cache_folder import cache_folder, clear, kept
from facetrain.evaluation.embedding_cache import ROWS, STATE, Key, claimed, read_entry

KEY = Key("m" * 64, "i" * 64, 10, True, 112, "cpu")
WHOLE = np.arange(30, dtype=np.float32).reshape(10, 3)


def _filled(cache, parts=(4, 4, 2), unreadable=()):
    with claimed(cache, KEY, "model", World()) as entry:
        for part in parts:
            first = entry.finished
            told = [one for one in unreadable if first <= one[0] < first + part]
            entry.append(WHOLE[first : first + part], told)
    return KEY.folder(cache)


def _finished(cache, key=KEY):
    with claimed(cache, key, "model", World()) as entry:
        return entry.finished


def test_rows_come_back_as_a_read_only_map(tmp_path):
    folder = _filled(tmp_path, unreadable=[(1, "dark"), (9, "cut")])
    rows, unreadable = read_entry(tmp_path, KEY)
    assert isinstance(rows, np.memmap)
    assert not rows.flags.writeable
    np.testing.assert_array_equal(rows, WHOLE)
    assert unreadable == [(1, "dark"), (9, "cut")]
    assert _finished(tmp_path) == 10
    assert (folder.stat().st_mode & 0o777) == 0o700
    assert sorted(path.name for path in folder.iterdir()) == ["lock", ROWS, STATE]
    np.testing.assert_array_equal(np.load(folder / ROWS), WHOLE)  # an .npy that anybody can read


def test_an_unfinished_entry_is_gone_on_with(tmp_path):
    folder = _filled(tmp_path, (4,), unreadable=[(2, "dark")])
    (folder / f".{ROWS}.left.tmp").write_bytes(b"x")
    assert _finished(tmp_path) == 4
    _filled(tmp_path, (6,), unreadable=[(5, "cut")])
    rows, unreadable = read_entry(tmp_path, KEY)
    np.testing.assert_array_equal(rows, WHOLE)
    assert unreadable == [(2, "dark"), (5, "cut")]


@pytest.mark.parametrize(("byte", "left"), [(-1, 8), (-5 * 12, 4), (-10 * 12, 0)])
def test_what_follows_a_damaged_block_is_not_believed(tmp_path, byte, left):
    folder = _filled(tmp_path, unreadable=[(0, "dark"), (9, "cut")])
    data = bytearray((folder / ROWS).read_bytes())
    data[byte] ^= 1
    (folder / ROWS).write_bytes(data)
    with claimed(tmp_path, KEY, "model", World()) as entry:
        assert entry.finished == left
        entry.append(WHOLE[left:], [(9, "cut again")])
    rows, unreadable = read_entry(tmp_path, KEY)
    np.testing.assert_array_equal(rows, WHOLE)
    assert unreadable == ([(0, "dark")] if left else []) + [(9, "cut again")]


def _change(**to):
    return lambda text: json.dumps(json.loads(text) | to)


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text[:40],
        lambda text: "[" * 100_000,
        lambda text: "[]",
        lambda text: json.dumps({"format": 1}),
        _change(format=2),
        _change(key={"model": "another"}),
        _change(finished=[[4]]),
        _change(finished=[[-4, 0]]),
        _change(finished=[[10**9, 0]]),
        _change(finished=None),
        _change(columns="3"),
        _change(columns=4),
        _change(columns=True),
        _change(unreadable=[["0", "dark"]]),
    ],
)
def test_a_state_that_is_damaged_or_foreign_is_begun_anew(tmp_path, damage):
    folder = _filled(tmp_path)
    text = (folder / STATE).read_text()
    (folder / STATE).write_text(damage(text))
    assert _finished(tmp_path) == 0
    _filled(tmp_path)
    np.testing.assert_array_equal(read_entry(tmp_path, KEY)[0], WHOLE)


def _npy(rows):
    held = io.BytesIO()
    np.save(held, rows)
    return held.getvalue()


@pytest.mark.parametrize(
    "rows",
    [
        None,
        b"",
        b"\x93NUMPY",
        WHOLE[:9],
        WHOLE.astype(">f4"),
        WHOLE.astype(np.float64),
        np.asfortranarray(WHOLE),
        WHOLE.reshape(5, 6),
        np.array([{}]),
        _npy(WHOLE) + b"more",
    ],
)
def test_rows_that_are_not_what_the_state_says_are_begun_anew(tmp_path, rows):
    folder = _filled(tmp_path)
    if rows is None:
        (folder / ROWS).unlink()
    elif isinstance(rows, bytes):
        (folder / ROWS).write_bytes(rows)
    else:
        np.save(folder / ROWS, rows)
    assert _finished(tmp_path) == 0
    _filled(tmp_path)
    np.testing.assert_array_equal(read_entry(tmp_path, KEY)[0], WHOLE)


def test_a_mapped_entry_outlives_its_renewal_and_its_removal(tmp_path):
    folder = _filled(tmp_path)
    rows, _ = read_entry(tmp_path, KEY)
    (folder / STATE).unlink()
    with claimed(tmp_path, KEY, "model", World()) as entry:
        entry.append(-WHOLE, [])
    np.testing.assert_array_equal(rows, WHOLE)
    clear(tmp_path)
    np.testing.assert_array_equal(rows, WHOLE)
    with pytest.raises(InputError, match="has gone while it was used"):
        read_entry(tmp_path, KEY)


def test_a_full_disk_is_one_line_and_keeps_what_is_finished(tmp_path, monkeypatch):
    _filled(tmp_path, (4,))

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with claimed(tmp_path, KEY, "model", World()) as entry, monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(InputError, match=r"the cache .* cannot be written: No space left on device; what is"):
            entry.append(WHOLE[4:], [])
    assert _finished(tmp_path) == 4
    status = namedtuple("Status", "f_bavail f_frsize")(1, 100)
    monkeypatch.setattr(embedding_cache.os, "statvfs", lambda _: status)
    other = Key("other", "i" * 64, 10, True, 112, "cpu")
    with (
        claimed(tmp_path, other, "model", World()) as entry,
        pytest.raises(InputError, match=r"take 0\.00 GB and the cache .* has 0\.00 GB free: clear it with facetrain"),
    ):
        entry.append(WHOLE, [])
    blocked = tmp_path / "file"
    blocked.write_text("")
    for error in on_ranks(2, lambda w: _claim(blocked / "cache", w)):
        assert isinstance(error, InputError)
        assert "cannot be written: Not a directory" in str(error)


def _claim(cache, world):
    with claimed(cache, KEY, "model", world) as entry:
        return entry


def test_one_process_at_a_time(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(embedding_cache, "_POLL_SECONDS", 0.01)
    seen = []
    waiting = threading.Event()
    slept = embedding_cache.time.sleep
    monkeypatch.setattr(embedding_cache.time, "sleep", lambda s: (waiting.set(), slept(s)))
    second = threading.Thread(target=lambda: seen.append(_finished(tmp_path)))
    with claimed(tmp_path, KEY, "model", World()) as entry:
        second.start()
        assert waiting.wait(20)
        assert clear(tmp_path) == []  # it is in use
        entry.append(WHOLE, [])
        assert seen == []
    second.join()
    assert seen == [10]
    assert capsys.readouterr().err.count("another process fills") == 1


def test_all_ranks_must_see_the_cache(tmp_path, monkeypatch):
    def work(world):
        with claimed(tmp_path / str(world.rank), KEY, "model", world) as entry:
            return entry

    for error in on_ranks(2, work):
        assert isinstance(error, InputError)
        assert "is not on a file system that all machines share" in str(error)


def test_listing_and_clearing_leave_what_is_not_ours(tmp_path):
    _filled(tmp_path, (4,))
    other = Key("n" * 64, "i" * 64, 10, False, 112, "cuda")
    with claimed(tmp_path, other, "runs/two", World(), "a\nlist, image 0") as entry:
        entry.append(WHOLE, [])
    empty = tmp_path / ("0" * 32)
    empty.mkdir()
    (empty / "notes.txt").write_text("mine")
    (tmp_path / "photo.jpg").write_text("mine")
    texts = [one.text for one in kept(tmp_path)]
    assert sorted(texts) == [
        "model (mmmmmmmmmmmmmmmm), 4 of 10 images so far, flip, cpu",
        "nothing that can be read",
        "runs/two (nnnnnnnnnnnnnnnn), 10 images, the first a list, image 0, no flip, cuda",
    ]
    os.utime(other.folder(tmp_path) / STATE, (4e9, 4e9))
    newest = kept(tmp_path)[-1]
    assert (newest.folder, newest.written) == (other.folder(tmp_path), datetime.fromtimestamp(4e9))
    assert sum(one.size for one in kept(tmp_path)) > 0
    assert len(clear(tmp_path)) == 3
    assert sorted(path.name for path in tmp_path.rglob("*")) == [empty.name, "notes.txt", "photo.jpg"]
    assert kept(tmp_path / "nowhere") == []


def test_where_the_cache_is(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    assert cache_folder(None) == tmp_path / "home" / "facetrain" / "embeddings"
    assert cache_folder(tmp_path / "mine") == tmp_path / "mine"
    assert cache_folder(None, off=True) is None
    with pytest.raises(InputError, match="exclude each other"):
        cache_folder(tmp_path, off=True)
    monkeypatch.setattr(os, "access", lambda *_: False)  # a container without a home
    assert cache_folder(None) is None
