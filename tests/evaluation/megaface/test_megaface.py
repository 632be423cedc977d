"""The whole protocol on a rendered set in MegaFace's form: images, features of both layouts, ranks, mistakes."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from ranks import run_ranks
from test_megaface_files import write_list
from test_megaface_scores import places_by_definition

from facetrain.cli import main
from facetrain.data.dataset import PhotoFiles
from facetrain.distributed import World
from facetrain.errors import InputError
from facetrain.evaluation.megaface.data import Data, chains, load_features
from facetrain.evaluation.megaface.files import read_feature, write_feature
from facetrain.evaluation.megaface.run import Protocol, Written, run_megaface
from facetrain.evaluation.megaface.scores import Probes
from facetrain.evaluation.ready_made import AS_GIVEN
from facetrain.evaluation.result import read_results

TOOLS = Path(__file__).parents[3] / "tools"
PROBES, DISTRACTORS = 18, 40  # of conftest's set


def _features(root, data):
    """(probes, people, distractors) straight from the files of the devkit's layout."""
    faces = json.loads((data / "templatelists" / "facescrub_features_list.json").read_text())
    others = json.loads((data / "templatelists" / f"megaface_features_list.json_{DISTRACTORS}_1").read_text())
    probes, distractors = (
        np.stack([read_feature(root / name / f"{path}_toy.bin") for path in paths])
        for name, paths in (("facescrub", faces["path"]), ("megaface", others["path"]))
    )
    return Probes(probes, np.unique(faces["id"], return_inverse=True)[1]), distractors


def test_from_images_to_the_table_and_the_files(made, tmp_path, capsys):
    words = [made / "model.safetensors", made / "data", "--clean", "none", "--no-cache", "--device", "cpu"]
    words += ["--output", tmp_path / "r.json", "--devkit-results", tmp_path / "dk", "--algo", "toy"]
    assert main(["eval", "megaface", *map(str, words)]) == 0
    said = " ".join(capsys.readouterr().out.split())
    results = read_results(tmp_path / "r.json")
    probes, distractors = _features(made / "features", made / "data")
    assert [one.dataset for one in results] == ["MegaFace, 10 distractors", "MegaFace, 40 distractors"]
    for size, one in zip((10, DISTRACTORS), results, strict=True):
        places = np.array(list(places_by_definition(probes, distractors[:size], "miss").values()))
        assert one.metrics == {"rank-1": (places == 0).mean(), "rank-10": (places < 10).mean()}
        assert (one.model, one.images, one.unreadable, one.protocol) == ("c" * 64, PROBES + size, 0, "megaface")
        assert f"{100 * one.metrics['rank-1']:.2f}" in said
        held = json.loads((tmp_path / "dk" / f"cmc_facescrub_megaface_toy_{size}_1.json").read_text())
        assert held["cmc"][0] == list(range(size + 1))
        assert held["cmc"][1] == [(places <= place).mean() for place in range(size + 1)]
        assert one.curves["cmc"].x[0] == 1
        assert held["roc"] == [list(one.curves["roc"].x), list(one.curves["roc"].y)]
    assert "cleaned no, ties miss, FPR rule strict, set 1, probes 18, flip yes" in said
    assert results[0].switches["cleaned"] == "no"


def test_features_of_both_layouts_give_what_the_images_give(made, tmp_path, capsys):
    data, protocol = Data(made / "data"), Protocol(clean="facex-zoo", ties="hit", rule="nearest")
    model = made / "model.safetensors"
    run_megaface(model, data, written=Written(features=tmp_path, layout="npy"), extract_only=True)
    probes, distractors = _features(made / "features", made / "data")
    np.testing.assert_array_equal(np.load(tmp_path / "facescrub.npy"), probes.rows)
    np.testing.assert_array_equal(np.load(tmp_path / "megaface.npy"), distractors)
    np.testing.assert_allclose(np.linalg.norm(distractors, axis=1), 1, atol=1e-6)
    ways = [
        run_megaface(model, data, protocol),
        run_megaface(made / "features", data, protocol, algo="toy"),
        run_megaface(tmp_path, data, protocol),
    ]
    assert "cleaned facex-zoo (2 probes, 4 distractors)" in " ".join(capsys.readouterr().out.split())
    assert [way[0].switches["flip"] for way in ways] == [True, AS_GIVEN, AS_GIVEN]
    for other in ways[1:]:
        for one, wanted in zip(other, ways[0], strict=True):
            assert one.model == ""
            assert (one.metrics, one.curves) == (wanted.metrics, wanted.curves)
            for cell, other_cell in zip(one.cells, wanted.cells, strict=True):  # length 1 twice moves the last bit
                assert cell == replace(other_cell, threshold=pytest.approx(other_cell.threshold, abs=1e-6))


