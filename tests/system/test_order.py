"""Resume at any step, with any number of ranks: the same images, the same flips and crops, each once an epoch.

Quick, ci and release counts: see scale.py.
"""

import random
from dataclasses import replace

import numpy as np
import pytest
from scale import scale, seed

from facetrain.config import AugmentConfig, DataConfig
from facetrain.data.dataset import PhotoFiles
from facetrain.data.images import encode_jpeg
from facetrain.data.loader import Loader
from facetrain.data.sampler import batch_indices, steps_per_epoch

AUGMENT = AugmentConfig(flip=0.5, crop=0.5, color=0.5, low_resolution=0.3, blur=0.3, gray=0.2, erase=0.3)
IMAGES, CLASSES, SIDE, BATCH = 67, 9, 16, 12
EPOCHS = 3
STEPS = EPOCHS * (IMAGES // BATCH)


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Each of one level, so that pixels without augmentation tell the image; three are damaged."""
    folder = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    for i in range(IMAGES):
        picture = np.kron(rng.integers(0, 256, (4, 4, 3), dtype=np.uint8), np.ones((4, 4, 1), np.uint8))
        (folder / f"{i}.jpg").write_bytes(encode_jpeg(picture))
    for i in (3, 12, 40):
        (folder / f"{i}.jpg").write_bytes(b"damaged")
    return PhotoFiles(folder, [f"{i}.jpg" for i in range(IMAGES)], np.arange(IMAGES) % CLASSES)


def batches(photos, start, stop, accumulation=1, rank=0, world_size=1, workers=0):
    data = DataConfig(path="photos", workers=workers, prefetch=2, augment=AUGMENT)
    loader = Loader(photos, data, SIDE, BATCH, accumulation, seed=5, rank=rank, world_size=world_size)
    return [[replace(batch, images=batch.images.clone()) for batch in update] for update in loader.iterate(start, stop)]


def whole(parts):
    """The global batches of an update from its ranks' micro-batches: pixels, labels, damaged images."""
    pixels = [np.concatenate([batch.images.numpy() for batch in micro]) for micro in zip(*parts, strict=True)]
    labels = [micro[0].labels for micro in zip(*parts, strict=True)]
    met = {damaged for part in parts for batch in part for damaged in batch.damaged}
    return np.concatenate(pixels), np.concatenate(labels), met


def random_resumes(photos, count, generator):
    """Compare ``count`` resumes at random steps with the run that was not stopped."""
    rng = random.Random(generator)
    truth = [whole([update]) for update in batches(photos, 0, STEPS)]
    for number in range(count):
        start, world_size = rng.randrange(STEPS), (1, 2, 4)[number % 3]
        stop = min(STEPS, start + rng.randint(1, 6))
        accumulation, workers = rng.choice((1, 2, 3)), rng.choice((0, 0, 0, 1))
        parts = [batches(photos, start, stop, accumulation, rank, world_size, workers) for rank in range(world_size)]
        for step, update in zip(range(start, stop), zip(*parts, strict=True), strict=True):
            pixels, labels, met = whole(update)
            what = f"step {step} of a resume at {start}, {world_size} ranks, {accumulation} micro-batches"
            np.testing.assert_array_equal(pixels, truth[step][0], err_msg=what)
            np.testing.assert_array_equal(labels, truth[step][1], err_msg=what)
            assert met == truth[step][2], what


def test_each_image_at_most_once_an_epoch():
    """Of random sizes: all but the last short batch, each once, from wherever the epoch is entered."""
    rng = random.Random(seed())
    for _ in range(scale(quick=50, ci=200, release=2000)):
        n, key = rng.randint(1, 3000), rng.getrandbits(60)
        batch = rng.randint(1, n)
        per_epoch = steps_per_epoch(n, batch)
        assert per_epoch * batch + n % batch == n
        epoch = rng.randrange(20)
        first = epoch * per_epoch
        ids = [batch_indices(n, batch, key, step) for step in range(first, first + per_epoch)]
        assert {number for number, _ in ids} == {epoch}
        seen = np.concatenate([indices for _, indices in ids])
        assert len(np.unique(seen)) == len(seen) == per_epoch * batch
        assert seen.min() >= 0
        assert seen.max() < n
        start = rng.randrange(per_epoch)
        rest = np.concatenate(
            [batch_indices(n, batch, key, step)[1] for step in range(first + start, first + per_epoch)]
        )
        np.testing.assert_array_equal(rest, seen[start * batch :])


def test_an_epoch_of_one_image_and_of_one_batch():
    assert batch_indices(1, 1, 0, 7)[0] == 7
    assert batch_indices(1, 1, 0, 7)[1].tolist() == [0]
    for step in range(5):
        epoch, indices = batch_indices(9, 9, 0, step)
        assert epoch == step
        assert sorted(indices.tolist()) == list(range(9))


def test_a_resume_at_any_step(photos):
    random_resumes(photos, 20, seed())


@pytest.mark.faults
def test_resumes_at_many_steps(photos):
    random_resumes(photos, scale(quick=20, ci=50, release=500), seed() + 1)
