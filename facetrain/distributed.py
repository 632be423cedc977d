"""The processes that train together, and the few collectives they need. Nobody else names ``torch.distributed``.

With one process every collective is the identity, so the same code runs with and without a process group.
"""

from __future__ import annotations

import inspect
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from facetrain.errors import InputError, RunError
from facetrain.partition import split
from facetrain.provenance import host
from facetrain.watch.meeting import Store, meet
from facetrain.watch.pulse import Pulse

_PEER_FAILED = (  # what gloo and NCCL say of a peer that is gone; other errors of theirs are defects of ours
    *("Connection closed by peer", "Connection reset by peer", "Connection refused", "Broken pipe", "Socket closed"),
    *("Timed out", "timed out", "timeout", "Read error", "Write error"),
    *("ncclRemoteError", "ncclSystemError", "ncclInProgress", "aborted"),
)


@dataclass(frozen=True)
class World:
    """This process's place among its peers; passed to whoever needs it, never global.

    Attributes:
        rank: 0..size-1.
        size: the number of ranks.
        device: where this rank computes.
        hosts: each rank's machine, in rank order.
        key: of this group of processes, the same on every rank and never used before.
        pulse: where this rank stands; each collective is noted in it.
    """

    rank: int = 0
    size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    hosts: tuple[str, ...] = ()
    key: str = ""
    pulse: Pulse = field(default_factory=Pulse, compare=False, repr=False)

    def rows_of(self, total: int) -> range:
        """The consecutive rows of ``total`` that are this rank's."""
        return split(total, self.size, self.rank)

    def gather_rows(self, rows: Tensor, total: int) -> Tensor:
        """Every rank's rows, in rank order: (own, ...) -> (total, ...)."""
        assert len(rows) == len(self.rows_of(total)), f"rank {self.rank}: {len(rows)} of {total} rows"
        if self.size == 1:
            return rows
        largest = len(split(total, self.size, 0))
        gathered = rows.new_empty((self.size * largest, *rows.shape[1:]))
        with self.pulse.entering("all-gather"):
            all_gather(gathered, _padded(rows, largest))
        if total == self.size * largest:
            return gathered
        return torch.cat([gathered[r * largest :][: len(split(total, self.size, r))] for r in range(self.size)])

    def reduce_scatter_rows(self, rows: Tensor) -> Tensor:
        """The sum over ranks of (total, ...), of which this rank receives its own rows: (own, ...)."""
        if self.size == 1:
            return rows
        total = len(rows)
        largest = len(split(total, self.size, 0))
        if total != self.size * largest:
            parts = [split(total, self.size, r) for r in range(self.size)]
            rows = torch.cat([_padded(rows[part.start : part.stop], largest) for part in parts])
        received = rows.new_empty((largest, *rows.shape[1:]))
        with self.pulse.entering("reduce-scatter"):
            reduce_scatter(received, rows.contiguous())
        return received[: len(self.rows_of(total))]

    def sum_(self, tensor: Tensor) -> Tensor:
        """Sum over ranks, in place."""
        if self.size > 1:
            with self.pulse.entering("all-reduce"):
                dist.all_reduce(tensor)
        return tensor

    def largest(self, number: int) -> int:
        """The largest of the ranks' numbers (below 2**53), as a Python int on every rank."""
        if self.size == 1:
            return number
        everyone = torch.tensor([number], dtype=torch.float64, device=self.device)
        with self.pulse.entering("all-reduce"):
            dist.all_reduce(everyone, dist.ReduceOp.MAX)
            return int(everyone.item())

    def broadcast_object(self, thing: Any) -> Any:
        """Rank 0's small picklable object on every rank."""
        if self.size == 1:
            return thing
        box = [thing]
        with self.pulse.entering("broadcast"):
            dist.broadcast_object_list(box, src=0, device=self.device)
        return box[0]

    def gather_objects(self, thing: Any) -> list[Any]:
        """Every rank's small picklable object on every rank, in rank order."""
        if self.size == 1:
            return [thing]
        box: list[Any] = [None] * self.size
        with self.pulse.entering("all-gather"):
            dist.all_gather_object(box, thing)
        return box

    def barrier(self) -> None:
        """Wait for every rank."""
        if self.size == 1:
            return
        with self.pulse.entering("barrier"):
            dist.barrier(device_ids=[self.device.index] if self.device.type == "cuda" else None)

    def data_parallel(self, module: nn.Module) -> nn.Module:
        """``module`` with gradients averaged over ranks after each backward pass."""
        if self.size == 1:
            return module
        # Running statistics are averaged when they are read (average_buffers), not copied from rank 0 at every step.
        keys = inspect.signature(DistributedDataParallel).parameters
        name = "forward_sync_buffers" if "forward_sync_buffers" in keys else "broadcast_buffers"  # before torch 2.13
        no_sync: dict[str, Any] = {name: False}
        return DistributedDataParallel(
            module,
            device_ids=[self.device] if self.device.type == "cuda" else None,
            gradient_as_bucket_view=True,
            **no_sync,
        )

    def average_buffers(self, module: nn.Module) -> None:
        """Average floating-point buffers (batch norm's running statistics) over ranks, in place.

        They are exponential averages, hence linear: averaging them now or later gives the same final mean.
        """
        floats = [buffer for buffer in module.buffers() if buffer.is_floating_point()]
        if self.size == 1 or not floats:
            return
        flat = self.sum_(torch.cat([buffer.flatten() for buffer in floats])) / self.size
        for buffer, mean in zip(floats, flat.split([b.numel() for b in floats]), strict=True):
            buffer.copy_(mean.view_as(buffer))


