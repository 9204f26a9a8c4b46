"""A network whose weights are drawn from a Gaussian for each prediction, made from any module without changing it.

Q = N(mu, diag sigma^2) over chosen layers; the others stay where they are, in prior and posterior alike, and add
nothing to KL(Q || P). Norm layers run in eval mode: their statistics are frozen, their weights random like any other.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from flatminima import bounds
from flatminima.certification.gibbs.outputs import writes
from flatminima.certification.gibbs.per_example import PerExample, SharedWeights
from flatminima.core.guard import Written
from flatminima.core.kept_values import refuse_kept_values
from flatminima.core.parameters import Parameters, copied
from flatminima.core.samples import map_tensors, spread
from flatminima.errors import ModelError, UsageError

_PROBE, _BATCH = 3, 64  # examples of a probing pass, and of one that looks for what they do to each other
_SCANNED = 256  # examples; of a layer that one row in fifty does not reach 99% of networks show it
_LARGEST_KERNEL = 1 << 20  # weights of a convolution drawn by the example; larger ones take one draw a batch


@dataclass(frozen=True)
class Prior:
    """P = N(means, sigma^2 I) over the random weights.

    Args:
        means: of each parameter by name.
        sigma: standard deviation, positive; None while it is still to be chosen (see `from_recipe.chosen_sigma`).
    """

    means: Mapping[str, Tensor]
    sigma: float | None

    def __post_init__(self) -> None:
        if self.sigma is not None and not (math.isfinite(self.sigma) and self.sigma > 0):
            raise UsageError(f"got sigma={self.sigma!r}; the prior's standard deviation must be positive")


class StochasticNetwork(nn.Module):
    """A copy of a network with weights mu + sigma z, z drawn anew for every example of a forward pass.

    Args:
        model: any module that maps (batch, ...) to logits (batch, classes); copied, put in eval mode.
        sigma: initial standard deviation of every random weight.
        layers: "all" parameters that require gradients, or the names of some.

    Examples:
        >>> network = StochasticNetwork(nn.Linear(2, 2), 0.1)
        >>> network(torch.ones(5, 2)).shape, network.by
        (torch.Size([5, 2]), 'example')
    """

    def __init__(self, model: nn.Module, sigma: float, layers: str | tuple[str, ...] = "all") -> None:
        super().__init__()
        if not (math.isfinite(sigma) and sigma > 0):
            raise UsageError(f"got sigma={sigma!r}; the standard deviation of the weights must be positive")
        if isinstance(model, torch.jit.ScriptModule):
            raise ModelError("got TorchScript, whose weights take no draw: certify the network that it was made of")
        _refuse_batch_statistics(model)
        self.network = copied(model).eval()
        available = dict(Parameters.of(self.network))
        self.names = tuple(available) if layers == "all" else tuple(layers)
        unknown = [name for name in self.names if name not in available]
        if unknown or not self.names:
            raise UsageError(f"no trainable parameters {unknown}; known: {', '.join(available)}")
        for name, p in available.items():
            p.requires_grad_(name in self.names)
        self.means = [available[name] for name in self.names]
        self.log_sigmas = nn.ParameterList(torch.full_like(p, math.log(sigma)) for p in self.means)
        self.by = ""  # what shares a draw, "example" or "batch"; known after the first probe
        self.reason = ""
        self.writes_inputs = True  # until the first probe has seen that it does not

    def train(self, mode: bool = True) -> StochasticNetwork:
        """Always in eval mode: dropout and batch statistics are not part of Q."""
        return super().train(False)

    def forward(self, x: Any, generator: torch.Generator | None = None, *, kernels_by_batch: bool = False) -> Tensor:
        """Logits (batch, classes), each row with weights of its own where `by` is "example"."""
        if not self.by:
            self.probe(x)
        if self.by == "batch":
            return self.drawn(x, generator)
        try:
            return self._per_example(x, generator, kernels_by_batch)
        except SharedWeights as found:  # draws were begun by the example, and no other way may be chosen by them
            raise ModelError(
                f"the network uses its weights otherwise for some samples than for others ({found}): apply each layer "
                "to every row of a batch, and choose among the results with torch.where"
            ) from None

    def drawn(self, x: Any, generator: torch.Generator | None = None) -> Tensor:
        """Logits (batch, classes) of one draw of the whole network."""
        weights = {
            name: mean + rho.exp() * torch.randn(mean.shape, generator=generator, dtype=mean.dtype).to(mean.device)
            for name, mean, rho in zip(self.names, self.means, self.log_sigmas, strict=True)
        }
        out: Tensor = functional_call(self.network, weights, (self._own(x),))
        return out

    def mean_network(self, x: Any) -> Tensor:
        """Logits of the deterministic network at mu, which no certificate speaks of."""
        out: Tensor = self.network(self._own(x))
        return out

    def _own(self, x: Any) -> Any:
        """Inputs that the network may write into: the caller's, and those of the next pass, stay as they are."""
        return map_tensors(torch.clone, x) if self.writes_inputs else x

    @torch.no_grad()
    def probe(self, x: Tensor) -> None:
        """Find out whether weights can be drawn by the example, and refuse networks that are random by themselves.

        Raises:
            ModelError: a forward pass that is random, mixes the examples of a batch or keeps values of its weights.
        """
        few, fewer, many = x[:_PROBE], x[: _PROBE - 1], x[:_BATCH]
        self.writes_inputs = True
        written = Written(list(self.network.modules()))
        first, again, part = (self.mean_network(some) for some in (few, few, fewer))
        if not isinstance(first, Tensor) or first.dim() not in (1, 2):
            got = tuple(first.shape) if isinstance(first, Tensor) else type(first).__name__
            raise ModelError(f"got an output {got}; a certificate needs logits (batch, classes)")
        if not torch.equal(first, again):
            raise ModelError("two forward passes differ: dropout or other noise is left on; make the network's own off")
        whole, turned = self.mean_network(many), self.mean_network(many.flip(0)).flip(0)
        pairs = ((first[: len(part)], part), (whole, turned), (whole[: len(first)], first))
        if not all(torch.allclose(a, b, rtol=1e-3, atol=1e-4, equal_nan=True) for a, b in pairs):
            raise ModelError("an example's output depends on the others of its batch; freeze the network's statistics")
        refuse_kept_values(lambda: self.mean_network(few), self.means, written)
        self.writes_inputs = writes(self.network, many)
        try:
            large = [
                n for n, p in zip(self.names, self.means, strict=True) if p.dim() > 2 and p.numel() > _LARGEST_KERNEL
            ]
            if large:
                raise SharedWeights(f"{large[0]} is a kernel too large to draw for every example")
            for some in (few, fewer):  # two sizes: an axis may happen to be as long as one batch
                if bool(self._per_example(some, None, False).isnan().any()):
                    raise SharedWeights("a random weight is used where it cannot be seen, in compiled or scripted code")
            for rows in spread(len(x), _SCANNED).split(_BATCH):  # some of which a network may leave out of a layer
                self._per_example(x[rows], None, False)
            self.by, self.reason = "example", ""
        except SharedWeights as found:
            self.by, self.reason = "batch", str(found)
        except RuntimeError as error:  # the network itself has just run
            self.by, self.reason = "batch", f"not drawn by the example: {str(error).splitlines()[0]}"

    def _per_example(self, x: Any, generator: torch.Generator | None, kernels_by_batch: bool) -> Tensor:
        sigmas = {id(mean): rho.exp() for mean, rho in zip(self.means, self.log_sigmas, strict=True)}
        nan = {n: m.new_full((), math.nan).expand(m.shape) for n, m in zip(self.names, self.means, strict=True)}
        means = {id(nan[name]): mean for name, mean in zip(self.names, self.means, strict=True)}
        own = self._own(x)
        with PerExample(sigmas, means, len(x), generator, kernels_by_batch=kernels_by_batch) as mode:
            out: Tensor = functional_call(self.network, nan, (own,))
        missing = [n for n, mean in zip(self.names, self.means, strict=True) if id(mean) not in mode.used]
        if missing:
            raise SharedWeights(f"no layer that is known uses {missing[0]}")
        return out

    def kl(self, prior: Prior) -> Tensor:
        """KL(Q || P) in nats, differentiable; with the best sigma of P where the prior leaves it open.

        sum_i ln(s / sigma_i) + (sigma_i^2 + (mu_i - w_i)^2) / (2 s^2) - 1/2, and s^2 = mean of the numerators.
        """
        count = sum(mean.numel() for mean in self.means)
        logs = torch.stack([rho.sum() for rho in self.log_sigmas]).sum()
        if prior.sigma is None:
            return count * 0.5 * (self._second_moment(prior) / count).log() - logs
        total = torch.zeros(())
        log_s = math.log(prior.sigma)
        for name, mean, rho in zip(self.names, self.means, self.log_sigmas, strict=True):
            ratio = 2 * (rho - log_s)  # e^a - 1 - a: no cancellation of the sums
            total = total + 0.5 * (torch.expm1(ratio) - ratio).sum()
            total = total + ((mean - prior.means[name]) / prior.sigma).square().sum() / 2
        return total

    def _second_moment(self, prior: Prior) -> Tensor:
        parts = [
            (2 * rho).exp().sum() + (mean - prior.means[name]).square().sum()
            for name, mean, rho in zip(self.names, self.means, self.log_sigmas, strict=True)
        ]
        return torch.stack(parts).sum()

    @torch.no_grad()
    def best_sigma(self, prior: Prior) -> float:
        """The sigma of P that makes KL(Q || P) least."""
        return math.sqrt(float(self._second_moment(prior)) / sum(mean.numel() for mean in self.means))

    @torch.no_grad()
    def exact_kl(self, prior: Prior) -> float:
        """KL(Q || P) in float64, of the stored mu and sigma."""
        if prior.sigma is None:
            raise UsageError("the prior's sigma is open; choose it before the divergence is computed")
        total = 0.0
        for name, mean, rho in zip(self.names, self.means, self.log_sigmas, strict=True):
            mu, sigma, at = (
                t.double().reshape(-1).cpu().numpy() for t in (mean, rho.double().exp(), prior.means[name])
            )
            total += float(bounds.kl_diag_gaussian(mu, sigma, at, prior.sigma))
        return total


def _refuse_batch_statistics(model: nn.Module) -> None:
    for name, module in model.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm | nn.InstanceNorm1d) and not module.track_running_stats:
            raise ModelError(
                f"{name} ({type(module).__name__}) has no running statistics: its output depends on the batch; "
                "use track_running_stats=True and freeze them with the prior"
            )