def _places(root, data, **protocol):
    return [one.curves["cmc"] for one in run_megaface(root, data, Protocol(**protocol), algo="toy")]


def test_cleaning_takes_the_noise_out(made):
    """The noisy distractors show probe people: without them a mate can only come earlier."""
    data = Data(made / "data")
    before, after = (_places(made / "features", data, clean=clean)[-1] for clean in ("none", "insightface"))
    assert sum(after.y) > sum(before.y)


def test_sizes_without_a_list_are_the_first_of_the_largest(made, tmp_path):
    data = Data(made / "data", sizes=(10, 25))
    results = run_megaface(made / "features", data, Protocol(clean="none"), algo="toy")
    probes, distractors = _features(made / "features", made / "data")
    for size, one in zip((10, 25), results, strict=True):
        places = np.array(list(places_by_definition(probes, distractors[:size], "miss").values()))
        assert one.metrics["rank-1"] == (places == 0).mean()
    # Matrices without any list of distractors: powers of ten and all.
    lists = tmp_path / "lists"
    lists.mkdir()
    shutil.copy(made / "data" / "templatelists" / "facescrub_features_list.json", lists)
    np.save(tmp_path / "facescrub.npy", probes.rows)
    np.save(tmp_path / "megaface.npy", distractors.astype(np.float16))
    bare = run_megaface(tmp_path, Data(made / "data", lists=lists), Protocol(clean="none"))
    assert [one.dataset.split()[1] for one in bare] == ["10", "40"]
    with pytest.raises(
        InputError, match=r"has no megaface_features_list\.json_40_1, which says what image each row of"
    ):
        run_megaface(tmp_path, Data(made / "data", lists=lists))
    with pytest.raises(InputError, match=r"--size 41: .*megaface\.npy has 40 distractors; give a number in 1\.\.40"):
        run_megaface(tmp_path, Data(made / "data", lists=lists, sizes=(41,)), Protocol(clean="none"))


def test_lists_that_are_not_nested_are_searched_apart(made, tmp_path):
    lists = shutil.copytree(made / "data" / "templatelists", tmp_path / "lists")
    every = json.loads((lists / f"megaface_features_list.json_{DISTRACTORS}_1").read_text())["path"]
    write_list(lists / "megaface_features_list.json_10_1", every[30:])
    write_list(lists / "megaface_features_list.json_20_1", every[:20])
    results = run_megaface(made / "features", Data(made / "data", lists=lists), Protocol(clean="none"), algo="toy")
    probes, distractors = _features(made / "features", made / "data")
    for part, one in zip((distractors[30:], distractors[:20], distractors), results, strict=True):
        places = np.array(list(places_by_definition(probes, part, "miss").values()))
        assert one.metrics["rank-1"] == (places == 0).mean()


def test_chains_hold_every_number_and_each_distractor_once():
    sets = [np.array([3, 1]), np.arange(6), np.array([1, 2, 3]), np.array([0, 1, 2, 3, 9])]
    found = chains(sets, 10)
    assert [[(size, added.tolist()) for size, added in chain] for chain in found] == [
        [(2, [1, 3]), (3, [2]), (5, [0, 9])],
        [(6, [0, 1, 2, 3, 4, 5])],
    ]


def _on_rank(world: World, root, model):
    results = run_megaface(root / model, Data(root / "data"), algo="toy", world=world, batch_size=4)
    return [replace(one, seconds=0) for one in results]


def test_ranks_share_the_work(made):
    """Features that two ranks make differ in the last bit, as their batches do; features that are there do not."""
    wanted = _on_rank(World(), made, "features")
    for found in run_ranks(2, _on_rank, made, "features"):
        assert found == wanted


