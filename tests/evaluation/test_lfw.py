"""The LFW protocol's command: every kind of list and model, what is printed and what is written."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from embedding_toys import SIZE, Toy, on_ranks
from made_up_results import made_up_pairs, made_up_result
from rich.console import Console
from sklearn.metrics import roc_curve
from test_lfw_pairs import official

import facetrain.evaluation.embedder
import facetrain.evaluation.extract
import facetrain.evaluation.network
from facetrain.checkpoints.backbones import write_backbone
from facetrain.cli import main
from facetrain.config import ModelConfig
from facetrain.data.images import decode
from facetrain.data.pairs_file import write_bin
from facetrain.errors import InputError
from facetrain.evaluation import lfw
from facetrain.evaluation.facex_zoo import facex_zoo_accuracy
from facetrain.evaluation.lfw import PHOTOS, run_lfw, verification_table
from facetrain.evaluation.result import read_results
from facetrain.evaluation.scores import ten_fold_accuracy, tpr_at_fpr


def _printed(table):
    console = Console(width=160, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(table)
    return " ".join(console.export_text().split())


def test_console_table_says_its_protocol():
    result = made_up_result()
    table, remarks = verification_table([("lfw", result)])
    text = _printed(table)
    tpr = f"{100 * result.cells[2].tpr:.2f} (20)"
    assert f"lfw 400 {100 * result.accuracy:.2f} ± {100 * result.accuracy_std:.2f}" in text
    assert tpr in text
    assert f"{100 * result.cells[1].tpr:.2f} (2)*" in text
    assert "image + mirror image; accuracy over 10 folds in file order; FPR rule: strict" in remarks
    assert "* decided by fewer than 10 of them" in remarks
    assert "TPR@1e-3" not in text  # of 200 impostor pairs


def test_console_table_of_sets_of_different_sizes():
    """A rate is in the table where one impostor pair decides it in any of the sets."""
    small = made_up_result()
    same = np.append(small.same, np.zeros(800, bool))
    large = replace(small, scores=np.append(small.scores, np.zeros(800)), same=same)
    assert [cell.fpr for cell in large.decided] == [1e-3, 1e-2, 1e-1]
    assert [cell.fpr for cell in small.decided] == [1e-2, 1e-1]
    tiny = replace(small, same=np.append(np.ones(395, bool), np.zeros(5, bool)))
    assert [cell.fpr for cell in tiny.decided] == [1e-1]
    text = _printed(verification_table([("small", small), ("large", large)])[0])
    assert "TPR@1e-3 TPR@1e-2 TPR@1e-1 " in text
    assert re.search(r"small 400 [\d.]+ ± [\d.]+ – [\d.]+ \(2\)\*", text)


@pytest.fixture
def toys(monkeypatch, tmp_path):
    """MODEL is a toy whatever its file holds; the toys that were opened, in order."""
    opened = []

    def load(path):
        opened.append(Toy().eval())
        return opened[-1], ModelConfig(input_size=SIZE)

    write_backbone(tmp_path / "toy.safetensors", torch.nn.Linear(1, 1), ModelConfig())
    monkeypatch.setattr(facetrain.evaluation.network, "load_backbone", load)
    return opened


def _made_up_bin(folder, name="toy"):
    result = made_up_result()
    images = list(made_up_pairs(name, result).images)
    write_bin(folder / f"{name}.bin", images, result.same)
    return images, result.same


def _brute_force(images, flip):
    """Cosines of consecutive images, each embedded alone."""
    toy, rows = Toy().eval(), []
    for image in images:
        pixels = torch.from_numpy(decode(image, SIZE)).permute(2, 0, 1)[None].float() / 127.5 - 1
        with torch.no_grad():
            row = toy(pixels) + (toy(pixels.flip(3)) if flip else 0)
        rows.append((row[0] / row[0].norm()).numpy())
    return np.array([float(a @ b) for a, b in zip(rows[0::2], rows[1::2], strict=True)])


@pytest.mark.parametrize("cached", [False, True])
@pytest.mark.parametrize("flip", [False, True])
def test_a_bin_gives_what_brute_force_gives(tmp_path, toys, flip, cached, capsys, monkeypatch):
    images, same = _made_up_bin(tmp_path)
    _made_up_bin(tmp_path, "other")
    monkeypatch.setattr("facetrain.data.progress._PLAIN_SECONDS", 0.0)
    bins = [tmp_path / "toy.bin", tmp_path / "other.bin"]
    output, cache = tmp_path / "out.json", tmp_path / "cache" if cached else None
    found = run_lfw(tmp_path / "toy.safetensors", bins, flip=flip, rule="nearest", output=output, cache=cache)
    scores = _brute_force(images, flip)
    one = found[0]
    assert (one.protocol, [each.dataset for each in found], one.images) == ("lfw", ["toy", "other"], 569)
    assert one.metrics["accuracy"] == pytest.approx(ten_fold_accuracy(2 - 2 * scores, same).mean)
    assert [cell.tpr for cell in one.cells] == [cell.tpr for cell in tpr_at_fpr(scores, same, (1e-2, 1e-1), "nearest")]
    points = np.stack(roc_curve(same, scores, drop_intermediate=False)[:2], axis=1)
    for point in zip(one.curves["roc"].x, one.curves["roc"].y, strict=True):
        assert np.abs(points - point).sum(1).min() <= 1.01 / 200  # two equal scores may have changed places
    assert sum(one.histogram.genuine) == sum(one.histogram.impostor) == 200
    assert one.switches["flip"] is flip
    assert "photos" not in one.switches
    assert one.intervals == {}
    assert read_results(output) == found
    out, said = capsys.readouterr()
    assert "toy" in out
    assert f"{100 * one.metrics['accuracy']:.2f} ± {100 * one.metrics['accuracy_std']:.2f}" in out
    assert "insightface's, 10 folds in file order" in " ".join(out.split())
    assert "embedding toy: 569 of 569, 0 s left, " in said  # the distinct ones of 800
    assert toys[-1].seen == 569 * (1 + flip) * (1 if cached else 2)  # both sets hold the same images


def test_the_official_list_gives_what_brute_force_gives(tmp_path, toys):
    path, folder, lines = official(tmp_path, half=6)
    (result,) = run_lfw(tmp_path / "toy.safetensors", pairs=path, photos=folder, output=tmp_path / "out.json")
    images, same = [], []
    for line in lines[1:]:
        words = line.split("\t")
        same.append(len(words) == 3)
        for name, number in ((words[0], words[1]), (words[-2] if len(words) == 4 else words[0], words[-1])):
            images.append((folder / name / f"{name}_{int(number):04d}.jpg").read_bytes())
    scores = _brute_force(images, True)
    assert result.metrics["accuracy"] == pytest.approx(ten_fold_accuracy(2 - 2 * scores, same).mean)
    assert [cell.tpr for cell in result.cells] == [cell.tpr for cell in tpr_at_fpr(scores, same, (1e-1,))]
    assert (result.dataset, result.switches["photos"], result.switches["pairs"]) == ("lfw (pairs.txt)", PHOTOS, 120)
    assert result.intervals.keys() == {"TPR@1e-1"}  # of 60 impostor pairs
    low, high = result.intervals["TPR@1e-1"]
    assert low <= result.cells[0].tpr <= high


def test_facex_zoos_way_is_another_accuracy(tmp_path, toys, capsys):
    images, same = _made_up_bin(tmp_path)
    words = (tmp_path / "toy.safetensors", [tmp_path / "toy.bin"])
    (theirs,) = run_lfw(*words, by="facex-zoo", flip=False)
    expected = facex_zoo_accuracy(_brute_force(images, False), same)
    assert theirs.metrics["accuracy"] == pytest.approx(expected.mean)
    assert theirs.metrics["accuracy_std"] == pytest.approx(expected.std)
    text = " ".join(capsys.readouterr().out.split())
    assert "facex-zoo's, 10 folds in file order, ± standard error (ddof 1)" in text
    (ours,) = run_lfw(*words, flip=False)
    assert ours.metrics != theirs.metrics
    assert ours.cells == theirs.cells


@pytest.mark.parametrize("ranks", [2, 3])
@pytest.mark.parametrize("cached", [False, True])
def test_ranks_agree_and_one_speaks(tmp_path, toys, ranks, cached, capsys):
    _made_up_bin(tmp_path)
    words = (tmp_path / "toy.safetensors", [tmp_path / "toy.bin"])
    (alone,) = run_lfw(*words)
    capsys.readouterr()
    cache = tmp_path / "cache" if cached else None
    for (one,) in on_ranks(ranks, lambda w: run_lfw(*words, world=w, cache=cache)):
        assert one.metrics == alone.metrics
        np.testing.assert_allclose([c.threshold for c in one.cells], [c.threshold for c in alone.cells], atol=1e-6)
    assert capsys.readouterr().out.count("insightface's") == 1


def test_features_made_elsewhere_have_a_row_for_each_image_of_the_list(tmp_path):
    images, same = _made_up_bin(tmp_path)
    rows = np.random.default_rng(0).normal(size=(len(images), 6))
    np.save(tmp_path / "rows.npy", rows)
    (result,) = run_lfw(tmp_path / "rows.npy", [tmp_path / "toy.bin"])
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    scores = (unit[0::2] * unit[1::2]).sum(1)
    assert result.metrics["accuracy"] == pytest.approx(ten_fold_accuracy(2 - 2 * scores, same).mean)
    assert (result.images, result.switches["flip"]) == (800, "as the features are")
    np.save(tmp_path / "rows.npy", rows[:569])
    with pytest.raises(InputError, match="holds 569 rows for 800 images; expected row i for image i"):
        run_lfw(tmp_path / "rows.npy", [tmp_path / "toy.bin"])


def test_sets_are_decoded_batch_by_batch_and_read_one_at_a_time(tmp_path, toys, monkeypatch):
    """What is decoded at once does not grow with the set, and no set outlives the next one's turn."""
    import gc
    import weakref

    _made_up_bin(tmp_path)
    _made_up_bin(tmp_path, "other")
    alive, pixels, most = [], [], []
    read, begin = lfw.read_bin, facetrain.evaluation.extract._Decoders._begin

    def reading(path):
        found = read(path)
        gc.collect()
        most.append(sum(reference() is not None for reference in alive))
        alive.append(weakref.ref(found))
        return found

    def beginning(self, batch):
        decoded, futures = begin(self, batch)
        pixels.append(weakref.ref(decoded))
        assert sum(reference() is not None for reference in pixels) <= 3
        return decoded, futures

    monkeypatch.setattr(lfw, "read_bin", reading)
    monkeypatch.setattr(facetrain.evaluation.extract._Decoders, "_begin", beginning)
    run_lfw(tmp_path / "toy.safetensors", [tmp_path / "toy.bin", tmp_path / "other.bin"], batch_size=8)
    assert len(pixels) == 2 * -(-569 // 8)
    assert max(most) <= 1


def test_what_is_wrong_is_said_before_anything_is_embedded(tmp_path, toys, monkeypatch):
    _made_up_bin(tmp_path)
    model, good = tmp_path / "toy.safetensors", tmp_path / "toy.bin"
    monkeypatch.setattr(facetrain.evaluation.embedder.Embedder, "embed", lambda *_, **__: pytest.fail("embedded"))
    with pytest.raises(InputError, match="no pair set given; name at least one"):
        run_lfw(model)
    for half in ({"pairs": tmp_path}, {"photos": tmp_path}):
        with pytest.raises(InputError, match="--pairs names LFW's list and --images the folder of its photos"):
            run_lfw(model, [good], **half)
    with pytest.raises(InputError, match=r"must be a \.json file"):
        run_lfw(model, [good], output=tmp_path / "out.txt")
    (tmp_path / "damaged.bin").write_bytes(good.read_bytes()[:-40])
    with pytest.raises(InputError, match=r"damaged\.bin is not insightface's"):
        run_lfw(model, [good, tmp_path / "damaged.bin"])
    with pytest.raises(InputError, match="two pair sets are named"):
        run_lfw(model, [good, good])


def test_a_result_that_cannot_be_written_or_scored_is_one_line(tmp_path, toys):
    _made_up_bin(tmp_path)
    words = (tmp_path / "toy.safetensors", [tmp_path / "toy.bin"])
    (tmp_path / "folder.json").mkdir()
    with pytest.raises(InputError, match=r"folder\.json is a folder; expected the name of a \.json file"):
        run_lfw(*words, output=tmp_path / "folder.json")
    np.save(tmp_path / "rows.npy", np.full((800, 2), np.nan))
    with pytest.raises(InputError, match=r"800 of 800 images cannot be read, the first: row 0 of .*rows\.npy is not"):
        run_lfw(tmp_path / "rows.npy", words[1])


def test_the_command_keeps_lists_and_clears_embeddings(tmp_path, toys, capsys):
    path, folder, _ = official(tmp_path)
    _made_up_bin(tmp_path)
    where = ["--cache", str(tmp_path / "cache")]
    words = ["eval", "lfw", str(tmp_path / "toy.safetensors"), "--device", "cpu", "--nproc", "1"]
    words += ["--pairs", str(path), "--images", str(folder), "--protocol", "facex-zoo", "--no-flip"]
    assert main([*words, str(tmp_path / "toy.bin"), *where, "--output", str(tmp_path / "out.json")]) == 0
    results = read_results(tmp_path / "out.json")
    assert [(one.dataset, one.switches["flip"]) for one in results] == [("toy", False), ("lfw (pairs.txt)", False)]
    assert all(one.switches["accuracy"].startswith("facex-zoo's") for one in results)
    capsys.readouterr()
    assert main(["eval", "cache", *where]) == 0
    listed = capsys.readouterr().out
    assert "569 images, the first toy image 0 (pair 0), no flip, cpu" in listed
    assert re.search(r" MB  \d{4}-\d\d-\d\d \d\d:\d\d  /", listed)
    assert listed.count("\n") == 3
    assert listed.endswith(" MB of embeddings\n")
    assert main(["eval", "cache", "--clear", *where]) == 0
    assert " MB of embeddings removed\n" in capsys.readouterr().out
    assert list((tmp_path / "cache").iterdir()) == []
    assert main([*words, *where, "--no-cache"]) == 2
    assert "--no-cache exclude each other" in capsys.readouterr().err
    assert main([*words, "--no-cache"]) == 0
    assert list((tmp_path / "cache").iterdir()) == []
