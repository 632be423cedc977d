from hypothesis import given
from hypothesis import strategies as st

from facetrain.partition import rows, split


@given(st.integers(0, 10_000), st.integers(1, 40))
def test_parts_are_consecutive_complete_and_even(total, parts):
    pieces = [split(total, parts, part) for part in range(parts)]
    assert [row for piece in pieces for row in piece] == list(range(total))
    assert [list(range(total))[rows(total, parts, part)] for part in range(parts)] == [list(piece) for piece in pieces]
    lengths = [len(piece) for piece in pieces]
    assert max(lengths) - min(lengths) <= 1
    assert lengths == sorted(lengths, reverse=True)
