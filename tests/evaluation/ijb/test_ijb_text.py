"""Whole numbers from text, fast, against split and int; every kind of wrong line by its number."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from facetrain.errors import InputError
from facetrain.evaluation.ijb import text as ijb_text
from facetrain.evaluation.ijb.text import lines_of, whole_numbers

number = st.one_of(st.integers(0, 999_999_999), st.integers(0, 12))


@given(
    st.lists(st.tuples(number, number, number), min_size=1, max_size=40),
    st.sampled_from([" ", "  ", "\t"]),
    st.sampled_from(["\n", "\r\n", " \n"]),
    st.booleans(),
    st.sampled_from([1, 7, 64, 1 << 20]),
)
@settings(deadline=None, max_examples=80)
def test_numbers_are_what_split_gives(tmp_path_factory, rows, gap, end, cut, block):
    path = tmp_path_factory.mktemp("text") / "numbers.txt"
    text = "".join(gap.join(map(str, row)) + end for row in rows)
    path.write_bytes((text.rstrip("\r\n ") if cut else text).encode())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ijb_text, "_BLOCK", block)
        found = whole_numbers(path, 3, "A B C")
    assert found.dtype == np.int32
    assert found.tolist() == [list(row) for row in rows]


@pytest.mark.parametrize("block", [8, 1 << 20])
@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("1 2 3\n1 2\n3 4 5 6\n", 2),  # as many numbers as two good lines
        ("1 2 3\n\n4 5 6\n", 2),
        ("1 2 3\n4 5 6\n1 2", 3),  # cut short
        ("1 2 3\n4 -5 6\n", 2),
        ("1 2 3\n4 5.0 6\n", 2),
        ("1 2 3\n4 5x6 6\n", 2),
        ("1 2 3\n4 5 1234567890\n", 2),
        ("a b c\n", 1),
        ("1 2 \0003\n", 1),
        ("1 2 3\n4 \xb2 6\n", 2),
    ],
)
def test_a_wrong_line_is_named(tmp_path, monkeypatch, text, line, block):
    monkeypatch.setattr(ijb_text, "_BLOCK", block)
    path = tmp_path / "pairs.txt"
    path.write_text(text)
    with pytest.raises(
        InputError, match=rf"pairs\.txt:{line}: .*; expected A B C, whole numbers of at most 9"
    ) as error:
        whole_numbers(path, 3, "A B C")
    assert "\n" not in str(error.value)


def test_missing_and_empty_files(tmp_path):
    with pytest.raises(
        InputError, match=r"no\.txt cannot be read: No such file.*expected a text file with lines .* A B"
    ):
        whole_numbers(tmp_path / "no.txt", 2, "A B")
    (tmp_path / "empty.txt").write_text("\n" * 0)
    with pytest.raises(InputError, match=r"empty\.txt cannot be read: it is empty"):
        list(lines_of(tmp_path / "empty.txt", "A B"))


def test_lines_keep_their_numbers(tmp_path, monkeypatch):
    monkeypatch.setattr(ijb_text, "_BLOCK", 5)
    path = tmp_path / "lines.txt"
    path.write_text("one\ntwo\nthree hundred\nfour")
    found = {line + i: text for lines, line in lines_of(path, "X") for i, text in enumerate(lines)}
    assert found == {1: b"one", 2: b"two", 3: b"three hundred", 4: b"four"}
