"""The prior's centre: weights made without the bound's samples, from no data or from samples of their own.

Whatever P and Q have in common besides, buffers and frozen parameters, must be the centre's too: statistics that
BatchNorm gathered on the bound's samples are a choice of the prior by them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from flatminima.core.guard import same_randomness
from flatminima.core.minimum import Minimum
from flatminima.core.parameters import Parameters, unwrap
from flatminima.core.samples import Samples, as_samples
from flatminima.errors import ModelError, UsageError

Origin = Literal["seed", "samples", "elsewhere", "stated"]

_COUNTER = "num_batches_tracked"  # of BatchNorm; no output depends on it


@dataclass(frozen=True, eq=False)
class Centre:
    """Where the prior sits.

    Attributes:
        weights: (W,) float64.
        data: what they were trained on; None for nothing, or for what is not at hand.
        text: where they come from, for the reader.
        origin: "seed", made here, so that no data can have touched it; "samples" at hand; "elsewhere"; or "stated" to
            be untrained.
        differing: buffers and frozen parameters that differ from the minimum's, and so belong to no prior.
    """

    weights: Tensor
    data: Samples | None
    text: str
    origin: Origin
    differing: tuple[str, ...]

    @classmethod
    def of(cls, prior: nn.Module | Callable[[], nn.Module] | str, data: Any, minimum: Minimum, seed: int = 0) -> Centre:
        """From a network, a function that makes one, or "zero".

        Args:
            prior: a network (an initialisation, or trained on `data`); a function of no arguments, called under
                `seed`, for an initialisation that is made here; or "zero".
            data: what the network was trained on, None for nothing, or a text that names samples not at hand.

        Raises:
            UsageError, ModelError: a prior of another kind, or of another architecture than the minimum's.
        """
        if prior == "zero":
            if data is not None:
                raise UsageError("got prior='zero' and prior_data; a centre at zero is made from no data: leave it out")
            differing = _untrained(minimum)
            weights = torch.zeros(len(minimum.parameters), dtype=torch.float64)
            return cls(weights, None, "zero weights, no data", "seed", differing)
        if isinstance(prior, nn.Module):
            network, made_here = unwrap(prior), False
        elif callable(prior):
            network, made_here = _made(prior, seed), True
        else:
            raise UsageError(f"got prior={prior!r}; expected a network, a function that makes one, or 'zero'")
        samples = None if data is None or isinstance(data, str) else as_samples(data)
        weights, differing = _weights(network, minimum), _differing(network, minimum)
        if samples is not None:
            return cls(weights, samples, f"trained on {len(samples)} other samples", "samples", differing)
        if data is not None:
            return cls(weights, None, f"trained on {data}", "elsewhere", differing)
        if made_here:
            return cls(weights, None, f"initial weights of seed {seed}, no data", "seed", differing)
        return cls(weights, None, "a network stated to be untrained", "stated", differing)


def _made(prior: Callable[[], nn.Module], seed: int) -> nn.Module:
    with same_randomness():
        torch.manual_seed(seed)
        network = prior()
    if not isinstance(network, nn.Module):
        raise UsageError(f"the prior's function returned {type(network).__name__}; expected a torch.nn.Module")
    return unwrap(network)


def _weights(network: nn.Module, minimum: Minimum) -> Tensor:
    wanted = [(name, tuple(p.shape)) for name, p in minimum.parameters]
    available = dict(network.named_parameters())
    found = [(name, tuple(available[name].shape)) for name, _ in wanted if name in available]
    if found != wanted:
        odd = next(w for w in wanted if w not in found)
        raise ModelError(
            f"the prior's network has no parameter {odd[0]!r} of shape {odd[1]}; it must have the minimum's "
            "architecture"
        )
    weights = torch.cat([available[name].detach().double().reshape(-1).cpu() for name, _ in wanted])
    if not bool(torch.isfinite(weights).all()):
        raise ModelError("the prior's network holds NaN or Inf; a prior needs finite weights")
    return weights


def _shared_state(model: nn.Module, random: Parameters) -> dict[str, Tensor]:
    """What is the same in P and Q: buffers, and parameters that are not random."""
    state = {name: p for name, p in model.named_parameters() if name not in random.names}
    return state | {name: b for name, b in model.named_buffers() if not name.endswith(_COUNTER)}


def _differing(network: nn.Module, minimum: Minimum) -> tuple[str, ...]:
    own = _shared_state(minimum.model, minimum.parameters)
    other = dict(network.named_parameters()) | dict(network.named_buffers())
    return tuple(name for name, t in own.items() if name not in other or not _equal(t, other[name]))


def _untrained(minimum: Minimum) -> tuple[str, ...]:
    """What data may have shaped although the random weights are centred at zero."""
    neutral = {"running_mean": 0.0, "running_var": 1.0}
    odd = []
    for name, t in _shared_state(minimum.model, minimum.parameters).items():
        value = neutral.get(name.rpartition(".")[2])
        if name not in dict(minimum.model.named_buffers()) or (value is not None and bool((t != value).any())):
            odd.append(name)
    return tuple(odd)


def _equal(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and torch.equal(a.detach().cpu(), b.detach().to(a.dtype).cpu())
