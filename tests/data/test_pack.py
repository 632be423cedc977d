import pickle

import numpy as np
import pytest
from record_helpers import folder_of_people

from facetrain.commands import data as commands
from facetrain.data.dataset import open_images
from facetrain.data.images import decode, encode_jpeg, to_square
from facetrain.data.pack import choose_held_out, pack
from facetrain.errors import InputError


def level(encoded):
    return decode(encoded)[0, 0, 0]


def test_pack_all(tmp_path):
    report = pack(folder_of_people(tmp_path / "in"), tmp_path / "out", size=12)
    assert (report.people, report.images, report.held_out_people, report.pairs) == (8, 32, 0, 0)
    assert report.skipped == ()
    assert report.ignored == ""
    images = open_images(tmp_path / "out")
    assert images.labels.tolist() == [k for k in range(8) for _ in range(4)]
    assert decode(images.encoded(0)).shape == (12, 12, 3)
    assert [round(int(level(images.encoded(i))) / 20) for i in range(0, 32, 4)] == list(range(8))
    assert (tmp_path / "out" / "names.txt").read_text().split() == [f"p{k}" for k in range(8)]
    assert (tmp_path / "out" / "property").read_text().split() == ["8,12,12"]
    assert not (tmp_path / "out" / "heldout.bin").exists()


def test_held_out_people_are_in_no_other_part(tmp_path):
    report = pack(folder_of_people(tmp_path / "in"), tmp_path / "out", size=12, held_out=3, pairs=20)
    assert (report.people, report.images, report.held_out_people, report.held_out_images) == (5, 20, 3, 12)
    assert report.pairs == 20
    train = (tmp_path / "out" / "names.txt").read_text().split()
    held = (tmp_path / "out" / "heldout" / "names.txt").read_text().split()
    assert sorted(train + held) == [f"p{k}" for k in range(8)]
    encoded, same = pickle.loads((tmp_path / "out" / "heldout.bin").read_bytes())
    assert len(encoded) == 40
    assert same == [True, False] * 10
    names = [f"p{round((int(level(jpeg)) - 4) / 20)}" for jpeg in encoded]
    assert set(names) == set(held)
    assert [first == second for first, second in zip(names[::2], names[1::2], strict=True)] == same
    records = open_images(tmp_path / "out" / "heldout")
    assert {bytes(records.encoded(i)) for i in range(12)} >= set(encoded)


def test_held_out_people_follow_the_seed(tmp_path):
    people = folder_of_people(tmp_path / "in")
    for out, seed in (("a", 1), ("b", 1), ("c", 2)):
        pack(people, tmp_path / out, size=12, held_out=3, pairs=20, seed=seed)
    a, b, c = ((tmp_path / out / "heldout.bin").read_bytes() for out in "abc")
    assert a == b != c
    assert (tmp_path / "a" / "train.rec").read_bytes() == (tmp_path / "b" / "train.rec").read_bytes()


def test_unreadable_photos_are_listed_and_their_people_are_no_class(tmp_path):
    people = folder_of_people(tmp_path / "in", people=3, photos=2)
    (people / "p0" / "1.png").write_bytes(b"no image")
    for photo in (people / "p1").iterdir():
        photo.write_bytes(b"")
    report = pack(people, tmp_path / "out", size=12)
    assert (report.people, report.images) == (2, 3)
    assert len(report.skipped) == 3
    assert report.skipped[0].startswith(f"{people}/p0/1.png: not a readable JPEG")
    assert (tmp_path / "out" / "names.txt").read_text().split() == ["p0", "p2"]
    assert open_images(tmp_path / "out").labels.tolist() == [0, 1, 1]


def test_nothing_readable(tmp_path):
    people = folder_of_people(tmp_path / "in", people=2, photos=1)
    for photo in people.glob("*/*"):
        photo.write_bytes(b"x")
    with pytest.raises(InputError, match=r"none of 2 photos can be read; the first: .*p0/0\.png: not a readable"):
        pack(people, tmp_path / "out")
    assert not (tmp_path / "out" / "train.rec").exists()


def test_a_packed_set_is_not_replaced_silently(tmp_path):
    people = folder_of_people(tmp_path / "in")
    pack(people, tmp_path / "out", size=12, held_out=3, pairs=20)
    before = (tmp_path / "out" / "train.rec").read_bytes()
    with pytest.raises(InputError, match=r"train\.rec is there already: .*--force"):
        pack(people, tmp_path / "out", size=10)
    assert (tmp_path / "out" / "train.rec").read_bytes() == before
    pack(people, tmp_path / "out", size=10, overwrite=True)
    assert len(open_images(tmp_path / "out")) == 32
    assert not (tmp_path / "out" / "heldout.bin").exists()  # its people are trained on now