@pytest.mark.slow
@pytest.mark.parametrize("size", [2, 3])
def test_ranks_share_the_images(made, size):
    wanted = _on_rank(World(), made, "model.safetensors")
    for found in run_ranks(size, _on_rank, made, "model.safetensors"):
        for one, alone in zip(found, wanted, strict=True):
            assert one.metrics == pytest.approx(alone.metrics, abs=0.03)
            assert (one.model, one.images, one.switches) == (alone.model, alone.images, alone.switches)


def test_unreadable_images_are_refused_or_out_of_reach(made, tmp_path, monkeypatch):
    data = shutil.copytree(made / "data", tmp_path / "data")
    faces = json.loads((data / "templatelists" / "facescrub_features_list.json").read_text())["path"]
    others = json.loads((data / "templatelists" / "megaface_features_list.json_10_1").read_text())["path"]
    (data / "facescrub_images" / faces[1]).write_bytes(b"no image")
    (data / "megaface_images" / others[9]).unlink()
    model = made / "model.safetensors"
    with monkeypatch.context() as patch:
        patch.setattr(PhotoFiles, "encoded", lambda self, i: pytest.fail("an image was opened"))
        with pytest.raises(
            InputError, match=r"megaface_images lacks 1 of the 40 images that the list of MegaFace names, the first "
        ) as told:
            run_megaface(model, Data(data))
    assert f"{others[9]}; copy the whole folder, or give --skip-unreadable" in str(told.value)
    (data / "megaface_images" / others[9]).write_bytes(b"")
    with pytest.raises(InputError, match=r"1 of 18 images cannot be read, the first: .*Person_00_1\.jpg.* with --skip"):
        run_megaface(model, Data(data))
    (data / "megaface_images" / others[9]).unlink()
    written = Written(features=tmp_path / "features")
    results = run_megaface(model, Data(data), Protocol(clean="none"), written=written, skip_unreadable=True, algo="toy")
    assert [one.unreadable for one in results] == [2, 2]
    assert not (tmp_path / "features" / "megaface" / f"{others[9]}_toy.bin").exists()
    probes, distractors = _features(made / "features", made / "data")
    kept = np.arange(PROBES) != 1
    left = Probes(probes.rows[kept], probes.people[kept])
    places = np.array(list(places_by_definition(left, np.delete(distractors, 9, axis=0), "miss").values()))
    assert results[-1].metrics["rank-1"] == (places == 0).mean()
    with pytest.raises(InputError, match=r"_toy\.bin cannot be read: No such file or directory; the list names its"):
        run_megaface(tmp_path / "features", Data(data), algo="toy")


def test_a_person_with_one_image_is_mentioned(made, tmp_path, capsys):
    lists = shutil.copytree(made / "data" / "templatelists", tmp_path / "lists")
    tree = json.loads((lists / "facescrub_features_list.json").read_text())
    cut = {key: values[:7] for key, values in tree.items()}
    (lists / "facescrub_features_list.json").write_text(json.dumps(cut))
    run_megaface(made / "features", Data(made / "data", lists=lists), Protocol(clean="none"), algo="toy")
    assert "note: 1 of FaceScrub's people have one image only" in capsys.readouterr().err
    alone = {key: values[:1] for key, values in tree.items()}
    (lists / "facescrub_features_list.json").write_text(json.dumps(alone))
    with pytest.raises(InputError, match="no person has two images among the probes"):
        run_megaface(made / "features", Data(made / "data", lists=lists), Protocol(clean="none"), algo="toy")


def test_features_that_insightfaces_script_cleaned_are_told_from_others(made, tmp_path, capsys):
    """513 numbers, the last 100 for noise: once cleaned they are not cleaned again."""
    probes, distractors = _features(made / "features", made / "data")
    wide = np.zeros((PROBES, 512), np.float32)
    wide[:, :16] = probes.rows
    bad = np.arange(DISTRACTORS) < 4
    np.save(tmp_path / "facescrub.npy", np.pad(wide, ((0, 0), (0, 1))))
    rows = np.pad(distractors, ((0, 0), (0, 513 - 16)))
    rows[bad, -1] = 100
    np.save(tmp_path / "megaface.npy", rows)
    found = run_megaface(tmp_path, Data(made / "data"), Protocol(clean="none"))
    assert "cleaned by insightface's script before" in " ".join(capsys.readouterr().out.split())
    places = np.array(list(places_by_definition(probes, distractors[~bad], "miss").values()))
    assert found[-1].metrics["rank-1"] == (places == 0).mean()
    with pytest.raises(InputError, match="the features have 513 numbers, as insightface's script writes them when it"):
        run_megaface(tmp_path, Data(made / "data"))


