"""A disk that is really full, at ten levels: one line with the place and the bytes, older checkpoints stay whole.

Reliability goal 9, in a file system of 4 MB that only the test's own process sees.
"""

import ctypes
import os
import re
import traceback

import pytest
from ranks import CONTEXT, run_ranks
from small_checkpoints import ABOUT, found, state, write

from facetrain.checkpoints.writer import Writer
from facetrain.distributed import World

_NEW_MOUNTS, _PRIVATE = 0x00020000, 0x4000 | 0x40000  # CLONE_NEWNS; MS_REC | MS_PRIVATE
DISK, WIDTH, LEVELS = 4 << 20, 8192, 10


def _mount(folder):
    """Give this process a small disk of its own; what forbids it, or None."""
    libc = ctypes.CDLL(None, use_errno=True)
    for forbidden in (
        libc.unshare(_NEW_MOUNTS),
        libc.mount(b"none", b"/", None, _PRIVATE, None),
        libc.mount(b"tmpfs", os.fsencode(folder), b"tmpfs", 0, f"size={DISK}".encode()),
    ):
        if forbidden:
            return os.strerror(ctypes.get_errno())
    return None


def _fill(folder, free):
    """Leave so many bytes free."""
    with open(folder / "filler", "wb") as file:
        os.posix_fallocate(file.fileno(), 0, max(1, os.statvfs(folder).f_bfree * 4096 - free))


def _in_its_process(folder, answers):
    try:
        forbidden = _mount(folder)
        answers.put(forbidden if forbidden else _fill_and_save(folder))
    except BaseException:
        answers.put(AssertionError(traceback.format_exc()))


def _fill_and_save(folder):
    """What was said at each level."""
    checkpoints = folder / "checkpoints"
    write(checkpoints, 1)
    pieces = state(2, World(), WIDTH)
    needed = sum(piece.nbytes for piece in pieces.values())
    said = []
    for level in range(LEVELS):
        _fill(folder, needed * level // LEVELS)
        writer = Writer(checkpoints, World(), 2)
        writer.save(2, pieces, ABOUT)
        said.append(writer.wait())
        assert found(checkpoints) == 1
        assert [path.name for path in checkpoints.iterdir()] == ["step_00000001"]
        (folder / "filler").unlink()
    writer.save(2, pieces, ABOUT)
    assert writer.wait() is None
    return needed, said


def test_each_of_ten_levels_of_a_full_disk_is_one_line(tmp_path):
    answers = CONTEXT.Queue()
    process = CONTEXT.Process(target=_in_its_process, args=(tmp_path, answers))
    process.start()
    answer = answers.get(timeout=120)
    process.join()
    if isinstance(answer, str):
        pytest.skip(f"a file system of its own is not allowed here: {answer}")
    if isinstance(answer, AssertionError):
        raise answer
    needed, said = answer
    for line in said:
        assert re.fullmatch(
            rf"{tmp_path}/checkpoints/step_00000002 was not written: No space left on device \([\w.-]+\); "
            rf"[\d,]+ bytes are free; it takes {needed:,} bytes",
            line,
        ), line
    assert not list(tmp_path.iterdir())  # the disk was the process's own


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "checkpoints").write_text("a file")
    writer = Writer(tmp_path / "checkpoints", World(), 2)
    writer.save(1, state(1, World()), ABOUT)
    assert "step_00000001 was not written: Not a directory" in writer.wait()


def _fail_on_one(world, folder):
    writer = Writer(folder, world, 2, timeout=30)
    if world.rank == 1:
        os.open = _refuse  # shutil and pathlib do not need it to make a folder
    writer.save(1, state(1, world), ABOUT)
    first = writer.wait(), writer.wait(), writer.problem()
    return first


def _refuse(*_, **__):
    raise PermissionError(13, "Permission denied", "x")


def test_a_problem_is_told_once_and_the_same_on_every_rank(tmp_path):
    answers = run_ranks(2, _fail_on_one, tmp_path / "checkpoints")
    assert answers[0] == answers[1]
    problem, *later = answers[0]
    assert "step_00000001 was not written: Permission denied" in problem
    assert later == [None, None]
