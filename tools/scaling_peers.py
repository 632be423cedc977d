"""insightface's published figures for 8 V100 beside the model, and what a network keeps for its backward pass.

Source of the figures: insightface, recognition/arcface_torch/docs/speed_benchmark.md (2021; IResNet-50, fp16, global
batch 1,024). Its memory is as gpustat shows it, in MiB.
"""

from __future__ import annotations

from benchmark import table
from scaling_model import FLOAT, Backbone, D

GPUS, ROWS = 8, 1024
MODEL_PARALLEL = {
    125_000: (4824, 5306),
    250_000: (4521, 5826),
    500_000: (4013, 7114),
    1_000_000: (3449, 9966),
    1_400_000: (3043, 11178),
    2_000_000: (2593, 13978),
    4_000_000: (1748, 23238),
    5_500_000: (1389, 32188),
}
"""Identities -> images/s, MiB a GPU."""
SAMPLED = {
    125_000: (5004, 4868),
    250_000: (4976, 5004),
    500_000: (4900, 5202),
    1_000_000: (4803, 5620),
    1_400_000: (4738, 6056),
    2_000_000: (4626, 6472),
    4_000_000: (4208, 8284),
    5_500_000: (3975, 9854),
    8_000_000: (3565, 12310),
    16_000_000: (2679, 19950),
    29_000_000: (1855, 32324),
}
"""The same with a tenth of the negatives."""

V100_FLOPS, V100_BANDWIDTH = 15.7e12, 900e9
"""Peaks: float32, memory (NVIDIA's data sheet)."""
H100_FLOPS, H100_BANDWIDTH = 494e12, 3.35e12
"""Peaks: TensorFloat-32 dense, memory (NVIDIA's data sheet)."""
PASSES = 17.5
"""Reads and writes of all logits in the plain form besides its products, counted in its code as 15 to 20."""
WEIGHT_PASSES = 20
"""Reads or writes of all weights: normalise and its backward, momentum, decay, update, each an operation of its own."""


def ends(points: dict[int, tuple[int, int]], which: int) -> tuple[float, float]:
    """(at no classes, for each class of a GPU) through the first and the last point: seconds a step, or bytes."""
    low, high = min(points), max(points)
    first, last = (_value(points[classes], which) for classes in (low, high))
    slope = (last - first) / ((high - low) / GPUS)
    return first - slope * low / GPUS, slope


def _value(point: tuple[int, int], which: int) -> float:
    return ROWS / point[0] if which == 0 else point[1] * 2.0**20


def _line(name: str, classes: int, found: float, true: float) -> list[str]:
    return [name, f"{classes:,}", f"{found:,.0f}", f"{true:,.0f}", f"{100 * (found / true - 1):+.1f} %"]


def peers_speed() -> str:
    """Two lines of model parallel give the step without classes and the cost of one; all others follow."""
    fixed, each = ends(MODEL_PARALLEL, 0)
    rows = []
    for name, points, rate in (("full", MODEL_PARALLEL, 1.0), ("rate 0.1", SAMPLED, 0.1)):
        for classes, (speed, _) in points.items():
            rows.append(_line(name, classes, ROWS / (fixed + rate * each * classes / GPUS), speed))
    return table(["", "identities", "model, images/s", "published", "error"], rows)


def peers_memory(network: Backbone) -> str:
    """The network's bytes are counted; a class's from the two ends of model parallel; a tenth of it for samples.

    Weights and momentum are of all classes; their copies, gradients and logits of those that take part.
    """
    batch = ROWS // GPUS
    fixed = 14.0 * network.parameters + 2.0 * batch * network.saved
    _, each = ends(MODEL_PARALLEL, 1)
    held = 2.0 * D * FLOAT
    rows = []
    for name, points, rate in (("full", MODEL_PARALLEL, 1.0), ("rate 0.1", SAMPLED, 0.1)):
        for classes, (_, published) in points.items():
            found = fixed + classes / GPUS * (held + rate * (each - held * (rate == 1)))
            rows.append(_line(name, classes, found / 2**20, published))
    return table(["", "identities", "model, MiB", "published", "error"], rows)


def plain_seconds(rows: int, flops: float, bandwidth: float) -> float:
    """Seconds of the plain sharded form for each class, at peak: three products, passes over logits and weights."""
    products = 6.0 * rows * D / flops
    return products + (PASSES * 2 * rows * FLOAT + WEIGHT_PASSES * D * FLOAT) / bandwidth


def plain_form() -> str:
    """Peaks from data sheets against what the plain form takes."""
    measured = ends(MODEL_PARALLEL, 0)[1], 56.90e-3 / 1e6
    names = "V100, G 1,024, float32, published", "H100, G 512, TF32, docs/benchmarks/gpu.md"
    peaks = (ROWS, V100_FLOPS, V100_BANDWIDTH), (512, H100_FLOPS, H100_BANDWIDTH)
    rows = []
    for name, found, (count, flops, bandwidth) in zip(names, measured, peaks, strict=True):
        least = plain_seconds(count, flops, bandwidth)
        rows.append([name, f"{least * 1e9:.0f}", f"{found * 1e9:.0f}", f"{least / found:.2f}"])
    return table(["plain sharded form, ns a class", "data sheets", "measured", "ratio"], rows)


def saved_elements(name: str) -> tuple[int, int]:
    """What a network's forward pass keeps of an image for the backward pass, in elements; its parameters."""
    import torch

    from facetrain.models.iresnet import BLOCKS, IResNet

    network = IResNet(BLOCKS[name]).train()
    own = {parameter.untyped_storage().data_ptr() for parameter in network.parameters()}
    counts = []
    for batch in (2, 4):
        seen: dict[int, int] = {}

        def pack(tensor: torch.Tensor, seen: dict[int, int] = seen) -> torch.Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in own:
                seen[storage.data_ptr()] = storage.nbytes() // tensor.element_size()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            kept = network(torch.zeros(batch, 3, 112, 112))
        counts.append(sum(seen.values()))
        del kept
    return (counts[1] - counts[0]) // 2, sum(parameter.numel() for parameter in network.parameters())