def test_mistakes_are_one_line(made, tmp_path, capsys):
    data, features = Data(made / "data"), made / "features"
    with pytest.raises(InputError, match="--extract-only needs --save-features"):
        run_megaface(features, data, extract_only=True)
    with pytest.raises(InputError, match="--algo 'a/b' must be letters"):
        run_megaface(features, data, algo="a/b")
    with pytest.raises(InputError, match=r"output .*r\.txt must be a \.json file in a folder that exists"):
        run_megaface(features, data, written=Written(output=tmp_path / "r.txt"))
    with pytest.raises(InputError, match=r"has no megaface_features_list\.json_SIZE_2; expected the devkit's lists"):
        run_megaface(features, data, Protocol(number=2), algo="toy")
    with pytest.raises(InputError, match=r"noise list .*none\.txt cannot be read"):
        run_megaface(features, replace(data, megaface_noises=tmp_path / "none.txt"), algo="toy")
    with pytest.raises(
        InputError, match="is not a folder; expected one with the images that the list of FaceScrub names"
    ):
        run_megaface(made / "model.safetensors", replace(data, facescrub_images=tmp_path / "none"))
    shutil.copytree(made / "data" / "templatelists", tmp_path / "templatelists")
    (tmp_path / "facescrub_images").mkdir()
    with pytest.raises(InputError, match="facescrub_images lacks 18 of the 18 images") as told:
        run_megaface(made / "model.safetensors", Data(tmp_path), Protocol(clean="none"), skip_unreadable=True)
    assert "the first Person_00/Person_00_0.jpg" in str(told.value)
    for name in ("f.npy", "f.npz"):
        with pytest.raises(InputError, match=r"are two files, facescrub\.npy and megaface\.npy, as --save-features"):
            run_megaface(tmp_path / name, data)
    with pytest.raises(InputError, match=r"nowhere is not a folder; expected one with the devkit's templatelists, fac"):
        run_megaface(features, Data(tmp_path / "nowhere"), algo="toy")
    other = shutil.copytree(features, tmp_path / "features")
    some = next((other / "megaface").rglob("*.bin"))
    for bad in (np.nan, np.inf):
        feature = read_feature(some).copy()
        feature[3] = bad
        write_feature(some, feature)
        assert main(["eval", "megaface", str(other), str(made / "data"), "--algo", "toy", "--clean", "none"]) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        assert f"error: feature {some} holds a number that is not finite" in error


def test_lists_and_matrices_must_fit(made, tmp_path):
    probes, distractors = _features(made / "features", made / "data")
    np.save(tmp_path / "facescrub.npy", probes.rows)
    np.save(tmp_path / "megaface.npy", distractors[:30])
    data = Data(made / "data")
    with pytest.raises(
        InputError, match=r"has 30 rows and the lists 10, 40 images; row i must be image i of one of them"
    ):
        load_features(tmp_path, data, "toy", 1, noises=True)
    np.save(tmp_path / "megaface.npy", distractors[:, :8])
    with pytest.raises(InputError, match="features of FaceScrub have 16 numbers and those of MegaFace 8"):
        load_features(tmp_path, data, "toy", 1, noises=True)
    np.save(tmp_path / "megaface.npy", distractors)
    lists = shutil.copytree(made / "data" / "templatelists", tmp_path / "lists")
    write_list(lists / "megaface_features_list.json_10_1", [f"x/{i}.jpg" for i in range(10)])
    with pytest.raises(
        InputError, match=r"x/0\.jpg is not in .*json_40_1, so no row of .*megaface\.npy is its feature"
    ):
        load_features(tmp_path, replace(data, lists=lists), "toy", 1, noises=True)


def test_the_script_is_the_command(made):
    command = [sys.executable, TOOLS.parent / "eval" / "megaface.py", "--help"]
    assert "MegaFace challenge 1" in subprocess.run(command, check=True, capture_output=True, text=True).stdout
