"""Pair sets scored by one and by several ranks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from embedding_toys import SIZE, Photos, Toy, on_ranks

from facetrain.data.pairs_file import write_bin
from facetrain.errors import InputError
from facetrain.evaluation.extract import embed
from facetrain.evaluation.pairs import PairSet, verify
from facetrain.evaluation.verifier import Verifier


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
    assert result.images == again.images == 60  # of 80, as both of 20 pairs are one image
    np.testing.assert_allclose(result.scores, direct.scores, atol=1e-6)
    assert result.accuracy > 0.9
    np.testing.assert_allclose(result.scores[one.same], 1)
    toys = [Toy(), Toy()]
    for (_, shared), _ in on_ranks(2, lambda w: verifier.run(toys[w.rank], w)):
        np.testing.assert_allclose(shared.scores, result.scores, atol=1e-6)


def test_files_of_one_name_are_told_apart_by_their_folders(tmp_path, monkeypatch):
    one = _pair_set(pairs=20)
    for folder in ("a", "b", "x/a"):
        (tmp_path / folder).mkdir(parents=True)
        write_bin(tmp_path / folder / "heldout.bin", list(one.images), one.same)
    monkeypatch.chdir(tmp_path / "a")  # the folder's name is not in the path
    verifier = Verifier([tmp_path / "b" / "heldout.bin", Path("heldout.bin"), one], SIZE)
    assert [name for name, _ in verifier.run(Toy())] == ["b_heldout", "a_heldout", "toy"]
    assert [name.name for name in verifier.sets] == ["b_heldout", "a_heldout", "toy"]
    assert Verifier([Path("heldout.bin"), one], SIZE).sets[0].name == "heldout"
    for second in ("heldout.bin", "../x/a/heldout.bin"):
        with pytest.raises(InputError, match=r"two pair sets are named a_heldout; .* rename one file"):
            Verifier([Path("heldout.bin"), Path(second)], SIZE)


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
