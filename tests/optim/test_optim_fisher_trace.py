"""FisherTrace is Jia and Su's Algorithm 1; its exact mode is (alpha/2) grad mean ||g_i||^2."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import numpy as np
import optim_oracle as oracle
import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.checkpoint import checkpoint

from flatminima.errors import UsageError
from flatminima.models import resnet20
from flatminima.optim import SAM, FisherTrace, PertOPT

VECTORS = json.loads((Path(__file__).parent / "vectors.json").read_text())


def network(norm=None, dtype=torch.float64, activation=nn.Tanh):
    torch.manual_seed(0)
    layers = [nn.Linear(6, 12), *([norm] if norm is not None else []), activation(), nn.Linear(12, 3)]
    return nn.Sequential(*layers).to(dtype)


def batch(n=24, dtype=torch.float64, seed=0):
    g = torch.Generator().manual_seed(seed)
    return torch.randn(n, 6, generator=g).to(dtype), torch.randint(0, 3, (n,), generator=g)


def flat(model):
    return torch.cat([p.grad.reshape(-1) for p in model.parameters()])


def gradient(model, x, y, **settings):
    model.zero_grad()
    reg = FisherTrace(model, **settings)
    reg.backward(cross_entropy, x, y)
    return flat(model).clone()


def penalty_gradient(model, x, y, m, alpha):
    """(alpha/2) grad sum_i (n_i/n) ||g_i||^2 by autograd, in one graph."""
    parameters = list(model.parameters())
    total = 0.0
    for xi, yi in zip(x.tensor_split(m), y.tensor_split(m), strict=True):
        g = torch.autograd.grad(cross_entropy(model(xi), yi), parameters, create_graph=True)
        total = total + len(yi) / len(y) * sum((t**2).sum() for t in g)
    grads = torch.autograd.grad(alpha / 2 * total, parameters)
    return torch.cat([g.reshape(-1) for g in grads])


@pytest.mark.parametrize(("m", "max_norm"), [(2, None), (3, 0.05), (4, None)])
def test_fifty_steps_equal_the_papers_pseudo_code(m, max_norm):
    """M = 3 does not divide the batch of 4; with max_norm, clipping comes after adding."""
    model = oracle.network(oracle.start())
    opt = torch.optim.SGD(model.parameters(), 0.2, momentum=0.9)
    reg = FisherTrace(model, beta=20.0, alpha=1e-2, sub_batches=m, max_norm=max_norm, step="alpha")
    for x, y in oracle.torch_batches(50):
        opt.zero_grad()
        reg.backward(cross_entropy, x, y)
        opt.step()
    expected = oracle.fisher_trace(oracle.start(), oracle.SGD(), 50, 20.0, 1e-2, m, max_norm)
    np.testing.assert_allclose(oracle.weights(model), expected, rtol=1e-10, atol=1e-12)


class Quadratics(nn.Module):
    """L_i = (w - c_i)^T A_i (w - c_i) / 2 of the reference vector; a sample is the number of its quadratic."""

    def __init__(self, v):
        super().__init__()
        self.w = nn.Parameter(torch.tensor(v["w"], dtype=torch.float64))
        self.a = torch.tensor([v["A1"], v["A2"]], dtype=torch.float64)
        self.c = torch.tensor([v["c1"], v["c2"]], dtype=torch.float64)

    def forward(self, which):
        d = self.w - self.c[which]
        return torch.einsum("ni,nij,nj->n", d, self.a[which], d) / 2


@pytest.mark.parametrize("step", ["alpha", "auto", 0.3])
def test_the_vector_of_two_quadratics(step):
    """On quadratics any length of the difference is exact; the gradient is half of the penalty's."""
    v = VECTORS["jia_R_alpha"]
    model = Quadratics(v["inputs"])
    reg = FisherTrace(model, beta=1.0, alpha=v["inputs"]["alpha"], sub_batches=2, step=step)
    which = torch.tensor([0, 1])
    loss = reg.backward(lambda out, _: out.mean(), which, which)
    mean = torch.autograd.grad(model(which).mean(), model.w)[0]
    np.testing.assert_allclose((model.w.grad - mean).numpy(), v["expected"]["grad_detached"], rtol=1e-9, atol=1e-12)
    expected = v["expected"]["R" if step == "alpha" else "first_order_value"]
    assert reg.last.value == pytest.approx(expected, rel=1e-9)
    assert float(loss) == pytest.approx(float(model(which).mean().detach()))


