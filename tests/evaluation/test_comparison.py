"""The page of a comparison and the command that writes it."""

from __future__ import annotations

import csv
import io
import json
import re
from dataclasses import replace

import pytest
from made_up_runs import made_up_ijbc, made_up_megaface, made_up_run
from test_report import Page

from facetrain import cli
from facetrain.errors import InputError
from facetrain.evaluation import comparison
from facetrain.evaluation.comparison import recipe_differences, write_comparison
from facetrain.evaluation.comparison_entries import read_entries


@pytest.fixture
def sources(tmp_path, monkeypatch):
    """Two runs, one with LEAP's traces, and results of their models and of a third."""
    made_up_run(tmp_path / "plain", model="1a" * 32)
    made_up_run(tmp_path / "<leap>", 1, margin=0.4, model="2b" * 32, leap=True)
    made_up_ijbc("1a" * 32).save(tmp_path / "one.json")
    made_up_ijbc("2b" * 32, seed=1, unreadable=3).save(tmp_path / "two.json")
    made_up_megaface("3c" * 32, "other<b>.onnx").save(tmp_path / "three.json")
    monkeypatch.chdir(tmp_path)
    return ["plain", "<leap>", "one.json", "two.json", "three.json"]


def words_of(page):
    return " ".join(" ".join(page.texts).split())


def test_the_page_is_complete_and_needs_nothing_from_outside(sources, capsys):
    assert cli.main(["report", *sources]) == 0
    assert capsys.readouterr() == ("comparison.html\n", "")
    with open("comparison.html", encoding="utf-8") as file:
        text = file.read()
    page = Page(text)
    assert page.open == []
    assert not re.search(r"https?:|//[a-z]|@import|url\((?!#)|<script|<link", text)
    for tag, attributes in page.tags:
        links = [attributes[name] for name in ("href", "src") if name in attributes]
        assert all(link.startswith("#") for link in links), (tag, links)
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert {attributes["href"][1:] for tag, attributes in page.tags if tag == "a"} <= set(ids)
    words = words_of(page)
    for expected in (
        "Comparison of plain, <leap>, other<b>.onnx",
        "In the columns of the LEAP paper's Table 6",
        "81.41 79.41 – 83.41",  # a rate and its interval
        "* (3)",
        "lfw: ROC",
        "Scores: same person in colour",
        "MegaFace, 1,000,000 distractors: CMC",
        "Training loss",
        "lfw: verification accuracy",
        "Angles at the end",
        "margin.m 0.5 0.4",
        "2b2b2b2b2b2b2b2b",
        "469,375 3 12.5",
        "flip yes, FPR rule strict",
    ):
        assert expected in words, expected
    assert "NOT comparable" not in words


def test_figures_are_in_their_own_unit(sources):
    one = replace(made_up_megaface("1a" * 32), figures={"angle mean (rad)": 0.6354, "false alarms": 1500.0})
    one.save(read_entries(sources)[0].sources[0].parent / "figures.json")
    assert cli.main(["report", *sources, "figures.json"]) == 0
    with open("comparison.html", encoding="utf-8") as file:
        words = words_of(Page(file.read()))
    assert "0.635 1,500" in words
    assert "In %, other numbers in the unit that ends their name." in words
    assert words.count("In %, other numbers") == 1
    assert "NOT comparable" not in words


def test_a_difference_in_a_switch_is_loud(sources, capsys):
    made_up_ijbc("3c" * 32, "other<b>.onnx", flip=False).save(
        read_entries(sources)[0].sources[0].parent / "noflip.json"
    )
    assert cli.main(["report", *sources, "noflip.json", "--output", "new/page.html"]) == 0
    out, err = capsys.readouterr()
    line = "NOT comparable on IJB-C (ijb-1:1): flip differs: yes (plain, <leap>); no (other<b>.onnx)"
    assert (out, err) == ("new/page.html\n", f"facetrain: {line}\n")
    with open("new/page.html", encoding="utf-8") as file:
        page = Page(file.read())
    assert words_of(page).count(line) == 2  # on top and beside the table
    assert [attributes for tag, attributes in page.tags if attributes.get("role") == "alert"]


