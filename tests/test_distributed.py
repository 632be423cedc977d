import os

import pytest
import torch
from ranks import run_ranks
from torch import nn

from facetrain.distributed import World, choose_device, gather_embeddings, joined
from facetrain.errors import InputError
from facetrain.provenance import host


def _collectives(world):
    """Each collective on uneven rows, as plain numbers."""
    total = 7
    own = world.rows_of(total)
    rows = torch.arange(own.start, own.stop, dtype=torch.float64)[:, None] * torch.ones(2, dtype=torch.float64)
    few = world.rows_of(1)
    parts = torch.arange(total, dtype=torch.float64)[:, None] * (world.rank + 1)
    embeddings = rows.clone().requires_grad_()
    everyone = gather_embeddings(embeddings, world, total)
    (everyone * parts).sum().backward()
    module = nn.BatchNorm1d(2)
    module.running_mean.fill_(float(world.rank))
    world.average_buffers(module)
    return {
        "gathered": world.gather_rows(rows, total)[:, 0].tolist(),
        "labels": world.gather_rows(torch.arange(own.start, own.stop), total).tolist(),
        "fewer rows than ranks": world.gather_rows(torch.full((len(few),), 5.0), 1).tolist(),
        "scattered": (list(own), world.reduce_scatter_rows(parts)[:, 0].tolist()),
        "gradient": embeddings.grad[:, 0].tolist(),
        "sum": world.sum_(torch.tensor([1.0 + world.rank])).item(),
        "largest": world.largest(world.rank * 3),
        "shared": world.broadcast_object({"from": world.rank}),
        "collected": world.gather_objects(world.rank * 10),
        "buffers": module.running_mean.tolist(),
        "last": world.pulse.where(),
    }


@pytest.mark.parametrize("size", [1, 2, 3])
def test_collectives(size):
    for rank, found in enumerate(run_ranks(size, _collectives)):
        everyone = sum(range(1, size + 1))
        own = World(rank, size).rows_of(7)
        assert found["gathered"] == list(range(7))
        assert found["labels"] == list(range(7))
        assert found["fewer rows than ranks"] == [5.0]
        assert found["scattered"] == (list(own), [row * everyone for row in own])
        assert found["gradient"] == [row * everyone * size for row in own]  # DDP divides by size afterwards
        assert found["sum"] == everyone
        assert found["largest"] == 3 * (size - 1)
        assert found["shared"] == {"from": 0}
        assert found["collected"] == [10 * r for r in range(size)]
        assert found["buffers"] == [(size - 1) / 2] * 2
        assert found["last"] == ("in the start, after all-gather 11" if size > 1 else "in the start")


def _own(world):
    world.barrier()
    assert world.pulse.where().endswith("after barrier 1")
    return world.hosts, world.key


def test_ranks_know_each_others_hosts_and_a_key_of_their_own():
    first, second = run_ranks(2, _own)
    assert first == second
    assert first[0] == (host(),) * 2
    assert first[1] != run_ranks(2, _own)[0][1]


def test_devices(monkeypatch):
    assert choose_device("cpu", 3).type == "cpu"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose_device("auto", 0).type == "cpu"
    with pytest.raises(InputError, match="this host has 0 GPUs"):
        choose_device("cuda", 0)


def test_alone_without_torchrun():
    assert "RANK" not in os.environ
    with joined("cpu") as world:
        assert (world.rank, world.size) == (0, 1)
