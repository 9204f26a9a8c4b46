"""The origin of weights: made here from a factory and a seed, or handed in, which is then for the caller to state.

That a network has not seen the bound's samples cannot be seen in it. A factory's weights can: they are made here, they
differ under another seed, and no gradient is taken while they are made. What is handed in is only examined for signs
that the statement is false: it errs less than a constant answer does, or its features know the labels.
"""

from __future__ import annotations

import functools
import inspect
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from flatminima.certification.certificate import printable
from flatminima.certification.conditions import Condition, prior_condition
from flatminima.certification.from_seed import COUNTER, held, not_from_seed, other_tensors
from flatminima.certification.gibbs.outputs import Logits, Packed, Packing, find_head, two_class, watched_outputs
from flatminima.certification.hidden_numbers import numbers_held
from flatminima.core.gradient_check import out_of_memory
from flatminima.core.guard import same_randomness
from flatminima.core.parameters import copied, unwrap
from flatminima.core.perturbation import mix
from flatminima.errors import FlatMinimaError, ModelError, UsageError

Factory = Callable[..., nn.Module]

UNTRAINED = "untrained"  # the one statement that the samples can contradict

_OTHER_SEEDS = 16  # untrained networks that would all have to be lucky: of two classes, once in 10^5
_LEVEL = 1e-3  # at which a network errs less than a constant answer
_MOST, _WIDEST = 2_000, 1_000  # samples and features that are examined
_FOLDS, _REFERENCES, _KNOWS = 5, 5, 0.8  # a probe that errs 0.8 times what any of 5 re-initialised networks does


@dataclass(frozen=True)
class Start:
    """A network that a prior starts from, before any training here.

    Attributes:
        network: in the mode it came in. made: by a factory that was called here. fixed: names of what its seed did
            not change. packing: of its inputs, None where they are one tensor. why: a clause on the first of `fixed`,
            with the rule that it breaks and what to do.
    """

    network: nn.Module
    made: bool
    fixed: tuple[str, ...] = ()
    packing: Packing | None = None
    why: str = ""

    @classmethod
    def of(cls, model: nn.Module | Factory, seed: int, packing: Packing | None = None) -> Start:
        """A network that was handed in, or the one that a factory makes under a seed.

        Args:
            packing: of its inputs; the network then takes packed rows.

        Raises:
            ModelError: neither, or a factory that raises, trains, returns something else, or other weights under the
                same seed.
        """
        if isinstance(model, nn.Module):
            return cls(_packed(unwrap(model), packing), False, (), packing)
        if not callable(model):
            raise ModelError(f"got {type(model).__name__}; expected a torch.nn.Module or a function that makes one")
        one, two, again = (make(model, s) for s in (seed, mix(seed, 1) % (1 << 31), seed))
        changed = other_tensors(one, again)
        if changed:
            raise ModelError(
                f"the function that makes the network gives other weights under the same seed ({changed[0]}): it reads "
                "a clock, a file or a random state of its own; let it draw from torch's (or take seed=), or pass the "
                "network itself and state with stated= where its weights come from"
            )
        odd = not_from_seed(one, two)
        odd |= {name: held(name) for name in numbers_held(one, model) if name not in odd}
        return cls(_packed(one, packing), True, tuple(odd), packing, next(iter(odd.values()), ""))

    @property
    def seeded(self) -> bool:
        """Whether all of it was made here from a seed."""
        return self.made and not self.fixed

    def again(self, factory: Factory, seed: int) -> nn.Module:
        """Make the network that the factory makes under another seed, for the same inputs."""
        return _packed(make(factory, seed), self.packing)


def _packed(network: nn.Module, packing: Packing | None) -> nn.Module:
    return network if packing is None else Packed(network, packing)


