"""The table of a comparison: its columns, its warnings, and that every form of it can be read back."""

from __future__ import annotations

import csv
import io
import json
import re
import shutil
import subprocess
from dataclasses import replace

import pytest
from made_up_runs import made_up_ijbc, made_up_megaface

from facetrain.evaluation.comparison_entries import Entry
from facetrain.evaluation.comparison_table import columns, differences, every_test, render, table_6
from facetrain.evaluation.result import Result
from facetrain.evaluation.scores import Cell

HOSTILE = "[a]_b & 50% |c| <i>\\n$x^2$ {d}~#"


def made_up_lfw(accuracy=0.9873, dataset="lfw", **switches):
    cells = (Cell(1e-3, 0.5, 0.3, 3), Cell(1e-2, 0.75, 0.2, 30))
    metrics = {"accuracy": accuracy, "accuracy_std": 0.004}
    return Result("lfw", dataset, "", "x", {"flip": True, "pairs": 6000, **switches}, metrics, cells)


def entry(name, *results):
    return Entry(name, {(one.protocol, one.dataset): one for one in results})


@pytest.fixture
def entries():
    return [
        entry("CosFace", made_up_lfw(), made_up_ijbc("1a" * 32), made_up_megaface()),
        entry(HOSTILE, made_up_ijbc("2b" * 32, seed=1, flip=False)),
    ]


def test_columns_are_every_rate_of_every_test(entries):
    assert every_test(entries) == [
        ("lfw", "lfw"),
        ("ijb-1:1", "IJB-C"),
        ("megaface", "MegaFace, 1,000,000 distractors"),
    ]
    assert [(column.group, column.label) for column in columns(entries)] == [
        ("lfw", "accuracy"),
        ("lfw", "TPR@1e-2"),
        ("lfw", "TPR@1e-3"),
        *(("IJB-C", f"TPR@1e-{power}") for power in range(1, 6)),
        ("MegaFace, 1,000,000 distractors", "rank-1"),
        ("MegaFace, 1,000,000 distractors", "rank-10"),
    ]
    several = [entry("a", made_up_ijbc(), replace(made_up_ijbc(), protocol="ijb-1:n"))]
    assert {column.group for column in columns(several)} == {"IJB-C (ijb-1:1)", "IJB-C (ijb-1:n)"}


def test_table_6_has_the_papers_columns_where_they_are_known(entries):
    found = table_6(entries)
    assert [(column.group, column.label) for column in found] == [
        ("LFW", "accuracy"),
        ("MegaFace", "Rank-1"),
        *(("IJB-C (TPR@FPR)", rate) for rate in ("1e-3", "1e-4", "1e-5")),
    ]
    assert [column.value(entries[0]).rate for column in found[:2]] == [0.9873, 0.8141]
    assert found[0].value(entries[1]) is None
    cells = entries[0].results["ijb-1:1", "IJB-C"].cells
    assert [column.value(entries[0]).rate for column in found[2:]] == [cell.tpr for cell in cells[2:]]
    assert [column.label for column in table_6(entries[1:])] == ["1e-3", "1e-4", "1e-5"]
    assert table_6([entry("a", made_up_lfw(dataset="agedb_30"))]) == []


def test_of_several_sets_of_one_kind_table_6_takes_the_papers():
    many = [made_up_megaface(distractors=n, rate=r) for n, r in ((10, 0.9), (100_000, 0.8), (1000, 0.85))]
    lfws = [made_up_lfw(0.9, "lfw-funneled (pairs.txt)"), made_up_lfw(0.95)]
    found = table_6([entry("a", *many, *lfws)])
    assert [(column.group, column.test[1]) for column in found] == [
        ("LFW", "lfw"),
        ("MegaFace, 100,000 distractors", "MegaFace, 100,000 distractors"),
    ]


def test_differing_switches_are_named():
    same = [entry("a", made_up_lfw()), entry("b", made_up_lfw(0.5))]
    assert differences(same) == []
    rows = [*same, entry("c", made_up_lfw(flip=False)), entry("d", made_up_lfw(photos="cropped"))]
    assert [str(one) for one in differences(rows)] == [
        "NOT comparable on lfw (lfw): flip differs: yes (a, b, d); no (c)",
        "NOT comparable on lfw (lfw): photos differs: not said (a, b, c); cropped (d)",
    ]
    assert differences([entry("a", made_up_lfw()), entry("b", made_up_lfw(dataset="cfp", flip=False))]) == []


def test_markdown_is_a_pipe_table_with_its_remarks(entries):
    text = render(entries, columns(entries), "markdown")
    lines = text.splitlines()
    rows = [re.split(r"(?<!\\)\|", line)[1:-1] for line in lines[:4]]
    assert {len(row) for row in rows} == {11}
    assert rows[0][1].strip() == "lfw accuracy"
    assert set("".join(rows[1])) <= set(" :-")
    first, second = ([cell.strip() for cell in row] for row in rows[2:])
    assert first[:4] == ["CosFace", "98.73 ± 0.40", "75.00 (30)", "50.00* (3)"]
    assert second[1] == "–"
    assert re.fullmatch(r"\d\d\.\d\d \(30\) \[\d\d\.\d\d, \d+\.\d\d\]", second[6])
    assert re.sub(r"\\(.)", r"\1", second[0]) == HOSTILE
    assert lines[4] == ""
    assert lines[5].startswith("**NOT comparable on IJB-C (ijb-1:1): flip differs: yes (CosFace); no (")
    assert "IJB-C (ijb-1:1): flip yes, FPR rule strict / flip no, FPR rule strict" in lines
    assert "* marks fewer than 10" in text


