"""Buffers that are used again: never while a batch in them is valid, none left behind, no pixel changed."""

import gc
import multiprocessing
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from record_helpers import InMemory
from test_loader import AUGMENT, collect, loader

from facetrain.data import loader as module
from facetrain.data.augment import augment
from facetrain.data.images import decode
from facetrain.data.ring import Ring, ring
from facetrain.data.sampler import batch_indices
from facetrain.errors import InputError
from facetrain.partition import rows


def expected(images, step, accumulation=1, rank=0, world_size=1):
    """The own images of an update's micro-batches from their definition, without loader, ring or workers."""
    epoch, indices = batch_indices(len(images), 12, 3, step)
    for part in range(accumulation):
        micro = indices[rows(12, accumulation, part)]
        own = micro[rows(len(micro), world_size, rank)]
        pixels = np.stack([decode(images.jpegs[i]) for i in own]) if len(own) else np.empty((0, 16, 16, 3), np.uint8)
        yield augment(pixels, AUGMENT, 3, epoch, own)


@pytest.mark.parametrize("workers", [0, 1, 2])
@pytest.mark.parametrize("accumulation", [1, 3, 12])
@pytest.mark.parametrize("world_size", [1, 2, 5])
def test_pixels_are_those_of_the_definition(workers, accumulation, world_size):
    """12 micro-batches of one image leave four of five ranks without any."""
    images = InMemory()
    for rank in range(world_size):
        found = collect(loader(images, workers, accumulation=accumulation, rank=rank, world_size=world_size), 3, 7)
        for step in range(3, 7):
            for part, pixels in enumerate(expected(images, step, accumulation, rank, world_size)):
                np.testing.assert_array_equal(found[step, part][0], pixels)


class Counted(InMemory):
    """Counts, over all processes, the images that were asked for."""

    def __init__(self):
        super().__init__(n=240)
        self.asked = multiprocessing.get_context("fork").Semaphore(0)

    def encoded(self, i):
        self.asked.release()
        return super().encoded(i)


def overwritten(monkeypatch, workers, accumulation, spare):
    """Updates with a batch that changed before the next was asked for, though all that may be written was.

    ``spare``: buffers more than the loader would have. The workers are waited for, not a time: an update is judged
    when all images are asked for of which its being handed over allows the decoding.
    """
    monkeypatch.setattr(module, "Ring", lambda slots, *shape: Ring(slots + spare, *shape))
    images, changed, asked, last = Counted(), 0, 0, 8 * accumulation
    steps = loader(images, workers, accumulation=accumulation).iterate(0, 8)
    for step, batches in enumerate(steps):
        sent_out = min(last, (step + 1) * accumulation + workers * 2)  # micro-batches; prefetch is 2
        while asked < sent_out * 12 // accumulation:
            assert images.asked.acquire(timeout=60), "the workers decode less than DataLoader lets them"
            asked += 1
        assert not images.asked.acquire(block=False), "the workers decode more than DataLoader lets them"
        right = zip(batches, expected(images, step, accumulation), strict=True)
        changed += not all(np.array_equal(batch.images, pixels) for batch, pixels in right)
    assert asked == last * 12 // accumulation
    return changed


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("accumulation", [1, 3])
def test_no_batch_is_overwritten_while_it_is_valid(monkeypatch, workers, accumulation):
    assert overwritten(monkeypatch, workers, accumulation, spare=0) == 0


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("accumulation", [1, 3])
def test_one_buffer_fewer_would_not_do(monkeypatch, workers, accumulation):
    """So the test above can fail, and no buffer is wasted."""
    assert overwritten(monkeypatch, workers, accumulation, spare=-1) > 0


def test_without_workers_too():
    images = InMemory()
    for step, batches in enumerate(loader(images, accumulation=3).iterate(0, 6)):
        for batch, pixels in zip(batches, expected(images, step, 3), strict=True):
            np.testing.assert_array_equal(batch.images, pixels)