@pytest.mark.parametrize("norm", [None, nn.BatchNorm1d(12)], ids=["plain", "batch norm"])
def test_exact_mode_is_the_gradient_of_the_mean_squared_norm(norm):
    """Unequal sub-batches (24 into 5); with BatchNorm the main gradient is the whole batch's, in both modes."""
    model = network(norm)
    x, y = batch()
    cross_entropy(model(x), y).backward()
    plain = flat(model).clone()
    truth = penalty_gradient(copy.deepcopy(model), x, y, 5, 0.1)
    settings = {"beta": 3.0, "alpha": 0.1, "sub_batches": 5}
    exact = gradient(model, x, y, mode="exact", **settings) - plain
    torch.testing.assert_close(exact, 3 * truth, rtol=1e-9, atol=1e-12)
    differenced = gradient(model, x, y, step=1e-6, **settings) - plain
    torch.testing.assert_close(differenced, 3 * truth, rtol=1e-3, atol=1e-6)


def test_beta_zero_is_the_plain_gradient_bit_for_bit():
    model = network(nn.BatchNorm1d(12), torch.float32)
    x, y = batch(dtype=torch.float32)
    cross_entropy(copy.deepcopy(model)(x), y)
    twin = copy.deepcopy(model)
    cross_entropy(twin(x), y).backward()
    assert torch.equal(gradient(model, x, y, beta=0.0), flat(twin))
    assert all(torch.equal(a, b) for a, b in zip(model.buffers(), twin.buffers(), strict=True))


def test_passes_two_where_nothing_couples_the_batch_and_three_where_something_does():
    """Counted in samples through the network, from the second call on; `active` differences k of M."""
    seen = []
    x, y = batch()
    for norm, settings, passes in (
        (None, {}, 2),
        (nn.GroupNorm(2, 12), {}, 2),
        (nn.BatchNorm1d(12), {}, 3),
        (nn.BatchNorm1d(12, track_running_stats=False), {}, 3),
        (None, {"main_gradient": "batch"}, 3),
        (None, {"active": 1}, 1 + 1 / 8),
        (None, {"active": 2}, 1 + 2 / 8),
        (nn.BatchNorm1d(12), {"active": 2}, 1 + 2 * 2 / 8),
        (None, {"beta": 0.0}, 1),
    ):
        model = network(norm)
        model.register_forward_pre_hook(lambda m, a: seen.append(len(a[0])))
        reg = FisherTrace(model, **{"sub_batches": 8, **settings})
        averaged = not (isinstance(norm, nn.BatchNorm1d) or "main_gradient" in settings or "beta" in settings)
        for call in range(4):  # the first compares a mean over sub-batches with the whole batch
            seen.clear()
            reg.backward(cross_entropy, x, y)
            assert sum(seen) / len(x) == passes + (1 if averaged and call == 0 else 0)
    model = network(nn.BatchNorm1d(12)).eval()
    model.register_forward_pre_hook(lambda m, a: seen.append(len(a[0])))
    reg = FisherTrace(model, sub_batches=8)
    reg.backward(cross_entropy, x, y)
    seen.clear()
    reg.backward(cross_entropy, x, y)
    assert sum(seen) / len(x) == 2, "BatchNorm in eval mode couples nothing"


