"""The cost of a network before it exists: operations and memory, counted on the meta device."""

from __future__ import annotations

import json
from dataclasses import asdict, fields
from functools import lru_cache

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from ctflow.config.models import FMvTConfig
from ctflow.models import Conditions, FMvT

GIB = 2**30


def forward_gflop(config: FMvTConfig) -> float:
    """GFLOP of one block's forward in matrix products and attention."""
    values = asdict(config)
    own = {field.name: values[field.name] for field in fields(FMvTConfig)}  # a FlowNetworkConfig has the same
    return _forward_gflop(json.dumps(own | {"activation_checkpointing": False}, sort_keys=True))


@lru_cache(maxsize=8)
def _forward_gflop(text: str) -> float:
    network, arguments = _on_meta(FMvTConfig(**json.loads(text)), 1)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(*arguments)
    return counter.get_total_flops() / 1e9


def activation_bytes(config: FMvTConfig, batch: int) -> int:
    """Bytes that a float32 forward keeps for its backward, besides weights; bfloat16 halves most of them."""
    network, arguments = _on_meta(config, batch)
    own = {id(parameter) for parameter in network.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        if id(tensor) not in own and not tensor.is_leaf:
            kept[id(tensor.untyped_storage())] = tensor.untyped_storage().nbytes()
            held.append(tensor)
        return tensor

    held: list[Tensor] = []  # alive until the end: a freed storage's number is given again
    hooks = torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor)
    with hooks:
        network(*arguments)
    return sum(kept.values())


def training_gib(config: FMvTConfig, batch: int, shards: int = 1) -> float:
    """GiB of one process: weights, average, gradients, AdamW's two moments (float32), and activations.

    Args:
        config: The network.
        batch: Blocks of a process.
        shards: Processes that FSDP2 shards weights, average and states over; 1: none.
    """
    weights = sum(parameter.numel() for parameter in _on_meta(config, 1)[0].parameters())
    return (5 * 4 * weights / shards + activation_bytes(config, batch)) / GIB


def _on_meta(config: FMvTConfig, batch: int) -> tuple[FMvT, tuple[Tensor, Tensor, Conditions]]:
    with torch.device("meta"):
        network = FMvT(config).train()
        block = torch.empty(batch, config.latent_channels, *config.input_size)
        text = torch.empty(batch, config.text_tokens, config.text_dim)
        conditions = Conditions(text, torch.empty_like(block))
        return network, (block, torch.empty(batch), conditions)
