"""Damaged records and indices are refused by name, or read right; nothing else."""

import os
import re
import struct
import tracemalloc

import numpy as np
import pytest
from record_helpers import attempt, raw, read_all, small

from facetrain.data import progress, record_cache, record_index, record_labels
from facetrain.data.record_format import EXACT, MAGIC, MAGIC_BYTES, frame, image_payload
from facetrain.data.recordio import RecordFile, scan
from facetrain.errors import InputError


@pytest.fixture
def rec(tmp_path):
    return tmp_path / "set" / "train.rec"


@pytest.mark.parametrize("label", [-1.0, 0.5, float("nan"), float("inf"), float(EXACT * 2)])
@pytest.mark.parametrize("vector", [False, True])
def test_label_that_is_no_class(rec, label, vector):
    raw(rec, [image_payload(0.0, 0, b"abc"), image_payload([label, 1.0] if vector else label, 1, b"x")])
    with pytest.raises(InputError, match=re.escape(f"record 1 at byte 36: label {label:.9g}; expected a class")):
        RecordFile(rec)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("0\t0\nx\t8\n", r"line 2: 'x\\t8' is not"),
        ("0\t0\n\n", "line 2: '' is not"),
        ("0 0\n", "line 1"),
        ("0\t-4\n", "line 1"),
        ("0\t0\t0\n", "line 1"),
        ("0\t0\n1\t1.5\n", "line 2"),
        ("0\n0\t1\t2\n", "line 1"),
        ("0\t99999999999999999999\n", "line 1"),
        ("4294967296\t0\n", "line 1: record number 4294967296 exceeds"),
        ("0\t0\n5\t36\n0\t36\n", "line 3: record 0 is there twice, first on line 1"),
        ("0\t0\n1\t4000\n", "line 2: record 1 at byte 4000 lies past the end of train.rec, which has 72 bytes"),
        ("0\t0\n1\t40\n", "record 1 at byte 40: bad magic 0x0000001b"),
        ("", "is empty"),
        ("\0" * 1000, "line 1"),
    ],
)
def test_damaged_index(rec, text, message, monkeypatch):
    raw(rec, [image_payload(0.0, 0, b"abc"), image_payload(0.0, 1, b"def")])
    rec.with_suffix(".idx").write_text(text)
    for block in (1 << 24, 3):
        monkeypatch.setattr(record_index, "TEXT_BLOCK", block)
        with pytest.raises(InputError, match=message):
            RecordFile(rec)


def test_index_in_blocks(rec, monkeypatch):
    raw(rec, [image_payload(float(n), n, b"%d" % n) for n in range(50)])
    monkeypatch.setattr(record_index, "TEXT_BLOCK", 7)
    monkeypatch.setattr(record_labels, "RECORD_BLOCK", 8)
    rec.with_suffix(".idx").write_bytes(rec.with_suffix(".idx").read_bytes()[:-1])  # no newline at the end
    assert read_all(RecordFile(rec)) == [b"%d" % n for n in range(50)]


@pytest.mark.parametrize("least", [50, 51])
def test_a_long_first_reading_says_how_far_it_is(rec, monkeypatch, capsys, least):
    raw(rec, [image_payload(float(n), n, b"%d" % n) for n in range(50)])
    monkeypatch.setattr(record_labels, "RECORD_BLOCK", 8)
    monkeypatch.setattr(record_labels, "LONG", least)
    monkeypatch.setattr(progress, "_PLAIN_SECONDS", 0.0)
    RecordFile(rec)
    said = capsys.readouterr()
    assert said.out == ""
    done = re.findall(r"^reading: (\d+) of 50, .* s left, .* images/s$", said.err, re.MULTILINE)
    assert done == (["8", "16", "24", "32", "40", "48", "50"] if least == 50 else [])
    assert len(done) == len(said.err.splitlines())


