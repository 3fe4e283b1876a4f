"""Two processes that train what is beside a frozen quantized weight, as adapters are trained."""

from __future__ import annotations

import copy
import gc
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from aoq import (
    Float8WeightOnlyConfig,
    Int4WeightOnlyConfig,
    Int8DynamicActivationInt8WeightConfig,
    MappingType,
    QuantizedTensor,
    quantize_,
)

CONFIGS = [
    Int4WeightOnlyConfig(group_size=32),
    Int8DynamicActivationInt8WeightConfig(MappingType.ASYMMETRIC),
    Float8WeightOnlyConfig(),
]


def train(rank: int, processes: int, meeting_point: str) -> None:
    dist.init_process_group("gloo", init_method=meeting_point, rank=rank, world_size=processes)
    torch.set_num_threads(1)
    try:
        for config in CONFIGS:
            torch.manual_seed(0)
            model = nn.Sequential(nn.Linear(96, 72, bias=False), nn.Linear(72, 8))
            quantize_(model, config, lambda module, fqn: fqn == "0")
            x, alone = torch.randn(4, 96), copy.deepcopy(model)
            expected = alone(x)
            expected.square().sum().backward()

            replicated = DistributedDataParallel(copy.deepcopy(model))
            replicated(x).square().sum().backward()
            torch.testing.assert_close(replicated.module[1].weight.grad, alone[1].weight.grad)

            sharded = fully_shard(copy.deepcopy(model), mesh=init_device_mesh("cpu", (processes,)))
            shard = sharded[0].weight._local_tensor
            assert isinstance(shard, QuantizedTensor) and shard.shape == (72 // processes, 96)
            for _ in range(2):  # whole, freed, and whole again
                sharded.zero_grad()
                out = sharded(x)
                assert torch.equal(out, expected)
                out.square().sum().backward()
            torch.testing.assert_close(sharded[1].weight.grad.full_tensor(), alone[1].weight.grad)
            # What has threads goes before the group that they use, and no process before the other is done.
            del replicated, sharded, shard
            gc.collect()
            dist.barrier()
    finally:
        dist.destroy_process_group()


def test_replicated_and_sharded(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(train, (2, f"file://{tmp_path / 'meeting_point'}"), nprocs=2)