def test_differencing_some_sub_batches_is_unbiased():
    """The mean over all choices is the full penalty gradient; a forgotten M/k would be 8 times too small."""
    model = network()
    x, y = batch()
    settings = {"beta": 5.0, "alpha": 0.05, "sub_batches": 8, "step": 0.01}
    full = gradient(model, x, y, **settings)
    reg = FisherTrace(model, active=1, **settings)
    found = {}
    for _ in range(200):
        model.zero_grad()
        reg.backward(cross_entropy, x, y)
        found[tuple(flat(model)[:3].tolist())] = flat(model).clone()
    assert len(found) == 8
    torch.testing.assert_close(torch.stack(list(found.values())).mean(0), full, rtol=1e-9, atol=1e-11)


def test_the_draw_of_active_sub_batches_resumes():
    x, y = batch()
    model = network()
    reg = FisherTrace(model, active=2, seed=3)
    for _ in range(3):
        reg.backward(cross_entropy, x, y)
    again = FisherTrace(model, active=2)
    again.load_state_dict(reg.state_dict())
    model.zero_grad()
    reg.backward(cross_entropy, x, y)
    first = flat(model).clone()
    model.zero_grad()
    again.backward(cross_entropy, x, y)
    assert torch.equal(first, flat(model))


@pytest.mark.parametrize("momentum", [0.1, None])
def test_running_statistics_are_those_of_one_pass_over_the_batch(momentum):
    """The authors throw the sub-batches' updates away."""
    model = network(nn.BatchNorm1d(12, momentum=momentum))
    twin = copy.deepcopy(model)
    x, y = batch()
    for _ in range(2):
        twin(x)
        FisherTrace(model).backward(cross_entropy, x, y)
        assert all(torch.equal(a, b) for a, b in zip(model.buffers(), twin.buffers(), strict=True))


def test_both_passes_of_a_sub_batch_draw_the_same_random_numbers():
    """With dropout: the exact gradient of the same masks; and as many numbers are drawn as in one pass."""
    model = network()
    model.insert(2, nn.Dropout(0.5))
    x, y = batch()
    torch.manual_seed(5)
    differenced = gradient(model, x, y, beta=1.0, alpha=1.0, sub_batches=2, step=1e-5)
    after = torch.get_rng_state()
    torch.manual_seed(5)
    exact = gradient(model, x, y, beta=1.0, alpha=1.0, sub_batches=2, mode="exact")
    assert torch.equal(after, torch.get_rng_state())
    torch.testing.assert_close(differenced, exact, rtol=1e-3, atol=1e-6)


def test_weights_and_gradients_come_back_also_on_an_exception():
    model = network()
    x, y = batch()
    model[0].weight.grad = torch.ones_like(model[0].weight)
    before = copy.deepcopy(model.state_dict())
    calls = []

    def broken(out, target):
        calls.append(1)
        if len(calls) == 2:
            assert not torch.equal(model[0].weight, before["0.weight"])
            raise KeyboardInterrupt
        return cross_entropy(out, target)

    with pytest.raises(KeyboardInterrupt):
        FisherTrace(model).backward(broken, x, y)
    assert all(torch.equal(p, before[k]) for k, p in model.named_parameters())
    assert torch.equal(model[0].weight.grad, torch.ones_like(model[0].weight)) and model[0].bias.grad is None
    FisherTrace(model).backward(cross_entropy, x, y)
    assert all(torch.equal(p, before[k]) for k, p in model.named_parameters())


def test_the_default_difference_survives_relu_and_reports_its_error():
    """ResNet-20 with ReLU: at the paper's alpha one unit that switches is a jump divided by 1e-4."""
    torch.manual_seed(0)
    model = resnet20(norm="group")
    g = torch.Generator().manual_seed(0)
    y = torch.randint(0, 10, (256,), generator=g)
    x = torch.randn(256, 3, 8, 8, generator=g) + 0.5 * torch.randn(10, 3, 8, 8, generator=g)[y]
    opt = torch.optim.Adam(model.parameters(), 1e-3)
    for step in range(16):
        rows = torch.arange(32 * step, 32 * step + 32) % 256
        opt.zero_grad()
        cross_entropy(model(x[rows]), y[rows]).backward()
        opt.step()
    before = copy.deepcopy(model.state_dict())
    default = FisherTrace(model, sub_batches=2).error(cross_entropy, x[:64], y[:64])
    papers = FisherTrace(model, sub_batches=2, alpha=1e-4, step="alpha").error(cross_entropy, x[:64], y[:64])
    assert default.cosine > 0.5 and papers.cosine < 0.1 and default.relative < papers.relative / 3
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    smooth = network(activation=nn.GELU, dtype=torch.float32)
    good = FisherTrace(smooth, step=1e-3).error(cross_entropy, *batch(dtype=torch.float32))
    assert good.relative < 0.02 and good.cosine > 0.999


