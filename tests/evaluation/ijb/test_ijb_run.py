"""From a model and a folder to a table: the fixture, ranks, the command line, and what hostile folders get."""

from __future__ import annotations

import importlib.util
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from embedding_toys import SIZE, Toy, on_ranks
from ijb_toys import nearest_tpr, random_ijb, slow_templates
from torch import nn

from facetrain.cli import main
from facetrain.data.synthetic import render
from facetrain.errors import InputError
from facetrain.evaluation.embedder import Embedder
from facetrain.evaluation.ijb import run as ijb_run
from facetrain.evaluation.ijb.crops import LooseCrops
from facetrain.evaluation.ijb.meta import IJBB, IJBC, read_faces
from facetrain.evaluation.ijb.protocol import FPRS, protocol_of
from facetrain.evaluation.ijb.run import run_ijb
from facetrain.evaluation.result import read_results

TOOL = Path(__file__).parents[3] / "tools" / "make_ijb_fixture.py"


def make_fixture(monkeypatch, *words):
    spec = importlib.util.spec_from_file_location("make_ijb_fixture", TOOL)
    tool = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "make_ijb_fixture", tool)
    spec.loader.exec_module(tool)
    monkeypatch.setattr(sys, "argv", ["make_ijb_fixture.py", *map(str, words)])
    tool.main()


class Patches(nn.Module):
    """Mean colours of 12 x 12 parts, less their mean over the photo: tells rendered people apart a little."""

    def forward(self, x):
        small = nn.functional.avg_pool2d(x, 4).flatten(2)
        return (small - small.mean(dim=2, keepdim=True)).flatten(1)


@pytest.fixture(scope="module")
def fixture(tmp_path_factory):
    root = tmp_path_factory.mktemp("fixture") / "IJBC"
    with pytest.MonkeyPatch.context() as patch:
        make_fixture(patch, root, "--subjects", 6, "--probes", 2)
    return root


@pytest.fixture
def features(tmp_path):
    rows, _ = random_ijb(tmp_path / "IJBC", people=14)
    np.save(tmp_path / "features.npy", rows)
    return tmp_path / "features.npy", tmp_path / "IJBC"


def with_backbone(monkeypatch, backbone, size):
    """Let every call open a model of its own, as every rank does."""

    def opened(model, world, batch_size, cache):
        return Embedder(str(model), "f" * 64, size, backbone=backbone().eval(), weights="f", world=world, batch_size=4)

    monkeypatch.setattr(ijb_run, "open_embedder", opened)


def test_alignment_gives_the_rendering_back(fixture):
    faces = read_faces(fixture, IJBC)
    crops = LooseCrops(fixture / "loose_crop", faces.names, faces.landmarks)
    out = np.empty((112, 112, 3), np.uint8)
    for i in (0, len(crops) - 1):
        crops.decode(i, out)
        subject = int(faces.templates[i] - 1) // 3
        away = np.abs(out.astype(int) - render(0, subject, i, 112)).mean()
        other = np.abs(out.astype(int) - render(0, (subject + 1) % 6, i, 112)).mean()
        assert away < 8 < other


def by_hand(root):
    """The table from the pictures on, without any of the code that makes it."""
    faces = read_faces(root, IJBC)
    crops = LooseCrops(root / "loose_crop", faces.names, faces.landmarks)
    pixels = np.empty((len(crops), 48, 48, 3), np.uint8)
    for i in range(len(crops)):
        crops.decode(i, pixels[i])
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2).double() / 127.5 - 1
    rows = (Patches()(images) + Patches()(images.flip(3))).numpy()
    pooled = slow_templates(rows, faces, keep_norm=True, detector_score=True, unit_media=False, fusion="sum")
    pairs = np.loadtxt(root / "meta" / "ijbc_template_pair_label.txt", dtype=int)
    return nearest_tpr([pooled[a] @ pooled[b] for a, b, _ in pairs.tolist()], pairs[:, 2], FPRS)


def test_pictures_to_tables(fixture, tmp_path, monkeypatch, capsys):
    with_backbone(monkeypatch, Patches, 48)
    results = run_ijb(Path("model"), fixture, IJBC, protocol_of(), output=tmp_path / "out.json")
    said = " ".join(capsys.readouterr().out.split())
    assert [one.dataset for one in results] == ["IJB-C", "IJB-C G1", "IJB-C G2", "IJB-C"]
    assert [one.protocol for one in results] == ["ijb-1:1", *["ijb-1:n"] * 3]
    for words in (
        "TPR@1e-6",
        "TPIR@FPIR=0.01",
        "rank-10",
        "protocol insightface, flip yes, keep norm yes",
        "FPR rule nearest",
    ):
        assert words in said
    assert [cell.tpr for cell in results[0].cells] == pytest.approx(by_hand(fixture), abs=1e-12)
    assert read_results(tmp_path / "out.json") == results
    assert results[0].images == len(read_faces(fixture, IJBC).names)
    assert results[0].unreadable == 0
    assert results[0].model == "f" * 64


