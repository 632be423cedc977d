"""Who is to blame for a run that hangs or has lost a rank, in one line; decided from what the ranks last reported."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from facetrain.watch.pulse import Report

LONGEST = 200
"""Characters of a line."""
HANGING = "no step for"
"""How the line of a run that hangs begins."""


@dataclass(frozen=True)
class Heard:
    """What a rank knows of another.

    Attributes:
        report: its last one; None: it never sent any.
        silent: seconds for which nothing new has come although it was looked for; 0: it is alive.
        gone: whether its process has ended, where that can be seen.
    """

    report: Report | None
    silent: float = 0.0
    gone: bool = False


def hanging(
    seconds: float, me: Report, others: Mapping[int, Heard], hosts: Sequence[str], cut: float, good: str
) -> str:
    """The line of a run without a step for too long.

    Args:
        seconds: for how long.
        me: the report of the rank that judges.
        others: rank to what is known of it, without the rank that judges.
        hosts: the ranks' machines.
        cut: seconds since this rank last reached the others' reports; 0: it does reach them.
        good: what can be gone on from.
    """
    if cut:
        what = (
            f"{_name(me.rank, hosts)} hears nothing from {_name(0, hosts)} for {cut:.0f} s "
            f"(stopped or cut off), at step {me.step} {me.place}"
        )
    elif gone := _gone(others, hosts):
        what = f"{gone}; {_name(me.rank, hosts)} waits at step {me.step} {me.place}"
    else:
        reports = [me, *(heard.report for heard in others.values() if heard.report is not None)]
        least = min(report.count for report in reports)
        behind = [report for report in reports if report.count == least]
        first = next((report for report in behind if "inside" not in report.place), behind[0])
        what = f"{_names([report.rank for report in behind], hosts)} hangs at step {first.step} {first.place}"
        ahead = [report for report in reports if report.count > least]
        if ahead:
            what += f"; rank {ahead[0].rank} waits {ahead[0].place}"
        elif len(behind) > 1:
            what = f"all ranks hang: rank {first.rank} on {_host(hosts[first.rank])} at step {first.step} {first.place}"
    return _line(f"{HANGING} {seconds:.0f} s: {what}", good)


def lost(me: Report, others: Mapping[int, Heard], hosts: Sequence[str], good: str) -> str:
    """The line of a rank whose collective failed; arguments as of :func:`hanging`."""
    gone = _gone(others, hosts) or "which one is unknown"
    return _line(f"{_name(me.rank, hosts)} lost its peers at step {me.step} {me.place}: {gone}", good)


def _gone(others: Mapping[int, Heard], hosts: Sequence[str]) -> str:
    """Which ranks ended with an error, else which are gone, else which are silent; empty where all are alive."""
    for rank, heard in others.items():
        if heard.report is not None and heard.report.end:
            return f"{_name(rank, hosts)} ended at step {heard.report.step}: {_cut(heard.report.end, 60)}"
    if dead := [rank for rank, heard in others.items() if heard.gone]:
        return f"{_names(dead, hosts)} {'is' if len(dead) == 1 else 'are'} gone (killed?)"
    silent = {rank: heard for rank, heard in others.items() if heard.silent}
    if not silent:
        return ""
    first = next(iter(silent.values())).report
    last = f", last at step {first.step}" if first else ""
    seconds = max(heard.silent for heard in silent.values())
    return f"{_names(list(silent), hosts)} silent for {seconds:.0f} s (stopped or cut off){last}"


def _name(rank: int, hosts: Sequence[str]) -> str:
    return f"rank {rank} on {_host(hosts[rank])}"


def _names(ranks: Sequence[int], hosts: Sequence[str]) -> str:
    if len(ranks) == 1:
        return _name(ranks[0], hosts)
    machines = list(dict.fromkeys(_host(hosts[rank]) for rank in ranks))
    shown = ", ".join(map(str, ranks[:4])) + ", ..." * (len(ranks) > 4)
    return f"ranks {shown} on {machines[0]}" + f" and {len(machines) - 1} more" * (len(machines) > 1)


def _host(name: str) -> str:
    return _cut(name.partition(".")[0], 24)


def _cut(text: str, length: int) -> str:
    return text if len(text) <= length else text[: length - 3] + "..."


def _line(what: str, good: str) -> str:
    """One line, what can be gone on from at its end whole."""
    return f"{_cut(what, LONGEST - len(good) - 2)}; {good}"