@pytest.mark.parametrize("shuffled", [False, True])
def test_memory_of_building_an_index(rec, shuffled):
    """42 million records must not take much more than a gigabyte."""
    count = 1_000_000
    one = frame(image_payload(0.0, 0, b"abcd"))
    rec.parent.mkdir()
    rec.write_bytes(one * count)
    number = np.random.default_rng(0).permutation(count) if shuffled else range(count)
    rec.with_suffix(".idx").write_text("".join(f"{n}\t{len(one) * i}\n" for i, n in enumerate(number)))
    tracemalloc.start()
    index = record_index.build_index(rec)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak <= 24 * count
    assert (index.numbers is None) == (not shuffled)
    assert [index.number(i) for i in (0, 7, count - 1)] == [number[i] for i in (0, 7, count - 1)]
    assert index.offsets[7] == 7 * len(one)


def test_record_that_the_header_counts_on_is_missing(rec):
    small(rec)
    lines = rec.with_suffix(".idx").read_text().splitlines(keepends=True)
    for order in (1, -1):
        rec.with_suffix(".idx").write_text("".join((lines[:2] + lines[3:])[::order]))
        with pytest.raises(InputError, match=r"train\.idx has no record 2, which record 0 of train\.rec counts on"):
            RecordFile(rec)


def test_missing_files(rec):
    with pytest.raises(InputError, match=r"expected train\.rec with train\.idx beside it"):
        RecordFile(rec)
    small(rec)
    rec.with_suffix(".idx").unlink()
    with pytest.raises(InputError, match=r"train\.idx cannot be opened: No such file"):
        RecordFile(rec)
    small(rec)
    rec.write_bytes(b"")
    with pytest.raises(InputError, match="is empty"):
        RecordFile(rec)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ((3,), "record 0 at byte 0: part flag 3 where a record starts"),
        ((2, 3), "record 0 at byte 0: part flag 2 where a record starts"),
        ((1, 1, 3), "record 0 at byte 36: part flag 1 inside a multi-part record"),
        ((1, 0), "record 0 at byte 36: part flag 0 inside a multi-part record"),
        ((1, 2), "record 0 at byte 72: a record header of 8 bytes is cut off: the file ends at byte 72"),
        ((5,), "record 0 at byte 0: part flag 5"),
    ],
)
def test_wrong_flag_order(rec, flags, message):
    raw(rec, [image_payload(0.0, 0, b"abcd")])
    part = image_payload(0.0, 0, b"abcd")
    rec.write_bytes(b"".join(struct.pack("<II", MAGIC, flag << 29 | len(part)) + part for flag in flags))
    with pytest.raises(InputError, match=message):
        RecordFile(rec)


def mutants(data, rng):
    """Cut at every byte, every byte replaced, and words that matter put everywhere."""
    for at in range(len(data)):
        yield data[:at]
        yield data[:at] + bytes([data[at] ^ int(rng.integers(1, 256))]) + data[at + 1 :]
    for word in (MAGIC, 0, 0xFFFFFFFF, 1 << 29, 2 << 29 | 4, 3 << 29, 0x7FC00000):
        for at in range(0, len(data) - 3, 4):
            yield data[:at] + struct.pack("<I", word) + data[at + 4 :]


@pytest.mark.parametrize("identities", [True, False])
def test_damage_anywhere_is_named_or_harmless(rec, identities):
    small(rec, identities=identities)
    count = len(RecordFile(rec))
    original = rec.read_bytes()
    truth = read_all(RecordFile(rec))
    refused = 0
    for mutant in mutants(original, np.random.default_rng(0)):
        rec.write_bytes(mutant)
        got, message = attempt(rec)
        if message:
            assert "\n" not in message
            assert str(rec.parent) in message
            refused += 1
        else:
            assert len(mutant) == len(original)
            assert len(got) <= count + 5
            if identities:  # a change of one word reaches one image, or how many there are
                assert sum(got[i] != truth[i] for i in range(min(len(got), count))) <= 1
    assert refused > len(original)


def test_damaged_index_anywhere(rec):
    small(rec)
    idx = rec.with_suffix(".idx")
    original = idx.read_bytes()
    everything = {b"", *read_all(RecordFile(rec))}
    rng = np.random.default_rng(1)
    for at in range(len(original)):
        for mutant in (original[:at], original[:at] + bytes([int(rng.integers(256))]) + original[at + 1 :]):
            idx.write_bytes(mutant)
            got, message = attempt(rec)
            assert "\n" not in message
            assert message or set(got) <= everything


