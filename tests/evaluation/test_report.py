"""The report of a made-up run: complete, self-contained, and honest about what is missing; and the console's table."""

from __future__ import annotations

import base64
import html.parser
import json
import re

import numpy as np
import pytest
from rich.console import Console

import facetrain.checkpoint
from facetrain.config import ModelConfig
from facetrain.data.encoded import Encoded
from facetrain.data.images import decode, encode_jpeg
from facetrain.data.pairs_file import write_bin
from facetrain.errors import InputError
from facetrain.evaluation.lfw import run_lfw, verification_table
from facetrain.evaluation.pairs import PairSet, verify
from facetrain.evaluation.report import save_verification, write_report
from facetrain.evaluation.rundir import read_run

PAIRS = 400


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


def _result(seed=0):
    rng = np.random.default_rng(seed)
    same = np.arange(PAIRS) // 20 % 2 == 0
    first = rng.normal(size=(PAIRS, 8))
    second = np.where(same[:, None], first + rng.normal(size=first.shape), rng.normal(size=first.shape))
    rows = np.empty((2 * PAIRS, 8))
    rows[0::2], rows[1::2] = first, second
    return verify(rows, same, fprs=(1e-3, 1e-2, 1e-1))


def _pair_set(name, result):
    """Both images of pair i are grey with value i % 256, the second one 0 in red."""
    images = []
    for i in range(PAIRS):
        images += [encode_jpeg(np.full((16, 16, 3), (red, i % 256, i // 256), np.uint8)) for red in (255, 0)]
    return PairSet(name, images, result.same)


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
        {"kind": "verification", "step": s, "set": name, **_result().record()}
        for s in (20, 40)
        for name in ("lfw", "agedb")
    ]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (run / "metrics.jsonl").write_text(text + '{"kind": "train", "st')  # killed while writing
    (run / "config.yaml").write_text("output: runs/demo\ndata:\n  path: /nowhere/train.rec\n# <script>\n")
    (run / "versions.json").write_text(
        json.dumps({"commit": "c" * 40 + "+changes", "command": "facetrain train a.yaml"})
    )
    save_verification(run, "lfw", _result())
    save_verification(run, "agedb", _result(1))
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
    sets = [_pair_set(name, result) for name, result in (("lfw", _result()), ("agedb", _result(1)))]
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
    assert sum(tag == "svg" for tag, _ in page.tags) == 1 + 2 + 4  # ROC, histograms, loss, lr, accuracy, speed
    words = " ".join(page.texts)
    assert "A <run>" in words
    assert "# <script>" in words
    assert "cccccccccccc+changes" in words
    assert "FPR rule: strict" in words
    assert "facetrain train a.yaml" in words


def test_numbers_are_those_of_the_results(run_dir):
    page = Page(write_report(run_dir).read_text())
    words = " ".join(" ".join(page.texts).split())
    result = _result()
    for cell in result.cells:
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
    result = _result()
    (run_dir / "verification" / "agedb.npz").unlink()
    page = Page(write_report(run_dir, None, [_pair_set("lfw", result)]).read_text())
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
    result = _result()
    write_bin(tmp_path / "lfw.bin", list(_pair_set("lfw", result).images), result.same)
    recipe = {"data": {"path": str(tmp_path / "photos")}, "evaluate": {"sets": [str(tmp_path / "lfw.bin")]}}
    (run_dir / "config.yaml").write_text(json.dumps(recipe))
    assert len(Page(write_report(run_dir).read_text()).images()) == 2 + 48


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
    save_verification(run_dir, "aaa", _result())  # of no line in the log
    assert [name for name, _ in read_run(run_dir).results] == ["lfw", "agedb", "aaa"]
    assert {name: [line["step"] for line in lines] for name, lines in run.verifications.items()} == {
        "lfw": [20, 40],
        "agedb": [20, 40],
    }


def _printed(table):
    console = Console(width=160, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(table)
    return " ".join(console.export_text().split())


def test_console_table_says_its_protocol():
    result = _result()
    text = _printed(verification_table([("lfw", result)]))
    tpr = f"{100 * result.cells[2].tpr:.2f} (20)"
    assert f"lfw 400 {100 * result.accuracy:.2f} ± {100 * result.accuracy_std:.2f}" in text
    assert tpr in text
    assert f"{100 * result.cells[1].tpr:.2f} (2)*" in text
    assert "image + mirror image; accuracy over 10 folds in file order; FPR rule: strict" in text
    assert "* decided by fewer than 10 of them" in text


def test_run_lfw_writes_what_it_prints(tmp_path, monkeypatch, capsys):
    import torch

    backbone = torch.nn.Sequential(torch.nn.AvgPool2d(8), torch.nn.Flatten()).eval()
    monkeypatch.setattr(facetrain.checkpoint, "load_backbone", lambda path: (backbone, ModelConfig(input_size=16)))
    monkeypatch.setattr(facetrain.checkpoint, "fingerprint", lambda path: "f" * 64)
    result = _result()
    write_bin(tmp_path / "toy.bin", list(_pair_set("toy", result).images), result.same)
    ((name, found),) = run_lfw(tmp_path, [tmp_path / "toy.bin"], rule="nearest", output=tmp_path / "out.json")
    assert "toy" in capsys.readouterr().out
    held = json.loads((tmp_path / "out.json").read_text())
    assert held["sets"] == {name: found.record()}
    assert held["model"] == "f" * 64
    assert "FPR rule: nearest" in held["protocol"]
    with pytest.raises(InputError, match="no pair set given"):
        run_lfw(tmp_path, [])
    with pytest.raises(InputError, match=r"must be a \.json file"):
        run_lfw(tmp_path, [tmp_path / "toy.bin"], output=tmp_path / "out.txt")
    (tmp_path / "folder.json").mkdir()
    with pytest.raises(InputError, match=r"folder\.json cannot be written: Is a directory"):
        run_lfw(tmp_path, [tmp_path / "toy.bin"], output=tmp_path / "folder.json")
