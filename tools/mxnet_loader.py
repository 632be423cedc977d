"""The per-item loader that projects on mxnet's records use, plainly and for comparison only.

For each image by itself: mxnet reads the record, unpacks it and decodes it; torchvision's usual transforms, whose
operations are written out here, mirror half of the images in Pillow and make normalised float32 tensors; PyTorch's
DataLoader stacks the items.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch.utils.data import DataLoader, Dataset, RandomSampler

from facetrain.data.foreign_readers import import_mxnet

Item = tuple[torch.Tensor, torch.Tensor]


class PerItem(Dataset[Item]):
    """Image number -> ((3, H, W) float32 in -1..1, label)."""

    def __init__(self, rec: Path) -> None:
        """Open ``rec`` with the .idx beside it; InputError where mxnet is missing."""
        self._mxnet = import_mxnet()
        self._reader = self._mxnet.recordio.MXIndexedRecordIO(str(rec.with_suffix(".idx")), str(rec), "r")
        first, _ = self._mxnet.recordio.unpack(self._reader.read_idx(self._reader.keys[0]))
        # With a vector of labels the first record says where those of the images end; else it is an image itself.
        self.keys = range(1, int(first.label[0])) if first.flag > 0 else self._reader.keys

    def __len__(self) -> int:
        """Number of images."""
        return len(self.keys)

    def __getitem__(self, i: int) -> Item:
        """Read, decode, normalise, perhaps mirror."""
        header, encoded = self._mxnet.recordio.unpack(self._reader.read_idx(self.keys[i]))
        decoded = self._mxnet.image.imdecode(encoded).asnumpy()
        label = header.label if header.flag == 0 else header.label[0]
        return transformed(decoded), torch.tensor(int(label))


def transformed(pixels: NDArray[np.uint8]) -> torch.Tensor:
    """What ToPILImage, RandomHorizontalFlip, ToTensor and Normalize(0.5, 0.5) do to (H, W, 3) RGB, one by one."""
    picture = Image.fromarray(pixels)
    if torch.rand(1) < 0.5:
        picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    image = torch.from_numpy(np.array(picture, np.uint8, copy=True)).permute(2, 0, 1).contiguous()
    image = image.to(torch.float32).div(255)
    mean = std = torch.tensor([0.5, 0.5, 0.5]).view(-1, 1, 1)
    return image.clone().sub_(mean).div_(std)


def batches(rec: Path, batch_size: int, workers: int) -> Iterator[torch.Tensor]:
    """(batch_size, 3, H, W) float32, without end."""
    images = PerItem(rec)
    order = RandomSampler(images, replacement=True, num_samples=10**9)
    for pixels, _ in DataLoader(images, batch_size, sampler=order, num_workers=workers):
        yield pixels
