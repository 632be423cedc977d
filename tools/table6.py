#!/usr/bin/env python
"""Trains and evaluates a matrix of settings, methods and seeds, and prints LEAP's Table 6 beside the paper's.

python tools/table6.py configs/study/faces.yaml --jobs 2

The file says what there is to run (configs/paper/table6.yaml, configs/study/*.yaml). Each cell is one run in
OUT/SETTING/METHOD/seed_S; a seed fixes the initial weights and the order of the images in all methods. The same command
goes on where it was stopped, and cells that are finished stay as they are.
"""

from __future__ import annotations

import argparse
import fcntl
import fnmatch
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from study_cells import stages_left
from study_data import check_data
from study_file import Cell, Study, read_study
from study_run import Runner
from study_table import write_tables

from facetrain.errors import InputError


def main(words: Sequence[str] | None = None) -> int:
    """Run what is left of a study; 0, 1 where a cell failed, 2 for a mistake, 128 + signal."""
    options = _options(words)
    try:
        return _work(options)
    except InputError as error:
        sys.stderr.write(f"table6: error: {error}\n")
        return 2
    except BrokenPipeError:  # `| head` has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except OSError as error:
        sys.stderr.write(f"table6: error: {error}\n")
        return 2
    except KeyboardInterrupt:
        sys.stderr.write("table6: stopped by Ctrl-C\n")
        return 130


def _work(options: argparse.Namespace) -> int:
    study = read_study(options.study, options.out)
    cells = chosen(study, options.only)
    if options.report_only:
        _report(study)
        return 0
    if options.list:
        for cell in cells:
            left = ", ".join(stage.name for stage in stages_left(cell))
            print(f"{cell.name}: {'to do: ' + left if left else 'done'}")
        return 0
    with _alone(study.out):
        stages = {cell.name: stages_left(cell) for cell in study.cells}  # refuses cells that the table could not take
        work = [(cell, stages[cell.name]) for cell in cells]
        check_data(work)
        runner = Runner(work, options.jobs, options.nproc, options.gpus)
        runner.make_data()
        runner.run()
        _report(study)
    for name, problem in runner.failed.items():
        sys.stderr.write(f"table6: failed: {name}: {problem}\n")
    if runner.stopped:
        sys.stderr.write("table6: stopped; the same command goes on\n")
        return 128 + runner.stopped
    return 1 if runner.failed else 0


def chosen(study: Study, patterns: Sequence[str]) -> list[Cell]:
    """The cells that any pattern ``SETTING/METHOD/SEED`` names; parts may be left out at the end or hold * and ?.

    Raises:
        InputError: a pattern names none.
    """
    if not patterns:
        return list(study.cells)
    wanted = set()
    for pattern in patterns:
        parts = pattern.strip("/").split("/")
        found = {
            cell.name
            for cell in study.cells
            if len(parts) <= 3
            and all(
                fnmatch.fnmatchcase(part, given) or part == f"seed_{given}"
                for part, given in zip(cell.name.split("/"), parts, strict=False)
            )
        }
        if not found:
            settings, methods = ", ".join(study.settings), ", ".join(study.methods)
            raise InputError(f"--only {pattern} names no cell; settings: {settings}; methods: {methods}")
        wanted |= found
    return [cell for cell in study.cells if cell.name in wanted]


def _report(study: Study) -> None:
    text, files = write_tables(study)
    print(text)
    print("written: " + ", ".join(str(file) for file in files))


@contextmanager
def _alone(out: Path) -> Iterator[None]:
    """Hold the study's folder: two drivers would run the same cells."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        file = (out / ".driver.lock").open("w")
    except OSError as error:
        raise InputError(f"{out} cannot be written: {error.strerror}") from None
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise InputError(f"{out}: another table6.py runs there; wait for it or choose another --out") from None
        yield


def _options(words: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("study", type=Path, metavar="STUDY", help="a study's YAML file")
    parser.add_argument("--out", type=Path, help="where the cells go; left out: output of STUDY")
    parser.add_argument("--jobs", type=_count, default=1, help="cells at a time (default 1)")
    parser.add_argument("--nproc", type=_count, default=1, help="processes of each cell (default 1)")
    parser.add_argument("--gpus", type=_count, default=0, help="spread the cells over so many GPUs, one GPU each")
    parser.add_argument(
        "--only",
        action="append",
        default=[],
        metavar="SETTING/METHOD/SEED",
        help="these cells alone; * and ? allowed, may be given several times",
    )
    parser.add_argument("--list", action="store_true", help="say what is left to do, and do nothing")
    parser.add_argument("--report-only", action="store_true", help="tables and plot of what is there")
    return parser.parse_args(words)


def _count(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError("expected 1 or more")
    return value


if __name__ == "__main__":
    sys.exit(main())
