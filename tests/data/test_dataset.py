import pickle
import struct
import sys

import cv2
import numpy as np
import pytest

from facetrain.data.dataset import (
    class_counts,
    decode_batch,
    ignored_files,
    list_people,
    listed_images,
    open_images,
)
from facetrain.data.images import decode, encode_jpeg
from facetrain.data.pack import pack
from facetrain.data.record_writer import RecordWriter
from facetrain.errors import InputError


def flat(level, side=8):
    return np.full((side, side, 3), level, np.uint8)


@pytest.fixture
def people(tmp_path):
    """Three people with 2, 1 and 3 photos of several kinds, and things that are no photos."""
    root = tmp_path / "people"
    for name, files in {"zoe": ["b.JPG", "a.jpeg"], "Ann": ["x.png"], "mia": ["3.pgm", "1.webp", "2.bmp"]}.items():
        (root / name).mkdir(parents=True)
        for number, file in enumerate(files):
            ok, data = cv2.imencode(
                "." + file.split(".")[1].lower(), flat(40 * number + 20)[..., : 1 if file.endswith("pgm") else 3]
            )
            assert ok
            (root / name / file).write_bytes(data.tobytes())
    (root / "empty").mkdir()
    (root / ".hidden").mkdir()
    (root / "zoe" / "notes.txt").write_text("no photo")
    (root / "zoe" / ".c.jpg").write_bytes(b"")
    (root / "README.md").write_text("hello")
    return root


def test_folder_of_people(people):
    images = open_images(people)
    assert len(images) == 6
    assert images.num_classes == 3
    assert images.labels.dtype == np.int64
    assert images.labels.tolist() == [0, 1, 1, 1, 2, 2]
    assert images.where(1) == str(people / "mia" / "1.webp")
    assert images.encoded(5) == (people / "zoe" / "b.JPG").read_bytes()
    assert class_counts(images.labels, 4).tolist() == [1, 3, 2, 0]


def test_decode_batch_resizes_and_keeps_order(people):
    out = np.zeros((3, 5, 5, 3), np.uint8)
    decode_batch(open_images(people), np.array([3, 0, 2]), out)
    assert np.abs(out.astype(int)[:, 0, 0, 0] - [20, 20, 100]).max() <= 1  # 3.pgm, x.png, 2.bmp
    assert np.ptp(out, axis=(1, 2, 3)).max() <= 1


def test_folder_survives_pickling(people):
    images = pickle.loads(pickle.dumps(open_images(people)))
    assert images.encoded(0) == (people / "Ann" / "x.png").read_bytes()


def test_a_damaged_photo_is_named(people):
    (people / "mia" / "2.bmp").write_bytes(b"BM")
    with pytest.raises(InputError, match=r"mia/2\.bmp: not a readable JPEG, PNG"):
        decode_batch(open_images(people), np.array([2]), np.zeros((1, 8, 8, 3), np.uint8))


def test_a_vanished_photo_is_named(people):
    images = open_images(people)
    (people / "Ann" / "x.png").unlink()
    with pytest.raises(InputError, match=r"Ann/x\.png cannot be read: No such file"):
        images.encoded(0)


def test_paths_that_cannot_be_training_data(tmp_path, people):
    with pytest.raises(InputError, match=r"does not exist; expected a .rec file or a folder"):
        open_images(tmp_path / "nothing")
    with pytest.raises(InputError, match="holds no folder with jpg, jpeg, png"):
        open_images(people / "zoe")
    with pytest.raises(InputError, match=r"is not a .rec file"):
        open_images(people / "README.md")
    with pytest.raises(InputError, match=r"data\.reader mxnet reads \.rec files only .* set data\.reader to native"):
        open_images(people, reader="mxnet")
    with pytest.raises(InputError, match="is not a folder"):
        list_people(people / "README.md")


def test_what_is_passed_over_is_counted(people):
    assert ignored_files(people, list_people(people)) == (
        "2 files (.md, .txt), such as README.md; 1 folder without photos, such as empty"
    )
    for name in ("s13/x.heic", "s14/y.HEIC", "mia/more/1.jpg", "loose.jpg", "mia/plain"):
        (people / name).parent.mkdir(exist_ok=True)
        (people / name).write_bytes(b"")
    (people / "mia" / "gone.jpg").symlink_to("nowhere.jpg")
    assert ignored_files(people, list_people(people)) == (
        "6 files (.heic, .md, .txt, broken links, no suffix), such as README.md; "
        "1 photo outside a person's folder, such as loose.jpg; 1 folder inside a person's folder, such as mia/more; "
        "3 folders without photos, such as empty"
    )


def test_a_missing_index_is_named_with_a_way_out(tmp_path):
    (tmp_path / "train.rec").write_bytes(b"records")
    for path in (tmp_path, tmp_path / "train.rec"):
        for reader in ("native", "mxnet", "dali"):
            with pytest.raises(InputError, match=r"train\.idx is missing.*mxnet's tools/rec2idx\.py, or pack the"):
                open_images(path, reader)


