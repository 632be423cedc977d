"""Which consecutive piece of a row of things belongs to which rank: the only shard arithmetic in the project.

Classes over classifier shards, rows of a batch over ranks, images of a test set over ranks: all are cut here.
"""

from __future__ import annotations


def split(total: int, parts: int, part: int) -> range:
    """The consecutive rows of ``total`` that belong to ``part`` of ``parts``.

    The first ``total % parts`` parts own one row more than the rest; with more parts than rows the last own none.
    """
    share, more = divmod(total, parts)
    start = part * share + min(part, more)
    return range(start, start + share + (part < more))


def rows(total: int, parts: int, part: int) -> slice:
    """:func:`split` as an index into an array."""
    span = split(total, parts, part)
    return slice(span.start, span.stop)
