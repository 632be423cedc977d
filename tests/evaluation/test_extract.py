"""Embedding by one and by several ranks; unreadable images."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from embedding_toys import SIZE, Photos, Toy, expected, on_ranks

from facetrain.errors import InputError
from facetrain.evaluation.extract import embed, embed_blocks, evaluating


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
    results = on_ranks(ranks, lambda w: embed(toys[w.rank], photos, input_size=SIZE, batch_size=2, flip=False, world=w))
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
    unreadable = []
    (rows,) = embed_blocks(Toy(), photos, input_size=SIZE, batch_size=3, flip=True, unreadable=unreadable)
    assert [one.image for one in unreadable] == [6, 13]
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
    embed(Toy(), Photos(7), input_size=SIZE, batch_size=3, progress=seen.append)
    assert seen == [3, 3, 1]
    told = [[], []]
    on_ranks(2, lambda w: embed(Toy(), Photos(7), input_size=SIZE, batch_size=3, world=w, progress=told[w.rank].append))
    assert told == [[6, 1], [6]]  # rank 0, which shows it, has the longest share
    with pytest.raises(InputError, match="no images"):
        embed(Toy(), Photos(0), input_size=SIZE)