def test_a_failed_replacement_leaves_the_old_set(tmp_path):
    people, out = folder_of_people(tmp_path / "in"), tmp_path / "out"
    pack(people, out, size=12, held_out=3, pairs=20)
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    assert len(before) == 11
    with pytest.raises(InputError, match="2 people with 4 photos give 2 pairs"):
        pack(folder_of_people(tmp_path / "few", people=4, photos=2), out, size=12, held_out=2, overwrite=True)
    blank = folder_of_people(tmp_path / "blank")
    for photo in blank.glob("*/*"):
        photo.write_bytes(b"x")
    with pytest.raises(InputError, match="none of 32 photos can be read"):
        pack(blank, out, size=12, overwrite=True)
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before
    (out / "head.bin").write_bytes(b"of a demo")
    (out / "classes.csv").write_bytes(b"of a subset")
    pack(people, out, size=12, checksums=False, overwrite=True)
    assert sorted(path.name for path in out.rglob("*")) == ["names.txt", "property", "train.idx", "train.rec"]


def test_out_must_be_a_folder(tmp_path):
    people = folder_of_people(tmp_path / "in")
    (tmp_path / "file").write_text("mine")
    for out in (tmp_path / "file", tmp_path / "file" / "deeper"):
        with pytest.raises(InputError, match=r"/file is a file; expected a folder"):
            pack(people, out, held_out=3)
    assert (tmp_path / "file").read_text() == "mine"


def test_photos_are_not_packed_into_themselves(tmp_path):
    people = folder_of_people(tmp_path / "in", people=2, photos=1)
    (tmp_path / "link").symlink_to(people)
    before = sorted(tmp_path.rglob("*"))
    for out in (people, tmp_path / "link", people / "p0" / ".."):
        with pytest.raises(InputError, match=r" is the folder that is read; choose another one to write to$"):
            pack(people, out, size=12)
    for out in (people / "out", people / "p0", tmp_path):
        with pytest.raises(InputError, match=r" lie one in the other; choose a folder to write to beside the photos$"):
            pack(people, out, size=12, overwrite=True)
    assert sorted(tmp_path.rglob("*")) == before
    pack(people, tmp_path / "in2", size=12)


def test_the_command_says_what_it_ignored(tmp_path, capsys):
    people = folder_of_people(tmp_path / "in", people=2, photos=1)
    (people / "p0" / "x.heic").write_bytes(b"")
    commands.pack(people, tmp_path / "out", size=12, workers=1)
    assert capsys.readouterr().out.splitlines() == [
        f"{tmp_path / 'out'}: 2 images of 2 people for training",
        "ignored: 1 file (.heic), such as p0/x.heic",
    ]


def test_too_few_people_to_hold_out(tmp_path):
    people = folder_of_people(tmp_path / "in", people=5)
    with pytest.raises(InputError, match=r"held_out is 4 of 5 people, 5 of them .*; expected 2\.\.3"):
        pack(people, tmp_path / "out", held_out=4)
    with pytest.raises(InputError, match=r"held_out is 2 of 4 people, 0 of them .* at least four"):
        pack(folder_of_people(tmp_path / "single", people=4, photos=1), tmp_path / "out", held_out=2)
    with pytest.raises(InputError, match="2 people with 4 photos give 2 pairs of one person and 4 of two") as caught:
        pack(folder_of_people(tmp_path / "few", people=4, photos=2), tmp_path / "out", held_out=2)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out" / "train.rec").exists()


def test_choose_held_out_takes_people_with_two_photos():
    photos = np.array([1, 5, 1, 2, 1, 3, 4, 1])
    for seed in range(20):
        chosen = choose_held_out(photos, 3, seed)
        assert (photos[chosen] >= 2).all()
        assert len(set(chosen.tolist())) == 3
    assert len({tuple(choose_held_out(photos, 2, seed)) for seed in range(60)}) == 6
    assert choose_held_out(photos, 0, 0).size == 0


def test_to_square():
    image = np.zeros((4, 8, 3), np.uint8)
    image[:, 2:6] = 200
    assert (to_square(image, 4, "crop") == 200).all()
    assert to_square(image, 8, "stretch")[:, :, 0].mean() == pytest.approx(100, abs=15)
    padded = to_square(image, 8, "pad")
    np.testing.assert_array_equal(padded[2:6], image)
    assert not padded[:2].any()
    assert not padded[6:].any()


def test_photos_are_packed_alike_by_processes(tmp_path):
    people = folder_of_people(tmp_path / "in")
    pack(people, tmp_path / "one", size=12, workers=1)
    pack(people, tmp_path / "two", size=12, workers=2)
    assert (tmp_path / "one" / "train.rec").read_bytes() == (tmp_path / "two" / "train.rec").read_bytes()


def test_jpeg_quality_counts(tmp_path):
    root = tmp_path / "in"
    (root / "a").mkdir(parents=True)
    noise = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    (root / "a" / "1.jpg").write_bytes(encode_jpeg(noise))
    sizes = []
    for quality in (30, 95):
        pack(root, tmp_path / str(quality), size=32, quality=quality)
        sizes.append(len(open_images(tmp_path / str(quality)).encoded(0)))
    assert sizes[0] < 0.6 * sizes[1]
