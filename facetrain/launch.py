"""Several workers on this machine without ``torchrun``: torch's own elastic launcher, run in this process.

The launcher starts ``python -m facetrain ...`` once per rank, in a session of its own, so that Ctrl-C in a terminal
reaches the launcher alone, which passes it on once and waits. What a worker has to say about its end it leaves in the
file that the launcher gave it (``TORCHELASTIC_ERROR_FILE``), and the launcher prints one rank's word: the cause, not
the echoes from ranks that lost their peer.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import sys
import tempfile
import time
import traceback
import uuid
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from facetrain import processes
from facetrain.errors import InputError, LostRankError, RunError
from facetrain.watch.verdict import HANGING

if TYPE_CHECKING:
    from torch.distributed.elastic.multiprocessing.errors import ProcessFailure

GRACE = 60  # seconds that workers have to save and leave after a signal
_LAUNCHER = "FACETRAIN_LAUNCHER"  # in a worker's environment: the launcher's process id
_RESTARTS = "FACETRAIN_RESTARTS"  # and how often it has started the workers again


def under_torchrun() -> bool:
    """Whether this process is a worker that somebody has started: torchrun, Slurm or :func:`run`."""
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ


def under_our_launcher() -> bool:
    """Whether :func:`run` started this process, and so prints what it leaves by :func:`leave_word`."""
    return under_torchrun() and _LAUNCHER in os.environ


def workers(nproc: int | None, device: str = "auto") -> int:
    """How many processes to start here: ``nproc``, else one per GPU, else one.

    Args:
        nproc: the user's ``--nproc``; None when not given.
        device: ``auto``, ``cpu`` or ``cuda``, as in a recipe.

    Raises:
        InputError: fewer than one, more than GPUs, or ``cuda`` without a GPU.
    """
    if nproc is not None and nproc < 1:
        raise InputError(f"--nproc {nproc}: expected at least 1 process")
    if device == "cpu":
        return nproc or 1
    import torch

    gpus = torch.cuda.device_count()
    if device == "cuda" and not gpus:
        raise InputError("device = cuda, but PyTorch finds no GPU on this machine; set device=cpu or device=auto")
    if gpus and nproc is not None and nproc > gpus:
        raise InputError(f"--nproc {nproc}: this machine has {gpus} GPU(s); use --nproc {gpus} or less, or device=cpu")
    return nproc or max(1, gpus)


def restarts() -> int:
    """How often torchrun or :func:`run` has started the workers again; 0 in the first round."""
    return int(os.environ.get(_RESTARTS) or os.environ.get("TORCHELASTIC_RESTART_COUNT") or 0)


def run(argv: Sequence[str], nproc: int, program: Sequence[str] = ("-m", "facetrain"), max_restarts: int = 0) -> int:
    """Run ``python -m facetrain ARGV`` in ``nproc`` workers and wait for them.

    A worker that dies, hangs or raises takes the others with it, and all are started again, up to ``max_restarts``
    times; but not where it says that the input is at fault (exit code 2) or that the run cannot go on (1).

    The first SIGINT, SIGTERM or SIGHUP is passed to the workers, which have :data:`GRACE` seconds
    (``TORCH_ELASTIC_SHUTDOWN_TIMEOUT`` in the environment) to save and leave; a second Ctrl-C kills them.

    Args:
        argv: arguments of the command line, the same for every worker.
        nproc: number of workers.
        program: what Python runs; tests give a script of their own.
        max_restarts: how often.

    Returns:
        0; the exit code of the worker that caused the end, 128 + signal where a signal killed it; 128 + signal where
        this process got one.
    """
    for number in range(max_restarts + 1):
        code, hopeless = _round(argv, nproc, program, number)
        if code == 0 or hopeless or number == max_restarts:
            return code
        _say(f"starting again from the newest checkpoint, restart {number + 1} of at most {max_restarts}")
    raise AssertionError("unreachable")


def _round(argv: Sequence[str], nproc: int, program: Sequence[str], number: int) -> tuple[int, bool]:
    """One start of all workers; (exit code, whether another start would end the same)."""
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    grace = _grace()
    arguments = [argument.replace("$", "$$") for argument in (*program, *argv)]  # torch substitutes ${local_rank}
    with (
        tempfile.TemporaryDirectory(prefix="facetrain-") as words,
        _silenced(),
        _environment(number),
        _signals(grace) as since,
    ):
        config = LaunchConfig(
            min_nodes=1,
            max_nodes=1,
            nproc_per_node=nproc,
            run_id=uuid.uuid4().hex,
            rdzv_backend="c10d",
            rdzv_endpoint="localhost:0",
            local_addr="localhost",  # a host name need not resolve, least of all in a container
            max_restarts=0,
            logs_specs=DefaultLogsSpecs(log_dir=words),
            signals_to_handle="",  # _signals handles them: torch's handler would drop the wait on the second signal
            **_patience(grace),
        )
        try:
            elastic_launch(config, sys.executable)(*arguments)
        except ChildFailedError as error:
            return _explain(error.failures)
        except SignalException as stop:
            if since and time.monotonic() - since[0] >= grace:
                _say(f"workers did not leave within {grace} s and were killed; the newest checkpoint is kept")
            return 128 + int(stop.sigval), True
    return 0, True


def _grace() -> int:
    text = os.environ.get("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", str(GRACE))
    if not text.isdigit():
        raise InputError(f"TORCH_ELASTIC_SHUTDOWN_TIMEOUT={text} in the environment: expected whole seconds")
    return int(text)


def _patience(grace: int) -> dict[str, Any]:
    """How long torch's launcher waits for signalled workers; older releases cannot be told, and wait 30 s."""
    from torch.distributed.launcher.api import LaunchConfig

    return {"shutdown_timeout": grace} if "shutdown_timeout" in LaunchConfig.__dataclass_fields__ else {}


