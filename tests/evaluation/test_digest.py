"""What a set's digest depends on, and on what it does not."""

from __future__ import annotations

import numpy as np
import pytest
from embedding_toys import SIZE, Photos, on_ranks

from facetrain.data.dataset import PhotoFiles
from facetrain.distributed import World
from facetrain.evaluation import digest
from facetrain.evaluation.digest import images_digest

COUNT = 40  # more than the sample of pixels


def _digest(photos, size=SIZE):
    return images_digest(photos, size, World())


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_equal_images_have_one_digest_whatever_the_ranks(monkeypatch, ranks):
    monkeypatch.setattr(digest, "_CHUNK", 7)
    photos = Photos(COUNT, broken=(3,))
    assert set(on_ranks(ranks, lambda w: images_digest(Photos(COUNT, broken=(3,)), SIZE, w))) == {_digest(photos)}


def test_content_order_number_and_size_count():
    digests = [_digest(Photos(COUNT)), _digest(Photos(COUNT - 1)), _digest(Photos(COUNT), SIZE + 1)]
    digests.append(_digest(Photos(COUNT, broken=(4,))))
    swapped = Photos(COUNT)
    swapped.files[5:7] = swapped.files[6], swapped.files[5]
    digests.append(_digest(swapped))
    moved = Photos(COUNT)  # a byte goes from one image to the next
    moved.files[8], moved.files[9] = moved.files[8][:-1], moved.files[8][-1:] + moved.files[9]
    digests.append(_digest(moved))
    assert len(set(digests)) == len(digests)


def test_a_missing_file_counts_as_such(tmp_path):
    photos = Photos(COUNT)
    for i, file in enumerate(photos.files):
        (tmp_path / f"{i}.jpg").write_bytes(file)
    files = PhotoFiles(tmp_path, [f"{i}.jpg" for i in range(COUNT)], photos.labels)
    whole = _digest(files)
    assert whole != _digest(photos)  # photos are turned upright and cut, crops are not
    (tmp_path / "5.jpg").unlink()
    assert _digest(files) != whole
    (tmp_path / "5.jpg").write_bytes(photos.files[5])
    assert _digest(files) == whole


class _Shifted(Photos):
    """Pixels depend on more than the bytes, as with landmarks."""

    shift = np.zeros(COUNT, np.uint8)

    def decode(self, i, out):
        super().decode(i, out)
        out += self.shift[i]


class _SaysSo(_Shifted):
    decoded = 0

    def decode(self, i, out):
        self.decoded += 1
        super().decode(i, out)

    def content(self, i):
        return self.shift[i].tobytes()


@pytest.mark.parametrize("kind", [_Shifted, _SaysSo])
def test_what_a_class_decodes_by_besides_the_bytes_counts(kind):
    before, after = kind(COUNT), kind(COUNT)
    after.shift = before.shift.copy()
    after.shift[1] = 3
    assert _digest(before) == _digest(kind(COUNT))
    assert _digest(before) != _digest(after)
    if kind is _SaysSo:
        assert after.decoded == digest._SAMPLE