@pytest.mark.parametrize("ranks", [2, 3])
def test_ranks_agree_with_one(fixture, monkeypatch, ranks):
    with_backbone(monkeypatch, Toy, SIZE)
    kept = {"intervals": False}

    def run(world=None):
        return [
            (one.cells, one.metrics, one.curves, one.switches)
            for one in run_ijb(Path("model"), fixture, IJBC, protocol_of("tface"), world=world, **kept)
        ]

    alone = run()
    everyone = on_ranks(ranks, run)
    for mine in everyone:
        assert not isinstance(mine, Exception), mine
        assert mine == everyone[0]
        for (cells, metrics, curves, _), (cells_1, metrics_1, curves_1, _) in zip(mine, alone, strict=True):
            assert metrics == metrics_1
            assert curves == curves_1
            assert [cell.tpr for cell in cells] == [cell.tpr for cell in cells_1]
            thresholds = [[cell.threshold for cell in some] for some in (cells, cells_1)]
            np.testing.assert_allclose(*thresholds, atol=1e-5)  # batches of other lengths round otherwise


def test_ranks_fail_together(features):
    path, root = features
    (root / "meta" / "ijbc_template_pair_label.txt").write_text("10 13 1\n10 13\n")
    for error in on_ranks(2, lambda world: run_ijb(path, root, IJBC, protocol_of(), world=world)):
        assert isinstance(error, InputError)
        assert "label.txt:2" in str(error)


def test_features_need_no_pictures_and_every_rank_knows_the_result(features, capsys):
    path, root = features
    first, *others = on_ranks(3, lambda world: run_ijb(path, root, IJBC, protocol_of("magface"), world=world))
    assert others == [first, first]
    assert first[0].switches["flip"] == "as the features are"
    assert first[0].switches["score"] == "arccos"
    assert capsys.readouterr().out.count("TPR@1e-6") == 1  # one rank speaks


def test_one_task_needs_only_its_own_lists(features):
    path, root = features
    (root / "meta" / "ijbc_1N_probe_mixed.csv").unlink()
    (only,) = run_ijb(path, root, IJBC, protocol_of(), task="1:1")
    assert not only.intervals  # nothing says who is who
    with pytest.raises(InputError, match=r"meta lacks ijbc_1N_probe_mixed\.csv, which 1:N needs; .* give --task 1:1$"):
        run_ijb(path, root, IJBC, protocol_of())
    with pytest.raises(InputError, match=r"ijbc_1N_probe_mixed\.csv cannot be read: No such file"):
        run_ijb(path, root, IJBC, protocol_of(), task="1:n")


def test_identification_needs_no_pairs(features):
    path, root = features
    (root / "meta" / "ijbc_template_pair_label.txt").unlink()
    results = run_ijb(path, root, IJBC, protocol_of(), task="1:n", intervals=False)
    assert [one.dataset for one in results] == ["IJB-C G1", "IJB-C G2", "IJB-C"]
    assert not results[0].intervals
    with pytest.raises(InputError, match=r"meta lacks ijbc_template_pair_label\.txt, which 1:1 needs; .* --task 1:n$"):
        run_ijb(path, root, IJBC, protocol_of())


@pytest.mark.parametrize("normalised", [False, True])
def test_features_of_facetrain_embed(features, normalised):
    path, root = features
    file = root.parent / "features.npz"
    rows = np.load(path)
    if normalised:
        rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    np.savez(file, embeddings=rows, model="a" * 64, flip=True, normalised=normalised)
    protocol = protocol_of(keep_norm=not normalised)
    found, wanted = (run_ijb(one, root, IJBC, protocol, intervals=False) for one in (file, path))
    assert [one.metrics for one in found] == [one.metrics for one in wanted]
    assert (found[0].model, found[0].switches["flip"]) == ("a" * 64, True)
    assert wanted[0].switches["flip"] == "as the features are"
    with pytest.raises(
        InputError, match=r"features\.npz was made with the mirrored image: score it with --flip, or mak"
    ):
        run_ijb(file, root, IJBC, protocol_of("tface"))
    if normalised:
        with pytest.raises(
            InputError, match=r"features\.npz holds embeddings of length 1, and protocol insightface weig"
        ):
            run_ijb(file, root, IJBC, protocol_of())


