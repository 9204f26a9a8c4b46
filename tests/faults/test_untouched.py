"""`check_untouched`: our own entries pass it, and whatever breaks its promise does not.

Here each entry is tried in three of the modes, in turn; with FLATMINIMA_HOSTILE set in all sixteen.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flatminima import Minimum, Recipe, audit, catalog, certify, plan, rank
from flatminima.certification import certify_around
from flatminima.diagnosis import diagnose
from flatminima.errors import UsageError
from flatminima.landscape import directions, landscape
from flatminima.optim import SAM, FisherTrace, PertOPT
from flatminima.rescaling import rescalings
from flatminima.testing import ITEMS, MODES, NotUntouched, check_untouched
from flatminima.training import TrainConfig, train

GENERATOR = torch.Generator().manual_seed(0)
X, Y = torch.randn(40, 5, generator=GENERATOR), torch.arange(40) % 3
TRAINING = ("parameters", "gradients", "identity of gradients")


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.BatchNorm1d(6), nn.Linear(6, 3)).eval()


def some(i: int) -> list[str]:
    """Three modes, others for each i."""
    names = list(MODES)
    return names if os.environ.get("FLATMINIMA_HOSTILE") else [names[(3 * i + k) % len(names)] for k in range(3)]


def test_there_are_forty_items_and_sixteen_modes() -> None:
    assert len(ITEMS) >= 40 and len(MODES) == 16


def measured(name: str) -> Callable[[nn.Module], Any]:
    function, first = catalog.measure_row(name).load(), network()
    options: dict[str, Any] = {"initial": first} if name == "distance_from_init" else {}
    return lambda model: function(Minimum(model, (X, Y), batch_size=16), **options)


@pytest.mark.parametrize(("i", "name"), list(enumerate(catalog.MEASURES)), ids=list(catalog.MEASURES))
def test_every_measure(i: int, name: str) -> None:
    check_untouched(measured(name), network(), modes=some(i))


def test_a_counters_hooks_on_every_module_change_no_number() -> None:
    """They failed in a backward pass by samples, and the slow way, 1e-8 off, was taken without a word."""
    for name in ("robustness", "fisher_trace", "gradient_noise_scale"):
        check_untouched(measured(name), network(), modes=["FlopCounterMode"])


OTHERS: dict[str, Callable[[nn.Module], Any]] = {
    "certify_around": lambda m: certify_around(
        Minimum(m, (X, Y)), prior="zero", scales=0.1, etas=(1.0,), draws=10, score=True
    ).risk_bound,
    "landscape": lambda m: _drawn(Minimum(m, (X, Y))).losses,
    "audit": lambda m: [[e.value for e in row] for rows in audit(Minimum(m, (X, Y)), ["fisher_trace"]).values.values()
                        for row in rows.values()],
    "plan": lambda m: plan(Minimum(m, (X, Y)), ["fisher_trace", "margin"]).cost.forward,
    "rank by errors": lambda m: rank([Minimum(m, (X, Y))] * 2, test=(X * 1.01, Y), measures=["margin"]).choice.answer,
    "rank by gaps": lambda m: str(rank([Minimum(m, (X, Y))] * 3, [0.1, 0.2, 0.3], ["margin"]).correlations),
    "rescalings": lambda m: [str(r) for r in rescalings(Minimum(m, (X, Y)), (1.0, 2.0))],
    "diagnose": lambda m: [str(f) for f in diagnose({}, Minimum(m, (X, Y)))],
    "losses": lambda m: Minimum(m, (X, Y)).losses(torch.arange(9, device="cpu")),
    "certify": lambda m: certify(small, (X, Y), recipe=QUICK, ledger=False).risk_bound,
}  # fmt: skip


QUICK = Recipe(prior_fraction=0.0, epochs=1, passes=1, sigma=0.1)


def small() -> nn.Sequential:
    return nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 3))


def _drawn(minimum: Minimum) -> Any:
    return landscape(minimum, directions(minimum, "filter", 1, samples=9, seed=0), steps=3, samples=9, seed=0)


@pytest.mark.parametrize(("i", "name"), list(enumerate(OTHERS, 40)), ids=list(OTHERS))
def test_other_entries(i: int, name: str) -> None:
    check_untouched(OTHERS[name], network(), modes=some(i))


def trained(kind: str) -> Callable[[nn.Module], Any]:
    """Two steps of an optimizer, and the weights that they lead to."""

    def act(model: nn.Module) -> Any:
        base = torch.optim.SGD(model.parameters(), lr=0.1)
        optimizer: Any = {"PertOPT": lambda: PertOPT(base, seed=1), "SAM": lambda: SAM(base)}.get(kind, lambda: base)()

        def closure() -> Tensor:
            optimizer.zero_grad()
            loss = F.cross_entropy(model(X), Y)
            loss.backward()
            return loss

        for _ in range(2):
            if kind == "FisherTrace":
                FisherTrace(model, sub_batches=4).backward(F.cross_entropy, X, Y)
                base.step()
            else:
                optimizer.step(closure)
        return [p.detach().clone() for p in model.parameters()]

    return act


@pytest.mark.parametrize(("i", "kind"), [(0, "PertOPT"), (2, "SAM"), (4, "FisherTrace")])
@pytest.mark.filterwarnings("ignore")
def test_optimizers(i: int, kind: str) -> None:
    check_untouched(trained(kind), network(), moves=TRAINING, modes=some(i), own_forward=True)


def _keeps_gradient_off(model: nn.Module) -> float:
    torch.set_grad_enabled(False)
    return 0.0


BREAKS: dict[str, tuple[Callable[[nn.Module], Any], str]] = {
    "parameters": (lambda m: m[0].weight.data.add_(1).sum().item(), "parameters changed"),
    "a permutation": (lambda m: m[0].weight.data.copy_(m[0].weight.data.flip(0)).sum().item(), "parameters changed"),
    "buffers": (lambda m: m[2].running_mean.add_(1).sum().item(), "buffers changed"),
    "gradients": (lambda m: m(X).sum().backward(), "gradients changed"),
    "training mode": (lambda m: m.train() and None, "training modes"),
    "a hook": (lambda m: m.register_forward_hook(lambda *_: None) and None, "forward hooks changed"),
    "a setting": (lambda m: setattr(m[2], "eps", 1.0), "settings changed"),
    "a layer": (lambda m: setattr(m[3], "forward", lambda x: x), "forward"),
    "random numbers": (lambda m: torch.rand(1) and None, "random state of torch"),
    "numpy's random numbers": (lambda m: np.random.rand() and None, "random state of numpy"),
    "Python's random numbers": (lambda m: random.random() and None, "random state of Python"),
    "gradients off": (_keeps_gradient_off, "gradients on"),
    "the environment": (lambda m: os.environ.__setitem__("FLATMINIMA_TRIED", str(random.Random().random())), "envir"),
    "another number in autocast": (lambda m: m(X).double().sum().item(), "other numbers"),
    "another number each time": (lambda m: random.Random().random(), "other numbers"),
    "an error that is no refusal": (lambda m: (torch.ones(2) @ m[0].weight.new_ones(5, 5)) and None, "no refusal"),
}


@pytest.mark.parametrize("name", BREAKS)
def test_whoever_breaks_the_promise_is_told_where(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    act, said = BREAKS[name]
    if name == "an error that is no refusal":
        with pytest.raises(RuntimeError):
            check_untouched(act, network(), modes=["no_grad"])
        return
    monkeypatch.setenv("FLATMINIMA_TRIED", "")
    try:
        with pytest.raises(NotUntouched, match=said):
            check_untouched(act, network(), modes=["autocast to bfloat16"], threads=(1,))
    finally:
        torch.set_grad_enabled(True)


def test_an_error_in_a_mode_alone_is_named_with_the_mode() -> None:
    def act(model: nn.Module) -> float:
        if torch.is_inference_mode_enabled():
            raise RuntimeError("as torch says it")
        return 0.0

    with pytest.raises(NotUntouched, match="in inference_mode: raised RuntimeError, which is no refusal"):
        check_untouched(act, network(), modes=["no_grad", "inference_mode"])


def test_a_refusal_is_reported() -> None:
    found = check_untouched(measured("margin"), network(), modes=["FakeTensorMode", "no_grad"])
    assert set(found.refused) == {("FakeTensorMode", 1), ("FakeTensorMode", 2)}


def test_unknown_names_are_refused() -> None:
    with pytest.raises(UsageError, match="unknown mode"):
        check_untouched(lambda m: 0, network(), modes=["night"])
    with pytest.raises(UsageError, match="unknown item"):
        check_untouched(lambda m: 0, network(), moves=["weights"])


@pytest.mark.parametrize("mode", ["inference_mode", "FakeTensorMode", "torch.func transform"])
def test_training_is_refused_where_nothing_has_a_gradient(mode: str) -> None:
    def act(_: nn.Module) -> Any:
        torch.manual_seed(0)
        fitted = small()
        train(fitted, X, Y, config=TrainConfig(epochs=1, batch_size=16))
        return [p.detach().clone() for p in fitted.parameters()]

    act(network())  # what is imported the first time
    found = check_untouched(act, network(), modes=[mode], threads=(1,), moves=("random state of torch",))
    assert set(found.refused) == {(mode, 1)}
