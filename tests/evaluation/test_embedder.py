"""Any model as an embedder: the same rows fresh, cached, by one rank and by several, killed and gone on."""

from __future__ import annotations

import os
import signal

import numpy as np
import pytest
import torch
from embedding_toys import SIZE, Photos, Toy, expected, on_ranks
from ranks import CONTEXT, run_ranks

from facetrain.checkpoints.backbones import write_backbone
from facetrain.config import ModelConfig
from facetrain.errors import InputError
from facetrain.evaluation import embedder as module
from facetrain.evaluation.embedder import Embedder, open_embedder
from facetrain.models import build_backbone

COUNT = 23


class Mortal(Toy):
    """Ends its process, as the kernel would, before it sees more than ``lives`` images."""

    lives = None

    def forward(self, x):
        if self.lives is not None and self.seen + len(x) > self.lives:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().forward(x)


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch):
    monkeypatch.setattr(module, "BLOCK", 4)


def _embedder(cache=None, world=None, toy=None, weights="w" * 64, size=SIZE):
    toy = (toy or Toy()).eval()
    return Embedder("toy", "f" * 64, size, backbone=toy, weights=weights, world=world, batch_size=2, cache=cache)


@pytest.mark.parametrize("flip", [False, True])
def test_fresh_cached_and_remembered_rows_are_equal(tmp_path, flip, capsys):
    photos = Photos(COUNT)
    fresh = _embedder().embed(photos, flip=flip)
    np.testing.assert_allclose(fresh.rows, expected(photos, flip), rtol=1e-5, atol=1e-6)
    assert fresh.rows.dtype == np.float32
    cached = _embedder(tmp_path).embed(photos, flip=flip, what="faces")
    toy = Toy()
    again = _embedder(tmp_path, toy=toy).embed(photos, flip=flip)
    np.testing.assert_array_equal(cached.rows, fresh.rows)
    np.testing.assert_array_equal(again.rows, fresh.rows)
    assert isinstance(again.rows, np.memmap)
    assert toy.seen == 0
    said = capsys.readouterr().err
    assert "faces: 23 embeddings, 0.0 MB, kept in the cache" in said
    assert "embedding: 23 embeddings, 0.0 MB, taken from the cache" in said


def test_nothing_is_taken_for_something_else(tmp_path):
    photos = Photos(COUNT)
    _embedder(tmp_path).embed(photos)
    other = Photos(COUNT)
    other.files[0] = other.files[1]
    for change in (
        lambda toy: _embedder(tmp_path, toy=toy).embed(photos, flip=False),
        lambda toy: _embedder(tmp_path, toy=toy, weights="x" * 64).embed(photos),
        lambda toy: _embedder(tmp_path, toy=toy).embed(other),
    ):
        toy = Toy()
        change(toy)
        assert toy.seen >= COUNT
    assert len(list(tmp_path.iterdir())) == 4


@pytest.mark.parametrize("ranks", [2, 3])
def test_ranks_share_what_is_cached(tmp_path, ranks):
    photos = Photos(COUNT)
    toys = [Toy() for _ in range(ranks)]
    found = on_ranks(ranks, lambda w: _embedder(tmp_path, w, toys[w.rank]).embed(photos, flip=False))
    for one in found:
        np.testing.assert_allclose(one.rows, expected(photos, False), rtol=1e-5, atol=1e-6)
    assert sum(toy.seen for toy in toys) <= COUNT + ranks  # a rank without a row asks for D
    again = Toy()
    np.testing.assert_array_equal(_embedder(tmp_path, toy=again).embed(photos, flip=False).rows, found[0].rows)
    assert again.seen == 0


def _on_a_rank(world, cache):
    module.BLOCK = 4
    found = _embedder(cache, world).embed(Photos(COUNT, broken=(5,)), skip_unreadable=True)
    return np.array(found.rows), found.unreadable


@pytest.mark.parametrize("ranks", [2, 3])
def test_processes_of_their_own_find_the_same(tmp_path, ranks):
    one = _embedder().embed(Photos(COUNT, broken=(5,)), skip_unreadable=True)
    for rows, unreadable in run_ranks(ranks, _on_a_rank, tmp_path):
        np.testing.assert_allclose(rows, one.rows, rtol=1e-5, atol=1e-6)
        assert unreadable == one.unreadable


