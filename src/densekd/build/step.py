"""The optimizer step of a recipe, and what is done to the student before its first batch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from densekd.config import schema
from densekd.distill.distiller import Distiller
from densekd.distill.term import Term, named_parameters
from densekd.engine.launch import Process
from densekd.engine.optim import make_optimizer, parameter_groups
from densekd.engine.step import Step, bare
from densekd.rewrite import synchronise, to_inplace


def build_optimizer(
    optim: schema.Optim, network: nn.Module, terms: Sequence[Term] = ()
) -> torch.optim.Optimizer:
    """Over the network's parameters under their own names, and the terms' as `named_parameters` calls them."""
    named = [*network.named_parameters(), *named_parameters(terms)]
    groups = parameter_groups(
        named,
        lr=optim.lr,
        weight_decay=optim.weight_decay,
        groups=[(g.prefix, g.lr_scale, g.weight_decay) for g in optim.groups],
        decay_norms=optim.decay_norms,
    )
    return make_optimizer(groups, optim.name, momentum=optim.momentum, betas=optim.betas)


def build_discriminator_optimizer(
    holistic: schema.Holistic | None, distiller: Distiller
) -> torch.optim.Optimizer | None:
    if distiller.adversary is None or holistic is None:
        return None
    groups = parameter_groups(
        distiller.adversary.discriminator.named_parameters(),
        lr=holistic.lr,
        weight_decay=holistic.weight_decay,
    )
    return make_optimizer(
        groups, holistic.optimizer, momentum=holistic.momentum, betas=holistic.betas
    )


def build_step(config: schema.Config, distiller: Distiller, process: Process) -> Step:
    """The optimizer step of a run, with all that is done to the student before its first batch.

    Norms over ranks, compilation and DDP change `distiller` in place.
    """
    # Optimizers hold the bare parameters, so build them before DDP renames anything.
    tapped = bare(distiller.student)
    network = tapped.model
    optimizer = build_optimizer(config.optim, network, distiller.terms)
    discriminator_optimizer = build_discriminator_optimizer(config.distill.holistic, distiller)
    ema = (
        None
        if config.train.ema is None
        else AveragedModel(
            network, multi_avg_fn=get_ema_multi_avg_fn(config.train.ema), use_buffers=True
        )
    )
    if config.train.sync_batchnorm:
        synchronise(tapped)
    if config.train.recompute_norms:
        to_inplace(network)
    if config.train.compile:
        distiller.student.compile()
    wrap_ddp(distiller, process)
    return Step(
        distiller,
        optimizer,
        discriminator_optimizer=discriminator_optimizer,
        amp=config.train.amp,
        clip=config.optim.clip,
        ema=ema,
        device=process.device,
    )


def wrap_ddp(distiller: Distiller, process: Process) -> None:
    """Wrap what trains, and only that; the teacher never."""
    if process.world_size == 1:
        return
    ids = [process.device.index] if process.device.type == "cuda" else None
    ddp = nn.parallel.DistributedDataParallel
    distiller.student = ddp(distiller.student, device_ids=ids)
    if distiller.adversary is not None:
        distiller.adversary.network = ddp(distiller.adversary.network, device_ids=ids)
