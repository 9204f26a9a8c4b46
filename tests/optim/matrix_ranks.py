"""The cells of two ranks: DistributedDataParallel, FSDP1, FSDP2; all in one pair of processes."""

from __future__ import annotations

import datetime
import os

import torch
import torch.distributed as dist
from matrix_loops import DDP, Ranks, train
from matrix_reference import METHODS, SITUATIONS

from flatminima.errors import FlatMinimaError


class FSDP1(Ranks):
    def prepare(self, model, opt):
        from torch.distributed.fsdp import FullyShardedDataParallel

        model = FullyShardedDataParallel(model, device_id=torch.device("cpu"), use_orig_params=True)
        return model, opt

    def whole(self, model):
        from torch.distributed.fsdp import FullyShardedDataParallel

        with FullyShardedDataParallel.summon_full_params(model):
            return super().whole(model)


class FSDP2(Ranks):
    """Sharded before the optimizer is made, as torch asks for: `cut` does it."""

    def whole(self, model):
        model.reshard()
        return torch.cat([p.full_tensor().detach().double().reshape(-1) for p in model.parameters()])

    def save(self, model, opt):
        from torch.distributed.checkpoint.state_dict import get_state_dict

        model.reshard()
        return get_state_dict(model, opt)

    def load(self, saved, model, opt):
        from torch.distributed.checkpoint.state_dict import set_state_dict

        set_state_dict(model, opt, model_state_dict=saved[0], optim_state_dict=saved[1])


def cut(model):
    from torch.distributed.fsdp import fully_shard

    for part in (model.head, model):  # the convolution is the root's own: it stays gathered after an evaluation
        fully_shard(part)
    return model


def work(rank, port, folder):
    """Every cell; errors of ours as their text."""
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=2, timeout=datetime.timedelta(seconds=60))
    found = {}
    try:
        import matrix_loops
        from matrix_reference import net_for

        from flatminima.optim import blocks

        blocks.CACHE = 32  # so that weights are pieces of memory and copies, both
        for name, place in (("DistributedDataParallel", DDP(rank)), ("FSDP1", FSDP1(rank)), ("FSDP2", FSDP2(rank))):
            matrix_loops.net_for = (lambda situation: cut(net_for(situation))) if name == "FSDP2" else net_for
            for method in METHODS:
                for situation in SITUATIONS:
                    try:
                        found[name, method, situation] = train(method, situation, place)
                    except FlatMinimaError as error:
                        found[name, method, situation] = f"refused: {error}"
                    except Exception as error:
                        found[name, method, situation] = f"{type(error).__name__}: {error}"
        if rank == 0:
            torch.save(found, f"{folder}/cells.pt")
        dist.barrier()
    finally:
        dist.destroy_process_group()
