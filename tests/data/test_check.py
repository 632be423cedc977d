"""Checking a set, sound or damaged: everything is still said, and the first damage in the file is named."""

import pickle
import struct

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from record_helpers import folder_of_people

from facetrain.commands import data as commands
from facetrain.data import check as module
from facetrain.data.check import check, histogram_of
from facetrain.data.dataset import open_images
from facetrain.data.images import encode_jpeg
from facetrain.data.pack import pack
from facetrain.data.record_writer import RecordWriter
from facetrain.errors import InputError

SIZES = [6, 4, 2]


@pytest.fixture
def rec(tmp_path):
    path = tmp_path / "set" / "train.rec"
    with RecordWriter(path, image_size=8) as writer:
        for number, label in enumerate(np.repeat(np.arange(3), SIZES).tolist()):
            writer.write(label, encode_jpeg(np.full((8, 8, 3), 20 * number, np.uint8)))
    return path


@pytest.fixture
def places(rec):
    """Byte of each record: 0 the header, 1 to 12 the images, 13 to 15 the identities."""
    return [int(line.split()[1]) for line in rec.with_suffix(".idx").read_text().splitlines()]


def damage(rec, *changes):
    data = bytearray(rec.read_bytes())
    for at, new in changes:
        data[at : at + len(new)] = new
    rec.write_bytes(data)


def summary(report):
    return report.images, report.people, report.damaged, report.out_of_range, report.broken


@pytest.mark.parametrize("workers", [1, 2])
def test_damaged_image_before_a_damaged_record(rec, places, workers):
    damage(rec, (places[7] + 32, b"no JPEG"), (places[9], b"\0"))
    report = check(rec, rec.with_name("classes.png"), workers)
    assert summary(report) == (11, 3, 1, 0, 1)
    assert sum(report.sizes.values()) == 10
    assert (report.smallest, report.largest) == (2, 6)
    assert report.plot.read_bytes().startswith(b"\x89PNG")
    assert report.problems[0].startswith(f"train.rec record 7 at byte {places[7]}: not a readable JPEG")
    assert report.problems[1].startswith(f"train.rec record 9 at byte {places[9]}: bad magic")
    with pytest.raises(
        InputError, match=r"1 damaged images, 0 labels out of range and 1 damaged records.* record 7 at"
    ):
        report.raise_if_damaged()


def test_file_cut_off(rec, places):
    rec.write_bytes(rec.read_bytes()[: places[5] + 20])
    report = check(rec)
    assert summary(report) == (4, 3, 0, 0, 11)
    assert report.empty == 2
    assert len(report.problems) == 10
    assert report.problems[0].startswith(f"train.rec record 5 at byte {places[5]}: a payload")


@pytest.mark.parametrize(("at", "new"), [(0, b"\0"), (4, struct.pack("<I", 1 << 28)), (8, struct.pack("<I", 99))])
def test_damaged_header(rec, at, new):
    damage(rec, (at, new))
    report = check(rec)
    assert summary(report) == (12, 3, 0, 0, 1)
    assert report.problems[0].startswith("train.rec record 0 at byte 0: ")


def test_wrong_labels(rec, places):
    labels = {2: 3.0, 4: -1.0, 5: 0.5, 8: float("nan"), 9: 1e30}
    damage(rec, *((places[n] + 12, struct.pack("<f", label)) for n, label in labels.items()))
    report = check(rec)
    assert summary(report) == (12, 3, 0, 5, 0)
    assert (report.smallest, report.largest) == (2, 3)
    assert [line.split("label ")[1] for line in report.problems] == [
        f"{label:.9g}; expected a class 0..2" for label in np.float32(list(labels.values())).astype(float)
    ]
    assert report.problems[0].startswith(f"train.rec record 2 at byte {places[2]}: ")
    rec.with_name("property").unlink()  # then the largest label is believed
    damage(rec, (places[9] + 12, struct.pack("<f", 1.0)))
    damage(rec, (places[0], b"\0"))
    assert summary(check(rec)) == (12, 4, 0, 3, 1)


def test_what_no_single_record_explains(rec):
    rec.with_name("property").write_text("not at all")
    report = check(rec)
    assert summary(report) == (12, 3, 0, 0, 1)
    assert "'not at all' is not 'classes,height,width'" in report.problems[0]


def test_nothing_readable(rec):
    rec.write_bytes(bytes(rec.stat().st_size))
    report = check(rec, rec.with_name("classes.png"))
    assert summary(report) == (0, 3, 0, 0, 16)
    rec.write_bytes(b"")
    with pytest.raises(InputError, match="is empty"):
        check(rec)


def test_problems_are_in_the_order_of_the_file(rec, places):
    """Image numbers follow the .idx, which may be in another order."""
    lines = [f"{16 - n}\t{at}\n" for n, at in enumerate(places)]  # no record 0: images of im2rec, last first
    rec.with_suffix(".idx").write_text("".join(reversed(lines)))
    rec.with_name("property").unlink()
    damage(rec, *((at + 32, b"no JPEG") for at in places[1:13]))
    report = check(rec)
    assert report.damaged >= 12
    bytes_of = [int(line.split("byte ")[1].split(":")[0]) for line in report.problems]
    assert bytes_of == sorted(places)[:10]


def test_readable_records_go_to_another_process(rec, places):
    damage(rec, (places[9], b"\0"))
    images = module._ReadableRecords(rec)
    copy = pickle.loads(pickle.dumps(images))
    assert copy.labels.tolist() == images.labels.tolist()
    assert bytes(copy.encoded(8)) == bytes(images.encoded(8))


