import numpy as np
import pytest

from facetrain.config import AugmentConfig
from facetrain.data.augment import augment

NONE = {"flip": 0.0}
OPERATIONS = ["crop", "color", "gray", "low_resolution", "blur", "erase", "flip"]
EVERYTHING = AugmentConfig(crop=0.5, color=0.5, gray=0.3, low_resolution=0.3, blur=0.3, erase=0.3, flip=0.5)


def batch(n=8, height=32, width=32):
    return np.random.default_rng(0).integers(0, 256, (n, height, width, 3), dtype=np.uint8)


def test_nothing_on_changes_nothing():
    images = batch()
    np.testing.assert_array_equal(augment(images.copy(), AugmentConfig(**NONE), 0, 0, np.arange(8)), images)


@pytest.mark.parametrize("name", OPERATIONS)
@pytest.mark.parametrize("shape", [(96, 96), (90, 101), (1, 1)])
def test_each_operation_works_in_place_on_any_shape(name, shape):
    images = batch(8, *shape)
    before = images.copy()
    result = augment(images, AugmentConfig(**{**NONE, name: 1.0}), 3, 1, np.arange(8))
    assert result is images
    if shape != (1, 1):
        changed = sum((image != old).any() for image, old in zip(images, before, strict=True))
        assert changed == 8


def test_flip_mirrors_about_half_the_images():
    images = np.repeat(batch(1), 400, axis=0)
    result = augment(images.copy(), AugmentConfig(flip=0.5), 0, 0, np.arange(400))
    mirrored = (result == images[:, :, ::-1]).all(axis=(1, 2, 3))
    unchanged = (result == images).all(axis=(1, 2, 3))
    assert (mirrored ^ unchanged).all()
    assert 160 < mirrored.sum() < 240


def test_gray_is_the_luma():
    images = batch()
    luma = images @ np.array([0.299, 0.587, 0.114])
    result = augment(images.copy(), AugmentConfig(flip=0.0, gray=1.0), 0, 0, np.arange(8))
    assert np.abs(result - luma[..., None]).max() <= 1


def test_color_keeps_within_its_strength():
    images = np.full((200, 8, 8, 3), 100, np.uint8)
    result = augment(images, AugmentConfig(flip=0.0, color=1.0, color_strength=0.2), 0, 0, np.arange(200))
    # On a flat grey image contrast and saturation do nothing and brightness is all.
    assert np.ptp(result.astype(int), axis=(1, 2, 3)).max() <= 1
    assert result.min() >= 79
    assert result.max() <= 121
    assert np.ptp(result[:, 0, 0, 0]) > 30


def test_erase_covers_its_share():
    images = np.zeros((300, 64, 64, 3), np.uint8)
    shares = (augment(images, AugmentConfig(flip=0.0, erase=1.0), 0, 0, np.arange(300)) == 128).mean(axis=(1, 2, 3))
    assert shares.min() > 0.015
    assert shares.max() < 0.21
    assert shares.max() - shares.min() > 0.12


def test_draws_depend_on_the_image_alone():
    images = batch(20)
    whole = augment(images.copy(), EVERYTHING, 7, 2, np.arange(100, 120))
    shuffled = np.random.default_rng(1).permutation(20)
    again = augment(images[shuffled].copy(), EVERYTHING, 7, 2, 100 + shuffled)
    np.testing.assert_array_equal(again, whole[shuffled])
    single = augment(images[4:5].copy(), EVERYTHING, 7, 2, np.array([104]))
    np.testing.assert_array_equal(single[0], whole[4])


@pytest.mark.parametrize(("seed", "epoch", "offset"), [(8, 2, 100), (7, 3, 100), (7, 2, 101)])
def test_seed_epoch_and_image_all_count(seed, epoch, offset):
    images = batch(20)
    whole = augment(images.copy(), EVERYTHING, 7, 2, np.arange(100, 120))
    other = augment(images.copy(), EVERYTHING, seed, epoch, np.arange(offset, offset + 20))
    assert (other != whole).any()


def test_an_operation_does_not_shift_the_draws_of_others():
    images = batch(50)
    flips = augment(images.copy(), AugmentConfig(flip=0.5), 0, 0, np.arange(50))
    both = augment(images.copy(), AugmentConfig(flip=0.5, gray=0.2), 0, 0, np.arange(50))
    coloured = (both[..., 0] != both[..., 1]).any(axis=(1, 2))
    assert 20 < coloured.sum() < 50
    np.testing.assert_array_equal(both[coloured], flips[coloured])
