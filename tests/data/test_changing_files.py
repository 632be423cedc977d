"""A .rec that is cut, deleted, replaced or overwritten while it is read: one line, no SIGBUS, no damaged image."""

import os
import re
import subprocess
import sys

import numpy as np
import pytest
from file_changes import cut, delete, delete_index, replace
from record_helpers import InMemory, small
from test_loader import loader

from facetrain.data import record_bytes, record_cache
from facetrain.data.check import check
from facetrain.data.encoded import FileChangedError
from facetrain.data.record_bytes import FileBytes
from facetrain.data.record_writer import RecordWriter
from facetrain.data.recordio import RecordFile
from facetrain.errors import InputError


@pytest.fixture
def rec(tmp_path):
    path = tmp_path / "set" / "train.rec"
    images = InMemory(n=400, classes=8, side=32)
    with RecordWriter(path, 32) as writer:
        for label in range(8):
            for i in range(50):
                writer.write(label, images.jpegs[label * 50 + i])
    return path


def empty(rec):
    os.truncate(rec, 0)


def overwrite(rec):
    """As ``cp`` does: the same file is emptied and grows again, here to zeros of the same size."""
    size = rec.stat().st_size
    os.truncate(rec, 0)
    os.truncate(rec, size)
    os.utime(rec, ns=(1, 1))


def append(rec):
    with rec.open("ab") as file:
        file.write(b"more")


CHANGES = {
    cut: r"train\.rec shrank from \d+ to 5000 bytes while it was read; restore the file and start again",
    empty: r"train\.rec shrank from \d+ to 0 bytes while it was read",
    delete: r"train\.rec disappeared while it was read; restore it and start again",
    delete_index: r"train\.idx disappeared while it was read; restore it and start again",
    replace: r"train\.rec shrank from \d+ to 1400 bytes while it was read",
    overwrite: r"train\.rec (or its \.idx was written to|shrank from \d+ to 0 bytes) while it was read",
    append: r"train\.rec grew from \d+ to \d+ bytes while it was read",
}


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_a_running_loader_stops_with_a_clear_line(rec, change, workers):
    steps = loader(RecordFile(rec), workers, size=32).iterate(0, 1000)
    seen = [batch for _ in range(5) for batch in next(steps)]
    change(rec)
    with pytest.raises(InputError, match=CHANGES[change]) as caught:
        seen.extend(batch for batches in steps for batch in batches)
    assert "\n" not in str(caught.value)
    assert len(seen) < 5 + 20  # what the workers had ready
    assert all(batch.damaged == () for batch in seen)


def test_reading_on_after_a_cut_is_no_damage(rec):
    images = RecordFile(rec)
    cut(rec)
    with pytest.raises(FileChangedError, match="shrank from"):
        images.encoded(300)
    assert len(images.encoded(0))  # which is still there
    delete(rec)
    assert len(images.encoded(0))  # held open


def test_the_index_is_built_of_a_file_that_is_being_cut(rec, monkeypatch):
    """Opening and checking read through the same door: cut the file before any of their reads."""
    whole, size = rec.read_bytes(), rec.stat().st_size
    read, count, at = FileBytes.read, 0, -1

    def reading(self, wanted, start):
        nonlocal count
        if count == at:
            os.truncate(rec, size // 3)
        count += 1
        return read(self, wanted, start)

    monkeypatch.setattr(record_bytes.FileBytes, "read", reading)
    RecordFile(rec)
    reads, refused = count, 0
    for at in range(reads):  # noqa: B007
        rec.write_bytes(whole)
        count = 0
        with pytest.raises(InputError, match=r"shrank from \d+ to \d+ bytes while|changed while it was read"):
            RecordFile(rec)
        refused += 1
    assert reads == refused >= 3
    rec.write_bytes(whole)
    count, at = 0, 100
    with pytest.raises(InputError, match="shrank from"):
        check(rec)


def test_a_cut_file_kills_no_process(rec):
    """In a process of its own, as SIGBUS would end this one."""
    code = (
        "import sys, os; from pathlib import Path; from facetrain.data.recordio import RecordFile\n"
        "images = RecordFile(Path(sys.argv[1])); os.truncate(sys.argv[1], 4096)\n"
        "try: [images.encoded(i) for i in range(len(images))]\n"
        "except ValueError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code, rec], capture_output=True, text=True, check=False)
    assert done.returncode == 0
    assert re.search(r"shrank from \d+ to 4096 bytes while it was read", done.stdout)


def test_a_disk_that_cannot_read_one_place_is_damage(rec, monkeypatch):
    images = RecordFile(rec)
    pread = os.pread

    def failing(handle, count, offset):
        if offset == images.byte_offset(7):
            raise OSError(error, os.strerror(error))
        return pread(handle, count, offset)

    monkeypatch.setattr(record_bytes.os, "pread", failing)
    for error, kind in ((5, InputError), (116, FileChangedError)):  # EIO, ESTALE
        with pytest.raises(InputError, match=rf"train\.rec cannot be read at byte \d+: {os.strerror(error)}") as caught:
            images.encoded(7)
        assert type(caught.value) is kind
    error = 5
    met = [d.image for (batch,) in loader(images, size=32, batch_size=100).iterate(0, 4) for d in batch.damaged]
    assert set(met) == {7}


def test_reading_more_than_the_system_gives_at_once(rec, monkeypatch):
    whole, pread = rec.read_bytes(), os.pread
    monkeypatch.setattr(record_bytes.os, "pread", lambda handle, count, at: pread(handle, min(count, 1000), at))
    assert FileBytes(rec)[10:9000] == whole[10:9000]
    assert len(FileBytes(rec)) == len(whole)


def test_handles_are_closed(rec, tmp_path):
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(20):
        images = RecordFile(rec)
        images.encoded(0)
    del images
    assert len(os.listdir("/proc/self/fd")) == before


def test_the_cached_index_outlives_its_file(rec, monkeypatch, tmp_path):
    monkeypatch.setattr(record_cache, "CACHE_FROM", 1)
    images = RecordFile(rec)
    rec.with_name("train.index.npy").unlink()
    assert np.array_equal(np.bincount(images.labels), [50] * 8)


def test_headers_that_are_read_one_by_one(rec):
    """As where the .idx is not in the order of the file."""
    images = RecordFile(small(rec.with_name("other.rec"), identities=False))
    lines = rec.with_name("other.idx").read_text().splitlines(keepends=True)
    rec.with_name("other.idx").write_text("".join(lines[::-1]))
    assert RecordFile(rec.with_name("other.rec")).labels.tolist() == images.labels.tolist()[::-1]