def follow_launcher() -> None:
    """In a worker of :func:`run`: get SIGTERM when the launcher dies, so that none lives on unseen (Linux)."""
    if under_our_launcher():
        processes.follow(int(os.environ[_LAUNCHER]))


def leave_word(line: str, error: BaseException | None = None) -> bool:
    """Leave a worker's last word where torch's launcher looks for it.

    Args:
        line: the message.
        error: where given, its traceback goes with it.

    Returns:
        Whether there is a launcher to read it.
    """
    name = os.environ.get("TORCHELASTIC_ERROR_FILE")
    if not name:
        return False
    trace = "" if error is None else "".join(traceback.format_exception(error))
    now = time.time_ns()
    # torchrun shows py_callstack in its summary, which may be the only place where a rank but 0 is heard.
    extra = {"timestamp": str(now // 10**9), "py_callstack": trace or line, "trace": trace, "time_ns": now}
    with contextlib.suppress(OSError):
        Path(name).write_text(json.dumps({"message": {"message": line, "extraInfo": extra}}))
        return True
    return False


def _say(text: str) -> None:
    sys.stderr.write(f"facetrain: {text}\n")
    sys.stderr.flush()


def _explain(failures: Mapping[int, ProcessFailure]) -> tuple[int, bool]:
    """Print what ended the run; the exit code of the worker at fault, and whether it would end so again."""
    first = min(failure.timestamp for failure in failures.values())

    def guilt(rank: int) -> tuple[int, int]:
        failure = failures[rank]
        number, late = -failure.exitcode, failure.timestamp - first >= 10
        if number == signal.SIGTERM or (number == signal.SIGKILL and late):
            return 4, 0  # the launcher ended it, because of another one
        word = _word(failure)
        if word is None:
            return (3 if number == signal.SIGABRT else 1), 0  # NCCL aborts ranks that lost their peer
        if failure.exitcode == LostRankError.exit_code and word["message"].startswith(HANGING):
            return 0, int(word["extraInfo"]["time_ns"])  # a watchdog, who kills ranks that are stopped
        return (0 if failure.exitcode == InputError.exit_code else 2), int(word["extraInfo"]["time_ns"])

    rank = min(failures, key=lambda r: (*guilt(r), r))
    failure = failures[rank]
    code = failure.exitcode if failure.exitcode > 0 else 128 - failure.exitcode
    word = _word(failure)
    if word is None:
        ended = f"ended with exit code {code}" if failure.exitcode > 0 else f"was killed by {failure.signal_name()}"
        hint = "; most often memory ran out" if -failure.exitcode == signal.SIGKILL else ""
        told = [word for word in map(_word, failures.values()) if word]  # by ranks that lost it, who know the step
        _say(f"error: rank {rank} {ended}{hint}" + (f"; {told[0]['message']}" if told else ""))
        return code, False
    if word["extraInfo"]["trace"]:
        sys.stderr.write(word["extraInfo"]["trace"])
        _say(f"error: rank {rank} ended with exit code {code}")
        return code, False
    others = [_word(failures[other]) for other in failures if other != rank]
    alone = rank != 0 and not any(other and other["message"] == word["message"] for other in others)
    _say(f"error: {word['message']}" + (f" (rank {rank})" if alone else ""))
    return code, code in (InputError.exit_code, RunError.exit_code)


def _word(failure: ProcessFailure) -> dict[str, Any] | None:
    """What a worker left by :func:`leave_word`."""
    message = failure.error_file_data.get("message")
    return message if isinstance(message, dict) and "time_ns" in message.get("extraInfo", {}) else None


@contextlib.contextmanager
def _environment(number: int) -> Iterator[None]:
    """What workers inherit: one OpenMP thread each unless the user said otherwise, as torchrun does, and who we are."""
    added = {_LAUNCHER: str(os.getpid()), _RESTARTS: str(number)}
    added |= {} if "OMP_NUM_THREADS" in os.environ else {"OMP_NUM_THREADS": "1"}
    os.environ.update(added)
    try:
        yield
    finally:
        for name in added:
            del os.environ[name]


@contextlib.contextmanager
def _silenced() -> Iterator[None]:
    """Torch's launcher logs every signal and failure; what the user needs of it :func:`_explain` says."""
    loggers = [logging.getLogger(f"torch.distributed.{part}") for part in ("elastic", "launcher")]
    quiet, before = logging.NullHandler(), [logger.propagate for logger in loggers]
    for logger in loggers:
        logger.addHandler(quiet)
        logger.propagate = False
    try:
        yield
    finally:
        for logger, propagate in zip(loggers, before, strict=True):
            logger.removeHandler(quiet)
            logger.propagate = propagate


@contextlib.contextmanager
def _signals(grace: int) -> Iterator[list[float]]:
    """Turn the first signal into torch's SignalException; yields a list that then holds its time."""
    from torch.distributed.elastic.multiprocessing import SignalException

    since: list[float] = []

    def stop(number: int, frame: FrameType | None) -> None:
        again = bool(since)
        if again and (number != signal.SIGINT or time.monotonic() - since[0] < processes.BOUNCE):
            return
        if again:
            _say("ending the workers at once; the newest checkpoint is kept")
            for path in Path("/proc/self/task").glob("*/children"):  # torch keeps their numbers to itself
                for child in path.read_text().split():
                    with contextlib.suppress(ProcessLookupError, PermissionError):
                        os.killpg(int(child), signal.SIGKILL)
            return
        since.append(time.monotonic())
        name = signal.Signals(number).name
        _say(f"{name}: workers may save and leave, up to {grace} s; Ctrl-C ends it at once")
        raise SignalException(name, signal.Signals(number))

    with processes.handling([signal.SIGINT, signal.SIGTERM, signal.SIGHUP], stop):
        yield since
