import pickle

import cv2
import numpy as np
import pytest

from facetrain.data.dataset import class_counts, decode_batch, list_people, open_images
from facetrain.data.images import encode_jpeg
from facetrain.data.recordio import RecordWriter
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
    assert images.names == ("Ann", "mia", "zoe")
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