def test_the_default_difference_stays_on_the_near_side_of_a_minimum():
    """L = |w . x|: no curvature before the kink. A fixed length of 0.1 leaps over it from w = 0.02."""

    class Wedge(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(torch.tensor([0.02], dtype=torch.float64))

        def forward(self, x):
            return (x * self.w).abs().mean()

    x = torch.ones(4, 1, dtype=torch.float64)
    for step, penalised in (("auto", False), (0.01, False), (0.1, True)):
        model = Wedge()
        FisherTrace(model, beta=1.0, alpha=1.0, sub_batches=2, step=step).backward(lambda loss, _: loss, x, x)
        assert (abs(float(model.w.grad) - 1.0) > 0.1) == penalised, step


@pytest.mark.parametrize("offset", [-5.0, 1e6])
def test_the_default_length_is_bounded_where_the_loss_says_nothing(offset):
    """A loss below 0, or far above its gradient: a displacement of 0.2."""
    model = network()
    x, y = batch()
    seen = []
    model.register_forward_pre_hook(
        lambda *_: seen.append(torch.cat([p.detach().reshape(-1) for p in model.parameters()]))
    )
    FisherTrace(model, sub_batches=1).backward(lambda out, t: cross_entropy(out, t) + offset, x, y)
    assert float((seen[1] - seen[0]).norm()) == pytest.approx(0.2)


def test_an_error_estimate_changes_nothing(untouched):
    model = network(nn.BatchNorm1d(12))
    model[0].weight.grad = torch.ones_like(model[0].weight)
    model.insert(2, nn.Dropout(0.5))
    with untouched(model):
        FisherTrace(model).error(cross_entropy, *batch())


def test_sixteen_bit_differences_are_refused():
    x, y = batch(dtype=torch.float32)
    half = network(dtype=torch.bfloat16)
    with pytest.raises(UsageError, match="mostly rounding"):
        FisherTrace(half).backward(cross_entropy, x.bfloat16(), y)
    model = network(dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        for refused in ({}, {"step": "alpha", "alpha": 1e-4}, {"step": 0.05}):
            with pytest.raises(UsageError, match="outside autocast"):
                FisherTrace(model, **refused).backward(cross_entropy, x, y)
        FisherTrace(model, step=0.1).backward(cross_entropy, x, y)
        FisherTrace(model, beta=0.0).backward(cross_entropy, x, y)


def test_scaler_and_accumulation_go_through_scale():
    """Two half batches at scale 1/2, and a loss scale of 1024, against the plain call."""
    model = network()
    x, y = batch()
    settings = {"beta": 2.0, "alpha": 0.1, "sub_batches": 4, "max_norm": 1e9}
    whole = gradient(model, x, y, **settings)
    model.zero_grad()
    reg = FisherTrace(model, **{**settings, "sub_batches": 2})
    for part in (slice(0, 12), slice(12, 24)):
        reg.backward(cross_entropy, x[part], y[part], scale=0.5)
    torch.testing.assert_close(flat(model), whole, rtol=1e-9, atol=1e-12)
    opt = torch.optim.SGD(model.parameters(), 0.1)
    opt.zero_grad()
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    scaler.scale(torch.ones(()))
    FisherTrace(model, **settings).backward(cross_entropy, x, y, scale=scaler.get_scale())
    torch.testing.assert_close(flat(model), 1024 * whole)
    scaler.unscale_(opt)
    torch.testing.assert_close(flat(model), whole)
    before = model[0].weight.detach().clone()
    scaler.step(opt)
    assert not torch.equal(before, model[0].weight)


def test_clipping_bounds_the_combined_gradient():
    model = network()
    x, y = batch()
    settings = {"beta": 100.0, "alpha": 0.1}
    free = gradient(model, x, y, **settings)
    reg = FisherTrace(model, max_norm=0.01, **settings)
    model.zero_grad()
    reg.backward(cross_entropy, x, y)
    torch.testing.assert_close(flat(model), free * 0.01 / free.norm(), rtol=1e-9, atol=1e-12)
    assert reg.last.norm == pytest.approx(float(free.norm()))


@pytest.mark.parametrize("reentrant", [True, False])
def test_gradient_checkpointing(reentrant):
    class Checkpointed(nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner = inner

        def forward(self, x):
            hidden = self.inner[0](x)
            return self.inner[2](checkpoint(self.inner[1], hidden, use_reentrant=reentrant))

    model = network()
    x, y = batch()
    settings = {"beta": 2.0, "alpha": 0.1}
    plain = gradient(model, x, y, **settings)
    torch.testing.assert_close(gradient(Checkpointed(model), x, y, **settings), plain)


def test_it_works_inside_closures_of_any_optimizer():
    """Under PertOPT and SAM too: it then differences around the displaced weights, and leaves them displaced."""
    x, y = batch()
    for wrap in (lambda b: b, PertOPT, SAM):
        model = network()
        opt = wrap(torch.optim.Adam(model.parameters(), 1e-2))
        reg = FisherTrace(model, beta=1.0)
        losses = []
        for _ in range(25):

            def closure(reg=reg, opt=opt):
                opt.zero_grad()
                return reg.backward(cross_entropy, x, y)

            losses.append(float(opt.step(closure)))
        assert losses[-1] < 0.9 * losses[0]


def test_trees_of_tensors_and_frozen_or_unused_parameters():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.a, self.b, self.unused = nn.Linear(6, 3), nn.Linear(6, 3), nn.Linear(2, 2)
            self.a.bias.requires_grad_(False)

        def forward(self, inputs):
            return self.a(inputs["left"]) + self.b(inputs["right"][0])

    model = Two().double()
    x, y = batch()
    reg = FisherTrace(model, active=2)
    loss = reg.backward(
        lambda out, target: cross_entropy(out, target["label"]), {"left": x, "right": [x]}, {"label": y}
    )
    assert torch.isfinite(loss) and model.a.weight.grad is not None
    assert model.a.bias.grad is None and model.unused.weight.grad is None
    with pytest.raises(UsageError, match="go together"):
        reg.backward(cross_entropy, {"left": x, "right": [x[:3]]}, y)
    with pytest.raises(UsageError, match="batch with a str"):
        reg.backward(cross_entropy, "x", y)
    with pytest.raises(UsageError, match="must return the mean"):
        FisherTrace(network()).backward(lambda out, _: out, x, y)


def test_infinite_gradients_are_left_for_the_scaler_to_find():
    model = network()
    x, y = batch()
    reg = FisherTrace(model, max_norm=1.0)
    reg.backward(lambda out, t: cross_entropy(out, t) * torch.inf, x, y)
    assert not torch.isfinite(flat(model)).all()
    assert torch.isfinite(model[0].weight).all()


@pytest.mark.parametrize(
    "wrong",
    [
        {"alpha": 0.0}, {"sub_batches": 0}, {"active": 9}, {"active": 0}, {"max_norm": 0.0}, {"mode": "fast"},
        {"step": 0.0}, {"step": "beta"}, {"main_gradient": "sub"},
    ],
)  # fmt: skip
def test_settings_without_a_meaning_are_refused(wrong):
    with pytest.raises(UsageError, match=r"^got "):
        FisherTrace(network(), **wrong)
    reg = FisherTrace(network(), beta=-1.0)
    with pytest.raises(UsageError, match="got beta"):
        reg.backward(cross_entropy, *batch())
    with pytest.raises(UsageError, match="no trainable parameter"):
        FisherTrace(nn.ReLU()).backward(cross_entropy, *batch())
