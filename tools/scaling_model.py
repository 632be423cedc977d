"""The arithmetic of docs/scaling.md: what a step costs on many GPUs, from what was measured on one and from links.

Seconds, bytes and bytes per second throughout. Names of sizes are the project's: B own images, G those of all GPUs, D
the embedding's size, C classes, K a GPU's own, S those of them that take part in a step.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

D = 512
FLOAT, DOUBLE, LONG = 4, 8, 8
BUCKET = 25 * 2**20
"""Bytes of gradients that DDP sends at once (torch's bucket_cap_mb)."""


@dataclass(frozen=True)
class Links:
    """Bus bandwidths of collectives (nccl-tests' term) inside a host and between hosts, and GPUs in a host."""

    inside: float
    between: float
    in_host: int = 8


@dataclass(frozen=True)
class Protocol:
    """One of NCCL's protocols as its own cost model has it: latencies in seconds, share of the bus bandwidth.

    Attributes:
        base: of a call.
        hop: a step inside a host, and between hosts.
        share: of the bus bandwidth; ``caps``: its largest value on one host and on more.
    """

    base: float
    hop: tuple[float, float]
    share: tuple[float, float]
    caps: tuple[float, float] = (math.inf, math.inf)


_US = 1e-6
_POSTING = 1.0 * _US  # a step of a ring over several hosts takes no less: work for the network card is posted
_LL_CAPS = (141e9, 20.4e9)
RING = (
    Protocol(6.6 * _US, (0.6 * _US, 2.7 * _US), (0.5, 0.5), _LL_CAPS),
    Protocol(14.0 * _US, (1.9 * _US, 4.0 * _US), (0.92, 0.92)),
    Protocol(8.4 * _US, (3.4 * _US, 14.0 * _US), (1.0, 1.0)),
)
TREE = (
    Protocol(6.8 * _US, (0.6 * _US, 5.0 * _US), (0.92 / 3.8, 0.92 / 3.8), _LL_CAPS),
    Protocol(14.0 * _US, (1.25 * _US, 8.5 * _US), (0.92 * 7 / 9, 0.92 * 120 / 128)),
    Protocol(8.4 * _US, (4.0 * _US, 14.0 * _US), (0.92, 0.92)),
)


def ring(size: float, gpus: int, links: Links, rounds: int) -> float:
    """Seconds of a ring over ``size`` bytes (the larger side): 1 round gathers or scatters, 2 are an all-reduce.

    ``rounds * (gpus - 1)`` steps, of which ``rounds * (hosts - 1)`` go between hosts; each moves ``size / gpus`` bytes.
    """
    if gpus == 1:
        return 0.0
    hosts = -(-gpus // links.in_host)
    many = hosts > 1
    steps, between = rounds * (gpus - 1), rounds * (hosts - 1)
    bandwidth = links.between if many else links.inside
    times = []
    for protocol in RING:
        inside = max(protocol.hop[0], _POSTING) if many else protocol.hop[0]
        latency = protocol.base + (steps - between) * inside + between * protocol.hop[1]
        speed = min(bandwidth * protocol.share[many], protocol.caps[many])
        times.append(latency + size * steps / gpus / speed)
    return min(times)


def tree(size: float, gpus: int, links: Links) -> float:
    """Seconds of an all-reduce by a double tree: chains inside hosts, a tree of hosts, up and down."""
    if gpus == 1:
        return 0.0
    hosts = -(-gpus // links.in_host)
    many = hosts > 1
    chain = gpus / hosts - 1
    bandwidth = links.between if many else links.inside
    times = []
    for protocol in TREE:
        latency = protocol.base + 2 * (chain * protocol.hop[0] + math.log2(hosts) * protocol.hop[1])
        speed = min(bandwidth * protocol.share[many], protocol.caps[many]) / 2
        times.append(latency + size / speed)
    return min(times)


def all_reduce(size: float, gpus: int, links: Links) -> float:
    """The faster of ring and tree."""
    return min(ring(size, gpus, links, rounds=2), tree(size, gpus, links))


@dataclass(frozen=True)
class Kernels:
    """What one GPU's classifier costs.

    Attributes:
        of_class: seconds for each class that takes part: operands and norms, and the update.
        of_pair: for each row and class: three products and the exponentials.
        again_class: more for each class whose exponentials are computed anew.
        again_pair: the same for each row and class.
        cloud_pair: more for each row with a feature cloud and class.
        bandwidth: of memory, as the update's kernel reaches it.
    """

    of_class: float
    of_pair: float
    again_class: float
    again_pair: float
    cloud_pair: float
    bandwidth: float


@dataclass(frozen=True)
class Backbone:
    """A network: images per second of one GPU, forward and backward; parameters; elements saved for an image."""

    name: str
    speed: float
    parameters: int
    saved: int


@dataclass(frozen=True)
class Setup:
    """A training run: GPUs, classes, rate of negatives, own images, and the settings that memory depends on."""

    gpus: int
    classes: int
    rate: float
    batch: int = 128
    leap: bool = True
    sync_interval: int = 5
    images_per_class: int = 20
    keep: float = 4e9
    chunk: int = 131072

    @property
    def rows(self) -> int:
        """G."""
        return self.gpus * self.batch

    @property
    def own(self) -> int:
        """K, of the rank that has most."""
        return -(-self.classes // self.gpus)

    @property
    def columns(self) -> float:
        """S on average: all, or the sampled ones and those of the batch that were not sampled."""
        if self.rate == 1:
            return float(self.own)
        return self.rate * self.own + (1 - self.rate) * min(self.own, self.batch)


def kept_share(setup: Setup) -> float:
    """Share of the columns whose bfloat16 exponentials and operands fit into the budget."""
    return min(1.0, setup.keep / (setup.columns * 2 * (setup.rows + D)))


def classifier_seconds(setup: Setup, kernels: Kernels) -> float:
    """Forward, backward and update of a GPU's share, clouds for every row."""
    pairs, again = setup.rows * setup.columns, 1 - kept_share(setup)
    seconds = setup.columns * kernels.of_class + pairs * kernels.of_pair
    seconds += again * (setup.columns * kernels.again_class + pairs * kernels.again_pair)
    return seconds + setup.leap * pairs * kernels.cloud_pair


ROW_PASSES = 24
"""Times that (G, D) float32 values are read or written around the products: normalise, round, scale, and backward."""
STATISTICS_BYTES = 93
"""Bytes per class of the whole set that Leap._mean_variance reads and writes at a synchronisation."""
UPDATE_BYTES = 24
"""Bytes per parameter: weight, gradient and momentum read, two written, the gradient read once more for its norm."""


def step_seconds(setup: Setup, kernels: Kernels, backbone: Backbone, links: Links) -> dict[str, float]:
    """A step's parts; their sum is its time. Gradients count with what the backward pass does not cover."""
    gpus, rows = setup.gpus, setup.rows
    seconds = {
        "backbone": setup.batch / backbone.speed + UPDATE_BYTES * backbone.parameters / kernels.bandwidth,
        "classifier": classifier_seconds(setup, kernels) + ROW_PASSES * rows * D * FLOAT / kernels.bandwidth,
        "gather": ring(rows * D * FLOAT, gpus, links, rounds=1),
        "exchange": all_reduce(rows * 2 * DOUBLE, gpus, links),
        "scatter": ring(rows * D * FLOAT, gpus, links, rounds=1),
        "gradients": exposed_gradients(setup, backbone, links),
        "LEAP": 0.0,
    }
    if setup.leap:
        touched = min(setup.sync_interval * rows, setup.classes)
        passes = STATISTICS_BYTES * setup.classes / kernels.bandwidth
        seconds["LEAP"] = (passes + all_reduce(touched * DOUBLE, gpus, links)) / setup.sync_interval
    return seconds


def gradient_seconds(backbone: Backbone, gpus: int, links: Links) -> float:
    """DDP's all-reduces of a step, bucket after bucket."""
    size = backbone.parameters * FLOAT
    buckets = -(-size // BUCKET)
    return buckets * all_reduce(size / buckets, gpus, links)


def exposed_gradients(setup: Setup, backbone: Backbone, links: Links) -> float:
    """What is left of them after the backward pass, two thirds of the backbone's time: at least the last bucket."""
    if setup.gpus == 1:
        return 0.0
    size = backbone.parameters * FLOAT
    last = all_reduce(size / -(-size // BUCKET), setup.gpus, links)
    return max(last, gradient_seconds(backbone, setup.gpus, links) - 2 / 3 * setup.batch / backbone.speed)


def memory_bytes(setup: Setup, backbone: Backbone) -> dict[str, float]:
    """Bytes on a GPU by what they are for; without CUDA's context and NCCL's buffers."""
    chunk = min(setup.chunk, setup.columns)
    parts = {
        "weights, momentum": 2.0 * setup.own * D * FLOAT,
        "kept": kept_share(setup) * setup.columns * 2 * (setup.rows + D),
        # products and exponentials, the block's operand and its gradient
        "block": chunk * (setup.rows * (4 + 2) + 2 * D + FLOAT * D),
        "rows": 6.0 * setup.rows * D * FLOAT,
        "backbone": 14.0 * backbone.parameters + 2.0 * setup.batch * backbone.saved,
        "LEAP, own": 0.0,
        "LEAP, all": 0.0,
    }
    if setup.rate < 1:
        parts["weights, momentum"] += setup.own
    if setup.leap:
        # centres; two sums of angles; two bytes an angle; rows since the last synchronisation
        parts["LEAP, own"] = setup.own * (D * FLOAT + 2 * LONG + 2 * setup.images_per_class)
        parts["LEAP, own"] += 2 * setup.sync_interval * setup.batch * D * FLOAT
        # variance, count, head or tail of all classes; three temporaries of doubles at a synchronisation
        parts["LEAP, all"] = setup.classes * (2 * DOUBLE + 1 + 3 * DOUBLE)
    return parts


def host_bytes(setup: Setup, in_host: int = 8) -> float:
    """Bytes of a host's memory for LEAP's and the sampler's arrays, all its ranks together."""
    everyones = setup.classes * (LONG + 1) if setup.leap else 0
    own = setup.own * (2 * LONG + 1) * setup.leap + setup.own * (setup.rate < 1)
    return float(min(in_host, setup.gpus) * (everyones + own))