def _die(cache, lives):
    module.BLOCK = 4
    torch.set_num_threads(1)
    toy = Mortal()
    toy.lives = lives
    _embedder(cache, toy=toy).embed(Photos(COUNT), flip=False)


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_killed_extraction_goes_on_from_its_last_finished_block(tmp_path, ranks):
    process = CONTEXT.Process(target=_die, args=(tmp_path, 14))
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL
    photos = Photos(COUNT)
    toys = [Toy() for _ in range(ranks)]
    for found in on_ranks(ranks, lambda w: _embedder(tmp_path, w, toys[w.rank]).embed(photos, flip=False)):
        np.testing.assert_allclose(found.rows, expected(photos, False), rtol=1e-5, atol=1e-6)
    assert sum(toy.seen for toy in toys) == COUNT - 12  # three blocks of four were finished


def _embed_and_count(cache, seen):
    module.BLOCK = 4
    torch.set_num_threads(1)
    toy = Toy()
    rows = _embedder(cache, toy=toy).embed(Photos(COUNT), flip=False).rows
    seen.put((toy.seen, np.array(rows)))


def test_two_processes_at_once_share_one_extraction(tmp_path):
    seen = CONTEXT.Queue()
    processes = [CONTEXT.Process(target=_embed_and_count, args=(tmp_path, seen)) for _ in range(2)]
    for process in processes:
        process.start()
    found = [seen.get(timeout=60) for _ in processes]
    for process in processes:
        process.join(60)
    assert sum(count for count, _ in found) == COUNT
    for _, rows in found:
        np.testing.assert_allclose(rows, expected(Photos(COUNT), False), rtol=1e-5, atol=1e-6)


def test_an_error_on_the_way_keeps_what_is_finished(tmp_path, monkeypatch):
    from facetrain.evaluation.embedding_cache import Entry

    photos = Photos(COUNT)
    append = Entry.append

    def full(entry, rows, unreadable):
        if entry.finished == 8:
            raise InputError("the disk is full")
        append(entry, rows, unreadable)

    with monkeypatch.context() as patch:
        patch.setattr(Entry, "append", full)
        for error in on_ranks(2, lambda w: _embedder(tmp_path, w).embed(photos)):
            assert isinstance(error, InputError)
            assert str(error) == "the disk is full"
    toy = Toy()
    _embedder(tmp_path, toy=toy).embed(photos, flip=False)
    flipped = Toy()
    _embedder(tmp_path, toy=flipped).embed(photos)
    assert (toy.seen, flipped.seen) == (COUNT, 2 * (COUNT - 8))


@pytest.mark.parametrize("cached", [False, True])
def test_unreadable_images_are_refused_or_skipped(tmp_path, cached):
    cache = tmp_path / "cache" if cached else None
    photos = Photos(COUNT, broken=(6, 13))
    for _ in range(2):
        with pytest.raises(InputError, match="2 of 23 images cannot be read, the first: album page 6: the JPEG"):
            _embedder(cache).embed(photos)
        found = _embedder(cache).embed(photos, skip_unreadable=True)
        assert [one.image for one in found.unreadable] == [6, 13]
        assert np.flatnonzero(np.isnan(found.rows).all(1)).tolist() == [6, 13]
    photos.where = lambda i: f"another album, page {i}"
    found = _embedder(cache).embed(photos, skip_unreadable=True)
    assert found.unreadable[1].reason.startswith("another album, page 13: the JPEG")
    with pytest.raises(InputError, match="2 of 2 images cannot be read"):
        _embedder(cache).embed(Photos(2, broken=(0, 1)), skip_unreadable=True)
    with pytest.raises(InputError, match="there are no images to embed"):
        _embedder(cache).embed(Photos(0))


def test_a_moments_failure_is_not_remembered(tmp_path):
    photos, healthy = Photos(COUNT), Photos(COUNT)
    failing = [0]

    def decode(i, out):
        if i == 7 and failing:
            raise InputError("the network is down")
        Photos.decode(photos, i, out)

    photos.content = lambda i: b""  # decoding is not hashed
    photos.decode = decode
    assert [one.image for one in _embedder(tmp_path).embed(photos, skip_unreadable=True).unreadable] == [7]
    failing.clear()
    toy = Toy()
    found = _embedder(tmp_path, toy=toy).embed(photos, flip=True)
    np.testing.assert_array_equal(found.rows, _embedder().embed(healthy).rows)
    assert toy.seen == 2 * COUNT


