import re

import pytest

from facetrain.data import progress


@pytest.fixture
def at_once(monkeypatch):
    """A plain line for each step instead of one in ten seconds."""
    monkeypatch.setattr(progress, "_PLAIN_SECONDS", 0.0)


def test_plain_lines_go_to_stderr(at_once, capsys):
    with progress.progress("packing", 3000, "photos") as advance:
        advance(1000)
        advance(2000)
    said = capsys.readouterr()
    assert said.out == ""
    first, second = said.err.splitlines()
    assert re.fullmatch(r"packing: 1,000 of 3,000, \d+ s left, [\d,]+ photos/s", first)
    assert re.fullmatch(r"packing: 3,000 of 3,000, 0 s left, [\d,]+ photos/s", second)


def test_an_unknown_total(at_once, capsys):
    with progress.progress("scanning", None, "records", least=10) as advance:
        advance(5)
    assert re.fullmatch(r"scanning: 5, [\d,]+ records/s\n", capsys.readouterr().err)


@pytest.mark.parametrize(("total", "lines"), [(9, 0), (10, 1)])
def test_a_small_total_says_nothing(at_once, capsys, total, lines):
    with progress.progress("reading", total, least=10) as advance:
        advance(total)
    assert len(capsys.readouterr().err.splitlines()) == lines


def test_seldom_without_a_terminal(capsys):
    with progress.progress("packing", 100) as advance:
        for _ in range(100):
            advance(1)
    assert capsys.readouterr().err == ""
