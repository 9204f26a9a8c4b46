"""Networks, data and losses that the table of `cases.py` is made of."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

N = 7


@dataclass(frozen=True)
class Case:
    """A network, its data and its loss.

    Attributes:
        model, data: factories, called after `seed` was set.
        path: how its layers are followed: "rules", "vmapped" (some layer at least) or "samples" (one backward each).
        convex: the loss has a Gauss-Newton matrix.
        twice: torch can differentiate it twice.
    """

    name: str
    model: Callable[[], nn.Module]
    data: Callable[[], tuple[Any, Tensor]]
    loss: str | Callable[[Tensor, Tensor], Tensor] = "cross_entropy"
    path: str = "rules"
    convex: bool = True
    twice: bool = True
    seed: int = 0

    def make(self, dtype: torch.dtype = torch.float64) -> tuple[nn.Module, tuple[Any, Tensor]]:
        """Model in eval mode and data, always the same."""
        with torch.random.fork_rng():
            torch.manual_seed(self.seed)
            model = self.model().eval()
            _scatter(model)
            inputs, targets = self.data()
        return model.to(dtype), (cast(inputs, dtype), cast(targets, dtype))


def cast(value: Any, dtype: torch.dtype) -> Any:
    if isinstance(value, dict):
        return {k: cast(v, dtype) for k, v in value.items()}
    if isinstance(value, tuple):
        return tuple(cast(v, dtype) for v in value)
    return value.to(dtype) if value.is_floating_point() else value


def _scatter(model: nn.Module) -> None:
    """Default norms have weight 1, bias 0, mean 0 and variance 1, which would hide mistakes."""
    for module in model.modules():
        for name, p in module._parameters.items():
            if p is not None and p.dim() == 1:
                p.data += 0.3 * torch.randn_like(p) + (0.2 if name == "weight" else 0.0)
        if getattr(module, "running_mean", None) is not None:
            module.running_mean.normal_(0.0, 0.5)
            module.running_var.uniform_(0.5, 2.0)


def numbers(*shape: int, classes: int = 3) -> Callable[[], tuple[Any, Tensor]]:
    return lambda: (torch.randn(N, *shape, dtype=torch.float64), torch.arange(N) % classes)


def tokens(length: int, vocabulary: int = 6, classes: int = 3) -> Callable[[], tuple[Any, Tensor]]:
    return lambda: (torch.randint(0, vocabulary, (N, length)), torch.arange(N) % classes)


class Net(nn.Module):
    """Modules by name and a forward function of (self, *inputs)."""

    def __init__(self, forward: Callable[..., Any], **modules: nn.Module) -> None:
        super().__init__()
        self.function = forward
        for name, module in modules.items():
            self.add_module(name, module)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.function(self, *args, **kwargs)


class Raw(nn.Module):
    """Parameters of its own, no layer kind: a gated scale and a parameter whose name says nothing."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.gate = nn.Parameter(torch.randn(size))
        self.mix = nn.Parameter(torch.randn(size, size))

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(x @ self.mix) * self.gate.sigmoid() + x


class Attention(nn.Module):
    def __init__(self, width: int, causal: bool = False) -> None:
        super().__init__()
        self.qkv, self.out, self.causal = nn.Linear(width, 3 * width), nn.Linear(width, width), causal

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (t.unflatten(-1, (2, -1)).transpose(1, 2) for t in self.qkv(x).chunk(3, -1))
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=self.causal)
        return self.out(mixed.transpose(1, 2).flatten(2))


def conv_net(conv: nn.Module, pool: nn.Module, channels: int, classes: int = 3) -> nn.Module:
    return nn.Sequential(conv, nn.ReLU(), pool, nn.Flatten(), nn.Linear(channels, classes))


def frozen(model: nn.Module, *names: str) -> nn.Module:
    for name, p in model.named_parameters():
        if name in names:
            p.requires_grad_(False)
    return model


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 3))


def tied_language_model() -> nn.Module:
    head = nn.Linear(4, 6, bias=False)
    embedding = nn.Embedding(6, 4)
    head.weight = embedding.weight
    return Net(lambda s, t: s.head(s.attention(s.embedding(t))), embedding=embedding, head=head,
               attention=Attention(4, causal=True))  # fmt: skip


def shared_weight() -> nn.Module:
    a, b = nn.Linear(3, 3), nn.Linear(3, 3)
    b.weight = a.weight
    return nn.Sequential(a, nn.Tanh(), b)


def in_two_places() -> nn.Module:
    block = nn.Linear(3, 3)
    return nn.Sequential(nn.Sequential(block, nn.Tanh()), nn.Sequential(block, nn.Tanh()), nn.Linear(3, 3))


def checkpointed(s: Any, x: Tensor) -> Tensor:
    from torch.utils.checkpoint import checkpoint

    hidden: Tensor = checkpoint(lambda t: F.relu(s.a(t)), x, use_reentrant=False)
    return s.b(hidden)


class Shifted(nn.Module):
    """Autograd keeps the output of exp, so whoever made the input may write into it."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.randn(size))

    def forward(self, x: Tensor) -> Tensor:
        return torch.exp(x + self.shift)


def write_after_use(s: Any, x: Tensor) -> Tensor:
    h = s.a(x)
    out = s.b(h)
    h.mul_(0.5)
    return s.c(torch.cat([out, h], 1))


def write_input(s: Any, x: Tensor) -> Tensor:
    x.sub_(0.5)
    return s.a(x)


def log_cosh(output: Tensor, target: Tensor) -> Tensor:
    return torch.log(torch.cosh(output - target)).sum(1)


def smoothed(output: Tensor, target: Tensor) -> Tensor:
    return F.cross_entropy(output, target, reduction="none", label_smoothing=0.1)


def saturating(output: Tensor, target: Tensor) -> Tensor:
    return 1 - torch.exp(-(output - target).square().sum(1))


def regression(*shape: int, size: tuple[int, ...] = (2,)) -> Callable[[], tuple[Any, Tensor]]:
    return lambda: (torch.randn(N, *shape, dtype=torch.float64), torch.randn(N, *size, dtype=torch.float64))


def masked_tokens() -> tuple[Tensor, Tensor]:
    targets = torch.randint(0, 6, (N, 4))
    targets[0, 1:], targets[3, 0] = -100, -100
    return torch.randint(0, 6, (N, 4)), targets


def causal_tokens() -> tuple[Tensor, Tensor]:
    ids = torch.randint(0, 6, (N, 5))
    return ids, ids.clone()
