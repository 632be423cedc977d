"""Stand-ins for damaged images: of the same person, readable, and the same whoever decodes."""

import numpy as np
import pytest
import torch
from record_helpers import InMemory
from test_loader import AUGMENT, loader

from facetrain.config import AugmentConfig
from facetrain.data.augment import augment
from facetrain.data.damage import GREY, Damaged, others
from facetrain.data.dataset import PhotoFiles
from facetrain.data.encoded import FileChangedError
from facetrain.data.foreign_readers import DaliDecoder, UndecodableError
from facetrain.data.images import decode
from facetrain.data.loader import Loader
from facetrain.data.sampler import batch_indices
from facetrain.errors import InputError

PLAIN = AugmentConfig(flip=0.0)
BROKEN = (3, 10, 17, 24, 31, 38, 45, 4, 20)
"""All of person 3's seven images, one of person 4's and one of person 6's."""


def updates(images, start=0, stop=8, **options):
    """[(own pixels, labels, damaged)] of every micro-batch."""
    steps = loader(images, **options).iterate(start, stop)
    return [(b.images.numpy().copy(), b.labels, b.damaged) for batches in steps for b in batches]


def test_others_are_all_of_the_person_in_a_keyed_order():
    labels = np.random.default_rng(0).integers(0, 5, 100)
    for image in (0, 7, 99):
        found = list(others(labels, 3, image))
        assert sorted(found) == [i for i in range(100) if labels[i] == labels[image] and i != image]
        assert found == list(others(labels, 3, image))
        assert found != list(others(labels, 4, image))
    assert list(others(np.arange(9), 0, 4)) == []
    firsts = [next(others(np.zeros(10, np.int64), seed, 0)) for seed in range(2000)]
    assert np.bincount(firsts, minlength=10)[1:].min() > 150  # 222 expected


def test_a_readable_image_of_the_person_stands_in():
    """Against the definition: the first readable of ``others``, augmented as the image itself would have been."""
    whole, images = InMemory(), InMemory(broken=BROKEN)
    for step, (pixels, labels, damaged) in enumerate(updates(images)):
        epoch, indices = batch_indices(50, 12, 3, step)
        np.testing.assert_array_equal(labels, images.labels[indices])
        expected, met = np.empty_like(pixels), []
        for row, i in enumerate(indices.tolist()):
            expected[row] = GREY
            for candidate in (i, *others(images.labels, 3, i)):
                if candidate not in BROKEN:
                    expected[row] = decode(whole.jpegs[candidate])
                    assert images.labels[candidate] == labels[row]
                    break
                met.append(candidate)
        np.testing.assert_array_equal(pixels, augment(expected, AUGMENT, 3, epoch, indices))
        assert [d.image for d in damaged] == list(dict.fromkeys(met))
        assert all(d.where == f"memory image {d.image}" for d in damaged)
        assert all(d.reason.startswith("the JPEG is damaged: ") for d in damaged)


def test_nobody_left_is_a_grey_square():
    images = InMemory(n=14, classes=14, broken=[5])
    ((pixels, _, damaged),) = updates(images, 0, 1, batch_size=14, augment=PLAIN)
    row = batch_indices(14, 14, 3, 0)[1].tolist().index(5)
    assert (pixels[row] == GREY).all()
    assert [d.image for d in damaged] == [5]


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_the_same_on_any_ranks_and_workers_and_from_any_start(world_size, workers):
    images = InMemory(broken=BROKEN)
    whole = updates(images, accumulation=2)
    parts = [
        updates(images, 5, accumulation=2, rank=r, world_size=world_size, workers=workers) for r in range(world_size)
    ]
    assert {d for *_, damaged in whole[10:] for d in damaged} == {
        d for p in parts for *_, damaged in p for d in damaged
    }
    for number, (pixels, labels, damaged) in enumerate(whole[10:]):
        np.testing.assert_array_equal(np.concatenate([part[number][0] for part in parts]), pixels)
        assert all(np.array_equal(part[number][1], labels) for part in parts)
        assert set(damaged) == {d for part in parts for d in part[number][2]}


def test_nothing_damaged_costs_nothing():
    assert all(damaged == () for *_, damaged in updates(InMemory(), workers=1))


class Counting(InMemory):
    tried = 0

    def encoded(self, i):
        type(self).tried += 1
        return super().encoded(i)


