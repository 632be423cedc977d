"""The report of a made-up run: complete, self-contained, and honest about what is missing."""

from __future__ import annotations

import base64
import html.parser
import json
import re
import shutil

import numpy as np
import pytest
from made_up_results import made_up_pairs, made_up_result

from facetrain import cli
from facetrain.data.dataset import open_images
from facetrain.data.encoded import Encoded
from facetrain.data.images import decode, encode_jpeg
from facetrain.data.pairs_file import write_bin
from facetrain.data.record_writer import RecordWriter
from facetrain.errors import InputError
from facetrain.evaluation.pairs import PairSet
from facetrain.evaluation.report import save_verification, write_report
from facetrain.evaluation.rundir import read_run


class Album(Encoded):
    """Person p's photos have the red value 40 * p."""

    labels = np.repeat(np.arange(3), (7, 3, 1)).astype(np.int64)
    num_classes = 3

    def __len__(self):
        return len(self.labels)

    def encoded(self, i):
        if i == 7:
            return b"\xff\xd8 damaged"
        return encode_jpeg(np.full((20, 20, 3), (40 * self.labels[i], 90, 90), np.uint8))

    def where(self, i):
        return f"photo {i}"


@pytest.fixture
def run_dir(tmp_path):
    run = tmp_path / "runs" / "<demo>"
    run.mkdir(parents=True)
    lines = [
        {
            "kind": "train",
            "step": s,
            "epoch": s / 9,
            "loss": 9 / s,
            "lr": 0.1,
            "images_per_second": 50,
            "seconds": 2.0 * s,
        }
        for s in range(1, 41)
    ]
    lines += [{"kind": "train", "step": 40, "epoch": 5, "loss": 0.125, "lr": 0.1, "seconds": 3.0}]  # after a resume
    lines += [
        {"kind": "verification", "step": s, "set": name, **made_up_result().record()}
        for s in (20, 40)
        for name in ("lfw", "agedb")
    ]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (run / "metrics.jsonl").write_text(text + '{"kind": "train", "st')  # killed while writing
    (run / "config.yaml").write_text("output: runs/demo\ndata:\n  path: /nowhere/train.rec\n# <script>\n")
    (run / "versions.json").write_text(
        json.dumps({"commit": "c" * 40 + "+changes", "command": "facetrain train a.yaml"})
    )
    save_verification(run, "lfw", made_up_result())
    save_verification(run, "agedb", made_up_result(1))
    return run


