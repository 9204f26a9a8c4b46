"""What arrives of a displacement in weights of few bits, against draws and by hand; warnings and refusals."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import nn

from flatminima.errors import UsageError
from flatminima.optim import SAM, PertOPT
from flatminima.optim.diagnostics import PerturbationWarning
from flatminima.optim.rounding import of_uniform

both = pytest.mark.parametrize("kind", ["pertopt", "sam"])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("spacings", [0.3, 0.6, 1.0, 1.7, 4.2, 30.0])
def test_closed_forms_equal_draws(dtype, spacings):
    """Rounding of w + u for 200,000 u, in the middle of a binade; a term left out is off by more than 1%."""
    w = torch.tensor([1.5], dtype=dtype)
    sigma = torch.tensor([spacings * torch.finfo(dtype).eps])
    u = (torch.rand(200_000, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 2 - 1) * sigma.double()
    d = (w.double() + u).to(dtype).double() - w.double()
    for found, drawn in zip(of_uniform(w, sigma), (d.square().mean(), (d - u).square().mean()), strict=True):
        assert float(found) / 3 == pytest.approx(float(drawn), rel=0.02, abs=1e-6 * float(sigma.double().square()))


def test_no_weight_and_no_noise_are_no_special_cases():
    w = torch.tensor([0.0, 0.0, -2.0, 1e-30], dtype=torch.bfloat16)
    kept, missed = of_uniform(w, torch.tensor([1e-5, 0.0, 0.0, 1e-5]))
    torch.testing.assert_close(kept, torch.tensor([1e-10, 0.0, 0.0, 1e-10], dtype=torch.float64))
    assert float(missed.max()) < 1e-14


def linear(dtype, n=300):
    torch.manual_seed(0)
    return nn.Linear(n, n).to(dtype)


def steps(model, opt, count=3):
    """(relative noise that was there in the last step, diagnostics() before it)."""
    x = torch.randn(8, model.in_features).to(model.weight.dtype)
    for t in range(count):
        told = opt.diagnostics() if t else None
        before = model.weight.detach().float().clone()
        with opt.perturbed():
            u = model.weight.detach().float() - before
            (model(x).float() ** 2).mean().backward()
        opt.step()
        opt.zero_grad()
    return float(u.norm() / before.norm()), told


@pytest.mark.parametrize(("gamma", "share"), [(0.1, 0.999), (0.003, None)])
def test_diagnostics_tell_the_noise_that_is_there(gamma, share):
    """In bfloat16, and not the noise that was wanted."""
    model = linear(torch.bfloat16)
    opt = PertOPT(torch.optim.SGD(model.parameters(), 1e-4), gamma=gamma, eps=0.0, eta=1e-9)
    real, told = steps(model, opt)
    assert told.relative_noise == pytest.approx(real, rel=0.05)
    assert told.arrived > share if share else 0.5 < told.arrived < 0.95


def test_noise_that_is_mostly_lost_is_warned_of_once():
    model = linear(torch.bfloat16)
    opt = PertOPT(torch.optim.SGD(model.parameters(), 1e-4), gamma=2e-3, eps=0.0, eta=1e-9)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        _, told = steps(model, opt, 6)
    assert told.arrived < 0.5
    (message,) = [str(w.message) for w in seen if issubclass(w.category, PerturbationWarning)]
    assert "of PertOPT's noise is left after rounding in bfloat16 weights: keep float32 weights" in message


@pytest.mark.parametrize(("dtype", "gamma"), [(torch.bfloat16, 1e-3), (torch.float16, 1e-4)])
def test_noise_that_is_lost_altogether_is_refused(dtype, gamma):
    """The base optimizer would train under another name."""
    model = linear(dtype)
    opt = PertOPT(torch.optim.SGD(model.parameters(), 1e-4), gamma=gamma, eps=0.0, eta=1e-9)
    name = str(dtype).removeprefix("torch.")
    with pytest.raises(UsageError, match=f"PertOPT's noise is rounded away in {name} weights"):
        steps(model, opt)
    assert not opt._at.inside


@both
def test_a_float32_part_hides_nothing_of_a_bfloat16_one(kind):
    """Of a network whose head is float32, as adapters and norm layers often are."""
    body, head = linear(torch.bfloat16), linear(torch.float32)
    parameters = [*body.parameters(), *head.parameters()]
    for p in parameters:
        p.grad = torch.ones_like(p) * (1e-3 if p.dtype == torch.bfloat16 else 1e-2)
    base = torch.optim.SGD(parameters, 1e-4)
    opt = SAM(base, rho=1e-4) if kind == "sam" else PertOPT(base, gamma=1e-3, eps=0.0, eta=1e-9)
    if kind == "pertopt":
        opt._at.entered = True
        opt.step()
    with pytest.raises(UsageError, match="rounded away in bfloat16 weights"), opt.perturbed():
        raise AssertionError


def test_a_vanishing_strength_in_float32_is_meant():
    model = linear(torch.float32)
    steps(model, PertOPT(torch.optim.SGD(model.parameters(), 1e-4), gamma=1e-9, eps=0.0, eta=1e-9))
    assert ascent(torch.float32, 100, 1e-20)[0] == 0


def test_noise_that_falls_to_nothing_later_ends_no_training():
    model = linear(torch.bfloat16)
    opt = PertOPT(torch.optim.SGD(model.parameters(), 1e-4), gamma=0.1, eps=0.0, eta=1e-9)
    steps(model, opt, 3)
    opt.epoch = 1e300
    with pytest.warns(PerturbationWarning, match="0% of PertOPT's noise is left"):
        steps(model, opt, 3)


def ascent(dtype, n, rho=0.05, **options):
    """SAM's first displacement: (|d| / rho, its cosine with the gradient)."""
    g = torch.Generator().manual_seed(0)
    p = nn.Parameter((0.02 * torch.randn(n, generator=g)).to(dtype))
    p.grad = torch.randn(n, generator=g).to(dtype)
    opt = SAM(torch.optim.SGD([p], 0.1), rho=rho, **options)
    before, e = p.detach().double().clone(), p.grad.double().clone()
    with opt.perturbed():
        d = p.detach().double() - before
    return float(d.norm() / rho), float(d @ e / (d.norm() * e.norm() + 1e-300))


@pytest.mark.parametrize("adaptive", [False, True])
def test_an_ascent_that_is_mostly_lost_is_warned_of(adaptive):
    """10^7 weights share rho = 0.05: 1.6e-5 each, where the next bfloat16 number is up to 1e-4 away."""
    options = {"adaptive": adaptive, "eta": 1.0 if adaptive else 0.0}  # T is about 1
    with pytest.warns(PerturbationWarning, match=r"% of SAM's displacement is left after rounding in bfloat16 weights"):
        length, cosine = ascent(torch.bfloat16, 10**7, **options)
    assert length < 0.8
    assert cosine < 0.6


@pytest.mark.parametrize(("dtype", "rho"), [(torch.bfloat16, 0.05), (torch.float16, 0.05), (torch.float32, 1e-3)])
def test_an_ascent_that_arrives_is_not(dtype, rho):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        length, cosine = ascent(dtype, 10**5, rho)
    assert length == pytest.approx(1.0, rel=0.05)
    assert cosine > 0.9


@pytest.mark.parametrize(("dtype", "rho"), [(torch.bfloat16, 1e-7), (torch.float16, 1e-8)])
def test_an_ascent_that_is_lost_altogether_is_refused(dtype, rho):
    with pytest.raises(UsageError, match="SAM's displacement is rounded away in"):
        ascent(dtype, 10**4, rho)
