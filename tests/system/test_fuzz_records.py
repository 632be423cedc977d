"""Mutants of .rec and .idx: refused by name or read, never anything else, never a hang.

Quick, ci and release counts: see scale.py.
"""

import os
import random
import resource
import struct
import time
from contextlib import suppress

import numpy as np
import pytest
from scale import scale, seed

from facetrain.data.record_format import MAGIC, MAGIC_BYTES, RecordError, frame, image_payload, parse_image, read_record
from facetrain.data.record_writer import write_checksums
from facetrain.data.recordio import RecordFile, scan
from facetrain.errors import InputError

WORDS = [MAGIC, 0, 1, 0xFFFFFFFF, 0x7FFFFFFF, *(flag << 29 | n for flag in range(8) for n in (0, 4, 24, 1 << 20))]
LABELS = [float("nan"), float("inf"), -1.0, -0.0, 0.5, 3.0, 4.0, 1e9, 3.4e38, 16777217.0]


def payloads():
    """insightface's layout of 4 people: record 0, nine images, some of several parts or with vector labels, people."""
    images = [b"", b"x", b"abcd" * 5, MAGIC_BYTES, b"q" * 4 + MAGIC_BYTES * 2 + b"tail", b"\xff\xd8 jpeg", b"z" * 33]
    images += [b"last", b"one"]
    labels = [0, 0, [1.0, 7.0], 1, [1.0], 2, 2, 3, [3.0, 1.0, 2.0]]
    records = [image_payload([10.0, 14.0], 0)]
    records += [image_payload(label, n + 1, image) for n, (label, image) in enumerate(zip(labels, images, strict=True))]
    return records + [
        image_payload(pair, 10 + n) for n, pair in enumerate(([1.0, 3.0], [3.0, 6.0], [6.0, 8.0], [8.0, 10.0]))
    ]


def files():
    records = [frame(payload) for payload in payloads()]
    starts = np.concatenate([[0], np.cumsum([len(record) for record in records])[:-1]])
    return b"".join(records), "".join(f"{n}\t{at}\n" for n, at in enumerate(starts.tolist())).encode()


def mutate_records(data, rng):
    """One to four cuts, flips, words, floats, removals or repetitions."""
    mutant = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        at = rng.randrange(len(mutant)) if mutant else 0
        action = rng.randrange(7)
        if action == 0:
            del mutant[at:]
        elif action == 1 and mutant:
            mutant[at] ^= 1 << rng.randrange(8)
        elif action == 2:
            word = struct.pack("<I", rng.choice(WORDS))
            mutant[at & ~3 : (at & ~3) + 4] = word
        elif action == 3:
            mutant[at & ~3 : (at & ~3) + 4] = struct.pack("<f", rng.choice(LABELS))
        elif action == 4:
            del mutant[at : at + rng.randint(1, 9)]
        elif action == 5:
            mutant[at:at] = rng.randbytes(rng.randint(1, 9))
        else:
            mutant[at : at + 8] = struct.pack("<II", MAGIC, rng.getrandbits(32))
    return bytes(mutant)


