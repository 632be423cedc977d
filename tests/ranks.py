"""Run a function on several ranks, each a process of its own, joined by gloo as torchrun would join them."""

import multiprocessing
import os
import pickle
import socket
import traceback
from collections.abc import Callable
from typing import Any

import torch

from facetrain.distributed import World, joined

CONTEXT = multiprocessing.get_context("forkserver")  # one clean process imports torch, the ranks are its forks
CONTEXT.set_forkserver_preload(
    [
        *("facetrain.run", "facetrain.evaluation.leap_view", "matplotlib.backends.backend_svg"),
        # What DDP, checkpoints, the monitor and the maps of people import when they are first used.
        *("torch._dynamo", "torch.distributed.checkpoint", "torch.utils.tensorboard", "sklearn.manifold"),
    ]
)


def run_ranks(size: int, function: Callable[..., Any], *args: Any) -> list[Any]:
    """``function(world, *args)`` on ``size`` ranks; the results in rank order. With one rank it runs right here."""
    if size == 1:
        return [function(World(), *args)]
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    results = CONTEXT.Queue()
    ranks = [CONTEXT.Process(target=_rank, args=(rank, size, port, results, function, args)) for rank in range(size)]
    for process in ranks:
        process.start()
    try:
        answers = dict(_answer(results.get(timeout=120)) for _ in ranks)
    finally:
        for process in ranks:
            process.join(timeout=10)
            process.kill()
    return [answers[rank] for rank in range(size)]


def _answer(message: tuple[int, bytes, str | None]) -> tuple[int, Any]:
    rank, result, error = message
    if error:
        raise AssertionError(f"rank {rank} failed:\n{error}")
    return rank, pickle.loads(result)


def _rank(rank: int, size: int, port: int, results: Any, function: Callable[..., Any], args: tuple[Any, ...]) -> None:
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(size), "LOCAL_RANK": str(rank)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    try:
        with joined("cpu", timeout=60) as world:
            # As bytes: tensors put as they are stay in the sender's memory, which ends with it.
            results.put((rank, pickle.dumps(function(world, *args)), None))
            world.barrier()
    except BaseException:
        results.put((rank, b"", traceback.format_exc()))