def test_features_made_elsewhere(tmp_path):
    rows = np.random.default_rng(0).normal(size=(COUNT, 5))
    path = tmp_path / "mine.npy"
    photos = Photos(COUNT)
    for kind in (np.float16, np.float32, np.float64):
        np.save(path, rows.astype(kind))
        embedder = open_embedder(path, cache=tmp_path / "cache")
        found = embedder.embed(photos)
        assert found.rows.dtype == np.float32
        np.testing.assert_allclose(found.rows, rows.astype(kind), rtol=1e-6)
        assert (embedder.name, len(embedder.fingerprint), embedder.ready_made) == (str(path), 64, True)
    assert not (tmp_path / "cache").exists()
    with pytest.raises(InputError, match=r"mine\.npy holds 23 rows for 22 images; expected row i for image i"):
        embedder.embed(Photos(COUNT - 1))
    rows[4, 2], rows[9] = np.inf, np.nan
    np.save(path, rows)
    with pytest.raises(InputError, match=r"2 of 23 images cannot be read, the first: row 4 of .*mine\.npy is not fin"):
        open_embedder(path).embed(photos)
    found = open_embedder(path).embed(photos, skip_unreadable=True)
    assert np.flatnonzero(np.isnan(found.rows).all(1)).tolist() == [4, 9]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (np.zeros(3), r"are \(3,\) of float64; expected \(N, D\) floating-point numbers"),
        (np.zeros((2, 3), int), r"are \(2, 3\) of int64; expected"),
        (np.zeros((0, 3)), r"are \(0, 3\) of float64; expected"),
        (np.array([[{}]]), "cannot be read: .*; expected an .npy of"),
        (b"\x93NUMPY cut", "cannot be read: .*; expected an .npy of"),
    ],
)
def test_features_that_are_none_are_named(tmp_path, content, message):
    path = tmp_path / "mine.npy"
    path.write_bytes(content) if isinstance(content, bytes) else np.save(path, content)
    with pytest.raises(InputError, match=f"features .*mine.npy {message}"):
        open_embedder(path)


def test_a_models_file_is_opened_by_what_it_is(tmp_path):
    torch.manual_seed(0)
    config = ModelConfig(name="iresnet18", width=8, input_size=SIZE, embedding_size=8)
    backbone = build_backbone(config).eval()
    file = tmp_path / "small.safetensors"
    write_backbone(file, backbone, config, fingerprint="c" * 64)
    embedder = open_embedder(file, cache=tmp_path / "cache")
    assert (embedder.name, embedder.fingerprint, embedder.input_size) == (str(file), "c" * 64, SIZE)
    photos = Photos(5)
    rows = embedder.embed(photos, flip=False).rows
    # Another model's weights under the name of the first: what it says of itself is not what is cached by.
    with torch.no_grad():
        for parameter in backbone.parameters():
            parameter.mul_(1.5)
    write_backbone(file, backbone, config, fingerprint="c" * 64)
    assert not np.allclose(open_embedder(file, cache=tmp_path / "cache").embed(photos, flip=False).rows, rows)
    same = on_ranks(2, lambda w: open_embedder(file, world=w).fingerprint)
    assert same == ["c" * 64] * 2
    write_backbone(tmp_path / "other.safetensors", backbone, config, fingerprint="d" * 64)
    for error in on_ranks(2, lambda w: open_embedder((file, tmp_path / "other.safetensors")[w.rank], world=w)):
        assert isinstance(error, InputError)
        assert "changed while it was opened; name one checkpoint in it" in str(error)
    with pytest.raises(
        InputError, match=r"model .*missing does not exist; expected a run's folder, .* \.onnx, \.npz or \.npy file"
    ):
        open_embedder(tmp_path / "missing")
    (tmp_path / "model.pth").write_bytes(b"x")
    with pytest.raises(InputError, match=r"model\.pth is not a model that can be read; expected a run's folder"):
        open_embedder(tmp_path / "model.pth")
