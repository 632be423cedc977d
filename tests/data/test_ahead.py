"""A thread that makes items ahead: how far, in what order, and how it ends."""

import threading
from contextlib import contextmanager, nullcontext

import numpy as np
import pytest
from record_helpers import InMemory
from test_damage import BROKEN, FakeDali
from test_loader import loader
from test_ring import expected

from facetrain.data import loader as module
from facetrain.data.ahead import made_ahead
from facetrain.data.encoded import FileChangedError


class Items:
    """0, 1, ... ``count`` - 1, and how many were begun; then StopIteration or ``error``."""

    def __init__(self, count, error=None):
        self.count, self.error = count, error
        self.begun = threading.Semaphore(0)
        self.number = -1

    def __iter__(self):
        return self

    def __next__(self):
        self.number += 1
        self.begun.release()
        if self.number == self.count:
            raise self.error or StopIteration
        return self.number


@pytest.mark.parametrize("depth", [1, 2, 5])
def test_order_and_distance(depth):
    """Exactly ``depth`` beyond the item handed over are begun: waited for, and none more is."""
    items, begun = Items(30), 0
    for n in made_ahead(items, depth, nullcontext):
        while begun < min(n + depth + 1, 31):
            assert items.begun.acquire(timeout=60)
            begun += 1
        assert not items.begun.acquire(blocking=False)
    assert n == 29
    assert threading.active_count() == before_count()


def before_count():
    return len([thread for thread in threading.enumerate() if thread.name != "decoding ahead"])


def test_errors_come_in_their_place():
    seen = []
    with pytest.raises(KeyError, match="seven"):
        seen.extend(made_ahead(Items(7, KeyError("seven")), 3, nullcontext))
    assert threading.active_count() == before_count()
    with pytest.raises(ZeroDivisionError):
        list(made_ahead(Items(7), 3, lambda: 1 // 0))


def test_leaving_early_ends_the_thread():
    items = made_ahead(Items(10**9), 4, nullcontext)
    assert [next(items) for _ in range(5)] == [0, 1, 2, 3, 4]
    items.close()
    assert threading.active_count() == before_count()


@pytest.fixture
def decoding_gpu(monkeypatch):
    """DALI on a GPU, of which there is none: our decoder in DALI's place, and the thread's surroundings noted."""
    entered = []

    @contextmanager
    def beside_training(gpu):
        entered.append((gpu, threading.current_thread().name))
        yield

    monkeypatch.setattr(module, "DaliDecoder", FakeDali)
    monkeypatch.setattr(module, "_decoding_gpu", lambda reader: 3 if reader == "dali" else None)
    monkeypatch.setattr(module, "beside_training", beside_training)
    return entered


@pytest.mark.parametrize("accumulation", [1, 3])
def test_a_gpu_decodes_in_a_thread_and_not_in_workers(decoding_gpu, accumulation):
    import multiprocessing

    images = InMemory()
    for step, batches in enumerate(loader(images, 2, accumulation=accumulation, reader="dali").iterate(0, 8)):
        assert not multiprocessing.active_children()
        for batch, pixels in zip(batches, expected(images, step, accumulation), strict=True):
            np.testing.assert_array_equal(batch.images, pixels)
    assert decoding_gpu == [(3, "decoding ahead")]


def test_no_worker_no_thread(decoding_gpu):
    (batch,) = next(iter(loader(InMemory(), 0, reader="dali").iterate(0, 1)))
    np.testing.assert_array_equal(batch.images, next(expected(InMemory(), 0)))
    assert decoding_gpu == []


def test_stand_ins_and_changed_files_through_the_thread(decoding_gpu):
    images = InMemory(broken=BROKEN)
    met = {d.image for (batch,) in loader(images, 2, reader="dali").iterate(0, 8) for d in batch.damaged}
    assert met == {d.image for (batch,) in loader(images).iterate(0, 8) for d in batch.damaged}

    class Gone(InMemory):
        def check_unchanged(self):
            raise FileChangedError("train.rec shrank")

    with pytest.raises(FileChangedError.__base__, match=r"^train\.rec shrank$"):
        next(iter(loader(Gone(), 2, reader="dali").iterate(0, 4)))
    assert threading.active_count() == before_count()