def test_plot_is_a_png(rec):
    with pytest.raises(InputError, match=r"classes\.jpg: the plot is a PNG; choose a name that ends in \.png"):
        check(rec, rec.with_name("classes.jpg"))


def test_a_folder_is_read_as_training_reads_it(tmp_path):
    (tmp_path / "p").mkdir()
    (tmp_path / "p" / "1.jpg").write_bytes(encode_jpeg(np.zeros((8, 4200, 3), np.uint8)))
    assert check(tmp_path).sizes == {"4200 x 8": 1}


def test_check_of_a_sound_set(tmp_path):
    people = folder_of_people(tmp_path / "in", people=3, photos=6)
    (people / "p2" / "0.png").unlink()
    pack(people, tmp_path / "out", size=12)
    for path in (people, tmp_path / "out", tmp_path / "out" / "train.rec"):
        report = check(path, output=tmp_path / "plots" / "classes.png")
        assert (report.images, report.people, report.empty) == (17, 3, 0)
        assert (report.smallest, report.median, report.largest) == (5, 6.0, 6)
        assert (report.head, report.tail) == (2, 1)
        assert report.problems == ()
        report.raise_if_damaged()
        plot = cv2.imread(str(tmp_path / "plots" / "classes.png"))
        assert plot.shape[0] > 200
        assert plot.std() > 5
    assert check(people).sizes == {"16 x 20": 17}
    assert check(tmp_path / "out").sizes == {"12 x 12": 17}


def test_the_command_says_how_long_the_tail_is(rec, capsys):
    commands.check(rec, None, 1)
    said = capsys.readouterr().out.splitlines()
    assert said[:3] == [
        f"{rec}: 12 images of 3 people (0 without any)",
        "images per person: 2 to 6, median 4",
        "people with more than 5 images: 1; with 1 to 5: 2",
    ]


@pytest.mark.parametrize("workers", [1, 2])
def test_check_finds_damaged_photos(tmp_path, workers):
    people = folder_of_people(tmp_path / "in", people=3, photos=3)
    (people / "p1" / "2.png").write_bytes(b"no image")
    (people / "p2" / "0.png").write_bytes(b"")
    report = check(people, workers=workers)
    assert (report.images, report.damaged, sum(report.sizes.values())) == (9, 2, 7)
    assert report.problems[0].startswith(f"{people}/p1/2.png: not a readable")
    with pytest.raises(InputError, match=r"in has 2 damaged images, 0 labels .*: .*p1/2\.png: not a"):
        report.raise_if_damaged()


def test_check_names_the_damaged_image_of_a_record(tmp_path):
    pack(folder_of_people(tmp_path / "in", people=3, photos=3), tmp_path / "out", size=12, checksums=False)
    rec = tmp_path / "out" / "train.rec"
    images = open_images(rec)
    place = images.byte_offset(4)
    encoded = bytes(images.encoded(4))
    data = bytearray(rec.read_bytes())
    start = data.index(encoded, place)
    data[start : start + 4] = b"\x00\x01\x02\x03"
    del images
    rec.write_bytes(data)
    report = check(rec)
    assert report.damaged == 1
    assert report.problems[0].startswith(f"train.rec record 5 at byte {place}: not a readable JPEG")


def test_check_names_the_damaged_record(tmp_path):
    pack(folder_of_people(tmp_path / "in", people=3, photos=3), tmp_path / "out", size=12)
    rec = tmp_path / "out" / "train.rec"
    place = open_images(rec).byte_offset(4)
    data = bytearray(rec.read_bytes())
    data[place] ^= 255
    rec.write_bytes(data)
    with pytest.raises(InputError, match=rf"record 5 at byte {place}.*magic"):
        check(rec).raise_if_damaged()


def test_the_command_says_what_is_damaged_in_its_summary(rec, places, capsys):
    damage(rec, *((place + 32, b"no JPEG") for place in places[1:13]))
    with pytest.raises(InputError, match="has 12 damaged images, 0 labels out of range and 0 damaged records; the"):
        commands.check(rec, None, 1)
    said = capsys.readouterr()
    lines = said.out.splitlines()
    lines = lines[[line.startswith("sizes:") for line in lines].index(True) + 1 :]
    assert [line.split(":")[0] for line in lines] == ["damaged"] * 11
    assert lines[0].startswith(f"damaged: train.rec record 1 at byte {places[1]}: not a readable JPEG")
    assert lines[-1] == "damaged: 2 more"
    assert "damaged" not in said.err


def test_the_command_says_what_it_ignored(tmp_path, capsys):
    people = folder_of_people(tmp_path / "in", people=2, photos=1)
    (people / "p3").mkdir()
    commands.check(people, None, 1)
    assert capsys.readouterr().out.splitlines()[-1] == "ignored: 1 folder without photos, such as p3"
    pack(people, tmp_path / "out", size=12)
    assert check(tmp_path / "out").ignored == ""


def test_a_missing_index_is_named_with_a_way_out(rec):
    rec.with_suffix(".idx").unlink()
    for path in (rec, rec.parent):
        with pytest.raises(InputError, match=r"train\.idx is missing.*rec2idx"):
            check(path)


@given(st.lists(st.integers(0, 300), max_size=50))
def test_the_histogram_counts_everybody_with_an_image_once(numbers):
    counts = np.array(numbers, np.int64)
    bins = histogram_of(counts)
    assert sum(people for _, _, people in bins) == np.count_nonzero(counts)
    for fewest, most, people in bins:
        assert people == sum(fewest <= number <= most for number in numbers)
    assert not numbers or not max(numbers) or bins[-1][2] > 0