def test_past_the_budget_nobody_is_looked_for():
    """Every image unreadable must not become a search of every image for every image."""
    images = Counting(n=2000, classes=2, broken=range(2000))
    Counting.tried = 0
    ((pixels, _, damaged),) = updates(images, 0, 1, batch_size=500, max_damaged=100, augment=PLAIN)
    assert (pixels == GREY).all()
    assert 100 < len(damaged) <= 700
    assert Counting.tried <= 700


class Changing(InMemory):
    """Its file is cut after ``after`` images were read."""

    def __init__(self, after, **options):
        super().__init__(**options)
        self.after = after

    def encoded(self, i):
        self.after -= 1
        return super().encoded(i)[: None if self.after > 0 else 30]

    def check_unchanged(self):
        if self.after <= 0:
            raise FileChangedError("train.rec shrank")


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("after", [1, 6, 13, 31])
def test_a_changed_file_is_no_damaged_image(workers, after):
    steps = loader(Changing(after), workers).iterate(0, 12)
    seen = []
    with pytest.raises(InputError, match=r"^train\.rec shrank$"):
        seen.extend(batch for batches in steps for batch in batches)
    assert all(batch.damaged == () for batch in seen)
    if not workers:
        assert len(seen) == (after - 1) // 12


def test_a_photo_that_is_gone_is_replaced_and_a_folder_that_is_gone_is_not(tmp_path):
    images = InMemory(n=6, classes=2)
    for i, jpeg in enumerate(images.jpegs):
        (tmp_path / "in" / str(i % 2)).mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / str(i % 2) / f"{i}.jpg").write_bytes(jpeg)
    photos = PhotoFiles(tmp_path / "in", [f"{i % 2}/{i}.jpg" for i in range(6)], images.labels)
    (tmp_path / "in" / "0" / "2.jpg").unlink()
    ((pixels, _, damaged),) = updates(photos, 0, 1, batch_size=6, augment=PLAIN)
    assert damaged == (Damaged(2, str(tmp_path / "in" / "0" / "2.jpg"), "cannot be read: No such file or directory"),)
    stand_in = decode(images.jpegs[next(others(images.labels, 3, 2))])
    np.testing.assert_array_equal(pixels[batch_indices(6, 6, 3, 0)[1].tolist().index(2)], stand_in)
    (tmp_path / "in").rename(tmp_path / "elsewhere")
    with pytest.raises(InputError, match=r"in disappeared while its photos were read; restore it"):
        updates(photos, 0, 1, batch_size=6)


class FakeDali(DaliDecoder):
    """Our decoder behind DALI's interface: it knows only whole batches, and names the first that fails."""

    def __init__(self, size, device_id, threads):
        self.size = size

    def decode(self, encoded, where=None):
        rows = []
        for position, image in enumerate(encoded):
            try:
                rows.append(decode(image, self.size))
            except InputError as error:
                raise UndecodableError(f"{where(position)}: {error}", position) from None
        return torch.from_numpy(np.stack(rows))


def test_dali_gets_the_same_stand_ins(monkeypatch):
    monkeypatch.setattr("facetrain.data.loader.DaliDecoder", FakeDali)
    images = InMemory(broken=BROKEN)
    images.jpegs[20] = b"not even a header"
    for native, dali in zip(updates(images, augment=PLAIN), updates(images, augment=PLAIN, reader="dali"), strict=True):
        np.testing.assert_array_equal(native[0], dali[0])
        assert set(native[2]) == set(dali[2])


def test_one_person_one_image_and_batches_as_large_as_the_data():
    from facetrain.config import DataConfig

    one = Loader(InMemory(n=1, classes=1), DataConfig(path="memory", workers=0), 16, 1)
    assert one.steps_per_epoch == 1
    assert [batch.labels.tolist() for batches in one.iterate(0, 3) for batch in batches] == [[0]] * 3
    broken = Loader(InMemory(n=1, classes=1, broken=[0]), DataConfig(path="memory", workers=0), 16, 1)
    ((batch,),) = broken.iterate(0, 1)
    assert (batch.images == GREY).all()
    same = InMemory(n=9, classes=1, broken=[4])
    pixels, labels, damaged = updates(same, 0, 1, batch_size=9, augment=PLAIN)[0]
    assert labels.tolist() == [0] * 9
    assert [d.image for d in damaged] == [4]
    assert not (pixels == GREY).all(axis=(1, 2, 3)).any()
    with pytest.raises(InputError, match=r"9 images, fewer than one batch of train.batch_size 10: set .* at most 9"):
        updates(same, batch_size=10)
