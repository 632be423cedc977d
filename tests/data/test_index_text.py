"""The two ways through an .idx, lines of one shape and of any, agree with int() and with each other."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from facetrain.data import record_index
from facetrain.data.record_index import read_index_text
from facetrain.errors import InputError

LINES = st.lists(st.tuples(st.integers(0, 2**31 - 1), st.integers(0, 10**18 - 1)), min_size=1, max_size=6)


def text_of(pairs):
    return "".join(f"{number}\t{offset}\n" for number, offset in pairs).encode()


@given(pairs=LINES, digits=st.integers(1, 9), places=st.integers(1, 17))
def test_lines_of_one_shape(pairs, digits, places):
    even = [(10**digits + a % 10**digits, 10**places + b % 10**places) for a, b in pairs]
    assert record_index._parse_even(text_of(even)).T.tolist() == [list(pair) for pair in even]
    found = record_index._parse_even(text_of(pairs))
    lengths = {(len(str(a)), len(str(b))) for a, b in pairs}
    assert len(lengths) > 1 or found is not None
    if found is not None:
        assert found.T.tolist() == [list(pair) for pair in pairs]


@given(pairs=LINES, data=st.data())
def test_any_one_byte_changed(pairs, data):
    """Where the quick way takes a text, each of its lines is right and the slow way reads the same."""
    even = [(10**5 + a % 10**5, 10**9 + b % 10**9) for a, b in pairs]
    text = bytearray(text_of(even))
    at = data.draw(st.integers(0, len(text) - 1))
    text[at] = data.draw(st.integers(0, 255))
    found = record_index._parse_even(bytes(text))
    if found is not None:
        assert all(record_index._LINE.fullmatch(line) for line in bytes(text).split(b"\n")[:-1])
        assert found.tolist() == record_index._parse_uneven("train.idx", bytes(text), 1).tolist()


def test_blocks_of_both_kinds_in_one_file(tmp_path, monkeypatch):
    monkeypatch.setattr(record_index, "TEXT_BLOCK", 64)
    kinds = []
    even = record_index._parse_even
    monkeypatch.setattr(record_index, "_parse_even", lambda text: kinds.append(even(text)) or kinds[-1])
    path = tmp_path / "train.idx"
    path.write_bytes(text_of((n, 44 * n) for n in range(3000)))
    numbers, offsets = read_index_text(path)
    assert np.array_equal(numbers, np.arange(3000))
    assert np.array_equal(offsets, 44 * np.arange(3000))
    assert any(kind is None for kind in kinds)
    assert sum(kind is not None for kind in kinds) > len(kinds) / 2


@pytest.mark.parametrize("bad", ["9999999999\t44", "12\t", "\t44", "1x\t44", "12 44"])
def test_bad_lines_of_one_shape_are_named(tmp_path, bad):
    path = tmp_path / "train.idx"
    path.write_text(f"{bad}\n" * 3)
    with pytest.raises(InputError, match="line 1: "):
        read_index_text(path)
