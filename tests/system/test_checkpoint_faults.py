"""Every single thing that a checkpoint asks of the disk fails, or kills: the newest or the one before is always whole.

Reliability goal 2. The operations are counted first; then each in turn fails, until a run comes through undisturbed.
"""

import os
import shutil
import socket
import sys

import pytest
import small_checkpoints
from disk_faults import EIO, ENOSPC, KILL, KILLED, disk
from ranks import CONTEXT, run_ranks
from small_checkpoints import ABOUT, found, state

from facetrain.checkpoints.files import MANIFEST, listed
from facetrain.checkpoints.writer import Writer
from facetrain.distributed import World, joined

LEFT = (".step_00000000.pruned", ".step_00000003.writing", ".step_00000001.replaced")
NEW, AGAIN = 3, 2
"""Steps that are saved: a new one, and one that is there already and is replaced."""


def _before(folder, ranks):
    """Checkpoints of steps 1 and 2, and what killed runs leave."""
    run_ranks(ranks, _write, folder, 1, 2)
    for name in LEFT:
        (folder / name).mkdir()
        (folder / name / "half.safetensors").write_bytes(b"half")


def _write(world, folder, *steps):
    small_checkpoints.write(folder, *steps, world=world)


def _start_and_save(world, folder, step, at, fault):
    """One start of a run and one save, on a disk that fails; (what was said, operations on this rank)."""
    with disk(at, fault) as asked:
        writer = Writer(folder, world, 2, timeout=30)
        writer.save(step, state(step, world), ABOUT)
        problem = writer.wait()
    return problem, asked.asked


def _save_until_it_comes_through(world, before, folder, step, fault, faulty):
    """Saves that fail at operation 0, 1, ... of rank ``faulty``; how many failed, and how many were told of."""
    told = 0
    for at in range(1000):
        if world.rank == 0:
            shutil.rmtree(folder, ignore_errors=True)
            shutil.copytree(before, folder)
        world.barrier()
        problem, asked = _start_and_save(world, folder, step, at if world.rank == faulty else None, fault)
        if world.rank == 0:
            newest = found(folder, world.size)
            assert newest in (step, 2), at
            assert newest == step or problem is not None, at
            if problem is not None:
                told += 1
                for word in (f"{folder / 'step_'}", os.strerror(fault), " bytes"):
                    assert word in problem
                assert "\n" not in problem
        world.barrier()
        _write(world, folder, 4)  # the run goes on
        if world.rank == 0:
            assert found(folder, world.size) == 4
            assert not [path.name for path in folder.iterdir() if path.name.startswith(".")]
        if world.largest(int(world.rank == faulty and asked <= at)):
            return at, told
    raise AssertionError("no end")


@pytest.mark.parametrize("fault", [EIO, ENOSPC])
@pytest.mark.parametrize("step", [NEW, AGAIN])
def test_a_disk_that_refuses_anything_costs_no_more_than_that_checkpoint(tmp_path, step, fault):
    _before(tmp_path / "before", 1)
    failed, told = _save_until_it_comes_through(
        World(), tmp_path / "before", tmp_path / "checkpoints", step, fault, faulty=0
    )
    print(f"{failed} operations, of which {told} cost the checkpoint")
    assert failed > 25
    assert told >= 14  # four files, the manifest, the names


@pytest.mark.faults
@pytest.mark.parametrize("faulty", [0, 1])
@pytest.mark.parametrize("fault", [EIO, ENOSPC])
def test_the_same_where_one_of_two_ranks_meets_it(tmp_path, fault, faulty):
    _before(tmp_path / "before", 2)
    answers = run_ranks(
        2, _save_until_it_comes_through, tmp_path / "before", tmp_path / "checkpoints", NEW, fault, faulty
    )
    failed, told = answers[0]
    print(f"{failed} operations, of which {told} cost the checkpoint")
    assert told >= (4 if faulty else 14)


def _killed(rank, size, port, folder, step, at):
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(size), "LOCAL_RANK": str(rank)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    devnull = os.open(os.devnull, os.O_WRONLY)
    os.dup2(devnull, 2)  # gloo tells of the peer that is gone
    try:
        with joined("cpu", timeout=30) as world:
            _start_and_save(world, folder, step, at, KILL)
    except RuntimeError:
        sys.exit(1)


def _die_everywhere(tmp_path, ranks, step, victim):
    """A process that dies at operation 0, 1, ... of a start and a save; how often it died, and of that with step saved.

    Ranks that live on must leave by themselves.
    """
    before, folder = tmp_path / "before", tmp_path / "checkpoints"
    _before(before, ranks)
    saved = 0
    for at in range(1000):
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(before, folder)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        processes = [
            CONTEXT.Process(target=_killed, args=(rank, ranks, port, folder, step, at if rank == victim else None))
            for rank in range(ranks)
        ]
        for process in processes:
            process.start()
        for process in processes:
            process.join(60)
        codes = [process.exitcode for process in processes]
        for process in processes:
            process.kill()
        assert None not in codes, f"a rank that lost its peer at operation {at} did not leave"
        Writer(folder, World(), 2)  # the next start
        newest = found(folder, ranks)
        assert newest in (step, 2), at
        saved += newest == step
        small_checkpoints.write(folder, 4)
        assert found(folder) == 4
        assert [path.name for path in folder.iterdir() if path.name.startswith(".")] == []
        if codes[victim] != KILLED:
            assert set(codes) == {0}
            assert newest == step
            return at, saved
    raise AssertionError("no end")


@pytest.mark.parametrize("step", [NEW, AGAIN])
def test_a_run_killed_at_any_operation_finds_the_newest_or_the_one_before(tmp_path, step):
    died, saved = _die_everywhere(tmp_path, 1, step, victim=0)
    print(f"killed at each of {died} operations; after {saved} of the {died + 1} runs step {step} was there")
    assert died > 25
    assert 5 < saved <= died + 1


@pytest.mark.faults
@pytest.mark.parametrize("victim", [0, 1])
def test_the_same_where_one_of_two_ranks_is_killed(tmp_path, victim):
    died, saved = _die_everywhere(tmp_path, 2, NEW, victim)
    print(f"rank {victim} killed at each of {died} operations; after {saved} of the {died + 1} runs step 3 was there")
    assert died >= (4 if victim else 25)


def test_a_checkpoint_that_was_about_to_be_replaced_comes_back(tmp_path):
    small_checkpoints.write(tmp_path, 1)
    path = listed(tmp_path)[0]
    path.rename(tmp_path / ".step_00000001.replaced")
    assert found(tmp_path) == 0
    Writer(tmp_path, World(), 2)
    assert found(tmp_path) == 1
    assert (path / MANIFEST).is_file()