def test_damage_after_opening_is_named(rec):
    """A cached index must not make the reader believe the bytes."""
    small(rec)
    file = RecordFile(rec)
    with rec.open("r+b") as handle:
        handle.seek(file.byte_offset(3))
        handle.write(b"\0\0\0\0")
    with pytest.raises(InputError, match=rf"record 4 at byte {file.byte_offset(3)}: bad magic 0x00000000"):
        file.encoded(3)


def test_scan_names_every_damaged_record(rec):
    small(rec)
    offsets = [record.byte for record in scan(rec)]
    data = bytearray(rec.read_bytes())
    data[offsets[2]] ^= 1
    struct.pack_into("<I", data, offsets[4] + 4, 1 << 28)
    rec.write_bytes(data + b"more")
    found = {record.number: (record.byte, record.problem) for record in scan(rec) if record.problem}
    assert found[2] == (offsets[2], f"bad magic 0x{MAGIC ^ 1:08x}; expected 0x{MAGIC:08x}")
    assert found[4] == (offsets[4], f"a payload of {1 << 28} bytes is cut off: the file ends at byte {len(data) + 4}")
    assert found[7] == (len(data), "4 bytes after this record are in no record")
    assert set(found) == {2, 4, 7}


def test_scan_sees_gaps_and_overlaps(rec):
    raw(rec, [image_payload(0.0, n, b"abcd") for n in range(4)])
    rec.with_suffix(".idx").write_text("1\t36\n3\t108\n")
    found = [record for record in scan(rec) if record.problem]
    assert [(r.number, r.byte) for r in found] == [(1, 0), (1, 72)]
    payload = image_payload(0.0, 1, b"")
    inner = frame(payload)
    rec.write_bytes(struct.pack("<II", MAGIC, len(payload) + len(inner)) + payload + inner)
    rec.with_suffix(".idx").write_text(f"0\t0\n1\t{8 + len(payload)}\n")
    assert [r.number for r in scan(rec) if r.problem] == [0]


@pytest.mark.parametrize(
    ("at", "word", "message"),
    [
        (4, 4000, "record 0 at byte 0: a payload of 4000 bytes is cut off: the file ends at byte 72"),
        (8, 2, "record 0 at byte 0: 2 labels do not fit a payload of 27 bytes"),
        (4, 20, "record 0 at byte 0: 20 bytes are too few for an image header of 24"),
        (40, 29, "record 1 at byte 36: a payload of 29 bytes is cut off: the file ends at byte 72"),
    ],
)
def test_opening_reads_every_header(rec, at, word, message):
    raw(rec, [image_payload(0.0, 0, b"abc"), image_payload(0.0, 1, b"def")])
    data = bytearray(rec.read_bytes())
    struct.pack_into("<I", data, at, word)
    rec.write_bytes(data)
    with pytest.raises(InputError, match=message):
        RecordFile(rec)


def test_padding_cut_off(rec):
    raw(rec, [image_payload(0.0, 0, b"abc")])
    rec.write_bytes(rec.read_bytes()[:-1])
    with pytest.raises(InputError, match="record 0 at byte 0: a payload of 27 bytes is cut off"):
        RecordFile(rec)


def test_multi_part_record_in_a_large_file(rec):
    """From half a gigabyte on, a part flag taken as part of a length would still lie inside the file."""
    image = b"abcd" * 3 + MAGIC_BYTES + b"rest"
    raw(rec, [image_payload(0.0, 0, image)])
    os.truncate(rec, 3 << 29)  # a hole, no bytes on the disk
    assert RecordFile(rec).encoded(0) == image


def test_files_changed_while_they_are_read(rec, monkeypatch):
    small(rec)

    def meddle(path):
        index = record_index.build_index(path)
        with rec.open("ab") as file:
            file.write(b"more")
        return index

    monkeypatch.setattr(record_cache, "build_index", meddle)
    with pytest.raises(InputError, match="changed while it was read"):
        RecordFile(rec)
