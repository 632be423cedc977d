import os
import signal
import time

import numpy as np
import pytest
import torch
from record_helpers import InMemory

from facetrain.config import AugmentConfig, DataConfig
from facetrain.data.foreign_readers import MxnetImages
from facetrain.data.images import decode
from facetrain.data.loader import Loader
from facetrain.data.sampler import batch_indices
from facetrain.errors import InputError, LostRankError
from facetrain.partition import rows

AUGMENT = AugmentConfig(flip=0.5, crop=0.5, color=0.5, erase=0.3)


def loader(images, workers=0, batch_size=12, accumulation=1, rank=0, world_size=1, size=16, **config):
    data = DataConfig(path="memory", workers=workers, prefetch=2, **{"augment": AUGMENT, **config})
    return Loader(images, data, size, batch_size, accumulation, seed=3, rank=rank, world_size=world_size)


def collect(loader, start, stop):
    """{(step, micro-batch): (own images, all labels)}"""
    return {
        (step, number): (batch.images.numpy().copy(), batch.labels)
        for step, batches in zip(range(start, stop), loader.iterate(start, stop), strict=True)
        for number, batch in enumerate(batches)
    }


def test_a_batch_holds_what_the_order_says():
    images = InMemory()
    plain = loader(images, augment=AugmentConfig(flip=0.0))
    assert plain.steps_per_epoch == 4
    seen = 0
    for step, (batch,) in enumerate(plain.iterate(0, 6)):
        seen += 1
        _, indices = batch_indices(50, 12, 3, step)
        assert batch.images.dtype == torch.uint8
        assert batch.images.shape == (12, 16, 16, 3)
        assert batch.labels.dtype == np.int64
        np.testing.assert_array_equal(batch.labels, images.labels[indices])
        np.testing.assert_array_equal(batch.images, np.stack([decode(images.jpegs[i]) for i in indices]))
    assert seen == 6


@pytest.mark.parametrize("workers", [0, 1, 2])
@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_ranks_and_workers_change_nothing(world_size, workers):
    images = InMemory()
    whole = collect(loader(images, accumulation=3), 2, 7)
    parts = [collect(loader(images, workers, 12, 3, rank, world_size), 2, 7) for rank in range(world_size)]
    assert list(whole) == [(step, micro) for step in range(2, 7) for micro in range(3)]
    for key, (pixels, labels) in whole.items():
        assert pixels.shape[0] == 4
        np.testing.assert_array_equal(np.concatenate([part[key][0] for part in parts]), pixels)
        for rank, part in enumerate(parts):
            np.testing.assert_array_equal(part[key][1], labels)
            assert len(part[key][0]) == len(labels[rows(4, world_size, rank)])


def test_accumulation_cuts_the_same_batch():
    images = InMemory()
    (whole,) = next(iter(loader(images).iterate(3, 4)))
    parts = next(iter(loader(images, accumulation=4).iterate(3, 4)))
    np.testing.assert_array_equal(torch.cat([part.images for part in parts]), whole.images)
    np.testing.assert_array_equal(np.concatenate([part.labels for part in parts]), whole.labels)


def test_a_start_in_the_middle_equals_the_rest():
    images = InMemory()
    whole = collect(loader(images, accumulation=2), 0, 9)
    rest = collect(loader(images, workers=1, accumulation=2), 5, 9)
    assert list(rest) == list(whole)[10:]
    for key in rest:
        np.testing.assert_array_equal(rest[key][0], whole[key][0])
    assert list(loader(images).iterate(4, 4)) == []


def test_the_same_image_differs_by_epoch():
    images = InMemory(n=12)
    pixels = collect(loader(images), 0, 2)
    one, two = (pixels[step, 0][0][np.argsort(batch_indices(12, 12, 3, step)[1])] for step in (0, 1))
    assert not np.array_equal(one, two)


def test_more_ranks_than_rows():
    images = InMemory()
    counts = [len(next(iter(loader(images, 1, 4, 2, rank, 3).iterate(0, 1)))[0].images) for rank in range(3)]
    assert counts == [1, 1, 0]


def test_images_of_another_size_are_resized():
    images = InMemory()
    (batch,) = next(iter(loader(images, size=20, augment=AugmentConfig(flip=0.0)).iterate(0, 1)))
    _, indices = batch_indices(50, 12, 3, 0)
    np.testing.assert_array_equal(batch.images[0], decode(images.jpegs[indices[0]], 20))


class Lethal(InMemory):
    def encoded(self, i):
        os.kill(os.getpid(), signal.SIGKILL)


def test_a_killed_worker_is_one_clear_line():
    expected = r"a decoding worker died: .*DataLoader worker .*lower data.workers"
    with pytest.raises(LostRankError, match=expected) as caught:
        list(loader(Lethal(), workers=1).iterate(0, 4))
    assert "\n" not in str(caught.value)


class Interrupted(InMemory):
    def encoded(self, i):
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.001)
        return super().encoded(i)


def test_workers_outlive_signals_meant_for_the_trainer():
    calm = collect(loader(InMemory(), workers=0), 0, 2)
    shaken = collect(loader(Interrupted(), workers=1), 0, 2)
    for key in calm:
        np.testing.assert_array_equal(shaken[key][0], calm[key][0])


def test_leaving_early_ends_the_workers():
    before = children()
    updates = loader(InMemory(n=200), workers=2).iterate(0, 1000)
    next(updates)
    assert len(children() - before) == 2
    updates.close()
    deadline = time.monotonic() + 10
    while children() - before and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not children() - before


def children():
    import multiprocessing

    return {process.pid for process in multiprocessing.active_children()}


def test_too_few_images():
    with pytest.raises(InputError, match=r"50 images, fewer than one batch of train.batch_size 60"):
        loader(InMemory(), batch_size=60)


def test_dali_gives_the_same_batches():
    pytest.importorskip("nvidia.dali")
    batches = [next(iter(loader(InMemory(), reader=reader).iterate(0, 1)))[0] for reader in ("native", "dali")]
    assert (batches[0].images.int() - batches[1].images.int()).abs().max() <= 3


class FromMxnet(MxnetImages):
    """What mxnet would hand over, without mxnet."""

    def __init__(self, images):
        self.images, self.labels, self.num_classes = images, images.labels, images.num_classes

    def __len__(self):
        return len(self.images)

    def __getstate__(self):
        return self.images

    def where(self, i):
        return self.images.where(i)

    def check_unchanged(self):
        self.images.check_unchanged()

    def decode_image(self, i):
        return decode(self.images.jpegs[i])


def test_mxnet_decodes_where_it_reads():
    images = InMemory()
    for size in (16, 20):
        (native,) = next(iter(loader(images, size=size).iterate(0, 1)))
        (foreign,) = next(iter(loader(FromMxnet(images), size=size, reader="mxnet").iterate(0, 1)))
        assert torch.equal(native.images, foreign.images)