def make(factory: Factory, seed: int) -> nn.Module:
    """Call a factory under a seed, as `seed=` where it takes one, without the gradients that training needs.

    Raises:
        ModelError: it raises, takes gradients, or returns something else than a network.
    """
    try:
        takes_seed = "seed" in inspect.signature(factory).parameters
    except (TypeError, ValueError):  # built in C
        takes_seed = False
    with seeded(seed), torch.no_grad():
        try:
            network = factory(seed=seed) if takes_seed else factory()
        except Exception as error:
            if isinstance(error, FlatMinimaError) or out_of_memory(error):
                raise
            if "does not require grad" in str(error):
                raise ModelError(
                    "the function that makes the network takes gradients: it trains; pass one that makes initial "
                    "weights, and let certify train them"
                ) from None
            raise ModelError(
                f"the function that makes the network raised {_first_line(error)}; expected one that takes no "
                "arguments, or seed= alone, and returns an nn.Module"
            ) from error
    if not isinstance(network, nn.Module):
        raise ModelError(
            f"the function that makes the network returned {type(network).__name__}; expected an nn.Module"
        )
    return unwrap(network)


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """All global random states set from a seed within the block, and as before after it."""
    with same_randomness():
        torch.manual_seed(seed)
        np.random.seed(seed % (1 << 32))
        random.seed(seed)
        yield


def start_condition(
    start: Start, factory: nn.Module | Factory, stated: str, x: Tensor, y: Tensor, seed: int, then: str = ""
) -> Condition:
    """Whether the bound's samples had no part in a start.

    Args:
        factory: what it came from. stated: the caller's words for where its weights come from, "" for none.
        x, y: of the bound. seed: that it was made under. then: what happens to it here, for the reader.

    Raises:
        UsageError: statements that contradict each other, or a factory that ignores its seed.
    """
    words = check_statement(start, stated)
    signs = _signs(start, x, y)
    if start.seeded:
        if signs.better and all(_examine(start.again(factory, s), x, y).better for s in _seeds(seed)):
            return prior_condition(
                False,
                f"{signs.text}, and so do those of {_OTHER_SEEDS} other seeds: as no untrained network does",
                remedy="pass a function that makes untrained weights",
            )
        if signs.knows:
            return prior_condition(
                False,
                f"initial weights of seed {seed}, made here; {signs.text}{signs.knows}",
                remedy="pass the network itself, and say with stated= where its weights come from",
            )
        return prior_condition(True, f"initial weights of seed {seed}, made here; {signs.text}{then}")
    if not words:
        return prior_condition(
            None,
            f"nothing states where the weights of the network come from that was handed in; {signs.text}{signs.knows}"
            f"{then}",
            remedy="pass a function that makes the network, or state it with stated=",
        )
    if words.lower() == UNTRAINED and (signs.better or signs.knows):
        return prior_condition(
            False,
            f"stated to be untrained, but {signs.text}{signs.knows}",
            remedy="pass a function that makes the network, or state what it was trained on",
        )
    return prior_condition(None, f"{signs.text}{signs.knows}{then}", stated=f"the network handed in is {words}")


def check_statement(start: Start, stated: str) -> str:
    """The caller's words on one line, where they do not contradict how the network was made.

    Raises:
        UsageError: words about weights that were made here; none about a factory's that were not.
    """
    words = printable(stated)
    if start.seeded and words:
        raise UsageError(
            f"got stated={words!r} beside a function whose weights come from its seed: they are made here; leave the "
            "statement out, or pass the network that it is about"
        )
    if start.made and not start.seeded and not words:
        raise UsageError(
            f"the function that makes the network ignores its seed: {start.why}; or state with stated= where its "
            f"weights come from{_also(start.fixed[1:4])}"
        )
    return words


def _also(names: tuple[str, ...]) -> str:
    return f" (also {', '.join(names)})" if names else ""


def start_errors(start: Start, x: Tensor, y: Tensor) -> Tensor:
    """Mark the samples that the start's network errs on, (n,)."""
    return _errors(start.network, x, y)


def refuse_changed(before: Tensor, after: Tensor) -> None:
    """Refuse a network that gives other answers with the same weights.

    Raises:
        ModelError: it does.
    """
    changed = int((before != after).sum())
    if changed:
        raise ModelError(
            f"the network answers {changed} of {len(before)} samples otherwise than before, with the same weights: it "
            "depends on more than weights and inputs (a counter, a cache, a clock); make it a function of these"
        )


@dataclass(frozen=True)
class Signs:
    """Behaviour of a network on the bound's samples that may contradict a statement.

    Attributes:
        better: it errs significantly less than the best constant answer (exact sign test of the samples on which one
            of them errs). text: in numbers. knows: other signs, e.g. features that know the labels; "" for none.
    """

    better: bool
    text: str
    knows: str = ""


