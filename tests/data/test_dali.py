"""DALI decodes our bytes in our order (needs nvidia-dali; runs on its CPU decoder, or on a GPU where there is one)."""

import importlib.util

import cv2
import numpy as np
import pytest
import simplejpeg
import torch

from facetrain.data.foreign_readers import DaliDecoder
from facetrain.data.record_writer import RecordWriter
from facetrain.data.recordio import RecordFile
from facetrain.errors import InputError

try:
    HAVE_DALI = importlib.util.find_spec("nvidia.dali") is not None
except ModuleNotFoundError:
    HAVE_DALI = False
installed = pytest.mark.skipif(not HAVE_DALI, reason="nvidia-dali is not installed")
DEVICES = [None, *range(min(torch.cuda.device_count(), 1))]


def face(seed, height=112, width=112):
    small = np.random.default_rng(seed).integers(0, 256, (7, 7, 3), dtype=np.uint8)
    return np.ascontiguousarray(cv2.resize(small, (width, height), interpolation=cv2.INTER_CUBIC))


@pytest.mark.skipif(HAVE_DALI, reason="nvidia-dali is installed")
def test_without_dali_the_message_says_what_to_do():
    with pytest.raises(InputError, match="pip install nvidia-dali-cuda120"):
        DaliDecoder(112, None, 1)


@installed
@pytest.mark.parametrize("device", DEVICES)
def test_order_and_pixels(tmp_path, device):
    images = [face(seed) for seed in range(12)]
    with RecordWriter(tmp_path / "train.rec") as writer:
        for label, image in enumerate(images):
            writer.write(label, simplejpeg.encode_jpeg(image, 95))
    file = RecordFile(tmp_path / "train.rec")
    decoder = DaliDecoder(112, device, 1)
    for chosen in ([5, 3, 11], [0], list(range(11, -1, -1))):  # a batch larger than the first, and smaller ones
        got = decoder.decode([file.encoded(i) for i in chosen]).cpu()
        assert got.dtype == torch.uint8
        expected = np.stack([simplejpeg.decode_jpeg(file.encoded(i)) for i in chosen])
        # libjpeg-turbo on the CPU gives the same pixels; nvJPEG may round otherwise.
        assert np.abs(got.numpy().astype(int) - expected).max() <= (0 if device is None else 6)


@installed
def test_other_sizes_and_formats_are_resized():
    png = cv2.imencode(".png", face(0)[..., ::-1])[1].tobytes()
    large = simplejpeg.encode_jpeg(face(0, 168, 224), 95)
    got = DaliDecoder(112, None, 1).decode([png, large]).numpy()
    assert got.shape == (2, 112, 112, 3)
    assert np.array_equal(got[0], face(0))
    assert np.abs(got[1].astype(int) - face(0)).mean() < 8


@installed
@pytest.mark.parametrize("bad", [b"", b"no image" * 9, simplejpeg.encode_jpeg(face(1), 95)[:-300]])
def test_damaged_image_is_named_and_the_next_batch_works(bad):
    good = simplejpeg.encode_jpeg(face(1), 95)
    decoder = DaliDecoder(112, None, 1)
    with pytest.raises(InputError, match="record 8: DALI cannot decode it"):
        decoder.decode([good, bad, good], lambda position: f"record {7 + position}")
    assert decoder.decode([good]).shape == (1, 112, 112, 3)
