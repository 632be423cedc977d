"""Step time and memory for up to 512 GPUs and 100 million identities, on paper: the tables of docs/scaling.md."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))
sys.path.insert(0, str(Path(__file__).parent))

from benchmark import table
from scaling_model import (
    Backbone,
    Kernels,
    Links,
    Setup,
    all_reduce,
    classifier_seconds,
    gradient_seconds,
    host_bytes,
    memory_bytes,
    ring,
    step_seconds,
)
from scaling_peers import peers_memory, peers_speed, plain_form, saved_elements

_STEP = 9.442e-3, 12.76e-3, 10.14e-3  # kept, streamed, kept with clouds: G = 512, C = 1,000,000
_PREPARE, _SGD, _PREPARE_AGAIN = 0.981e-3, 3.409e-3, 1.053e-3  # of kernels in such a step
_PAIRS, _CLASSES = 512e6, 1e6

KERNELS = Kernels(
    of_class=(_PREPARE + _SGD) / _CLASSES,
    of_pair=(_STEP[0] - _PREPARE - _SGD) / _PAIRS,
    again_class=_PREPARE_AGAIN / _CLASSES,
    again_pair=(_STEP[1] - _STEP[0] - _PREPARE_AGAIN) / _PAIRS,
    cloud_pair=(_STEP[2] - _STEP[0]) / _PAIRS,
    bandwidth=10 * 1024 / (_SGD / _CLASSES),
)
H100 = Links(inside=350e9, between=365.84e9)

_GPU = "docs/benchmarks/gpu.md"
INPUTS = (
    ("classifier, exponentials kept, G 512, C 1 M, bf16", "9.442 ms", f"{_GPU}, 2026-11-22"),
    ("the same, streamed", "12.76 ms", f"{_GPU}, 2026-11-22"),
    ("the same, kept, LEAP, a draw for every logit", "10.14 ms", f"{_GPU}, 2026-11-22"),
    ("kernels in it: prepare, sgd; prepare again when streamed", "0.981, 3.409; 1.053 ms", f"{_GPU}, profile"),
    ("IResNet-18 alone, B 128, bf16", "6,909 images/s", f"{_GPU}, 2026-11-22"),
    ("IResNet-50 alone, B 256, bf16", "4,550 images/s", f"{_GPU}, 2026-11-22"),
    ("IResNet-100", "2,372 images/s", "IResNet-50's, by 37.8 / 72.5 GFLOP an image: not measured"),
    ("saved for the backward pass, parameters", "counted", "facetrain.models, by this script"),
    ("bus bandwidth in a host, NVLink 4", "350 GB/s", "github.com/NVIDIA/nccl/issues/1281 (all-gather; scatter 360)"),
    ("between hosts, 8 x 400 Gb/s each", "365.84 GB/s", "github.com/NVIDIA/nccl-tests/issues/309 (32 GPUs)"),
    ("latencies and protocols", "scaling_model.py", "NVIDIA/nccl, src/graph/tuning.cc (its own cost model)"),
)

SIZES = [(classes, gpus) for classes in (10**6, 10**7, 10**8) for gpus in (8, 64, 512)]
CARD = 80e9
_MILLION, _MS, _GB = 10**6, 1e3, 1e9


def backbones() -> list[Backbone]:
    """The three networks, with what their forward pass leaves for the backward pass."""
    made = []
    for name, speed in (("iresnet18", 6909.0), ("iresnet50", 4550.0), ("iresnet100", 4550.0 * 37.8 / 72.5)):
        saved, parameters = saved_elements(name)
        made.append(Backbone(name, speed, parameters, saved))
    return made


def step_table(networks: Iterable[Backbone], rate: float) -> str:
    """A line for every size: milliseconds and images/s of each network, memory with IResNet-50."""
    networks = list(networks)
    rows = []
    for classes, gpus in SIZES:
        setup = Setup(gpus, classes, rate)
        cells = [f"{classes // _MILLION} M", str(gpus)]
        for network in networks:
            seconds = sum(step_seconds(setup, KERNELS, network, H100).values())
            cells += [f"{seconds * _MS:.1f}", f"{setup.rows / seconds:,.0f}"]
        memory = sum(memory_bytes(setup, networks[1]).values())
        cells += [f"{memory / _GB:.1f}{' (no)' if memory > CARD else ''}", f"{host_bytes(setup) / _GB:.2f}"]
        rows.append(cells)
    names = [name for n in networks for name in (f"{n.name[7:]}: ms", "images/s")]
    return table(["C", "GPUs", *names, "GB a GPU", "GB a host"], rows)


def share_table(network: Backbone, rate: float) -> str:
    """Percent of the step of each of its parts."""
    rows = []
    for classes, gpus in SIZES:
        parts = step_seconds(Setup(gpus, classes, rate), KERNELS, network, H100)
        total = sum(parts.values())
        rows.append([f"{classes // _MILLION} M", str(gpus), *(f"{100 * part / total:.1f}" for part in parts.values())])
    return table(["C", "GPUs", *step_seconds(Setup(8, _MILLION, rate), KERNELS, network, H100)], rows)


def memory_table(network: Backbone, rate: float) -> str:
    """GB of a GPU by what they are for."""
    rows = []
    for classes, gpus in SIZES:
        parts = memory_bytes(Setup(gpus, classes, rate), network)
        cells = [f"{part / _GB:.2f}" for part in parts.values()]
        rows.append([f"{classes // _MILLION} M", str(gpus), *cells, f"{sum(parts.values()) / _GB:.1f}"])
    return table(["C", "GPUs", *memory_bytes(Setup(8, _MILLION, rate), network), "sum"], rows)


def collective_table(networks: Iterable[Backbone]) -> str:
    """Milliseconds of each collective by itself, B = 128, 10 M classes."""
    networks = list(networks)
    rows = []
    for gpus in (8, 64, 512):
        setup = Setup(gpus, 10**7, 1.0)
        size = setup.rows * 512 * 4
        cells = [ring(size, gpus, H100, 1), all_reduce(setup.rows * 16, gpus, H100), ring(size, gpus, H100, 1)]
        cells += [gradient_seconds(network, gpus, H100) for network in networks]
        cells += [all_reduce(8 * min(5 * setup.rows, setup.classes), gpus, H100)]
        rows.append([str(gpus), f"{size / 1e6:,.1f}", *(f"{cell * _MS:.3f}" for cell in cells)])
    gradients = [f"gradients {network.name[7:]}" for network in networks]
    return table(["GPUs", "rows, MB", "gather", "exchange", "scatter", *gradients, "LEAP's sum (every 5th)"], rows)


def own_checks(networks: Iterable[Backbone]) -> str:
    """The model against measurements that it was not made of."""
    _, resnet50, _ = networks
    sampled = Setup(1, _MILLION, 0.1, batch=256, leap=False)
    ten = Setup(1, 10 * _MILLION, 1.0, batch=512, leap=False, keep=0)
    step = sum(step_seconds(sampled, KERNELS, resnet50, H100).values())
    clouds = sum(step_seconds(Setup(1, _MILLION, 0.1, batch=256), KERNELS, resnet50, H100).values())
    parts = memory_bytes(ten, resnet50)
    memory = sum(parts.values()) - parts["backbone"]
    one = memory_bytes(Setup(1, _MILLION, 1.0, batch=512, leap=False, keep=0), resnet50)
    lines = [
        ("10 M classes, full softmax, B 512, streamed: ms", _MS * classifier_seconds(ten, KERNELS), 127.2),
        ("the same: GB at the peak", memory / _GB, 41.6),
        ("1 M classes, streamed: MB at the peak", (sum(one.values()) - one["backbone"]) / 1e6, 4920.0),
        ("IResNet-50, B 256, C 1 M, rate 0.1: images/s", 256 / step, 4361.0),
        ("the same, LEAP: images/s", 256 / clouds, 4339.0),
    ]
    rows = [
        [name, f"{found:,.1f}", f"{true:,.1f}", f"{100 * (found / true - 1):+.1f} %"] for name, found, true in lines
    ]
    return table([f"one H100 ({_GPU})", "model", "measured", "error"], rows)


def sections() -> Iterator[tuple[str, str]]:
    """Title and table of everything that the page holds."""
    networks = backbones()
    resnet50 = networks[1]
    costs = [f"{value:.4g}" for value in vars(KERNELS).values()]
    counts = [[n.name, f"{n.speed:,.0f}", f"{n.parameters:,}", f"{n.saved:,}"] for n in networks]
    yield "Inputs", table(["what", "value", "source"], INPUTS)
    yield "Networks", table(["", "images/s", "parameters", "saved elements an image"], counts)
    yield "Costs of the classifier", table([*vars(KERNELS)], [costs])
    yield "Check: one GPU", own_checks(networks)
    yield "Check: insightface's speed", peers_speed()
    yield "Check: insightface's memory", peers_memory(resnet50)
    yield "Check: the plain form from data sheets", plain_form()
    yield "Collectives alone", collective_table(networks)
    for rate in (1.0, 0.1):
        yield f"Steps, rate {rate:g}", step_table(networks, rate)
    for rate in (1.0, 0.1):
        yield f"Shares in percent, IResNet-50, rate {rate:g}", share_table(resnet50, rate)
    for rate in (1.0, 0.1):
        yield f"Memory of a GPU in GB, IResNet-50, rate {rate:g}", memory_table(resnet50, rate)


def main() -> None:
    """Print every table."""
    argparse.ArgumentParser(description=__doc__).parse_args()
    for title, text in sections():
        print(f"### {title}\n\n{text}\n")


if __name__ == "__main__":
    main()