def test_features_that_are_not_finite_are_named(features, capsys):
    path, root = features
    rows = np.load(path)
    faces = read_faces(root, IJBC)
    lost = faces.templates[3]
    rows[faces.templates == lost] = np.nan
    np.save(path, rows)
    count = int((faces.templates == lost).sum())
    first = int(np.argmax(faces.templates == lost)) + 1
    with pytest.raises(
        InputError, match=rf"{count} of .* the first: {first}\.jpg: row {first - 1} .* is not finite"
    ) as told:
        run_ijb(path, root, IJBC, protocol_of())
    assert f"(template {lost} has no readable face then)" in str(told.value)
    results = run_ijb(path, root, IJBC, protocol_of(), skip_unreadable=True)
    assert results[0].unreadable == count
    assert results[0].switches["templates without a face"] == 1
    assert f"template {lost} has no readable face: found by nobody" in capsys.readouterr().err


def test_damaged_pictures_are_told_or_counted(fixture, tmp_path, monkeypatch):
    root = tmp_path / "IJBC"
    shutil.copytree(fixture, root)
    (root / "loose_crop" / "3.jpg").write_bytes(b"")
    with_backbone(monkeypatch, Patches, 48)
    with pytest.raises(
        InputError, match=r"1 of \d+ images cannot be read, the first: .*3\.jpg: the image is empty: 0 byt"
    ):
        run_ijb(Path("model"), root, IJBC, protocol_of())
    (root / "loose_crop" / "5.jpg").unlink()
    results = run_ijb(Path("model"), root, IJBC, protocol_of(), skip_unreadable=True, task="1:1")
    assert results[0].unreadable == 2


def test_what_can_be_known_is_told_before_any_picture_is_opened(fixture, tmp_path, monkeypatch):
    root = tmp_path / "IJBC"
    shutil.copytree(fixture, root)
    with_backbone(monkeypatch, Patches, 48)
    monkeypatch.setattr(LooseCrops, "encoded", lambda self, i: pytest.fail("a picture was opened"))
    run = lambda: run_ijb(Path("model"), root, IJBC, protocol_of())  # noqa: E731
    (root / "loose_crop" / "7.jpg").rename(root / "loose_crop" / "seven.jpg")
    with pytest.raises(InputError, match=r"loose_crop lacks 1 of the \d+ images .* the first 7\.jpg \(line 7\)"):
        run()
    for name in ("ijbc_name_5pts_score.txt", "ijbc_face_tid_mid.txt"):
        path = root / "meta" / name
        path.write_text(path.read_text().replace("7.jpg", "../seven.jpg", 1))
    with pytest.raises(InputError, match=r"score\.txt:7: '\.\./seven\.jpg' is no file name inside loose_crop/"):
        run()
    with pytest.raises(InputError, match=r"output .*\.txt must be a \.json file in a folder that exists"):
        run_ijb(Path("model"), root, IJBC, protocol_of(), output=tmp_path / "x.txt")


def test_command_line(features, tmp_path, capsys):
    path, root = features
    words = ["eval", "ijbc", str(path), str(root), "--task", "1:1", "--protocol", "facex-zoo", "--keep-norm"]
    assert main([*words, "--rule", "strict", "--output", str(tmp_path / "out.json"), "--device", "cpu"]) == 0
    assert "protocol facex-zoo, changed" in " ".join(capsys.readouterr().out.split())
    (only,) = read_results(tmp_path / "out.json")
    assert only.switches["keep norm"] is True
    assert only.switches["FPR rule"] == "strict"
    assert main(["eval", "ijbb", str(path), str(root), "--device", "cpu"]) == 2
    assert "ijbb_face_tid_mid.txt cannot be read: No such fil" in capsys.readouterr().err


def test_fixture_of_ijb_b_with_features(tmp_path, monkeypatch):
    make_fixture(monkeypatch, tmp_path / "b", "--dataset", "ijbb", "--features-only", "--dimension", 64)
    results = run_ijb(tmp_path / "b" / "features.npy", tmp_path / "b", IJBB, protocol_of())
    assert [one.dataset for one in results] == ["IJB-B", "IJB-B S1", "IJB-B S2", "IJB-B"]
    assert results[0].cells[-1].tpr > 0.5
    with pytest.raises(SystemExit):
        make_fixture(monkeypatch, tmp_path / "b")  # not empty