def mutate_index(text, size, rng):
    lines = text.split(b"\n")
    for _ in range(rng.choice((1, 1, 2))):
        row = rng.randrange(len(lines))
        action = rng.randrange(8)
        if action == 0:
            lines[row] = b"%d\t%d" % (rng.randrange(20), rng.choice((0, size, size - 4, size - 8, 10**17, 2**63)))
        elif action == 1:
            lines[row] = lines[rng.randrange(len(lines))]
        elif action == 2:
            lines[row] = rng.choice(
                (b"", b"x\ty", b"1\t", b"\t1", b"1 2", b"-1\t0", b"1\t-8", b"1e3\t0", b"nan\tnan", b"\xff\xfe")
            )
        elif action == 3:
            lines[row] = b"%d\t%d" % (rng.choice((0, 5, 2**31, 2**31 - 1, 2**32, 99999999999)), rng.randrange(size))
        elif action == 4:
            del lines[row:]
        elif action == 5:
            rng.shuffle(lines)
        elif action == 6:
            flat = bytearray(b"\n".join(lines) or b"0")
            flat[rng.randrange(len(flat))] = rng.randrange(256)
            lines = bytes(flat).split(b"\n")
        else:
            lines.append(b"%d\t%d" % (rng.randrange(30), 4 * rng.randrange(size // 4)))
        lines = lines or [b""]
    return b"\n".join(lines)


def outcome(rec, count):
    """The refusal's message, or "" where it opened and each image was read or refused."""
    try:
        images = RecordFile(rec)
    except InputError as error:
        message = str(error)
    else:
        message = ""
        assert len(images) <= count + 20
        assert (images.labels >= 0).all()
        assert (images.labels < images.num_classes).all()
        for i in range(len(images)):
            try:
                bytes(images.encoded(i))
            except InputError as error:
                message = str(error)
    assert "\n" not in message
    return message


def fuzz(folder, count, generator):
    """Try mutants; (refused, worst seconds of one, growth of memory in bytes)."""
    data, text = files()
    rec, idx = folder / "train.rec", folder / "train.idx"
    rng = random.Random(generator)
    refused, worst, before = 0, 0.0, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for number in range(count):
        started = time.process_time()
        index_too = number % 3 == 0
        rec.write_bytes(mutate_records(data, rng) if number % 3 < 2 else data)
        idx.write_bytes(mutate_index(text, len(data), rng) if index_too or number % 3 == 2 else text)
        with np.errstate(all="raise", under="ignore"):
            refused += bool(outcome(rec, 14))
        if number % 16 == 0:
            with suppress(InputError):
                assert all(record.byte >= 0 for record in scan(rec))
        worst = max(worst, time.process_time() - started)
    return refused, worst, 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)


@pytest.fixture
def folder(tmp_path):
    """In memory where the system has such a place: the disk is not what is tested."""
    if not os.access("/dev/shm", os.W_OK):
        yield tmp_path
        return
    import tempfile
    from pathlib import Path

    with tempfile.TemporaryDirectory(dir="/dev/shm") as name:
        yield Path(name)


def test_parsing_any_bytes():
    """Without files: the parser alone, which every other way in goes through."""
    count, rng = scale(quick=3000, ci=100_000, release=2_500_000), random.Random(seed())
    data, _ = files()
    refused = 0
    for _ in range(count):
        mutant = memoryview(mutate_records(data, rng))
        at = end = 0
        for _ in range(40):
            try:
                payload, end = read_record(mutant, at)
                parse_image(payload, at)
            except RecordError as error:
                refused += error.byte >= 0
                break
            assert at < end <= len(mutant)
            at = end
    assert refused > 0.5 * count


def test_quick_mutants(folder):
    count = scale(quick=1500, ci=1500, release=1500)
    refused, worst, _ = fuzz(folder, count, seed())
    assert refused > 0.5 * count
    assert worst < 5


@pytest.mark.faults
def test_mutants(folder):
    count = scale(quick=5000, ci=100_000, release=2_500_000)
    started = time.perf_counter()
    refused, worst, growth = fuzz(folder, count, seed() + 1)
    print(
        f"{count:,} mutants, {refused:,} refused, worst {worst * 1e3:.1f} ms, memory + {growth / 2**20:.0f} MB, "
        f"{count / (time.perf_counter() - started):,.0f}/s"
    )
    assert refused > 0.5 * count
    assert worst < 5
    assert growth < 300 * 2**20


def test_cut_at_every_byte_and_every_bit_with_checksums(folder):
    """Every single-bit mutant of the .rec: with checksums none is read as another image."""
    data, text = files()
    rec = folder / "train.rec"
    rec.write_bytes(data)
    rec.with_suffix(".idx").write_bytes(text)
    truth = [bytes(RecordFile(rec).encoded(i)) for i in range(9)]
    write_checksums(rec)
    for at in range(len(data)):
        rec.write_bytes(data[:at])
        assert outcome(rec, 14)
        rec.write_bytes(data[:at] + bytes([data[at] ^ 1 << at % 8]) + data[at + 1 :])
        try:
            images = RecordFile(rec)
        except InputError:
            continue
        wrong = 0
        for i, image in enumerate(truth):
            try:
                assert bytes(images.encoded(i)) == image
            except InputError:
                wrong += 1
        assert wrong == (at < len(data) - 160)  # behind it the people, which hold no image