def test_record_file(tmp_path):
    jpegs = [encode_jpeg(flat(30 * i)) for i in range(5)]
    with RecordWriter(tmp_path / "train.rec", image_size=8) as writer:
        for label, jpeg in zip([0, 0, 1, 2, 2], jpegs, strict=True):
            writer.write(label, jpeg)
    for path in (tmp_path / "train.rec", tmp_path):
        images = pickle.loads(pickle.dumps(open_images(path)))
        assert len(images) == 5
        assert images.num_classes == 3
        assert images.labels.tolist() == [0, 0, 1, 2, 2]
        assert [bytes(images.encoded(i)) for i in range(5)] == jpegs
        assert images.where(3).startswith("train.rec record 4 at byte ")
        out = np.zeros((2, 8, 8, 3), np.uint8)
        decode_batch(images, np.array([4, 1]), out)
        assert np.abs(out[:, 0, 0, 0].astype(int) - [120, 30]).max() <= 2


def turned_by_exif(jpeg, orientation):
    tiff = b"II*\0" + struct.pack("<IHHHIHHI", 8, 1, 0x0112, 3, 1, orientation, 0, 0)
    app1 = b"Exif\0\0" + tiff
    return jpeg[:2] + b"\xff\xe1" + struct.pack(">H", len(app1) + 2) + app1 + jpeg[2:]


def test_a_photo_is_the_same_packed_and_unpacked(tmp_path):
    """Oblong photos, all but the first turned by the camera; every quarter and the border have their own colours."""
    people = tmp_path / "people"
    blocks = np.random.default_rng(0).integers(0, 256, (6, 3, 5, 3), dtype=np.uint8)
    for i, (block, orientation) in enumerate(zip(blocks, (1, 3, 6, 8, 5, 2), strict=True)):
        folder = people / f"p{i // 2}"
        folder.mkdir(parents=True, exist_ok=True)
        photo = cv2.resize(block, (150, 90), interpolation=cv2.INTER_CUBIC)
        (folder / f"{i}.jpg").write_bytes(turned_by_exif(encode_jpeg(photo), orientation))
    (tmp_path / "list.txt").write_text("".join(f"people/p{i // 2}/{i}.jpg {i // 2}\n" for i in range(6)))
    pack(people, tmp_path / "packed", size=32)
    packed, folder, listed = np.zeros((3, 6, 32, 32, 3), np.uint8)
    decode_batch(open_images(tmp_path / "packed"), np.arange(6), packed)
    decode_batch(open_images(people), np.arange(6), folder)
    decode_batch(listed_images(tmp_path / "list.txt"), np.arange(6), listed)
    np.testing.assert_array_equal(folder, listed)
    assert np.abs(folder.astype(int) - packed).mean() < 4  # JPEG's part


def test_a_square_crop_stays_what_it_is(tmp_path):
    (tmp_path / "p").mkdir()
    jpeg = encode_jpeg(np.random.default_rng(1).integers(0, 256, (16, 16, 3), dtype=np.uint8))
    (tmp_path / "p" / "1.jpg").write_bytes(jpeg)
    for size in (16, 12):
        out = np.zeros((1, size, size, 3), np.uint8)
        decode_batch(open_images(tmp_path), np.array([0]), out)
        np.testing.assert_array_equal(out[0], decode(jpeg, size))


def test_lists_with_and_without_labels(tmp_path):
    path = tmp_path / "list.txt"
    path.write_text("a b.jpg 3\n\nc.jpg -1\n")
    read = listed_images(path)
    assert [read.where(i) for i in range(len(read))] == [str(tmp_path / "a b.jpg"), str(tmp_path / "c.jpg")]
    assert read.labels.tolist() == [3, -1]
    path.write_bytes(b"\xef\xbb\xbfa b.jpg\r\n/c.jpg\r\n")  # as Windows writes it
    read = listed_images(path)
    assert [read.where(i) for i in range(len(read))] == [str(tmp_path / "a b.jpg"), "/c.jpg"]
    assert read.labels.tolist() == [-1, -1]
    path.write_text("a.jpg 1\nb.jpg\n")
    with pytest.raises(InputError, match=r"list\.txt:2: label a line or none"):
        listed_images(path)
    path.write_text("\n")
    with pytest.raises(InputError, match="is empty"):
        listed_images(path)
    path.write_bytes(b"\xff\xd8\xff")
    with pytest.raises(InputError, match="not UTF-8"):
        listed_images(path)


@pytest.mark.parametrize("last", ["--5", "9" * 23, "-", "+3", "\u0663", "1.5"])
def test_what_is_no_label_belongs_to_the_path(tmp_path, last):
    path = tmp_path / "list.txt"
    path.write_text(f"a.jpg {last}\n", encoding="utf-8")
    read = listed_images(path)
    assert read.where(0) == str(tmp_path / f"a.jpg {last}")
    assert read.labels.tolist() == [-1]


def test_nul_in_a_list_is_refused(tmp_path):
    (tmp_path / "list.txt").write_text("a.jpg\nb\0.jpg\n")
    with pytest.raises(InputError, match=r"list\.txt:2: a NUL character"):
        listed_images(tmp_path / "list.txt")


def test_dali_that_is_not_installed_shows_on_opening(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "nvidia", None)
    with RecordWriter(tmp_path / "train.rec", image_size=8) as writer:
        writer.write(0, encode_jpeg(flat(1)))
    with pytest.raises(InputError, match=r"data\.reader dali: .*pip install nvidia-dali.*set data\.reader to native"):
        open_images(tmp_path, "dali")