def test_csv_is_read_back(entries):
    rows = list(csv.DictReader(io.StringIO(render(entries, columns(entries), "csv"))))
    assert [row["name"] for row in rows] == ["CosFace", HOSTILE]
    assert rows[0]["model"] == f"{'1a' * 32} {'ab' * 32}"
    for row, one in zip(rows, entries, strict=True):
        cell = one.results["ijb-1:1", "IJB-C"].cells[2]
        assert float(row["IJB-C TPR@1e-3"]) == cell.tpr
        assert int(row["IJB-C TPR@1e-3 impostors"]) == cell.impostors
        low, high = one.results["ijb-1:1", "IJB-C"].intervals["TPR@1e-3"]
        assert (float(row["IJB-C TPR@1e-3 low"]), float(row["IJB-C TPR@1e-3 high"])) == (low, high)
    assert rows[0]["lfw accuracy std"] == "0.004"
    assert rows[1]["lfw accuracy"] == ""
    assert "lfw accuracy low" not in rows[0]


def test_json_is_read_back(entries):
    tree = json.loads(render(entries, columns(entries), "json"))
    assert [row["name"] for row in tree["rows"]] == ["CosFace", HOSTILE]
    assert tree["not_comparable"] == [str(one) for one in differences(entries)]
    values = {(value["dataset"], value["metric"]): value for value in tree["rows"][0]["values"]}
    assert values["lfw", "accuracy"]["rate"] == 0.9873
    assert values["lfw", "accuracy"]["std"] == 0.004
    assert values["lfw", "TPR@1e-3"]["few"] is True
    assert values["IJB-C", "TPR@1e-3"]["impostors"] == 30
    assert len(tree["rows"][1]["values"]) == 5
    assert tree["rows"][1]["switches"] == {"IJB-C (ijb-1:1)": {"flip": False, "FPR rule": "strict"}}


def test_figures_are_columns_in_their_own_unit_and_make_nothing_incomparable():
    figures = {"angle mean (rad)": 0.6354, "false alarms": 1500.0, "too low by": 2e-5}
    rows = [
        entry("a", replace(made_up_lfw(), figures=figures)),
        entry("b", replace(made_up_lfw(), figures=figures | {"angle mean (rad)": 0.5})),
        entry("c", made_up_lfw()),
    ]
    assert differences(rows) == []
    chosen = columns(rows)
    assert [column.label for column in chosen[3:]] == list(figures)
    lines = render(rows, chosen, "markdown").splitlines()
    assert lines[0].endswith("| lfw angle mean (rad) | lfw false alarms | lfw too low by |")
    assert lines[2].endswith("| 0.635 | 1,500 | 2e-05 |")
    assert lines[4].endswith("| – | – | – |")
    assert "Rates in %, other numbers in the unit that ends their name; ±" in lines[6]
    assert "Rates in %; ±" in render(rows[2:], columns(rows[2:]), "markdown")
    read = list(csv.DictReader(io.StringIO(render(rows, chosen, "csv"))))
    assert [row["lfw angle mean (rad)"] for row in read] == ["0.6354", "0.5", ""]
    values = json.loads(render(rows, chosen, "json"))["rows"][0]["values"]
    assert values[3] == {"protocol": "lfw", "dataset": "lfw", "metric": "angle mean (rad)", "figure": 0.6354}
    assert r" & 0.635 & 1,500 & 2e-05 \\" in render(rows, chosen, "latex")


def test_latex_has_the_papers_numbers(entries):
    text = render(entries, table_6(entries), "latex")
    body = text[text.index("\\midrule") : text.index("\\bottomrule")]
    rows = [line.removesuffix(r" \\") for line in body.splitlines()[1:]]
    assert len(rows) == 2
    assert [len(re.split(r"(?<!\\)&", row)) for row in rows] == [6, 6]
    assert rows[0].startswith("CosFace & 98.73 & 81.41 & ")
    assert rows[0].endswith("$^{*}$")
    assert r"\multicolumn{3}{c}{IJB-C (TPR@FPR)}" in text
    assert r"\cmidrule(lr){2-2}\cmidrule(lr){3-3}\cmidrule(lr){4-6}" in text
    assert text.startswith("% NOT comparable on IJB-C (ijb-1:1): flip differs")
    assert rows[1].startswith(r"{[}a]\_b \& 50\% |c| \textless{}i\textgreater{}\textbackslash{}n\$x\textasciicircum{}2")


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="pdflatex is not installed")
def test_latex_compiles(entries, tmp_path):
    tables = "\n\n".join(render(entries, chosen, "latex") for chosen in (table_6(entries), columns(entries)))
    head = "\\documentclass{article}\\usepackage{booktabs}\\begin{document}\n"
    (tmp_path / "a.tex").write_text(f"{head}{tables}\n\\end{{document}}\n")
    made = subprocess.run(
        ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "a.tex"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert made.returncode == 0, made.stdout[-2000:]
    assert (tmp_path / "a.pdf").stat().st_size > 1000
