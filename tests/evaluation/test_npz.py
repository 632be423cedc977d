"""Embeddings as a file: what it holds, damaged images, full disks."""

from __future__ import annotations

from contextlib import closing

import numpy as np
import pytest
from embedding_toys import SIZE, Photos, Toy, expected, on_ranks

from facetrain.errors import InputError
from facetrain.evaluation import npz
from facetrain.evaluation.extract import embed_blocks
from facetrain.evaluation.network import Network
from facetrain.evaluation.npz import Embedded, embed_to_npz


@pytest.fixture
def _toy_checkpoint(monkeypatch):
    monkeypatch.setattr(npz, "open_network", lambda path, device: Network(Toy().eval(), SIZE, "abc", "abc"))


@pytest.mark.usefixtures("_toy_checkpoint")
@pytest.mark.parametrize("ranks", [1, 2])
def test_the_file_holds_what_it_says(tmp_path, monkeypatch, ranks):
    monkeypatch.setattr(embed_blocks, "__kwdefaults__", embed_blocks.__kwdefaults__ | {"block": 4})
    photos = Photos(9)
    for i, file in enumerate(photos.files):
        (tmp_path / f"{i}.jpg").write_bytes(file)
    (tmp_path / "list.txt").write_text("".join(f"{i}.jpg {photos.labels[i]}\n" for i in range(9)))
    out = tmp_path / "out.npz"
    source = tmp_path / "list.txt"
    results = on_ranks(ranks, lambda w: embed_to_npz(tmp_path, source, out, world=w, batch_size=2, flip=False))
    assert results == [Embedded((9, 5), [])] * ranks
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
    embedded = embed_to_npz(tmp_path, tmp_path / "list.txt", out, skip_unreadable=True)
    assert [one.image for one in embedded.unreadable] == [2]
    with np.load(out) as held:
        assert held["unreadable"].tolist() == [2]
        assert np.isnan(held["embeddings"]).all(1).tolist() == [False, False, True, False]
    assert embedded.shape == (4, 5)
    with pytest.raises(InputError, match=r"must be an \.npz file in a folder that exists"):
        embed_to_npz(tmp_path, tmp_path / "list.txt", tmp_path / "no" / "out.npz")


@pytest.mark.usefixtures("_toy_checkpoint")
@pytest.mark.parametrize("ranks", [1, 2])
def test_a_file_of_nothing_but_unreadable_images_is_not_written(tmp_path, ranks):
    source, out = tmp_path / "list.txt", tmp_path / "out.npz"
    source.write_text("0.jpg\n1.jpg\n2.jpg\n")
    for error in on_ranks(ranks, lambda w: embed_to_npz(tmp_path, source, out, world=w, skip_unreadable=True)):
        assert isinstance(error, InputError)
        assert str(error).startswith(f"3 of 3 images cannot be read, the first: {tmp_path / '0.jpg'} cannot be read")
    assert list(tmp_path.iterdir()) == [source]


@pytest.mark.usefixtures("_toy_checkpoint")
@pytest.mark.parametrize("ranks", [1, 2])
def test_a_file_that_cannot_be_written_is_known_to_every_rank(tmp_path, monkeypatch, ranks):
    monkeypatch.setattr(embed_blocks, "__kwdefaults__", embed_blocks.__kwdefaults__ | {"block": 4})
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
        monkeypatch.setattr(npz, name, full)
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
            rows = npz._until(problem, blocks, world)
            if world.rank == 0:
                next(rows)
                problem.append("full")
            return len(list(rows))

    assert on_ranks(2, work) == [0, 1]
    assert all(toy.seen == 2 for toy in toys)


@pytest.mark.usefixtures("_toy_checkpoint")
def test_rank_0_shows_progress(tmp_path, monkeypatch, capfd):
    monkeypatch.setattr("facetrain.data.progress._PLAIN_SECONDS", 0.0)
    for i, file in enumerate(Photos(5).files):
        (tmp_path / f"{i}.jpg").write_bytes(file)
    (tmp_path / "list.txt").write_text("".join(f"{i}.jpg\n" for i in range(5)))
    on_ranks(2, lambda w: embed_to_npz(tmp_path, tmp_path / "list.txt", tmp_path / "out.npz", world=w, batch_size=2))
    out, said = capfd.readouterr()
    assert out == ""
    assert [line.split(" left")[0].rsplit(",", 1)[0] for line in said.splitlines()] == [
        "embedding: 4 of 5",
        "embedding: 5 of 5",
    ]