class Page(html.parser.HTMLParser):
    """The tags with their attributes, the texts, and whether every tag is closed."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.open = [], []
        self.texts = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "img", "br", "link"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)

    def images(self):
        return [attrs["src"] for tag, attrs in self.tags if tag == "img"]


def test_report_is_complete_and_needs_nothing_from_outside(run_dir):
    sets = [made_up_pairs(name, result) for name, result in (("lfw", made_up_result()), ("agedb", made_up_result(1)))]
    path = write_report(run_dir, Album(), sets, title="A <run>")
    text = path.read_text()
    page = Page(text)
    assert path == run_dir / "report.html"
    assert page.open == []
    assert not re.search(r"https?:|//\w+\.|@import|<script|<link|<iframe", text.replace("&lt;script&gt;", ""))
    for tag, attrs in page.tags:
        for name in ("src", "href", "xlink:href"):
            assert attrs.get(name, "#").startswith(("#", "data:image/jpeg;base64,")), (tag, attrs)
    assert all(target.startswith("#") for target in re.findall(r"url\(([^)]*)\)", text))
    sections = [attrs["id"] for tag, attrs in page.tags if tag == "section"]
    assert sections == ["results", "training", "images", "pairs", "recipe", "versions"]
    ids = [attrs["id"] for _, attrs in page.tags if "id" in attrs]
    assert len(ids) == len(set(ids))
    assert sum(tag == "svg" for tag, _ in page.tags) == 1 + 2 + 5  # ROC, histograms, loss, lr, accuracy, TPR, speed
    words = " ".join(page.texts)
    assert "A <run>" in words
    assert "# <script>" in words
    assert "cccccccccccc+changes" in words
    assert "FPR rule: strict" in words
    assert "facetrain train a.yaml" in words
    assert words.count("TPR at FPR 1e-2") == 1


def test_numbers_are_those_of_the_results(run_dir):
    page = Page(write_report(run_dir).read_text())
    words = " ".join(" ".join(page.texts).split())
    result = made_up_result()
    for cell in result.decided:
        star = "*" if cell.impostors < 10 else ""
        assert f"{100 * cell.tpr:.2f}{star} ({cell.impostors})" in words
    assert f"{100 * result.accuracy:.2f} ± {100 * result.accuracy_std:.2f}" in words
    assert "0.125 at step 40" in words  # the resumed run's line
    assert "1 min 21 s" in words  # 78 s up to the lost step 40, then 3 s
    assert "not at hand" in words


def test_grid_runs_from_many_photos_to_few(run_dir):
    page = Page(write_report(run_dir, Album(), []).read_text())
    reds = [decode(base64.b64decode(uri.split(",")[1]))[0, 0, 0] for uri in page.images()]
    assert [round(int(red) / 40) for red in reds] == [0] * 6 + [1] * 2 + [2]
    words = " ".join(page.texts)
    assert words.count("unreadable") == 1
    assert re.search(r"person 0 · 7 photos.*person 1 · 3 photos.*person 2 · 1 photo\b(?!s)", words, re.DOTALL)


def test_hardest_pairs_are_the_right_images_in_order(run_dir):
    result = made_up_result()
    (run_dir / "verification" / "agedb.npz").unlink()
    page = Page(write_report(run_dir, None, [made_up_pairs("lfw", result)]).read_text())
    words = " ".join(" ".join(page.texts).split())
    threshold = result.threshold  # FPR 1e-2 is decided by 2 impostor pairs
    assert f"threshold of the best accuracy, cosine {threshold:.3f}" in words
    pictures = [decode(base64.b64decode(uri.split(",")[1]))[0, 0].astype(int) for uri in page.images()]
    shown = [round(pixel[1] + 256 * round(pixel[2])) for pixel in pictures]
    wrong_same = [i for i in np.argsort(result.scores) if result.same[i] and result.scores[i] < threshold]
    wrong_other = [i for i in np.argsort(-result.scores) if not result.same[i] and result.scores[i] >= threshold]
    right_same = [i for i in np.argsort(result.scores) if result.same[i] and result.scores[i] >= threshold]
    right_other = [i for i in np.argsort(-result.scores) if not result.same[i] and result.scores[i] < threshold]
    expected = [i for group in (wrong_same, wrong_other, right_same, right_other) for i in group[:6]]
    assert len(expected) == 24
    numbers = [int(number) for number in re.findall(r"pair (\d+)", words)]
    assert numbers == expected
    for number, first, second in zip(expected, shown[0::2], shown[1::2], strict=True):
        assert abs(first % 256 - number % 256) <= 3
        assert abs(second % 256 - number % 256) <= 3
    assert all(first[0] > 200 > 50 > second[0] for first, second in zip(pictures[0::2], pictures[1::2], strict=True))


def test_sets_that_changed_since_are_not_pictured(run_dir):
    other = PairSet("lfw", [b"x"] * 10, np.ones(5, bool))
    assert Page(write_report(run_dir, None, [other]).read_text()).images() == []


def test_recipe_leads_to_the_images(run_dir, tmp_path):
    for i, person in enumerate("ab"):
        (tmp_path / "photos" / person).mkdir(parents=True)
        (tmp_path / "photos" / person / "1.jpg").write_bytes(Album().encoded(i))
    result = made_up_result()
    write_bin(tmp_path / "lfw.bin", list(made_up_pairs("lfw", result).images), result.same)
    recipe = {"data": {"path": str(tmp_path / "photos")}, "evaluate": {"sets": [str(tmp_path / "lfw.bin")]}}
    (run_dir / "config.yaml").write_text(json.dumps(recipe))
    assert len(Page(write_report(run_dir).read_text()).images()) == 2 + 48


def test_report_is_written_again_from_a_copy_without_the_data(run_dir, tmp_path, capsys):
    copy = tmp_path / "copy"
    shutil.copytree(run_dir, copy)
    assert cli.main(["report", str(copy)]) == 0
    assert capsys.readouterr().out == f"{copy / 'report.html'}\n"
    page = Page((copy / "report.html").read_text())
    assert page.images() == []
    words = " ".join(page.texts)
    assert "The training images were not at hand" in words
    assert "The images of this set were not at hand" in words
    assert f"{100 * made_up_result().accuracy:.2f}" in words
    assert cli.main(["report", str(tmp_path)]) == 2
    assert "is not a run's folder: it has no metrics.jsonl" in capsys.readouterr().err


def test_a_run_without_verification_still_has_a_report(run_dir):
    for path in (run_dir / "verification").iterdir():
        path.unlink()
    (run_dir / "metrics.jsonl").write_text('{"kind": "train", "step": 1, "loss": NaN, "lr": 0.1}\n')
    (run_dir / "config.yaml").unlink()
    (run_dir / "versions.json").unlink()
    words = " ".join(Page(write_report(run_dir).read_text()).texts)
    assert "No pair set was evaluated" in words
    assert "config.yaml was not written" in words


def test_what_is_no_run_or_damaged_is_named(run_dir, tmp_path):
    with pytest.raises(InputError, match=r"not a run's folder: it has no metrics\.jsonl"):
        write_report(tmp_path)
    text = (run_dir / "metrics.jsonl").read_text()
    (run_dir / "metrics.jsonl").write_text("damaged\n" + text)
    with pytest.raises(InputError, match=r"metrics\.jsonl:1 is damaged"):
        write_report(run_dir)
    (run_dir / "metrics.jsonl").write_text(text)
    (run_dir / "versions.json").write_text("{")
    with pytest.raises(InputError, match=r"versions\.json cannot be read"):
        write_report(run_dir)
    assert not (run_dir / "report.html").exists()
    (run_dir / "versions.json").unlink()
    (run_dir / "report.html").mkdir()
    with pytest.raises(InputError, match=r"report\.html cannot be written: Is a directory"):
        write_report(run_dir)
    assert not [path for path in run_dir.iterdir() if path.name.endswith(".tmp")]


def test_log_of_a_resumed_run(run_dir):
    run = read_run(run_dir)
    assert [line["step"] for line in run.train] == list(range(1, 41))
    save_verification(run_dir, "aaa", made_up_result())  # of no line in the log
    assert [name for name, _ in read_run(run_dir).results] == ["lfw", "agedb", "aaa"]
    assert {name: [line["step"] for line in lines] for name, lines in run.verifications.items()} == {
        "lfw": [20, 40],
        "agedb": [20, 40],
    }


def test_sets_of_one_name_keep_their_pictures(run_dir, tmp_path):
    result = made_up_result()
    paths = [tmp_path / folder / "heldout.bin" for folder in "abc"]  # the last is not there any more
    for seed, path in enumerate(paths[:2]):
        path.parent.mkdir()
        write_bin(path, list(made_up_pairs("", made_up_result(seed)).images), result.same)
        save_verification(run_dir, f"{path.parent.name}_heldout", made_up_result(seed))
    (run_dir / "config.yaml").write_text(json.dumps({"evaluate": {"sets": [str(path) for path in paths]}}))
    assert len(Page(write_report(run_dir).read_text()).images()) == 2 * 48


def test_people_have_their_names_where_they_are_known(run_dir, tmp_path):
    with RecordWriter(tmp_path / "train.rec", image_size=20) as writer:
        for i in (0, 8):
            writer.write(i // 8, Album().encoded(i))
    images = open_images(tmp_path / "train.rec")
    for names, expected in (
        ("<Ann>\nZo\u00eb B\n", ["<Ann>", "Zo\u00eb B"]),
        ("Ann\n\n", ["Ann", "person 1"]),
        ("one\n", ["person 0", "person 1"]),  # of another set
    ):
        (tmp_path / "names.txt").write_text(names, encoding="utf-8")
        words = " ".join(Page(write_report(run_dir, images, []).read_text()).texts)
        assert re.findall(r"(\S[^\n·]*) · 1 photo\b", words) == expected
    (tmp_path / "photos" / "Mia").mkdir(parents=True)
    (tmp_path / "photos" / "Mia" / "1.jpg").write_bytes(Album().encoded(0))
    words = " ".join(Page(write_report(run_dir, open_images(tmp_path / "photos"), []).read_text()).texts)
    assert "Mia · 1 photo" in words


def test_a_wide_table_says_that_it_scrolls_where_the_page_is_narrow(run_dir):
    text = write_report(run_dir).read_text()
    assert "Scroll the table sideways" in " ".join(Page(text).texts)
    assert ".swipe { display: none;" in text
    assert "@media (max-width: 640px) { .swipe { display: block; } }" in text
