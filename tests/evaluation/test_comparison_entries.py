"""Which rows the words of a command line make, and what they are called."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from made_up_results import PAIRS, made_up_pairs, made_up_result
from made_up_runs import made_up_ijbc, made_up_megaface, made_up_run

from facetrain.errors import InputError
from facetrain.evaluation import lfw
from facetrain.evaluation.comparison_entries import read_entries, verification_result
from facetrain.evaluation.pairs import DistinctImages, verify
from facetrain.evaluation.result import save_results
from facetrain.evaluation.rundir import read_run

LFW, IJBC, MEGAFACE = ("lfw", "lfw"), ("ijb-1:1", "IJB-C"), ("megaface", "MegaFace, 1,000,000 distractors")


def names(*words):
    return [entry.name for entry in read_entries([str(word) for word in words])]


def test_results_of_a_runs_model_stand_in_its_row(tmp_path):
    one, two = made_up_run(tmp_path / "one", model="1a" * 32), made_up_run(tmp_path / "two", 1, model="2b" * 32)
    made_up_ijbc("2b" * 32, "runs/two").save(tmp_path / "two.json")
    save_results([made_up_ijbc("3c" * 32), made_up_megaface("1a" * 32, "runs/one")], tmp_path / "rest.json")
    words = [str(path) for path in (one, two, tmp_path / "two.json", tmp_path / "rest.json")]
    entries = read_entries(words)
    assert [(entry.name, list(entry.results), entry.models) for entry in entries] == [
        ("one", [LFW, MEGAFACE], ["1a" * 32]),
        ("two", [LFW, IJBC], ["2b" * 32]),
        ("face.onnx", [IJBC], ["3c" * 32]),
    ]
    assert [entry.run is not None for entry in entries] == [True, True, False]
    assert entries[1].results[LFW].metrics["accuracy"] == made_up_result(1).accuracy


def test_a_run_whose_checkpoint_is_gone_has_an_unknown_model(tmp_path):
    run = made_up_run(tmp_path / "run", model="1a" * 32)
    checkpoint = run / "checkpoints" / "step_00000040"
    assert read_entries([str(run)])[0].models == ["1a" * 32]
    checkpoint.joinpath("manifest.json").write_text('{"format": 1')
    assert read_entries([str(run)])[0].models == []
    checkpoint.joinpath("manifest.json").unlink()
    made_up_ijbc("", "other.onnx").save(tmp_path / "a.json")
    assert names(run, tmp_path / "a.json") == ["run", "other.onnx"]  # two unknown models are not one


def test_names_are_distinct(tmp_path):
    for place in ("a/x/run", "b/x/run", "b/y/run", "c"):
        made_up_run(tmp_path / place)
    runs = [tmp_path / "a/x/run", tmp_path / "b/x/run", tmp_path / "b/y/run", tmp_path / "c"]
    assert names(*runs) == ["a/x/run", "b/x/run", "y/run", "c"]
    for file, changes in (("plain", {}), ("noflip", {"switches": {"flip": False}})):
        replace(made_up_ijbc(), **changes).save(tmp_path / f"{file}.json")
    assert names(tmp_path / "plain.json", tmp_path / "noflip.json") == ["face.onnx (plain)", "face.onnx (noflip)"]
    assert names(tmp_path / "plain.json", tmp_path / "plain.json") == ["face.onnx (plain)", "face.onnx (plain) 2"]
    assert names(f"c={runs[0]}", runs[3]) == ["c", f"{tmp_path.name}/c"]
    made_up_ijbc(name="").save(tmp_path / "nameless.json")
    assert names(tmp_path / "nameless.json") == ["nameless"]


def test_a_name_makes_one_row_of_several_paths(tmp_path, monkeypatch):
    run = made_up_run(tmp_path / "run", model="1a" * 32)
    made_up_ijbc("9e" * 32).save(tmp_path / "a=b.json")
    made_up_megaface("1a" * 32).save(tmp_path / "mf.json")
    monkeypatch.chdir(tmp_path)
    entries = read_entries(["LEAP & more=run", "LEAP & more=a=b.json", "mf.json", "a=b.json"])
    assert [(entry.name, list(entry.results)) for entry in entries] == [
        ("LEAP & more", [LFW, IJBC]),
        ("face.onnx (mf)", [MEGAFACE]),  # what has a name takes in nothing that has none
        ("face.onnx (a=b)", [IJBC]),
    ]
    assert entries[0].models == ["1a" * 32, "9e" * 32]
    with pytest.raises(InputError, match=r"two results on IJB-C \(ijb-1:1\); give each a name of its own"):
        read_entries(["x=a=b.json", "x=a=b.json"])
    with pytest.raises(InputError, match="x names two runs"):
        read_entries(["x=run", f"x={run}"])


def test_what_is_no_source_is_one_line(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "a.json").write_text("{}")
    for word, reason in (
        (f"{tmp_path}/none", "none does not exist; expected a run's folder or a .json file"),
        (f"name={tmp_path}/none", "none does not exist"),
        ("=x", "=x: expected NAME=PATH with a name and a path"),
        ("x=", "x=: expected NAME=PATH"),
        (f"{tmp_path}/empty", "not a run's folder: it has no metrics.jsonl"),
        (f"{tmp_path}/a.json", "is not a result of facetrain eval"),
    ):
        with pytest.raises(InputError, match=reason.replace(".", r"\.")):
            read_entries([word])


@pytest.mark.parametrize("flip", [True, False])
@pytest.mark.parametrize("rule", ["strict", "nearest"])
def test_a_runs_result_is_what_eval_lfw_would_say(tmp_path, flip, rule):
    """Else a run and a result file of the same protocol would be called not comparable."""
    rng = np.random.default_rng(0)
    pairs = made_up_pairs("lfw", made_up_result())
    rows = rng.normal(size=(2 * PAIRS, 8)).astype(np.float32)
    rows[1::2] += 2 * rows[0::2] * pairs.same[:, None]
    distinct = DistinctImages(pairs)
    embedder = SimpleNamespace(
        ready_made=False,
        shown_flip=lambda flip: flip,
        fingerprint="1a" * 32,
        name="x",
        embed=lambda *a, **b: SimpleNamespace(rows=rows[distinct._first]),
    )
    task = lfw.Task("lfw", pairs, distinct, distinct.row, pairs.same)
    theirs = lfw._scored(task, embedder, "insightface", flip, rule)
    found = verify(rows[distinct._first][distinct.row], pairs.same, flip=flip, rule=rule)
    found = replace(found, images=len(distinct))
    ours = verification_result("lfw", found, "1a" * 32, "x")
    assert ours.switches == theirs.switches
    assert (ours.protocol, ours.dataset, ours.metrics) == (theirs.protocol, theirs.dataset, theirs.metrics)
    assert ours.cells == theirs.cells
    assert (ours.curves, ours.images) == (theirs.curves, theirs.images)


def test_a_run_shows_its_last_results(tmp_path):
    run = read_run(made_up_run(tmp_path / "run", 3, sets=("lfw", "agedb")))
    entry = read_entries([str(tmp_path / "run")])[0]
    assert [test[1] for test in entry.results] == ["lfw", "agedb"] == [name for name, _ in run.results]
    assert entry.results["lfw", "agedb"].metrics["accuracy"] == made_up_result(3).accuracy
