"""Writing behind training: what is written is the state as it was, and what goes wrong is told."""

import threading
import time

import pytest
import torch
from ranks import run_ranks
from small_checkpoints import ABOUT, found, state

from facetrain.checkpoints import storage
from facetrain.checkpoints.files import listed, read_manifest
from facetrain.checkpoints.writer import Writer
from facetrain.distributed import World


@pytest.fixture
def gate(monkeypatch):
    """No file is written before it opens."""
    opened = threading.Event()
    real = storage.write_file

    def waiting(*args):
        assert opened.wait(30)
        real(*args)

    monkeypatch.setattr(storage, "write_file", waiting)
    yield opened
    opened.set()


def test_training_goes_on_while_the_state_as_it_was_is_written(tmp_path, gate):
    writer = Writer(tmp_path, World(), 2)
    pieces = state(1, World())
    path = writer.save(1, pieces, ABOUT)
    assert not path.exists()
    assert writer.problem() is None
    for piece in pieces.values():
        piece.tensor.fill_(torch.nan)
    gate.set()
    assert writer.wait() is None
    assert listed(tmp_path) == [path]
    assert found(tmp_path) == 1


def test_the_next_save_waits_and_uses_the_same_memory(tmp_path, gate):
    writer = Writer(tmp_path, World(), 3)
    writer.save(1, state(1, World()), ABOUT)
    threading.Timer(0.2, gate.set).start()
    before = {name: buffer.data_ptr() for name, buffer in writer._buffers.items()}
    writer.save(2, state(2, World()), ABOUT)
    assert listed(tmp_path)[0].name == "step_00000001"
    writer.save(3, state(3, World(), width=4), ABOUT)  # other shapes get other buffers
    assert writer.wait() is None
    assert len(listed(tmp_path)) == 3
    writer.save(4, state(4, World()), ABOUT)
    writer.wait()
    assert found(tmp_path) == 4
    assert before.keys() == writer._buffers.keys()


def test_a_failure_waits_until_it_is_asked_for(tmp_path, monkeypatch):
    writer = Writer(tmp_path, World(), 2)
    with monkeypatch.context() as patched:
        patched.setattr(storage, "write_file", _refuse)
        writer.save(1, state(1, World()), ABOUT)
        writer.close()
    writer.save(2, state(2, World()), ABOUT)
    assert "step_00000001 was not written: Input/output error (x); " in writer.problem()
    assert writer.problem() is None
    assert writer.wait() is None
    assert [path.name for path in listed(tmp_path)] == ["step_00000002"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step_00000002"]


def _refuse(*_):
    raise OSError(5, "Input/output error", "/somewhere/x")


@pytest.mark.parametrize(
    "error", [RuntimeError("what\nhappened"), KeyboardInterrupt(), MemoryError(), ValueError("no")]
)
def test_whatever_goes_wrong_in_the_thread_is_one_line(tmp_path, monkeypatch, error):
    def fail(*_):
        raise error

    monkeypatch.setattr(storage, "write_file", fail)
    writer = Writer(tmp_path, World(), 2)
    writer.save(1, state(1, World()), ABOUT)
    problem = writer.wait()
    assert problem.startswith(f"{tmp_path}/step_00000001 was not written: ")
    assert (" ".join(str(error).split()) or type(error).__name__) in problem
    assert "\n" not in problem


def test_nothing_asked_nothing_told(tmp_path):
    writer = Writer(tmp_path / "new", World(), 2)
    assert (writer.wait(), writer.problem()) == (None, None)
    writer.close()
    assert not (tmp_path / "new").exists()


def test_nothing_is_printed_or_warned_of(tmp_path, capfd, recwarn, monkeypatch):
    writer = Writer(tmp_path, World(), 2)
    writer.save(1, state(1, World()), ABOUT)
    assert writer.wait() is None
    monkeypatch.setattr(storage, "write_file", _refuse)
    writer.save(2, state(2, World()), ABOUT)
    assert writer.wait() is not None
    assert capfd.readouterr() == ("", "")
    assert [str(warning.message) for warning in recwarn.list] == []


def _save(world, folder):
    writer = Writer(folder, world, 2, timeout=30)
    alone = "backbone.0" in writer._copied(state(1, world)) and "backbone.0" in writer._buffers
    writer.save(1, state(1, world), ABOUT)
    polled = []
    while writer._thread is not None:
        polled.append(writer.problem())
        time.sleep(0.01)
    return alone, polled[-1]


def test_only_rank_0_copies_what_all_ranks_have(tmp_path):
    assert run_ranks(3, _save, tmp_path) == [(True, None), (False, None), (False, None)]
    assert found(tmp_path, ranks=3) == 1
    manifest = read_manifest(tmp_path / "step_00000001")
    assert manifest["ranks"] == 3
    assert manifest["rows"] == {"classifier.weight": 5, "leap.centre": 5, "leap.pending": 3}
