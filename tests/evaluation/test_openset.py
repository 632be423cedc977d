"""The open-set command: what it reads, prints and writes, on one rank and several."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from ranks import run_ranks
from rich.console import Console

from facetrain import cli
from facetrain.checkpoints.backbones import write_backbone
from facetrain.config import ModelConfig
from facetrain.data.images import encode_jpeg
from facetrain.errors import InputError
from facetrain.evaluation.comparison_entries import Entry
from facetrain.evaluation.comparison_table import differences
from facetrain.evaluation.openset import openset_table, run_openset
from facetrain.evaluation.openset_scores import Protocol
from facetrain.evaluation.result import read_results
from facetrain.models import build_backbone

SIZES = {"ann": 4, "bob": 3, "cleo": 5, "dan": 2, "eve": 3, "fay": 2, "gus": 1}  # 20 images, 22 genuine pairs
TRAINED = {"ann": 1, "bob": 6, "cleo": 7, "dan": 2, "eve": 8, "fay": 1, "gus": 9, "hal": 3}  # head: bob, cleo, eve, gus


def photos(folder, sizes):
    rng = np.random.default_rng(0)
    for name, size in sizes.items():
        (folder / name).mkdir(parents=True)
        for photo in range(size):
            pixels = rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)
            (folder / name / f"{photo}.jpg").write_bytes(encode_jpeg(pixels))
    return folder


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder to work in, with photos of people, a training set that knows them, a model, and features of it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "kept"))
    photos(tmp_path / "people", SIZES)
    photos(tmp_path / "trained", TRAINED)
    model = ModelConfig(width=4, input_size=16, embedding_size=8)
    write_backbone(tmp_path / "model.safetensors", build_backbone(model), model)
    rng = np.random.default_rng(1)
    who = np.repeat(np.arange(len(SIZES)), list(SIZES.values()))
    np.save(tmp_path / "rows.npy", (rng.normal(size=(7, 6))[who] + rng.normal(size=(20, 6))).astype(np.float32))
    return tmp_path


def without_time(results):
    return [replace(one, seconds=0.0) for one in results]


def test_what_is_written_is_what_was_found(here, capsys):
    found = run_openset(here / "rows.npy", here / "people", output=here / "out.json")
    assert read_results(here / "out.json") == found
    (one,) = found
    assert (one.protocol, one.dataset, one.images, one.unreadable) == ("openset", "people", 20, 0)
    assert one.model_name == str(here / "rows.npy")
    assert len(one.model) == 64
    assert set(one.metrics) == {"rank-1", "TPIR@FPIR=0.01", "TPIR@FPIR=0.1"}
    assert [cell.fpr for cell in one.cells] == [1e-1, 1e-2]
    assert one.switches["genuine pairs"] == 6 + 3 + 10 + 1 + 3 + 1
    assert one.switches["angle images of each"] == 2
    said = capsys.readouterr().out
    assert f"{100 * one.cells[0].tpr:.2f} (16)" in said
    assert list(one.figures) == [
        *("angle mean (rad)", "angle std (rad)"),
        *("false alarms at FPIR=0.01", "false alarms at FPIR=0.1"),
    ]
    assert f"{one.figures['angle mean (rad)']:.3f} ± {one.figures['angle std (rad)']:.3f}" in said
    assert f"{100 * one.metrics['TPIR@FPIR=0.1']:.2f} ({one.figures['false alarms at FPIR=0.1']:.0f})" in said
    assert list(one.intervals) == ["TPR@1e-1", "TPR@1e-2", "rank-1"]
    for low, high in one.intervals.values():
        assert f"[{100 * low:.2f}, {100 * high:.2f}]" in said
    assert "in square brackets: 95 % interval over people" in " ".join(said.split())
    switches = "flip as the features are, FPR rule strict, method exact, seed 0"
    assert f"model {here / 'rows.npy'} ({one.model[:16]}); {switches}" in " ".join(said.split())


@pytest.mark.parametrize("method", ["exact", "histogram"])
def test_any_two_models_can_be_compared(here, method):
    """Whatever depends on the model is no switch."""
    np.save(here / "other.npy", np.random.default_rng(2).normal(size=(20, 9)).astype(np.float32))
    found = [
        run_openset(here / name, here / "people", Protocol(method=method), classes_of=here / "trained")
        for name in ("rows.npy", "other.npy")
    ]
    entries = [Entry(str(i), {(one.protocol, one.dataset): one for one in each}) for i, each in enumerate(found)]
    assert differences(entries) == []
    assert found[0][0].figures.keys() == found[1][0].figures.keys()
    assert found[0][0].figures != found[1][0].figures


def test_intervals_can_be_left_out_and_their_absence_is_told(here, capsys, monkeypatch):
    for protocol in (Protocol(intervals=False), Protocol(method="histogram")):
        assert run_openset(here / "rows.npy", here / "people", protocol)[0].intervals == {}
        said = capsys.readouterr().out
        assert "square brackets" not in said
        assert "--intervals" not in said
    monkeypatch.setattr("facetrain.evaluation.openset_intervals.CHEAP", 0)
    assert run_openset(here / "rows.npy", here / "people")[0].intervals == {}
    assert "without intervals where the pairs are many; --intervals takes the time" in capsys.readouterr().out
    assert run_openset(here / "rows.npy", here / "people", Protocol(intervals=True))[0].intervals


def test_head_and_tail_are_results_of_their_own(here):
    found = run_openset(here / "rows.npy", here / "people", classes_of=here / "trained", head_threshold=5)
    assert [one.dataset for one in found] == ["people", "people, head", "people, tail"]
    assert [one.images for one in found] == [20, 3 + 5 + 3 + 1, 4 + 2 + 2]
    assert [one.switches["people"] for one in found] == [7, 4, 3]
    assert {one.switches["head has more training images than"] for one in found} == {5}
    assert {one.switches["angle images of each"] for one in found} == {2}
    assert [one.switches["angle people"] for one in found] == [6, 3, 3]
    head, tail = (one.switches for one in found[1:])
    assert (head["genuine pairs"], head["impostor pairs"]) == (3 + 10 + 3, 12 * 11 // 2 - 16)
    assert (tail["genuine pairs"], tail["impostor pairs"]) == (6 + 1 + 1, 8 * 7 // 2 - 8)
    median = run_openset(here / "rows.npy", here / "people", classes_of=here / "trained")
    assert median[0].switches["head has more training images than"] == 6  # of 1, 6, 7, 2, 8, 1 and 9
    assert [one.switches["people"] for one in median[1:]] == [3, 4]
    wider = run_openset(here / "rows.npy", here / "people", spread_images=3)
    assert (wider[0].switches["angle images of each"], wider[0].switches["angle people"]) == (3, 4)


def _found(world, folder):
    found = run_openset(
        folder / "model.safetensors",
        folder / "people",
        classes_of=folder / "trained",
        head_threshold=5,
        batch_size=1,
        output=folder / f"{world.size}.json",
        world=world,
    )
    return without_time(found)


@pytest.mark.parametrize("ranks", [2, 3])
def test_ranks_find_the_same(here, ranks):
    alone, *_ = run_ranks(1, _found, here)
    first, *others = run_ranks(ranks, _found, here)
    assert first == alone
    assert others == [[]] * (ranks - 1)
    assert without_time(read_results(here / f"{ranks}.json")) == alone


def test_a_cache_changes_nothing(here):
    fresh, first, again = (
        without_time(run_openset(here / "model.safetensors", here / "people", cache=cache))
        for cache in (None, here / "cache", here / "cache")
    )
    assert any((here / "cache").iterdir())
    assert fresh == first == again


def test_the_switches_reach_the_numbers(here):
    plain = run_openset(here / "model.safetensors", here / "people")[0]
    other = Protocol(flip=False, rule="nearest", method="histogram", seed=3)
    found = run_openset(here / "model.safetensors", here / "people", other)[0]
    assert {name: found.switches[name] for name in ("flip", "FPR rule", "method", "seed")} == {
        "flip": False,
        "FPR rule": "nearest",
        "method": "histogram",
        "seed": 3,
    }
    assert found.histogram != plain.histogram


def test_unreadable_images_are_left_out_where_that_is_asked_for(here):
    (here / "people" / "cleo" / "1.jpg").write_bytes(b"no photo")
    with pytest.raises(InputError, match=r"1 of 20 images cannot be read, the first: .*cleo/1\.jpg"):
        run_openset(here / "model.safetensors", here / "people")
    found = run_openset(
        here / "model.safetensors",
        here / "people",
        classes_of=here / "trained",
        head_threshold=5,
        skip_unreadable=True,
    )
    assert [(one.images, one.unreadable) for one in found] == [(20, 1), (12, 1), (8, 0)]
    assert found[0].switches["genuine pairs"] == 24 - 4
    (here / "people" / "cleo" / "1.jpg").unlink()
    apart = run_openset(here / "model.safetensors", here / "people")
    assert apart[0].cells == found[0].cells


def test_embeddings_that_are_not_finite_are_named(here):
    rows = np.load(here / "rows.npy")
    rows[9] = np.nan
    np.save(here / "rows.npy", rows)
    with pytest.raises(InputError, match="1 of 20 images cannot be read, the first: row 9 of"):
        run_openset(here / "rows.npy", here / "people")
    assert run_openset(here / "rows.npy", here / "people", skip_unreadable=True)[0].unreadable == 1


def test_the_table_says_what_decided_and_what_is_missing(here):
    found = run_openset(here / "rows.npy", here / "people", Protocol(method="histogram"))
    wide = replace(found[0], unreadable=2, dataset="[people]")
    table, remarks = openset_table([wide, replace(found[0], cells=found[0].cells[:1])])
    with open(os.devnull, "w") as nowhere:
        console = Console(width=120, record=True, file=nowhere)
        console.print(table)
    text = " ".join(console.export_text().split())
    assert "[people]" in text
    assert "left out, unreadable 2 –" in text
    assert f"TPR@1e-2 {100 * wide.cells[1].tpr:.2f} ({wide.cells[1].impostors})* –" in text
    assert "TPR too low by at most" in text
    assert "* decided by fewer than 10 of them" in remarks
    assert "2 images of each person" in remarks


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"data": "nowhere"}, "nowhere"),
        ({"model": "nowhere"}, "nowhere does not exist"),
        ({"output": "out.txt"}, r"output out\.txt must be a \.json file in a folder that exists"),
        ({"head_threshold": 3}, "--head-threshold 3 needs --classes-of"),
        ({"classes_of": "people", "head_threshold": 4}, "the head people are 1 with 5 images: 10 same-person and 0"),
        ({"data": "alone"}, "the people are 1 with 4 images: 6 same-person and 0 different-person pairs"),
        ({"data": "single"}, "the people are 3 with 3 images: 0 same-person and 3 different-person pairs"),
        ({"data": "list.txt"}, r"list\.txt: .*a\.jpg has no label; write `path label` a line"),
    ],
)
def test_mistakes_are_named_before_anything_is_embedded(here, monkeypatch, change, says):
    photos(here / "alone", {"ann": 4})
    photos(here / "single", {"ann": 1, "bob": 1, "cleo": 1})
    (here / "list.txt").write_text("a.jpg\nb.jpg\n")
    monkeypatch.setattr("facetrain.evaluation.embedder.Embedder.embed", lambda *_, **__: pytest.fail("it embedded"))
    given = {"model": "rows.npy", "data": "people"} | change
    paths = {name: value if isinstance(value, int) else Path(value) for name, value in given.items()}
    with pytest.raises(InputError, match=says):
        run_openset(**paths)


def test_the_command(here, capfd):
    words = "eval openset rows.npy people --classes-of trained --head-threshold 5 --output out.json --rule nearest"
    assert (
        cli.main(
            [*words.split(), "--no-cache", "--device", "cpu", "--spread-images", "3", "--no-flip", "--no-intervals"]
        )
        == 0
    )
    assert "people, tail" in capfd.readouterr().out
    found = read_results(here / "out.json")
    expected = run_openset(
        Path("rows.npy"),
        here / "people",
        Protocol(flip=False, rule="nearest", intervals=False),
        classes_of=here / "trained",
        head_threshold=5,
        spread_images=3,
    )
    assert without_time(found) == without_time(expected)
