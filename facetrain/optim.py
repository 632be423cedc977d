"""The backbone's optimiser, the learning rate as a function of the step, and gradient clipping."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from facetrain.config import OptimConfig, ScheduleConfig
from facetrain.distributed import World


def build_optimizer(backbone: nn.Module, config: OptimConfig) -> torch.optim.Optimizer:
    """torch's optimiser over the backbone's trainable parameters; the learning rate is set before every step."""
    parameters = [parameter for parameter in backbone.parameters() if parameter.requires_grad]
    if config.name == "sgd":
        fused = parameters[0].is_cuda  # one kernel; on a CPU it would change the last bits for no gain
        return torch.optim.SGD(
            parameters, config.lr, config.momentum, weight_decay=config.weight_decay, fused=fused or None
        )
    return torch.optim.AdamW(parameters, config.lr, betas=config.betas, weight_decay=config.weight_decay)


def learning_rate(step: int, total_steps: int, steps_per_epoch: int, peak: float, config: ScheduleConfig) -> float:
    """The learning rate of update ``step`` (0-based); a pure function, so a resumed run needs no state for it.

    * ``triangular``: linear from ``min_lr`` to ``peak`` and back in each of ``cycles`` equal cycles (Smith, "Cyclical
      Learning Rates for Training Neural Networks", WACV 2017).
    * ``polynomial``: after a linear warm-up, ``min_lr + (peak - min_lr) * (1 - progress) ** power`` (insightface's,
      power 2).
    * ``cosine``: after a linear warm-up, half a cosine from ``peak`` to ``min_lr`` (Loshchilov and Hutter, ICLR 2017).
    """
    if config.name == "triangular":
        place = (step + 0.5) * config.cycles / total_steps % 1
        return config.min_lr + (peak - config.min_lr) * (1 - abs(2 * place - 1))
    warmup = round(config.warmup_epochs * steps_per_epoch)
    if step < warmup:
        return peak * (step + 1) / warmup
    progress = min(1.0, (step - warmup) / max(1, total_steps - warmup))
    if config.name == "polynomial":
        shape = (1 - progress) ** config.power
    else:
        shape = 0.5 * (1 + math.cos(math.pi * progress))
    return config.min_lr + (peak - config.min_lr) * shape


def gradient_norm(replicated: Iterable[Tensor], sharded: Iterable[Tensor], world: World) -> Tensor:
    """The common norm of the ``grad`` of all given parameters, float64, the same on every rank.

    Args:
        replicated: parameters whose gradient is the same on every rank (the backbone's, after DDP).
        sharded: parameters of which each rank holds a shard (the classifier's rows); none: no collective is needed.
        world: for the sum of the shards' squares; the host does not wait for the device.
    """
    sharded = list(sharded)
    squared = get_total_norm([p.grad for p in replicated if p.grad is not None]).double().square()
    if sharded:
        shards = get_total_norm([p.grad for p in sharded if p.grad is not None]).double().square()
        squared = squared + world.sum_(shards.to(squared.device))
    return squared.sqrt()


def clip_gradients(parameters: Iterable[Tensor], largest: float, norm: Tensor) -> None:
    """Scale the ``grad`` of parameters, whose common norm is ``norm``, in place so that it is at most ``largest``."""
    clip_grads_with_norm_(list(parameters), largest, norm)
