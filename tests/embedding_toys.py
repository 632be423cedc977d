"""A small backbone, photos, and ranks within this process, for the tests of embedding."""

from __future__ import annotations

import threading

import numpy as np
import torch
from torch import nn

from facetrain.data.encoded import Encoded
from facetrain.data.images import decode, encode_jpeg
from facetrain.distributed import World
from facetrain.models import normalise

SIZE = 16


class Toy(nn.Module):
    """Sees left from right, and says whether it was run as in training."""

    def __init__(self):
        super().__init__()
        self.flat = nn.Linear(3 * SIZE * SIZE, 5)
        own = torch.Generator().manual_seed(1)  # these are built in threads, which share torch's generator
        self.flat.weight.data = torch.randn(self.flat.weight.shape, generator=own) * 0.05
        self.flat.bias.data.zero_()
        self.norm = nn.BatchNorm1d(5)
        self.seen = 0

    def forward(self, x):
        assert not torch.is_grad_enabled()
        assert not self.norm.training
        assert x.dtype == torch.float32
        self.seen += len(x)
        return self.norm(self.flat(x.flatten(1)))


class Photos(Encoded):
    def __init__(self, count, broken=(), side=SIZE):
        rng = np.random.default_rng(0)
        self.files = [encode_jpeg(rng.integers(0, 255, (side, side, 3), np.uint8)) for _ in range(count)]
        for i in broken:
            self.files[i] = b"\xff\xd8 cut"
        self.labels = np.arange(count) % 3

    def __len__(self):
        return len(self.files)

    def encoded(self, i):
        return self.files[i]

    def where(self, i):
        return f"album page {i}"


class Together(World):
    """Ranks as threads of this process, with collectives through a list and a barrier.

    Not processes as in ``ranks.py``: these tests count what each rank's toy did, replace functions under it and compare
    the errors that ranks raise, and threads start in no time. That real processes gather alike is test_distributed's.
    """

    def join(self, box, lock):
        object.__setattr__(self, "box", box)
        object.__setattr__(self, "lock", lock)
        return self

    def gather_objects(self, thing):
        self.box[self.rank] = thing
        self.lock.wait()
        everyone = list(self.box)
        self.lock.wait()
        return everyone

    def gather_rows(self, rows, total):
        assert len(rows) == len(self.rows_of(total))
        return torch.cat(self.gather_objects(rows))

    def broadcast_object(self, thing):
        return self.gather_objects(thing)[0]


def on_ranks(count, work):
    box, lock, results = [None] * count, threading.Barrier(count, timeout=20), [None] * count

    def one(rank):
        try:
            results[rank] = work(Together(rank, count).join(box, lock))
        except Exception as error:
            results[rank] = error

    threads = [threading.Thread(target=one, args=(rank,)) for rank in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


def expected(photos, flip):
    toy = Toy().eval()
    pixels = torch.from_numpy(np.stack([decode(file, SIZE) for file in photos.files]))
    with torch.no_grad():
        images = normalise(pixels)
        rows = toy(images)
        return (rows + toy(images.flip(3)) if flip else rows).numpy()
