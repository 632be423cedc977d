"""Checksums beside a .rec: every flipped bit is damage, and those of another file are refused."""

import random
from collections import Counter

import numpy as np
import pytest
from record_helpers import folder_of_people, raw, read_all
from typer.testing import CliRunner

from facetrain.commands.data import app
from facetrain.data.check import check
from facetrain.data.checksums import checksum_path
from facetrain.data.images import decode, encode_jpeg
from facetrain.data.pack import pack
from facetrain.data.record_format import MAGIC_BYTES, image_payload
from facetrain.data.record_writer import RecordWriter, write_checksums
from facetrain.data.recordio import RecordFile, scan
from facetrain.data.synthetic import render
from facetrain.errors import InputError


@pytest.fixture
def rec(tmp_path):
    return tmp_path / "set" / "train.rec"


def faces(rec, count=12, checksums=True, side=48):
    with RecordWriter(rec, side, checksums=checksums) as writer:
        for number in range(count):
            writer.write(number // 4, encode_jpeg(render(0, number // 4, number % 4, side)))
    return rec


def flips(rec, count, seed):
    """Flip a random bit of the whole file, yield where, flip it back."""
    rng = random.Random(seed)
    data = bytearray(rec.read_bytes())
    for _ in range(count):
        at, bit = rng.randrange(len(data)), 1 << rng.randrange(8)
        with rec.open("r+b") as file:
            file.seek(at)
            file.write(bytes([data[at] ^ bit]))
        yield at
        with rec.open("r+b") as file:
            file.seek(at)
            file.write(data[at : at + 1])


def test_every_flipped_bit_is_found_and_without_checksums_most_are_not(rec):
    faces(rec, side=112)
    images = RecordFile(rec)
    starts = [images.byte_offset(i) for i in range(len(images))]
    good = [decode(image) for image in read_all(images)]
    identities = int(rec.with_suffix(".idx").read_text().splitlines()[13].split()[1])
    checksums, found = images.checksums, 0
    without: Counter[str] = Counter()
    for at in flips(rec, 2000, seed=8):
        if not starts[0] <= at < identities:  # of record 0 and the people: `data check` looks at them
            found += any(record.problem for record in scan(rec, checksums))
            continue
        i = int(np.searchsorted(starts, at, side="right")) - 1
        images.checksums = checksums
        with pytest.raises(InputError, match=rf"train\.rec record {i + 1} at byte "):
            images.encoded(i)
        found += 1
        images.checksums = None
        try:
            without["same" if np.array_equal(decode(images.encoded(i)), good[i]) else "other pixels"] += 1
        except InputError:
            without["refused"] += 1
    print(without)
    assert found == 2000
    assert without["other pixels"] > 0.5 * without.total()


@pytest.mark.parametrize("numbers", [None, [7, 0, 3, 12]])
def test_any_layout_and_multi_part_records(rec, numbers):
    payloads = [image_payload(float(n % 2), n, b"x" * n + MAGIC_BYTES * (n % 3)) for n in range(4)]
    raw(rec, payloads, numbers)
    truth = read_all(RecordFile(rec))
    path, count = write_checksums(rec)
    assert (path, count) == (rec.with_name("train.crc32"), 4)
    assert read_all(RecordFile(rec)) == truth
    data = rec.read_bytes()
    images = RecordFile(rec)
    for at in range(len(data)):
        with rec.open("r+b") as file:
            file.seek(at)
            file.write(bytes([data[at] ^ 4]))
        bad = []
        for i in range(4):
            try:
                images.encoded(i)
            except InputError:
                bad.append(i)
        assert len(bad) == 1
        rec.write_bytes(data)


def test_written_and_made_later_are_the_same(rec):
    faces(rec)
    written = checksum_path(rec).read_bytes()
    with pytest.raises(InputError, match=r"train\.crc32 is there already; replace it with --force once the data are"):
        write_checksums(rec)
    assert write_checksums(rec.parent, overwrite=True)[1] == 12 + 1 + 3
    assert checksum_path(rec).read_bytes() == written
    assert len(written) == 64 + 4 * 16 + 4


def test_those_of_another_file_are_refused(rec, tmp_path):
    faces(rec)
    other = faces(tmp_path / "other" / "train.rec", 11)
    checksum_path(rec).write_bytes(checksum_path(other).read_bytes())
    with pytest.raises(InputError, match=r"train\.crc32 belongs to another train\.rec, of \d+ bytes, and this one has"):
        RecordFile(rec)
    raw(rec, [image_payload(0.0, n, b"abcd") for n in range(5)], range(3, 8))
    write_checksums(rec, overwrite=True)
    raw(rec, [image_payload(1.0, n, b"efgh") for n in range(5)], range(3, 8))  # as long
    with pytest.raises(InputError, match=r"train\.crc32 belongs to another train\.rec, or this one is damaged through"):
        RecordFile(rec)
    raw(rec, [image_payload(1.0, n, b"efgh") for n in range(5)])
    with pytest.raises(InputError, match=r"record 0 at byte 0: train\.crc32 has no checksum of it"):
        RecordFile(rec)
    checksum_path(rec).unlink()
    assert len(RecordFile(rec)) == 5


def test_damaged_checksums_are_refused(rec):
    faces(rec)
    path = checksum_path(rec)
    whole = path.read_bytes()
    for at in range(len(whole)):
        for mutant in (whole[:at], whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :]):
            path.write_bytes(mutant)
            with pytest.raises(InputError, match=r"train\.crc32 (is damaged or not what|is empty)") as caught:
                RecordFile(rec)
            assert "\n" not in str(caught.value)


def test_check_looks_at_them(rec):
    faces(rec)
    assert check(rec).problems == ()
    images = RecordFile(rec)
    places = [images.byte_offset(4) + 200, rec.stat().st_size - 3]
    data = bytearray(rec.read_bytes())
    for place in places:
        data[place] ^= 16
    rec.write_bytes(data)
    report = check(rec)
    assert (report.damaged, report.broken) == (1, 1)
    assert "record 5 at byte " in report.problems[0]
    assert all("its bytes are not those that train.crc32 was made of" in problem for problem in report.problems)
    checksum_path(rec).write_bytes(b"nonsense")
    report = check(rec)
    assert any("train.crc32 is damaged or not what 'facetrain data checksum' writes" in p for p in report.problems)


def test_the_commands(tmp_path):
    people = folder_of_people(tmp_path / "in", people=6, photos=4)
    pack(people, tmp_path / "out", size=12, held_out=3, pairs=20)
    assert (tmp_path / "out" / "train.crc32").exists()
    assert (tmp_path / "out" / "heldout" / "train.crc32").exists()
    pack(people, tmp_path / "plain", size=12, checksums=False)
    assert not (tmp_path / "plain" / "train.crc32").exists()
    for more in ([], ["--force"]):
        result = CliRunner().invoke(app, ["checksum", str(tmp_path / "plain"), *more])
        assert result.exit_code == 0
        assert "train.crc32: checksums of 31 records" in result.output


def test_what_has_no_checksums(tmp_path, rec):
    with pytest.raises(InputError, match=r"photos is not a \.rec file"):
        write_checksums(tmp_path / "photos")
    faces(rec, checksums=False)
    data = bytearray(rec.read_bytes())
    data[RecordFile(rec).byte_offset(3)] ^= 1
    rec.write_bytes(data)
    with pytest.raises(InputError, match=r"record 4 at byte .*: bad magic"):
        write_checksums(rec)
    assert not checksum_path(rec).exists()
