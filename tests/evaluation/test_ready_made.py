"""What ``facetrain embed`` wrote in a model's place: the same rows, the same names, and files that are damaged."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from embedding_toys import SIZE, Photos

from facetrain.checkpoints.backbones import write_backbone
from facetrain.config import ModelConfig
from facetrain.data.dataset import listed_images
from facetrain.errors import InputError
from facetrain.evaluation.embedder import open_embedder
from facetrain.evaluation.npz import embed_to_npz
from facetrain.evaluation.ready_made import AS_GIVEN, read_ready_made
from facetrain.models import build_backbone

COUNT = 5


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A model, a list of photos of which the fourth is damaged, and the list without it."""
    root = tmp_path_factory.mktemp("made")
    for i, file in enumerate(Photos(COUNT, broken=(3,)).files):
        (root / f"{i}.jpg").write_bytes(file)
    for name, which in (("all", range(COUNT)), ("good", (0, 1, 2, 4))):
        (root / f"{name}.txt").write_text("".join(f"{i}.jpg\n" for i in which))
    torch.manual_seed(0)
    config = ModelConfig(name="iresnet18", width=8, input_size=SIZE, embedding_size=8)
    write_backbone(root / "model.safetensors", build_backbone(config).eval(), config, fingerprint="c" * 64)
    return root


@pytest.mark.parametrize("flip", [True, False])
def test_the_file_stands_for_the_model(made, tmp_path, flip):
    photos, file = listed_images(made / "good.txt"), tmp_path / "rows.npz"
    embed_to_npz(made / "model.safetensors", made / "good.txt", file, flip=flip)
    model, stored = open_embedder(made / "model.safetensors"), open_embedder(file)
    np.testing.assert_array_equal(stored.embed(photos, flip=flip).rows, model.embed(photos, flip=flip).rows)
    assert (
        (stored.fingerprint, stored.shown_flip(flip)) == (model.fingerprint, model.shown_flip(flip)) == ("c" * 64, flip)
    )
    assert (stored.ready_made, stored.normalised) == (True, False)
    held, own, other = ("with", "--flip", "--no-flip") if flip else ("without", "--no-flip", "--flip")
    told = f"{file} was made {held} the mirrored image: score it with {own}, or make it again with {other}"
    with pytest.raises(InputError, match=re.escape(told)):
        stored.embed(photos, flip=not flip)
    with pytest.raises(InputError, match=r"rows\.npz holds 4 rows for 5 images; expected row i for image i"):
        stored.embed(listed_images(made / "all.txt"), flip=flip)


def test_unreadable_rows_and_lengths_are_known(made, tmp_path):
    photos, file = listed_images(made / "all.txt"), tmp_path / "rows.npz"
    embed_to_npz(made / "model.safetensors", made / "all.txt", file, skip_unreadable=True, normalise=True)
    stored = open_embedder(file)
    assert stored.normalised
    told = rf"1 of 5 images cannot be read, the first: row 3 of {re.escape(str(file))} is not finite"
    with pytest.raises(InputError, match=f"{told}$"):
        stored.embed(photos)
    with pytest.raises(InputError, match=f"{told}; mend them, or leave them out with --skip-unreadable"):
        stored.embed(photos, skip_unreadable=False)
    found = stored.embed(photos, skip_unreadable=True)
    assert [one.image for one in found.unreadable] == [3]
    np.testing.assert_allclose(np.linalg.norm(np.delete(found.rows, 3, axis=0), axis=1), 1, rtol=1e-6)


def test_of_a_matrix_nobody_knows_the_flip(tmp_path):
    np.save(tmp_path / "rows.npy", np.ones((COUNT, 3)))
    stored = open_embedder(tmp_path / "rows.npy")
    for flip in (True, False):
        assert stored.shown_flip(flip) == AS_GIVEN
        assert len(stored.embed(Photos(COUNT), flip=flip).rows) == COUNT


GOOD = {"embeddings": np.ones((4, 3), np.float32), "model": "a" * 64, "flip": True, "normalised": False}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"embeddings": None}, "cannot be read: .*embeddings.*; expected an .npy of .* of facetrain embed"),
        ({"flip": None}, "cannot be read: .*flip"),
        ({"model": None}, "cannot be read: .*model"),
        ({"flip": np.ones(2)}, "cannot be read: .*ambiguous"),
        ({"model": "me"}, "cannot be read: its model is 'me', no SHA-256"),
        ({"embeddings": np.ones(4)}, r"are \(4,\) of float64; expected \(N, D\) floating-point numbers"),
        ({"embeddings": np.array([[{}]])}, "cannot be read: .*pickle"),
    ],
)
def test_another_npz_is_refused(tmp_path, change, message):
    file = tmp_path / "rows.npz"
    np.savez(file, **GOOD)
    assert read_ready_made(file).flip is True
    np.savez(file, **{name: value for name, value in (GOOD | change).items() if value is not None})
    with pytest.raises(InputError, match=rf"features .*rows\.npz {message}"):
        read_ready_made(file)


def test_a_damaged_npz_is_one_line(tmp_path):
    file = tmp_path / "rows.npz"
    np.savez(file, **GOOD)
    content = bytearray(file.read_bytes())
    at = content.index(np.ones(3, np.float32).tobytes())
    for damaged in (b"", b"PK\x03\x04", bytes(content[:-30]), bytes(content[:at] + b"\xff" + content[at + 1 :])):
        file.write_bytes(damaged)
        with pytest.raises(InputError, match=r"features .*rows\.npz cannot be read: .*; expected") as told:
            read_ready_made(file)
        assert "\n" not in str(told.value)
