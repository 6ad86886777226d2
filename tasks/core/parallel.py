"""Several processes of one machine that train one network: each takes its share of every batch.

`torchrun --standalone --nproc-per-node 2 -m tasks.distill RUNG` starts them. What they compute is
what one process would, up to the order of float sums: BatchNorm sees the whole batch, a loss sees
the whole batch's outputs, and gradients are summed. Speaks gloo on the loopback device alone;
knows nothing of rows, losses or files.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from tasks.core.errors import ParamsError
from tasks.core.signal import Outputs

LOOPBACK = "lo0" if sys.platform == "darwin" else "lo"


@dataclass(frozen=True)
class World:
    """`size` processes, of which this is number `rank`; number 0 alone writes files."""

    rank: int = 0
    size: int = 1

    @property
    def first(self) -> bool:
        """This process writes the files."""
        return self.rank == 0

    def share(self, batch: Tensor) -> Tensor:
        """This process's rows of a batch (N, ...); N is a multiple of `size`."""
        return batch if self.size == 1 else batch.chunk(self.size)[self.rank]

    def gathered(self, outputs: Outputs) -> Outputs:
        """Everybody's rows of `outputs`, in order. Each process computes the same loss of them, so
        a gradient flows back to its own rows alone."""
        if self.size == 1:
            return outputs
        features = {name: self.whole(value) for name, value in outputs.features.items()}
        return Outputs(self.whole(outputs.logits), features)

    def whole(self, rows: Tensor) -> Tensor:
        """Everybody's `rows` (n, ...) as (n · size, ...), in order."""
        if self.size == 1:
            return rows
        gathered: Tensor = _Gather.apply(rows, self)  # type: ignore[no-untyped-call]
        return gathered

    def add_gradients(self, net: nn.Module) -> None:
        """Sum each gradient of `net` over all processes, in one message."""
        if self.size == 1:
            return
        gradients = [p.grad for p in net.parameters() if p.grad is not None]
        flat = torch.cat([gradient.reshape(-1) for gradient in gradients])
        dist.all_reduce(flat)
        start = 0
        for gradient in gradients:
            gradient.copy_(flat[start : start + gradient.numel()].view(gradient.shape))
            start += gradient.numel()

    def wait(self) -> None:
        """Until all processes have come here."""
        if self.size > 1:
            dist.barrier()

    @contextmanager
    def synchronised(self, net: nn.Module) -> Iterator[None]:
        """For the length of the block, let every BatchNorm of `net` see the whole batch."""
        replaced = []
        if self.size > 1:
            for parent in list(net.modules()):
                for name, child in list(parent.named_children()):
                    if isinstance(child, nn.BatchNorm2d):
                        setattr(parent, name, SynchronisedBatchNorm2d(child))
                        replaced.append((parent, name, child))
        try:
            yield
        finally:
            for parent, name, child in replaced:
                child.train(parent.training)
                setattr(parent, name, child)


def joined() -> World:
    """The processes that torchrun started, or this one alone."""
    if not dist.is_torchelastic_launched():
        return World()
    if not dist.is_initialized():
        if os.environ["LOCAL_WORLD_SIZE"] != os.environ["WORLD_SIZE"]:
            raise ParamsError("torchrun: the processes must be on one machine; start it with one")
        os.environ["GLOO_SOCKET_IFNAME"] = LOOPBACK
        dist.init_process_group("gloo")
    return World(dist.get_rank(), dist.get_world_size())


def go_on_alone() -> None:
    """The training is done: the first process goes on, the others end here."""
    if dist.is_available() and dist.is_initialized():
        rank = dist.get_rank()
        dist.barrier()
        dist.destroy_process_group()
        del os.environ["TORCHELASTIC_RUN_ID"]  # what is trained from now on is not shared
        if rank:
            sys.exit(0)


class _Gather(torch.autograd.Function):
    """All rows forward; backward, the gradient of one's own."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, world: World) -> Tensor:
        ctx.world = world
        rows = rows.contiguous()
        parts = [torch.empty_like(rows) for _ in range(world.size)]
        dist.all_gather(parts, rows)
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return ctx.world.share(gradients[0]).clone(), None


class _Sum(torch.autograd.Function):
    """The sum over all processes, forward and backward."""

    @staticmethod
    def forward(_: Any, own: Tensor) -> Tensor:
        total = own.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(_: Any, *gradients: Tensor) -> Tensor:
        total = gradients[0].clone()
        dist.all_reduce(total)
        return total


class SynchronisedBatchNorm2d(nn.BatchNorm2d):
    """BatchNorm over the rows of all processes; it shares weights and statistics with `origin`.

    torch's own SyncBatchNorm has no CPU kernel. Two passes, mean first, so that no digits cancel.
    """

    def __init__(self, origin: nn.BatchNorm2d) -> None:
        super().__init__(origin.num_features, origin.eps, origin.momentum, origin.affine)
        self.weight, self.bias = origin.weight, origin.bias
        self.running_mean, self.running_var = origin.running_mean, origin.running_var
        self.num_batches_tracked = origin.num_batches_tracked
        self.train(origin.training)

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - torch's own name
        if not self.training:
            return super().forward(input)
        rows = input.float()
        count = rows.numel() // rows.shape[1] * dist.get_world_size()
        mean = _summed(rows) / count
        centred = rows - mean[:, None, None]
        variance = _summed(centred * centred) / count
        self._remember(mean.detach(), variance.detach() * count / (count - 1))
        scale = self.weight * torch.rsqrt(variance + self.eps)
        normal: Tensor = centred * scale[:, None, None] + self.bias[:, None, None]
        return normal.to(input.dtype)

    @torch.no_grad()
    def _remember(self, mean: Tensor, variance: Tensor) -> None:
        """Move the running statistics on, as `F.batch_norm` does."""
        assert self.running_mean is not None  # noqa: S101 - the family's layers track them
        assert self.running_var is not None  # noqa: S101
        assert self.num_batches_tracked is not None  # noqa: S101
        assert self.momentum is not None  # noqa: S101
        self.num_batches_tracked.add_(1)
        self.running_mean.lerp_(mean, self.momentum)
        self.running_var.lerp_(variance, self.momentum)


def _summed(rows: Tensor) -> Tensor:
    """The sum of `rows` (n, C, H, W) per channel over all processes, differentiable."""
    total: Tensor = _Sum.apply(rows.sum((0, 2, 3)))  # type: ignore[no-untyped-call]
    return total
