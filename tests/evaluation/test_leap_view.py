"""What a report shows of LEAP: from the files of a run to numbers, captions and figures."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
from made_up_leap import EPOCHS, START, STEPS, angle_lines, leap_lines, write_leap, write_map

from facetrain.errors import InputError
from facetrain.evaluation import leap_view
from facetrain.evaluation.report import write_report
from facetrain.evaluation.rundir import read_run

END = EPOCHS * STEPS


def _log(folder, lines):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


@pytest.fixture
def run_dir(tmp_path):
    folder = _log(tmp_path / "<leap>", [{"kind": "train", "step": END, "epoch": EPOCHS, "loss": 1.0, "lr": 0.1}])
    write_leap(folder)
    return folder


@pytest.fixture
def baseline(tmp_path):
    write_leap(tmp_path / "baseline", clouds=False)
    return tmp_path / "baseline"


def test_a_run_is_read_with_its_angles_and_maps(run_dir):
    run = read_run(run_dir)
    assert [line["step"] for line in run.leap] == list(range(10, END + 1, 10))
    assert [record.step for record in run.angles] == list(range(STEPS, END + 1, STEPS))
    expected = angle_lines()[3]
    assert run.angles[3].epoch == 4
    assert run.angles[3].head.tolist() == expected["head"]
    assert run.angles[3].tail.tolist() == expected["tail"]
    assert [one.step for one in run.maps] == [START, END]
    assert run.maps[1].embeddings.shape == (8 * 25, 64)
    assert run.maps[1].embeddings.dtype == np.float32
    assert run.maps[1].images.min() == 5


def test_a_resumed_run_counts_its_last_lines(run_dir):
    again = angle_lines()[1] | {"tail": [7] * 180}
    with (run_dir / "metrics.jsonl").open("a") as log:
        log.write(json.dumps(again) + "\n" + json.dumps(leap_lines()[4] | {"sigma_tail": 0.5}) + "\n")
    run = read_run(run_dir)
    assert len(run.angles) == EPOCHS
    assert run.angles[1].tail.tolist() == [7] * 180
    assert run.leap[4]["sigma_tail"] == 0.5


@pytest.mark.parametrize(
    "change",
    [
        {"tail": [1] * 179},
        {"tail": None},
        {"head": [1] * 181},
        {"head": [-1] * 180},
        {"head": [0.5] * 180},
        {"head": [2**60] * 180},
        {"epoch": None},
        {"epoch": "4"},
    ],
)
def test_damaged_angles_are_one_line(tmp_path, change):
    _log(tmp_path, [angle_lines()[0], angle_lines()[1] | change])
    with pytest.raises(InputError, match=r"metrics\.jsonl:2 is damaged; expected angles with an epoch and 180 counts"):
        read_run(tmp_path)


def test_damaged_spreads_are_one_line(tmp_path):
    _log(tmp_path, [leap_lines()[0] | {"cloud_share": "all"}])
    with pytest.raises(InputError, match=r"metrics\.jsonl:1 is damaged; expected a number or null for each of sigma_"):
        read_run(tmp_path)


def test_damaged_maps_are_one_line(run_dir):
    path = write_map(run_dir, 5)
    whole = dict(np.load(path))
    changes = {
        r"is not a map of people: expected embeddings \(n, D\) of floats": [
            {"embeddings": whole["embeddings"][0]},
            {"embeddings": whole["embeddings"][:0], **{key: whole[key][:0] for key in ("labels", "head", "images")}},
            {"labels": whole["labels"][:-1]},
            {"labels": whole["labels"].astype(float)},
            {"head": whole["head"].astype(int)},
        ],
        "an embedding is not finite, or a class has no images": [
            {"embeddings": np.where(whole["head"][:, None], np.nan, whole["embeddings"])},
            {"images": 0 * whole["images"]},
        ],
        r"map_00000005\.npz is not a readable map of people: damaged \(ValueError\)": [
            {"images": np.array([{}], dtype=object)}  # never unpickled
        ],
    }
    for message, several in changes.items():
        for change in several:
            np.savez(path, **(whole | change))
            with pytest.raises(InputError, match=message):
                read_run(run_dir)
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(InputError, match=r"is not a readable map of people: damaged \(BadZipFile\)"):
        read_run(run_dir)
    path.rename(path.with_name("map_last.npz"))
    with pytest.raises(InputError, match=r"map_last\.npz is not a readable map"):
        read_run(run_dir)


def test_clouds_begin_where_the_first_map_was_made(run_dir, baseline):
    run = read_run(run_dir)
    assert leap_view.cloud_start(run) == START
    run.maps.pop(0)
    assert leap_view.cloud_start(run) == START + 10  # the first record that saw one
    assert leap_view.cloud_start(read_run(baseline)) is None


def test_section_of_a_report(run_dir):
    text = write_report(run_dir).read_text()
    sections = re.findall(r'<section id="(\w+)"', text)
    assert sections == ["results", "training", "leap", "images", "pairs", "recipe", "versions"]
    assert '<a href="#leap">' in text
    section = text[text.index('<section id="leap"') : text.index('<section id="images"')]
    assert section.count("<svg") == 5 + 2
    assert not re.search(r"https?:|<image", section)
    assert not re.search(r"#0[1-6]0[0-9a-f]{3}\b", section)  # stand-ins for the page's colours
    ids = re.findall(r' id="([^"]+)"', text)
    assert len(ids) == len(set(ids))
    used = {target for pair in re.findall(r'href="#([^"]+)"|url\(#([^)]+)\)', text) for target in pair if target}
    assert used <= set(ids)
    words = " ".join(re.sub(r"<[^>]*>", " ", section).split())
    assert "variant vanilla · head: more than 20 training images · a centre keeps 0.9 of itself" in words
    last = leap_lines()[-1]
    for key in ("sigma_head", "sigma_tail"):
        assert f"{last[key]:.3f} rad {np.degrees(last[key]):.1f}°, at step {END}" in words
    assert f"{last['cloud_share']:.1%} mean sigma {last['cloud_sigma']:.3f} rad" in words
    assert "0.463 ± 0.030" in words
    assert "0.288 ± 0.023" in words
    assert "0.201" in words
    assert words.count("clouds begin") == 5  # ridges, moments, sigma, both panels of clouds
    for title in (
        f"First: epoch 1, step {STEPS}",
        f"When clouds began: epoch 7, step {START}",
        f"End: epoch 12, step {END}",
    ):
        assert title in words
    for title in (f"When clouds began, step {START}", f"At the end, step {END}"):
        assert title in words
    assert "There were no clouds" not in words


def test_table_holds_the_moments_of_the_angles(run_dir):
    run = read_run(run_dir)
    run.maps.pop()
    rows = dict(leap_view.leap_section(run)["table"]["rows"])
    for name, line in (("first", 0), ("when clouds began", START // STEPS - 1), ("end", -1)):
        for text, key in zip(rows[f"Mean angle, {name}"], ("head", "tail"), strict=True):
            angles = np.radians(np.repeat(np.arange(180) + 0.5, angle_lines()[line][key]))
            assert text == f"{angles.mean():.3f} ± {angles.std():.3f}"
    lines = {line["step"]: line for line in leap_lines()}
    for name, step in (("when clouds began", START), ("end", END)):
        assert rows[f"Sigma, {name}"] == [f"{lines[step][key]:.3f}" for key in ("sigma_head", "sigma_tail")]


def test_a_run_without_clouds_shows_its_spread(baseline):
    found = leap_view.leap_section(read_run(baseline))
    assert not found["clouds"]
    assert len(found["figures"]) == 4
    assert "clouds begin" not in "".join(drawn for drawn, _ in found["figures"])
    assert [label for label, _, _ in found["cards"]] == ["Sigma, head", "Sigma, tail"]
    assert [name for name, _ in found["table"]["rows"]] == [
        "Mean angle, first",
        "Mean angle, half-way",
        "Mean angle, end",
        "Sigma, end",
    ]
    assert [title for title, _, _ in found["maps"]] == [f"At the end, step {END}"]
    assert found["settings"].startswith("clouds off, centres and angles only tracked")
    assert "There were no clouds in this run so far" in write_report(baseline).read_text()


def test_a_map_of_a_run_that_went_on_is_not_called_the_end(run_dir):
    with (run_dir / "metrics.jsonl").open("a") as log:
        log.write(json.dumps({"kind": "train", "step": END + 1, "loss": 1.0, "lr": 0.1}) + "\n")
    titles = [title for title, _, _ in leap_view.leap_section(read_run(run_dir))["maps"]]
    assert titles == [f"When clouds began, step {START}", f"In between, step {END}"]


def test_without_a_threshold_all_classes_are_one_group(tmp_path):
    write_leap(tmp_path, threshold=False)
    for path in (tmp_path / "leap").iterdir():
        path.unlink()
    text = write_report(tmp_path).read_text()
    found = leap_view.leap_section(read_run(tmp_path))
    assert [label for label, _, _ in found["cards"]] == ["Sigma, all classes, Eq. 9", "Cloud share"]
    assert not found["table"]["split"]
    assert all(len(values) == 1 for _, values in found["table"]["rows"])
    assert ">all classes " in "".join(drawn for drawn, _ in found["figures"])
    assert "0.463" not in text


@pytest.mark.parametrize(
    ("lines", "figures"),
    [
        ([], None),
        (angle_lines()[:1], 1),
        (angle_lines()[:2], 3),
        ([angle_lines()[0] | {"head": [0] * 180, "tail": [0] * 180}, *angle_lines()[1:2]], 3),
        (leap_lines()[:1], 0),
        (leap_lines()[:3], 1),
        (leap_lines()[: START // 10 + 1], 2),
    ],
    ids=["nothing", "an epoch", "two", "an empty ring", "no spread yet", "one", "one cloud"],
)
def test_runs_that_have_just_begun(tmp_path, lines, figures):
    found = leap_view.leap_section(read_run(_log(tmp_path, lines)))
    assert (None if found is None else len(found["figures"])) == figures
    text = write_report(tmp_path).read_text()
    assert ('id="leap"' in text) is (figures is not None)
    assert "nan" not in re.sub(r"<[^>]*>", " ", text).split()


def test_runs_side_by_side(run_dir, baseline, tmp_path):
    plain = _log(tmp_path / "plain", [{"kind": "train", "step": 1, "loss": 1.0, "lr": 0.1}])
    names = ("<LEAP>", "_base$1$", "plain")
    runs = [(name, read_run(folder)) for name, folder in zip(names, (run_dir, baseline, plain), strict=True)]
    found = leap_view.comparison_figures(runs)
    titles = [
        "Angles at the end",
        "Sigma over the steps",
        f"People: <LEAP>, step {END}",
        f"People: _base$1$, step {END}",
    ]
    assert [title for title, _, _ in found] == titles
    drawn = "".join(svg for _, svg, _ in found)
    ids = re.findall(r' id="([^"]+)"', drawn)
    assert len(ids) == len(set(ids))
    words = re.sub(r"<[^>]*>", "", drawn)
    assert "&lt;LEAP&gt;, epoch 12" in words
    assert "plain" not in words
    assert words.count("_base$1$") == 1 + 3  # of the angles and of each sigma
    assert words.count("Sigma, ") == 3
    assert all(name in words for name in ("H1", "H8", "T1", "T8"))
    assert [("t-SNE" in caption) for _, _, caption in found] == [False, False, True, False]
    assert leap_view.comparison_figures(runs[2:]) == []