def _signs(start: Start, x: Tensor, y: Tensor) -> Signs:
    signs = _examine(start.network, x, y)
    if start.seeded:
        return replace(signs, knows=_features_know(start.network, x[:_MOST], y[:_MOST]))
    counters = [int(b) for name, b in start.network.named_buffers() if name.endswith(COUNTER)]
    if max(counters, default=0):
        return Signs(signs.better, signs.text, f"; its norm layers hold statistics of {max(counters)} batches")
    return signs if signs.better else Signs(False, signs.text, _features_know(start.network, x[:_MOST], y[:_MOST]))


def _examine(network: nn.Module, x: Tensor, y: Tensor) -> Signs:
    from scipy.stats import binom

    wrong = _errors(network, x, y)
    constant = y != y.mode().values
    fewer, more = int((wrong & ~constant).sum()), int((constant & ~wrong).sum())
    p = float(binom.cdf(fewer, fewer + more, 0.5)) if fewer + more else 1.0
    text = f"it errs on {int(wrong.sum())} of {len(y)} samples before training here, a constant answer on "
    return Signs(p < _LEVEL, f"{text}{int(constant.sum())}")


@torch.no_grad()
def _errors(network: nn.Module, x: Tensor, y: Tensor, batch: int = 500) -> Tensor:
    at = Logits(copied(network).eval())
    with same_randomness():
        return torch.cat([two_class(at(a)).argmax(1) != b for a, b in zip(x.split(batch), y.split(batch), strict=True)])


def _features_know(network: nn.Module, x: Tensor, y: Tensor) -> str:
    """A sentence where a linear probe of the features errs less than those of re-initialised networks, else "".

    Ridge regression, cross-fitted in folds, so that every sample is judged by a probe that has not seen it. Untrained
    features may know the labels too, so the reference is the same architecture with weights made here.
    """
    from scipy.stats import binom

    try:
        own = _probe(network, x, y)
        others = [_probe(_again(network, s), x, y) for s in range(_REFERENCES)]
    except FlatMinimaError:  # no linear layer comes last
        return ""
    best = min(others, key=lambda wrong: int(wrong.sum()))
    fewer, more = int((own & ~best).sum()), int((best & ~own).sum())
    p = float(binom.cdf(fewer, fewer + more, 0.5)) if fewer + more else 1.0
    if p < _LEVEL / 10 and int(own.sum()) <= _KNOWS * int(best.sum()):
        return (
            f"; a linear probe of its features errs on {int(own.sum())} of {len(y)} samples, those of "
            f"{_REFERENCES} re-initialised networks on {int(best.sum())} or more"
        )
    return ""


def _again(network: nn.Module, seed: int) -> nn.Module:
    """The network with every layer that can be re-initialised so."""
    other = copied(network)
    with seeded(seed), torch.no_grad():
        for module in other.modules():
            reset: Any = getattr(module, "reset_parameters", None)
            if callable(reset):
                reset()
    return other


@torch.no_grad()
def _probe(network: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Errors (n,) of a cross-fitted linear probe of the last linear layer's inputs."""
    at = Logits(copied(network).eval())
    name = find_head(at, x)
    with same_randomness():
        features = torch.cat([watched_outputs(at, name, part)[0] for part in x.split(500)]).double().cpu()
    features = features[:, :_WIDEST]
    scale = features.std(0).clamp_min(1e-12)
    rows = torch.cat([(features - features.mean(0)) / scale, torch.ones(len(features), 1).double()], 1)
    labels = y.cpu()
    targets = nn.functional.one_hot(labels).double()
    wrong = torch.zeros(len(rows), dtype=torch.bool)
    fold = torch.arange(len(rows)) % _FOLDS
    for k in range(_FOLDS):
        seen, held = rows[fold != k], rows[fold == k]
        weights = _ridge(seen, targets[fold != k])
        wrong[fold == k] = (held @ weights).argmax(1) != labels[fold == k]
    return wrong


def _ridge(rows: Tensor, targets: Tensor) -> Tensor:
    gram = rows.T @ rows
    gram.diagonal().add_(1e-2 * len(rows))
    weights: Tensor = torch.linalg.solve(gram, rows.T @ targets)
    return weights


@functools.cache
def _seeds(seed: int) -> tuple[int, ...]:
    return tuple(mix(seed, 100 + i) % (1 << 31) for i in range(_OTHER_SEEDS))
