"""Embedding by one and by several ranks, unreadable images, pair sets, and the file."""

from __future__ import annotations

import threading
from contextlib import closing

import numpy as np
import pytest
import torch
from torch import nn

from facetrain.config import ModelConfig
from facetrain.data.encoded import Encoded
from facetrain.data.images import decode, encode_jpeg
from facetrain.data.pairs_file import write_bin
from facetrain.distributed import World
from facetrain.errors import InputError
from facetrain.evaluation import embed as embed_module
from facetrain.evaluation.embed import Verifier, embed, embed_to_npz
from facetrain.evaluation.extract import embed_blocks, evaluating
from facetrain.evaluation.pairs import PairSet, verify
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
    """Ranks as threads of this process, with collectives through a list and a barrier."""

    def join(self, box, lock):
        object.__setattr__(self, "box", box)
        object.__setattr__(self, "lock", lock)
        return self

    def collect(self, thing):
        self.box[self.rank] = thing
        self.lock.wait()
        everyone = list(self.box)
        self.lock.wait()
        return everyone

    def gather_rows(self, rows, total):
        assert len(rows) == len(self.own(total))
        return torch.cat(self.collect(rows))

    def share(self, thing):
        return self.collect(thing)[0]


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


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("side", [SIZE, 40])
def test_rows_are_the_backbones(flip, side):
    photos = Photos(11, side=side)
    rows = embed(Toy(), photos, input_size=SIZE, batch_size=4, flip=flip)
    assert rows.dtype == np.float32
    np.testing.assert_allclose(rows, expected(photos, flip), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("count", [1, 2, 5, 17])
@pytest.mark.parametrize("ranks", [2, 3])
def test_ranks_share_the_work_and_all_have_all_rows(count, ranks):
    photos = Photos(count)
    toys = [Toy() for _ in range(ranks)]
    results = on_ranks(
        ranks, lambda w: embed(toys[w.rank], photos, input_size=SIZE, batch_size=2, flip=False, world=w, threads=2)
    )
    for rows in results:
        np.testing.assert_allclose(rows, expected(photos, False), rtol=1e-5, atol=1e-6)
    assert max(toy.seen for toy in toys) <= -(-count // ranks) + 1


def test_blocks_keep_the_order_and_never_hold_all():
    photos = Photos(23)
    whole = on_ranks(
        2,
        lambda w: list(
            embed_blocks(Toy(), photos, input_size=SIZE, batch_size=2, unreadable=[], world=w, flip=False, block=9)
        ),
    )
    for blocks in whole:
        assert [len(block) for block in blocks] == [8, 8, 7]
        np.testing.assert_allclose(np.concatenate(blocks), expected(photos, False), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("ranks", [1, 3])
def test_unreadable_images_are_named_on_every_rank(ranks):
    photos = Photos(20, broken=(6, 13))
    for error in on_ranks(ranks, lambda w: embed(Toy(), photos, input_size=SIZE, batch_size=3, world=w)):
        assert isinstance(error, InputError)
        assert str(error).startswith("2 of 20 images cannot be read, the first: album page 6: the JPEG")
    skipped = []
    rows = embed(Toy(), photos, input_size=SIZE, batch_size=3, flip=True, skipped=skipped)
    assert [one.image for one in skipped] == [6, 13]
    assert np.flatnonzero(np.isnan(rows).all(1)).tolist() == [6, 13]
    good = np.setdiff1d(np.arange(20), [6, 13])
    photos.files[6] = photos.files[13] = photos.files[0]
    np.testing.assert_allclose(rows[good], expected(photos, True)[good], rtol=1e-5, atol=1e-6)


def test_modes_are_put_back_as_they_were():
    toy = Toy().train()
    toy.flat.eval()
    with evaluating(toy):
        assert not toy.norm.training
        assert not torch.is_grad_enabled()
    assert (toy.training, toy.norm.training, toy.flat.training) == (True, True, False)


def test_progress_and_nothing_to_do():
    seen = []
    embed(Toy(), Photos(7), input_size=SIZE, batch_size=3, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(3, 7), (6, 7), (7, 7)]
    with pytest.raises(InputError, match="no images"):
        embed(Toy(), Photos(0), input_size=SIZE)


def _pair_set(name="toy", pairs=40):
    photos = Photos(2 * pairs)
    same = np.arange(pairs) % 2 == 0
    for i in np.flatnonzero(same):
        photos.files[2 * i + 1] = photos.files[2 * i]
    return PairSet(name, photos.files, same)


def test_verifier_scores_sets_and_files_alike(tmp_path):
    one = _pair_set()
    write_bin(tmp_path / "file.bin", list(one.images), one.same)
    verifier = Verifier([one, tmp_path / "file.bin"], SIZE, batch_size=16, flip=True)
    (name, result), (other, again) = verifier.run(Toy())
    assert (name, other) == ("toy", "file")
    direct = verify(embed(Toy(), one, input_size=SIZE), one.same)
    assert result.record() == again.record()
    np.testing.assert_allclose(result.scores, direct.scores, atol=1e-6)
    assert result.accuracy > 0.9
    np.testing.assert_allclose(result.scores[one.same], 1)
    toys = [Toy(), Toy()]
    for (_, shared), _ in on_ranks(2, lambda w: verifier.run(toys[w.rank], w)):
        np.testing.assert_allclose(shared.scores, result.scores, atol=1e-6)


def test_verifier_names_what_is_wrong():
    with pytest.raises(InputError, match="two pair sets are named toy"):
        Verifier([_pair_set(), _pair_set()], SIZE)
    broken = _pair_set()
    broken.images[5] = b"nothing"
    # Twenty of its pairs show one image twice; 60 differ, and the broken one is the 61st.
    with pytest.raises(InputError, match=r"1 of 61 images cannot be read, the first: toy image 5 \(pair 2\): not a"):
        Verifier([broken], SIZE).run(Toy())
    toy = Toy()
    toy.flat.bias.data[0] = torch.nan
    with pytest.raises(InputError, match="pair set toy: scores hold 40 values of 40 that are not finite"):
        Verifier([_pair_set()], SIZE).run(toy)


@pytest.fixture
def _toy_checkpoint(monkeypatch):
    import facetrain.checkpoint

    config = ModelConfig(input_size=SIZE, embedding_size=5)
    monkeypatch.setattr(facetrain.checkpoint, "load_backbone", lambda path: (Toy().eval(), config))
    monkeypatch.setattr(facetrain.checkpoint, "fingerprint", lambda path: "abc")


@pytest.mark.usefixtures("_toy_checkpoint")
@pytest.mark.parametrize("ranks", [1, 2])
def test_the_file_holds_what_it_says(tmp_path, monkeypatch, ranks):
    monkeypatch.setattr(embed_module.embed_blocks, "__kwdefaults__", embed_blocks.__kwdefaults__ | {"block": 4})
    photos = Photos(9)
    for i, file in enumerate(photos.files):
        (tmp_path / f"{i}.jpg").write_bytes(file)
    (tmp_path / "list.txt").write_text("".join(f"{i}.jpg {photos.labels[i]}\n" for i in range(9)))
    out = tmp_path / "out.npz"
    source = tmp_path / "list.txt"
    results = on_ranks(ranks, lambda w: embed_to_npz(tmp_path, source, out, world=w, batch_size=2, flip=False))
    assert results == [[]] * ranks
    with np.load(out) as held:
        np.testing.assert_allclose(held["embeddings"], expected(photos, False), rtol=1e-5, atol=1e-6)
        assert held["labels"].tolist() == photos.labels.tolist()
        assert held["names"].tolist() == [str(tmp_path / f"{i}.jpg") for i in range(9)]
        assert (str(held["model"]), bool(held["flip"]), bool(held["normalised"])) == ("abc", False, False)
    embed_to_npz(tmp_path, source, out, normalise=True)
    with np.load(out) as held:
        np.testing.assert_allclose(np.linalg.norm(held["embeddings"], axis=1), 1, rtol=1e-6)
    assert {path.suffix for path in tmp_path.iterdir()} == {".jpg", ".txt", ".npz"}


@pytest.mark.usefixtures("_toy_checkpoint")
def test_the_file_with_unreadable_images(tmp_path):
    photos = Photos(4)
    for i in (0, 1, 3):
        (tmp_path / f"{i}.jpg").write_bytes(photos.files[i])
    (tmp_path / "list.txt").write_text("0.jpg\n1.jpg\n2.jpg\n3.jpg\n")
    out = tmp_path / "out.npz"
    for error in on_ranks(2, lambda w: embed_to_npz(tmp_path, tmp_path / "list.txt", out, world=w)):
        assert isinstance(error, InputError)
    with pytest.raises(InputError, match=r"1 of 4 images cannot be read, the .*2\.jpg cannot be read: No such file"):
        embed_to_npz(tmp_path, tmp_path / "list.txt", out)
    assert not out.exists()
    skipped = embed_to_npz(tmp_path, tmp_path / "list.txt", out, skip_unreadable=True)
    assert [one.image for one in skipped] == [2]
    with np.load(out) as held:
        assert held["unreadable"].tolist() == [2]
        assert np.isnan(held["embeddings"]).all(1).tolist() == [False, False, True, False]
    with pytest.raises(InputError, match=r"must be an \.npz file in a folder that exists"):
        embed_to_npz(tmp_path, tmp_path / "list.txt", tmp_path / "no" / "out.npz")


@pytest.mark.usefixtures("_toy_checkpoint")
@pytest.mark.parametrize("ranks", [1, 2])
def test_a_file_that_cannot_be_written_is_known_to_every_rank(tmp_path, monkeypatch, ranks):
    monkeypatch.setattr(embed_module.embed_blocks, "__kwdefaults__", embed_blocks.__kwdefaults__ | {"block": 4})
    photos = Photos(9)
    for i, file in enumerate(photos.files):
        (tmp_path / f"{i}.jpg").write_bytes(file)
    source, out = tmp_path / "list.txt", tmp_path / "out.npz"
    source.write_text("".join(f"{i}.jpg\n" for i in range(9)))

    def attempt():
        return on_ranks(ranks, lambda w: embed_to_npz(tmp_path, source, out, world=w, batch_size=1, flip=False))

    def full(*_):
        raise OSError(28, "No space left on device")

    for name in ("_add_names", "_add"):  # at the end, and from the start
        monkeypatch.setattr(embed_module, name, full)
        for error in attempt():
            assert isinstance(error, InputError)
            assert str(error) == f"{out} cannot be written: No space left on device"
    assert {path.suffix for path in tmp_path.iterdir()} == {".jpg", ".txt"}


def test_a_full_disk_ends_the_work_early():
    photos = Photos(40)
    toys = [Toy(), Toy()]

    def work(world):
        problem = []
        blocks = embed_blocks(
            toys[world.rank], photos, input_size=SIZE, batch_size=1, unreadable=[], world=world, flip=False, block=4
        )
        with closing(blocks):
            rows = embed_module._until(problem, blocks, world)
            if world.rank == 0:
                next(rows)
                problem.append("full")
            return len(list(rows))

    assert on_ranks(2, work) == [0, 1]
    assert all(toy.seen == 2 for toy in toys)