def test_one_run_alone_keeps_its_report(sources, capsys):
    assert cli.main(["report", "plain"]) == 0
    assert capsys.readouterr().out == "plain/report.html\n"
    assert cli.main(["report", "plain", "--output", "one.html"]) == 0
    assert capsys.readouterr().out == "one.html\n"


def test_tables_go_to_standard_output_or_a_file(sources, capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(comparison, "write_comparison", lambda entries, path: path)
    assert cli.main(["report", *sources, "--format", "csv", "--columns", "table6"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    rows = list(csv.DictReader(io.StringIO(out)))
    assert [row["name"] for row in rows] == ["plain", "<leap>", "other<b>.onnx"]
    assert rows[2]["MegaFace Rank-1"] == "0.8141"
    assert not (tmp_path / "comparison.html").exists()
    assert cli.main(["report", *sources, "--table", "out/table.json"]) == 0
    assert capsys.readouterr().out == "out/table.json\n"
    assert len(json.loads((tmp_path / "out/table.json").read_text())["rows"]) == 3
    assert cli.main(["report", *sources, "--format", "latex", "--table", "t.txt", "--output", "p.html"]) == 0
    assert capsys.readouterr().out == "p.html\nt.txt\n"
    assert (tmp_path / "t.txt").read_text().startswith("\\begin{tabular}")
    assert cli.main(["report", *sources, "--format", "markdown", "--output", "p.html"]) == 0
    out, err = capsys.readouterr()
    assert out.startswith("|  |")
    assert err == "p.html\n"


def test_mistakes_are_one_line(sources, capsys, tmp_path):
    (tmp_path / "bare").mkdir()
    (tmp_path / "bare" / "metrics.jsonl").write_text("")
    (tmp_path / "taken").write_text("")
    for words, reason in (
        (["plain", "none"], "none does not exist"),
        (["plain", "one.json", "--output", "a.txt"], "output a.txt must be a .html file; --table is for the table"),
        (
            ["plain", "one.json", "--table", "a.doc"],
            "table a.doc must end in .md, .csv, .json, .tex, or give its --format",
        ),
        (["bare", "--format", "csv"], "no result among them for a table; evaluate first"),
        (["bare", "--format", "csv", "--columns", "table6"], "no result among them for a table; try --columns all"),
        (["bare", "--output", "taken/p.html"], "taken is a file; expected a folder, or none yet"),
    ):
        assert cli.main(["report", *words]) == 2
        out, err = capsys.readouterr()
        assert out == ""
        assert err.startswith("facetrain: error: ")
        assert reason in err
        assert err.count("\n") == 1


def test_runs_without_results_or_recipe_have_a_page(tmp_path):
    for name in "ab":
        (tmp_path / name).mkdir()
        (tmp_path / name / "metrics.jsonl").write_text('{"kind": "train", "step": 1, "loss": NaN}\n')
    entries = read_entries([str(tmp_path / name) for name in "ab"])
    words = words_of(Page(write_comparison(entries, tmp_path / "p.html", title="T").read_text()))
    assert words.startswith("T · facetrain")
    assert "None of them holds a result." in words
    assert "Nothing but where they write to." in words


def test_recipes_are_compared_key_by_key(tmp_path):
    runs = [made_up_run(tmp_path / name, margin=margin) for name, margin in (("a", 0.5), ("b", 0.5), ("c", 0.3))]
    (runs[1] / "config.yaml").write_text(
        "output: x\nmargin:\n  kind: arcface\nleap: {}\nevaluate:\n  sets: [lfw.bin]\n"
    )
    entries = read_entries([str(run) for run in runs])
    assert recipe_differences(entries) == [("margin.m", ["0.5", "–", "0.3"]), ("leap", ["–", "{}", "–"])]
    assert recipe_differences(entries[:1]) == []
    (runs[0] / "config.yaml").write_text("a: [")
    with pytest.raises(InputError, match=r"a/config\.yaml:\d+: cannot be read as YAML"):
        recipe_differences(read_entries([str(runs[0])]))
