"""A folder to make mistakes in: good things of every kind that commands take, small, and some broken ones."""

from __future__ import annotations

import json
import shutil
import struct
import sys
import zipfile
from pathlib import Path

import numpy as np
import yaml
from bad_input import PNG

from facetrain import cli
from facetrain.checkpoints.backbones import write_backbone
from facetrain.checkpoints.files import manifest_text
from facetrain.config import ModelConfig
from facetrain.data.images import encode_jpeg
from facetrain.models import build_backbone

sys.path.append(str(Path(__file__).parents[1]))
from ijb_toys import random_ijb

MODEL = {"width": 4, "input_size": 16, "embedding_size": 8}
RECIPE = {
    "output": "run",
    "device": "cpu",
    "model": MODEL,
    "train": {"batch_size": 4, "epochs": 1},
    "data": {"path": "photos", "workers": 0},
}


def build(here: Path) -> None:
    """Fill ``here``, the current directory."""
    _photos(here / "photos")
    (here / "r.yaml").write_text(yaml.safe_dump(RECIPE, sort_keys=False))
    (here / "taken").write_text("a file\n")
    (here / "empty").mkdir()
    _records(here)
    _models(here)
    _runs(here)
    _ijb(here / "ijb")
    _megaface(here / "mega")


def _jpeg(generator: np.random.Generator) -> bytes:
    return encode_jpeg(generator.integers(0, 256, (16, 16, 3), dtype=np.uint8))


def _photos(folder: Path) -> None:
    generator = np.random.default_rng(0)
    for person in range(5):
        (folder / f"person{person}").mkdir(parents=True)
        for photo in range(4):
            (folder / f"person{person}" / f"{photo}.jpg").write_bytes(_jpeg(generator))


def _records(here: Path) -> None:
    """A packed set with pairs, and sets with one thing wrong each."""
    words = ["data", "pack", "photos", "packed", "--size", "16", "--workers", "1", "--held-out", "2", "--pairs", "20"]
    assert cli.main(words) == 0
    rec, idx = ((here / "packed" / f"train.{kind}").read_bytes() for kind in ("rec", "idx"))
    for name, one, other in [
        ("png", PNG, idx),
        ("noindex", rec, None),
        ("cutidx", rec, idx[: len(idx) // 2] + b"\t"),
        ("emptyidx", rec, b""),
        ("wordsidx", rec, b"not\tnumbers\n"),
        ("binaryidx", rec, bytes(range(256))),
        ("beyond", rec, idx + b"999\t999999999999\n"),
        ("cutrec", rec[: len(rec) // 2], idx),
        ("emptyrec", b"", idx),
        ("nomagic", b"\0" * len(rec), idx),
    ]:
        (here / f"{name}.rec").write_bytes(one)
        if other is not None:
            (here / f"{name}.idx").write_bytes(other)
    (here / "folder.rec").mkdir()
    (here / "text.bin").write_text("these are no pairs\n")
    (here / "hostile.bin").write_bytes(b"cos\nsystem\n(S'touch was_here'\ntR.")
    bin_ = (here / "packed" / "heldout.bin").read_bytes()
    (here / "cut.bin").write_bytes(bin_[: len(bin_) // 2])
    (here / "empty.bin").write_bytes(b"")


def _models(here: Path) -> None:
    """A backbone, features of the held-out pairs, and what only looks like either."""
    model = ModelConfig(**MODEL)
    write_backbone(here / "model.safetensors", build_backbone(model), model)
    good = (here / "model.safetensors").read_bytes()
    (here / "cut.safetensors").write_bytes(good[: len(good) // 2])
    (here / "giant.safetensors").write_bytes(struct.pack("<Q", 1 << 60) + b"{}")
    (here / "foreign.safetensors").write_bytes(struct.pack("<Q", 2) + b"{}")
    (here / "text.onnx").write_text("not a network\n")
    (here / "empty.onnx").write_bytes(b"")
    (here / "picture.onnx").write_bytes(PNG)
    (here / "weights.pt").write_bytes(b"\x80\x02cos\nsystem\nq\x00.")
    np.save(here / "objects.npy", np.array([{}, []], object), allow_pickle=True)
    np.save(here / "flat.npy", np.zeros(20, np.float32))
    np.save(here / "whole.npy", np.zeros((40, 8), np.int64))
    np.save(here / "few.npy", np.ones((3, 8), np.float32))
    np.save(here / "none.npy", np.ones((0, 8), np.float32))
    (here / "cut.npy").write_bytes((here / "few.npy").read_bytes()[:100])
    (here / "text.npy").write_text("1 2 3\n")
    np.savez(here / "strange.npz", something=np.zeros(3))
    np.savez(here / "objects.npz", embeddings=np.array([{}], object), model="ab" * 32, flip=True, normalised=False)
    np.savez(here / "nomodel.npz", embeddings=np.ones((3, 8)), model="me", flip=True, normalised=False)
    with zipfile.ZipFile(here / "bomb.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("model.npy", b"\x93NUMPY\x01\x00v\x00" + b"{" * (1 << 20))
    (here / "text.npz").write_text("1 2 3\n")


def _runs(here: Path) -> None:
    """Runs with a checkpoint: ``same`` of the recipe, ``older`` of other people, and some that cannot be read."""
    assert cli.main(["train", "r.yaml", "output=same"]) == 0
    checkpoint = next((here / "same" / "checkpoints").glob("step_*"))
    manifest = json.loads((checkpoint / "manifest.json").read_text())
    kept = Path("checkpoints") / checkpoint.name
    for name, text in [
        ("older", manifest_text(manifest | {"num_classes": 9})),
        ("format1", manifest_text(manifest | {"format": 1})),
        ("damaged", "{}"),
        ("flipped", (checkpoint / "manifest.json").read_text()),
    ]:
        shutil.copytree(checkpoint, here / name / kept)
        (here / name / kept / "manifest.json").write_text(text)
    weights = here / "flipped" / kept / "backbone.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    (here / "nojson.json").write_text("{")
    (here / "list.json").write_text("[1, 2]")
    (here / "other.json").write_text('{"format": "someone else\'s"}')
    (here / "damagedlog").mkdir()
    (here / "damagedlog" / "metrics.jsonl").write_text('{"kind": "train"\n{"kind": "train", "step": 1}\n')


def _ijb(root: Path) -> None:
    random_ijb(root, people=3)
    generator = np.random.default_rng(1)
    (root / "loose_crop").mkdir()
    for line in (root / "meta" / "ijbc_face_tid_mid.txt").read_text().splitlines():
        (root / "loose_crop" / line.split()[0]).write_bytes(_jpeg(generator))


def _megaface(root: Path) -> None:
    generator = np.random.default_rng(2)
    faces = [f"{person}/{photo}.jpg" for person in ("a", "b") for photo in range(2)]
    others = [f"1/{photo}.jpg" for photo in range(10)]
    lists = root / "templatelists"
    lists.mkdir(parents=True)
    ids = [path[0] for path in faces]
    (lists / "facescrub_features_list.json").write_text(json.dumps({"path": faces, "id": ids}))
    (lists / "megaface_features_list.json_10_1").write_text(json.dumps({"path": others}))
    for folder, paths in (("facescrub_images", faces), ("megaface_images", others)):
        for path in paths:
            (root / folder / path).parent.mkdir(parents=True, exist_ok=True)
            (root / folder / path).write_bytes(_jpeg(generator))
    for name in ("facescrub", "megaface"):
        (root / f"{name}_noises.txt").write_text("")