def to_device(array: NDArray, device: torch.device) -> Tensor:
    """A NumPy array as a tensor there, without waiting for a GPU; on a CPU it shares the array's memory."""
    tensor = torch.from_numpy(array)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor


def all_gather(gathered: Tensor, rows: Tensor) -> None:
    """Every rank's ``rows`` one after the other into ``gathered``; equal numbers on every rank."""
    # torch 2.13 renamed both collectives and warns about the names that older releases have.
    getattr(dist, "all_gather_single", dist.all_gather_into_tensor)(gathered, rows)


def reduce_scatter(received: Tensor, rows: Tensor) -> None:
    """This rank's piece of the sum of all ranks' ``rows`` into ``received``; pieces of equal length."""
    getattr(dist, "reduce_scatter_single", dist.reduce_scatter_tensor)(received, rows)


def _padded(rows: Tensor, length: int) -> Tensor:
    if len(rows) == length:
        return rows.contiguous()
    return torch.cat([rows, rows.new_zeros((length - len(rows), *rows.shape[1:]))])


class _GatherRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, world: World, total: int) -> Tensor:
        ctx.world = world
        return world.gather_rows(rows, total)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        # Each rank's shard of classes contributes a part of the gradient of every row, so the parts are summed. DDP
        # then divides by the number of ranks, taking each rank for a mean of its own; the loss here is already the mean
        # over all rows, and this factor, which stands nowhere else, cancels that division.
        return ctx.world.reduce_scatter_rows(grads[0]) * ctx.world.size, None, None


def gather_embeddings(embeddings: Tensor, world: World, total: int) -> Tensor:
    """Own embeddings (B, D) -> those of all ranks (total, D), differentiable."""
    if world.size == 1:
        return embeddings
    gathered: Tensor = _GatherRows.apply(embeddings, world, total)
    return gathered


def choose_device(name: str, local_rank: int) -> torch.device:
    """The device of a rank: ``auto`` takes a GPU where there is one.

    Raises:
        InputError: ``cuda`` is asked for and there is no GPU for this rank.
    """
    if name == "cpu" or (name == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if local_rank >= count:
        few = f"local rank {local_rank}, but this host has {count} GPUs"
        raise InputError(f"device: {name} with {few}; start fewer or set device=cpu")
    return torch.device("cuda", local_rank)


_left: list[Any] = []
"""Process groups of this process, for as long as it lives.

DDP's reducer refers to its group too. Were it the last to do so, it would end gloo's threads while it holds the
interpreter's lock, for which one of them may wait: torch 2.13 then hangs for ever, after a run that is complete.
"""


@contextmanager
def joined(device: str = "auto", timeout: float = 600.0) -> Iterator[World]:
    """This process's :class:`World`, from the variables that torchrun sets; the process group ends with the context.

    Args:
        device: ``auto``, ``cpu`` or ``cuda``.
        timeout: seconds that a collective waits for the other ranks.

    Raises:
        InputError: no GPU for this rank.
        LostRankError: the other ranks did not start within ``timeout``.
    """
    rank, size, local = (
        int(os.environ.get(key, default)) for key, default in (("RANK", 0), ("WORLD_SIZE", 1), ("LOCAL_RANK", 0))
    )
    chosen = choose_device(device, local)
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
    if size == 1:
        yield World(device=chosen, hosts=(host(),))
        return
    backend = "nccl" if chosen.type == "cuda" else "gloo"
    where: dict[str, Any] = {}
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":  # torchrun's, with what earlier rounds left in it
        store: Any = common_store(timeout)
        fresh = dist.PrefixStore(meet(store, rank, size, timeout), store)  # type: ignore[attr-defined]
        where = {"store": fresh, "rank": rank, "world_size": size}
    dist.init_process_group(
        backend,
        timeout=timedelta(seconds=timeout),
        device_id=chosen if chosen.type == "cuda" else None,
        **where,
    )
    _left.append(dist.group.WORLD)
    try:
        everyone = World(rank, size, chosen).gather_objects((host(), uuid.uuid4().hex))
        yield World(rank, size, chosen, tuple(there for there, _ in everyone), everyone[0][1])
    except BaseException:
        # NCCL's teardown waits for ranks that wait for this one; leaving without it lets the error be told at once.
        if backend == "gloo":
            dist.destroy_process_group()
        raise
    dist.destroy_process_group()


def common_store(patience: float) -> Store:
    """A connection of its own to the store where the ranks met, opened within ``patience`` seconds or RuntimeError."""
    return dist.TCPStore(  # type: ignore[attr-defined]
        os.environ["MASTER_ADDR"],
        int(os.environ["MASTER_PORT"]),
        is_master=False,
        timeout=timedelta(seconds=patience),
        wait_for_workers=False,
    )


def peers_failed(error: BaseException | None) -> bool:
    """Whether an error says that another rank or the way to it is gone; also where it only caused ``error``."""
    while error is not None and not isinstance(error, RunError):  # whose words are ours
        if isinstance(error, dist.DistNetworkError | dist.DistStoreError):
            return True
        said = str(error)
        if isinstance(error, RuntimeError) and "CUDA error" not in said and any(word in said for word in _PEER_FAILED):
            return True
        error = error.__cause__ or error.__context__
    return False


def background_group(world: World, timeout: float) -> dist.ProcessGroup | None:
    """A gloo group of all ranks for a thread of its own, whatever the main one uses; None with one rank.

    All ranks call this together, in their main threads. ``timeout`` is how many seconds a collective waits.
    """
    if world.size == 1:
        return None
    return dist.new_group(backend="gloo", timeout=timedelta(seconds=timeout))
