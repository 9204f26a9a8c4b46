"""The prior around a minimum: its centre, made without the bound's samples, and the scales that it may have.

Whatever P and Q have in common besides, buffers and frozen parameters, must be the centre's too: statistics that
BatchNorm gathered on the bound's samples are a choice of the prior by them. The prior is the mixture sum_j p_j P_j of
the priors of every scale, since KL(Q || mixture) <= KL(Q || P_j) + ln(1 / p_j).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from flatminima.certification.certificate import printable
from flatminima.certification.conditions import Condition, prior_condition
from flatminima.certification.division.reading import read_samples
from flatminima.certification.division.split import Division
from flatminima.certification.gibbs.outputs import Logits, Packed, Packing
from flatminima.certification.gibbs.risk import constant_errors
from flatminima.certification.hidden_numbers import numbers_held
from flatminima.certification.provenance import UNTRAINED, Start
from flatminima.certification.train import Checkpoint, tensors_at, train_prior
from flatminima.core.minimum import Minimum
from flatminima.core.parameters import Parameters, copied
from flatminima.core.samples import Samples, TensorSamples, as_samples
from flatminima.errors import ModelError, UsageError
from flatminima.training import TrainConfig

_COUNTER = "num_batches_tracked"  # of BatchNorm; no output depends on it
_LEVEL = 1e-3  # at which a network errs less than a constant answer


@dataclass(frozen=True, eq=False)
class Centre:
    """The prior's mean.

    Attributes:
        weights: (W,) float64.
        text: where they come from, for the reader.
        known: whether the library made them, of samples that it divided itself.
        stated: the caller's words, where it did not; "" for none.
        data: samples that they were trained on; None for nothing, or for what is not at hand.
        differing: buffers and frozen parameters that differ from the minimum's, and so belong to no prior.
        network: where it was made here: what P and Q have in common is then its, not the minimum's.
    """

    weights: Tensor
    text: str
    known: bool
    stated: str
    data: Samples | None
    differing: tuple[str, ...]
    network: nn.Module | None = None

    @classmethod
    def of(
        cls,
        prior: nn.Module | Callable[..., nn.Module] | str,
        data: Any,
        minimum: Minimum,
        *,
        seed: int = 0,
        stated: str = "",
        training: TrainConfig | None = None,
        parted: bool = False,
    ) -> Centre:
        """Build from a network, a function that makes one, or "zero".

        Args:
            prior: a network (an initialisation, or trained on `data`); a function, called under `seed`, for an
                initialisation that is made here; or "zero".
            data: what the network was trained on, or is to be trained on here; or a text that names samples not at
                hand; None for nothing.
            stated: the caller's words for where a network that is handed in comes from.
            training: of a function's network, here, on `data`.
            parted: whether `data` were divided here from the bound's.

        Raises:
            UsageError, ModelError: a prior of another kind or of another architecture than the minimum's, or
                statements that contradict each other.
        """
        words = printable(stated)
        if isinstance(data, str):
            if words:
                raise UsageError(f"got stated={words!r} and prior_data={data!r}, two statements: give one of them")
            words, data = printable(f"trained on {data}"), None
        if prior == "zero":
            if data is not None or words or training is not None:
                raise UsageError(
                    "got prior='zero' and what it was made from; a centre at zero is made from no data: leave it out"
                )
            weights = torch.zeros(len(minimum.parameters), dtype=torch.float64)
            return cls(weights, "zero weights, no data", True, "", None, _untrained(minimum))
        if isinstance(prior, str):
            raise UsageError(f"got prior={prior!r}; expected a network, a function that makes one, or 'zero'")
        start = Start.of(prior, seed)
        samples = None if data is None else as_samples(data)
        if samples is not None and words:
            raise UsageError(f"got stated={words!r} and prior_data, two statements: give one of them")
        if start.seeded:
            if words:
                raise UsageError(
                    f"got stated={words!r} beside a function whose weights come from its seed: they are made here; "
                    "leave the statement out, or pass the network that it is about"
                )
            return cls._made(start, samples, minimum, seed, training, parted)
        if training is not None:
            raise UsageError("got prior_training without a function that makes the prior's network from a seed")
        if samples is not None:
            words = f"the prior was trained on the {len(samples)} samples of prior_data and on no others"
            text = f"trained on {len(samples)} other samples"
        else:
            ignored = " from a function that ignores its seed" if start.made else ""
            text = f"a network{ignored}, {words}" if words else f"a network{ignored} of unknown origin"
            words = f"the prior's network is {words}" if words else ""
        weights, differing = _weights(start.network, minimum), _differing(start.network, minimum)
        return cls(weights, text, False, words, samples, differing)

    @classmethod
    def _made(
        cls,
        start: Start,
        samples: Samples | None,
        minimum: Minimum,
        seed: int,
        training: TrainConfig | None,
        parted: bool,
    ) -> Centre:
        """Made here from a seed, and trained here where there are samples for it."""
        network = start.network
        text = f"initial weights of seed {seed}, no data"
        if (samples is None) != (training is None):
            raise UsageError(
                "got prior_data beside a function that makes initial weights from a seed: give prior_training= too, "
                "to train them here on these samples, or pass the network that was trained on them"
                if training is None
                else "got prior_training without prior_data, or a prior_fraction, to train the prior on"
            )
        if samples is not None and training is not None:
            read_again, packing = read_samples(samples), Packing.of(samples)
            x, y = tensors_at(read_again, torch.arange(len(samples)), network)
            taking = Logits.needed(network if packing is None else Packed(network, packing), x[:2], minimum.output)
            train_prior(taking, x, y, training, None, Checkpoint(None, ""))
            text = f"{training.epochs} epochs of {training.optimizer} on {len(samples)} other samples, from seed {seed}"
        network.eval()
        known = samples is None or parted
        words = "" if known else "the samples of prior_data were drawn independently of the bound's"
        weights, differing = _weights(network, minimum), _differing(network, minimum)
        return cls(weights, text, known, words, samples, differing, network)

    @property
    def untrained(self) -> bool:
        """Whether a function and a seed make it again."""
        return self.network is not None and self.data is None

    def minimum_of(self, minimum: Minimum, samples: Samples) -> Minimum:
        """The minimum on the bound's samples, its weights in the network that was made here where one was.

        A network that was handed in may hold the samples in what is neither parameter nor buffer; nothing of it but the
        weights is in Q then.
        """
        if self.network is None:
            return minimum.replace(data=samples)
        network = copied(self.network)
        own = dict(minimum.parameters)
        with torch.no_grad():
            for name, p in network.named_parameters():
                p.requires_grad_(name in own)
                if name in own:
                    p.data = own[name].detach().clone()
        network = network.to(minimum.device, minimum.parameters.tensors[0].dtype)
        return minimum.replace(model=network.eval(), data=samples)

    def condition(self, minimum: Minimum, division: Division, wrong: Tensor) -> Condition:
        """The condition that the bound's samples had no part in the prior.

        Args:
            division: of the bound's samples from the prior's. wrong: which of them the centre's network errs on.
        """
        n = len(minimum.samples)
        evidence = self.text
        if self.data is not None and not len(division.prior):
            if division.leak:
                return prior_condition(False, f"{self.text}; {division.leak}", remedy=division.remedy)
            evidence = f"{self.text}; {division.shared}"
        if self.known:
            return prior_condition(True, f"{evidence}, made here")
        if self.network is not None:
            return prior_condition(None, f"{evidence}, trained here", stated=self.stated)
        own = minimum.parameters.flat(self.weights.dtype).cpu()
        if bool((own == self.weights).all()) and not self.stated and "ignores its seed" not in self.text:
            return prior_condition(
                False, "its centre is the trained network itself", remedy="pass the initialisation as prior"
            )
        fewer, constant = _compared(wrong, constant_errors(minimum))
        evidence = f"{evidence}; it errs on {int(wrong.sum())} of {n} samples, a constant answer on {constant}"
        if fewer and self.stated == f"the prior's network is {UNTRAINED}":
            remedy = "pass a function that makes it, or the samples that it was trained on as prior_data"
            return prior_condition(False, f"stated to be untrained, but {evidence}", remedy=remedy)
        return prior_condition(None, evidence, stated=self.stated)


def subset_at(samples: Samples, rows: Tensor) -> Samples:
    """Some of the samples, as tensors."""
    return TensorSamples(*samples.take(rows))


def _compared(wrong: Tensor, constant: Tensor) -> tuple[bool, int]:
    """Whether a network errs significantly less than the best constant answer (exact sign test), and its errors."""
    from scipy.stats import binom

    fewer, more = int((wrong & ~constant).sum()), int((constant & ~wrong).sum())
    p = float(binom.cdf(fewer, fewer + more, 0.5)) if fewer + more else 1.0
    return p < _LEVEL, int(constant.sum())


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
    return state | {name: b for name, b in model.named_buffers() if b.dim() or not name.endswith(_COUNTER)}


def _differing(network: nn.Module, minimum: Minimum) -> tuple[str, ...]:
    own = _shared_state(minimum.model, minimum.parameters)
    other = dict(network.named_parameters()) | dict(network.named_buffers())
    odd = [name for name, t in own.items() if name not in other or not _equal(t, other[name])]
    return (*odd, *_applied(minimum))


def _untrained(minimum: Minimum) -> tuple[str, ...]:
    """What data may have shaped although the random weights are centred at zero."""
    neutral = {"running_mean": 0.0, "running_var": 1.0}
    odd = []
    for name, t in _shared_state(minimum.model, minimum.parameters).items():
        value = neutral.get(name.rpartition(".")[2])
        if value is None or bool((t != value).any()):
            odd.append(name)
    return (*odd, *numbers_held(minimum.model), *_applied(minimum))


def _applied(minimum: Minimum) -> list[str]:
    """What holds numbers in the function that takes the logits from an output; the trained network itself is some."""
    return numbers_held(nn.Identity(), minimum.output)


def _equal(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and torch.equal(a.detach().cpu(), b.detach().to(a.dtype).cpu())


@dataclass(frozen=True)
class Scales:
    """Standard deviations (half-widths, for a box) that the prior may have, and the share of each.

    Args:
        values: positive, fixed before the samples were seen.
        shares: p_j > 0, their sum at most 1; equal by default.

    Raises:
        UsageError: a scale that is not positive, or shares that add to more than 1.

    Examples:
        >>> scales = Scales((0.01, 0.1))
        >>> scales.penalty(0.1) == math.log(2)
        True
    """

    values: tuple[float, ...]
    shares: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if not self.shares:
            object.__setattr__(self, "shares", (1 / len(self.values),) * len(self.values) if self.values else ())
        if not self.values or any(not (math.isfinite(v) and v > 0) for v in self.values):
            raise UsageError(f"got prior scales {self.values}; expected at least one positive number")
        if len(self.shares) != len(self.values) or min(self.shares) <= 0 or math.fsum(self.shares) > 1 + 1e-12:
            raise UsageError(
                f"got {len(self.shares)} shares of sum {math.fsum(self.shares):.6g} for {len(self.values)} scales; "
                "expected one positive share each, together at most 1"
            )

    @classmethod
    def of(cls, scales: Scales | float | Sequence[float]) -> Scales:
        """One number, several with equal shares, or what is a Scales already."""
        if isinstance(scales, Scales):
            return scales
        return cls((float(scales),) if isinstance(scales, int | float) else tuple(float(s) for s in scales))

    @classmethod
    def series(cls, largest: float = 1.0, ratio: float = math.sqrt(2), terms: int = 40) -> Scales:
        """largest / ratio^(j-1) for j = 1 .. terms, with shares 6 / (pi^2 j^2), which sum to 1 over all j.

        Source: Langford & Caruana (2002); Dziugaite & Roy (2017), sec. 3.1.

        Examples:
            >>> Scales.series(1.0, 2.0, 3).values
            (1.0, 0.5, 0.25)
        """
        if not (ratio > 1 and terms >= 1):
            raise UsageError(f"got ratio={ratio!r}, terms={terms!r}; expected a ratio above 1 and at least one term")
        values = tuple(largest * ratio**-j for j in range(terms))
        return cls(values, tuple(6 / (math.pi * j) ** 2 for j in range(1, terms + 1)))

    def penalty(self, value: float) -> float:
        """ln(1 / p_j) nats for the scale that was chosen."""
        return -math.log(self.shares[self.values.index(value)])


DEFAULT = Scales(tuple(0.005 * 2.0**j for j in range(10)))  # 0.005 .. 2.56, at ln 10 = 2.3 nats