def test_buffers_are_used_again():
    """One address for each buffer: two workers with two batches each, and the consumer's."""
    places = {batch.images.data_ptr() for (batch,) in loader(InMemory(), 2).iterate(0, 30)}
    assert len(places) == 5


def shared_memory(process="self"):
    """What a process has mapped of memory that it shares, and of /dev/shm."""
    lines = Path(f"/proc/{process}/maps").read_text().splitlines()
    return sum(" /dev/zero (deleted)" in line for line in lines), [line for line in lines if "/dev/shm" in line]


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
@pytest.mark.parametrize("workers", [0, 2])
def test_nothing_is_left_behind(workers):
    before = shared_memory()[0]
    steps = loader(InMemory(), workers).iterate(0, 30)
    next(steps)
    (batch,) = next(steps)
    assert shared_memory()[0] == before + 1
    for process in ["self", *(child.pid for child in multiprocessing.active_children())]:
        assert all("/sem." in line or "/mp-" in line for line in shared_memory(process)[1])
        for handle in Path(f"/proc/{process}/fd").iterdir():
            assert not os.path.realpath(handle).startswith("/dev/shm")
    steps.close()
    gc.collect()
    batch.images.sum()  # still there, whatever it holds by now
    assert shared_memory()[0] == before + 1
    del batch
    gc.collect()
    assert shared_memory()[0] == before


SMALL = """
import sys, numpy as np
sys.path.insert(0, sys.argv[1])
from record_helpers import InMemory
from test_loader import loader
steps = loader(InMemory(n=300, side=112), 2, batch_size=200, size=112).iterate(0, 4)
print(sum(int(batch.images.sum(dtype=int)) for (batch,) in steps))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="namespaces are Linux's")
def test_a_small_dev_shm_is_no_limit():
    """Batches of 7.5 MB beside a /dev/shm of 1 MB, in a mount namespace of its own."""
    mounted = "mount -t tmpfs -o size=1m none /dev/shm && exec "
    if subprocess.run(["unshare", "-rm", "sh", "-c", mounted + "true"], capture_output=True, check=False).returncode:
        pytest.skip("this user may not make a mount namespace")
    code = [sys.executable, "-c", SMALL, str(Path(__file__).parent)]
    done = subprocess.run(
        ["unshare", "-rm", "sh", "-c", mounted + '"$@"', "sh", *code], capture_output=True, text=True, check=False
    )
    whole = loader(InMemory(n=300, side=112), 0, batch_size=200, size=112).iterate(0, 4)
    assert done.stdout.split() == [str(sum(int(batch.images.sum(dtype=torch.int64)) for (batch,) in whole))], (
        done.stderr
    )


def test_no_memory_is_one_clear_line():
    with pytest.raises(InputError, match=r"no memory for .* GB of image buffers .*: lower data.workers") as caught:
        Ring(2**20, 2**12, 4096)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 200


def test_page_locked_copies_outlive_their_buffer(monkeypatch):
    """What torch's thread calls before a buffer is free again; page-locking itself needs a GPU."""
    monkeypatch.setattr(torch.Tensor, "pin_memory", torch.Tensor.clone)
    buffers = Ring(2, 3, 4)
    buffers.images(5).fill_(7)
    item = module._Decoded(buffers.key, 5, np.arange(3), ()).pin_memory()
    buffers.images(7).fill_(9)
    assert (item.batch().images == 7).all()
    assert ring(buffers.key) is buffers


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("workers", [0, 2])
def test_page_locked_batches_on_a_gpu(workers):
    images, seen = InMemory(), []
    data = loader(images, workers)
    data.pin_memory = True
    for (batch,) in data.iterate(0, 12):
        assert batch.images.is_pinned()
        seen.append(batch.images.to("cuda", non_blocking=True))  # not waited for
    for step, pixels in enumerate(seen):
        np.testing.assert_array_equal(pixels.cpu(), next(expected(images, step)))
