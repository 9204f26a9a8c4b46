"""Kinds of bases and of parameters: each trains as the plain loop does, or is refused in one line."""

from __future__ import annotations

import copy
import io
import pickle

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from flatminima.errors import UsageError
from flatminima.optim import SAM, FisherTrace, PertOPT

WRAPPERS = {
    "pertopt": lambda base, **k: PertOPT(base, **{"gamma": 0.3, "eta": 1e4, "steps_per_epoch": 4, **k}),
    "sam": lambda base, **k: SAM(base, **{"rho": 0.1, **k}),
}
STRENGTH_0 = {"pertopt": {"gamma": 0.0, "eps": 0.0}, "sam": {"rho": 0.0}}
both = pytest.mark.parametrize("kind", WRAPPERS)


def network(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 8), nn.LayerNorm(8), nn.Tanh(), nn.Linear(8, 3))


def samples(t):
    g = torch.Generator().manual_seed(t)
    return torch.randn(20, 6, generator=g), torch.randint(0, 3, (20,), generator=g)


def train(model, opt, steps, *, forward=None):
    for t in steps:
        x, y = samples(t)

        def closure(x=x, y=y):
            opt.zero_grad()
            loss = cross_entropy((forward or model)(x), y)
            loss.backward()
            return loss

        opt.step(closure)


def plainly(model, opt, steps):
    for t in steps:
        x, y = samples(t)
        opt.zero_grad()
        cross_entropy(model(x), y).backward()
        opt.step()


def weights(model):
    return torch.cat([p.detach().reshape(-1) for p in model.parameters()])


class EightBits(torch.optim.Optimizer):
    """Momentum kept in codes of 8 bits with a scale, whose shapes are not the parameter's."""

    def __init__(self, params):
        super().__init__(params, {"lr": 0.1})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for p in (p for p in group["params"] if p.grad is not None):
                held = self.state[p]
                old = (held["codes"].float() - 128) / 127 * held["scale"] if held else 0.0
                moment = 0.9 * old + 0.1 * p.grad.reshape(-1)
                held["scale"] = moment.abs().max().reshape(1)
                held["codes"] = (moment / held["scale"] * 127 + 128).round().to(torch.uint8)
                held["kind"] = "blockwise"
                p.add_(moment.view_as(p), alpha=-group["lr"])


class ScheduleFree(torch.optim.Optimizer):
    """Schedule-Free SGD (Defazio et al. 2024): the weights are y while training and x while evaluating."""

    def __init__(self, params):
        super().__init__(params, {"lr": 0.1, "beta": 0.9, "k": 0, "training": False})

    def _mix(self, group, weight):
        for p in (p for p in group["params"] if p in self.state):
            p.lerp_(self.state[p]["z"], weight)

    @torch.no_grad()
    def train(self):
        for group in self.param_groups:
            if not group["training"]:
                self._mix(group, 1 - group["beta"])
            group["training"] = True

    @torch.no_grad()
    def eval(self):
        for group in self.param_groups:
            if group["training"]:
                self._mix(group, 1 - 1 / group["beta"])
            group["training"] = False

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            assert group["training"], "step() in eval mode"
            share = 1 / (group["k"] + 1)
            for p in (p for p in group["params"] if p.grad is not None):
                z = self.state[p].setdefault("z", p.clone())
                p.lerp_(z, share).add_(p.grad, alpha=group["lr"] * (group["beta"] * (1 - share) - 1))
                z.sub_(p.grad, alpha=group["lr"])
            group["k"] += 1


@both
def test_states_of_other_dtypes_and_shapes_resume_bit_for_bit(kind):
    """torch makes floats of 8-bit codes when it loads them."""
    model = network()
    opt = WRAPPERS[kind](EightBits(model.parameters()))
    train(model, opt, range(4))
    file = io.BytesIO()
    torch.save((model.state_dict(), opt.state_dict()), file)
    train(model, opt, range(4, 8))
    file.seek(0)
    of_model, of_opt = torch.load(file, weights_only=True)
    again = network(1)
    other = WRAPPERS[kind](EightBits(again.parameters()))
    again.load_state_dict(of_model)
    other.load_state_dict(of_opt)
    assert other.state[again[0].weight]["codes"].dtype == torch.uint8
    train(again, other, range(4, 8))
    assert torch.equal(weights(again), weights(model))


@both
def test_schedule_free(kind):
    """Its modes go through, and strength 0 is the plain loop."""
    plain, model = network(), network()
    by_hand, opt = (
        ScheduleFree(plain.parameters()),
        WRAPPERS[kind](ScheduleFree(model.parameters()), **STRENGTH_0[kind]),
    )
    for t in range(6):
        by_hand.train()
        opt.train()
        plainly(plain, by_hand, [t])
        train(model, opt, [t])
        if t % 2:
            by_hand.eval()
            opt.eval()
            assert torch.equal(weights(model), weights(plain))


def names_of_torch():
    kinds = vars(torch.optim).items()
    return sorted(
        name
        for name, kind in kinds
        if isinstance(kind, type) and issubclass(kind, torch.optim.Optimizer) and kind is not torch.optim.Optimizer
    )


@both
@pytest.mark.parametrize("name", [n for n in names_of_torch() if n not in ("LBFGS", "SparseAdam")])
def test_every_optimizer_of_torch_is_a_base(kind, name):
    """At strength 0 it is the base bit for bit; with noise it resumes bit for bit."""

    def base(model):
        matrices = [p for p in model.parameters() if p.dim() == 2 or name != "Muon"]
        return getattr(torch.optim, name)(matrices, lr=1e-2)

    plain, model = network(), network()
    plainly(plain, base(plain), range(4))
    train(model, WRAPPERS[kind](base(model), **STRENGTH_0[kind]), range(4))
    assert torch.equal(weights(model), weights(plain))
    moved = network()
    opt = WRAPPERS[kind](base(moved))
    train(moved, opt, range(3))
    again = network(1)
    other = WRAPPERS[kind](base(again))
    again.load_state_dict(copy.deepcopy(moved.state_dict()))
    other.load_state_dict(copy.deepcopy(opt.state_dict()))
    train(moved, opt, range(3, 5))
    train(again, other, range(3, 5))
    assert torch.equal(weights(again), weights(moved))
    assert not torch.equal(weights(moved), weights(plain))


class AsksForAClosure(torch.optim.SGD):
    def step(self, closure):
        return super().step(closure)


@both
def test_a_base_that_cannot_step_without_a_closure_is_refused(kind):
    with pytest.raises(UsageError, match="AsksForAClosure, whose step\\(\\) evaluates a closure"):
        WRAPPERS[kind](AsksForAClosure(network().parameters(), 0.1))


@both
def test_copies_and_pickles_with_their_network_go_on_alike(kind):
    model = network()
    opt = WRAPPERS[kind](torch.optim.Adam(model.parameters(), 1e-2), model=model)
    train(model, opt, range(3))
    others = [copy.deepcopy((model, opt)), pickle.loads(pickle.dumps((model, opt)))]
    train(model, opt, range(3, 6))
    for again, other in others:
        train(again, other, range(3, 6))
        assert torch.equal(weights(again), weights(model))


@both
def test_parameters_are_added_frozen_and_thawed_in_mid_training(kind):
    model, shift = network(), nn.Parameter(torch.zeros(3))
    opt = WRAPPERS[kind](torch.optim.Adam(model.parameters(), 1e-2))

    def forward(x):
        return model(x) + shift

    train(model, opt, range(2), forward=forward)
    opt.add_param_group({"params": [shift]})
    train(model, opt, range(2, 4), forward=forward)
    assert shift.detach().abs().min() > 0
    model[0].weight.requires_grad_(False)
    model[0].weight.grad = None
    frozen = model[0].weight.clone()
    train(model, opt, range(4, 6), forward=forward)
    assert torch.equal(model[0].weight, frozen)
    model[0].weight.requires_grad_(True)
    train(model, opt, range(6, 8), forward=forward)
    assert not torch.equal(model[0].weight, frozen)


@both
def test_integers_of_a_quantised_layer_are_left_alone(kind):
    plain, model = network(), network()
    model.codes = nn.Parameter(torch.arange(3, dtype=torch.int8), requires_grad=False)
    layers = model[:4]
    for net, group in ((plain, plain.parameters()), (model, [*layers.parameters(), model.codes])):
        train(net, WRAPPERS[kind](torch.optim.Adam(group, 1e-2)), range(4), forward=net[:4])
    assert torch.equal(weights(layers), weights(plain))
    assert model.codes.tolist() == [0, 1, 2]


@both
def test_weights_without_values_are_refused(kind):
    """After to_empty() the optimizer has the network's former parameters, and would train nothing."""
    model = network().to("meta")
    opt = WRAPPERS[kind](torch.optim.Adam(model.parameters(), 1e-2))
    model.to_empty(device="cpu")
    with pytest.raises(UsageError, match="meta device"):
        train(model, opt, range(1))
    with pytest.raises(UsageError, match="meta device"), opt.perturbed():
        pass


class Looks(nn.Module):
    """A table whose gradient is sparse."""

    def __init__(self):
        super().__init__()
        self.table, self.head = nn.Embedding(9, 4, sparse=True), nn.Linear(4, 3)

    def forward(self, rows):
        return self.head(self.table(rows))


class Complex(nn.Module):
    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.randn(6, 3, dtype=torch.complex64))

    def forward(self, x):
        return (x.to(torch.complex64) @ self.w).abs()


@pytest.mark.parametrize("mode", ["difference", "exact"])
@pytest.mark.parametrize(
    ("make", "x", "says"),
    [
        (Looks, torch.arange(8), "sparse gradient of a parameter of shape \\(9, 4\\)"),
        (Complex, torch.randn(8, 6), "dtype torch.complex64"),
        (lambda: network().to("meta"), torch.randn(8, 6, device="meta"), "meta device"),
    ],
    ids=["sparse", "complex", "meta"],
)
def test_fisher_trace_refuses_weights_without_a_difference(make, x, says, mode):
    model = make()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(UsageError, match=says):
        FisherTrace(model, sub_batches=2, mode=mode).backward(cross_entropy, x, (torch.arange(8) % 3).to(x.device))
    assert all(p.grad is None for p in model.parameters())
    assert all(value.is_meta or torch.equal(value, before[key]) for key, value in model.state_dict().items())


@both
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_scripted_networks_train_as_the_others(kind):
    """TorchScript's modules take no hooks of state_dict(), which the guards would set."""
    plain = network().eval()  # its dropout draws in an order of its own when compiled
    scripted = torch.jit.script(copy.deepcopy(plain))
    for net in (plain, scripted):
        train(net, WRAPPERS[kind](torch.optim.SGD(net.parameters(), 0.1)), range(3))
    assert torch.allclose(weights(scripted), weights(plain), rtol=1e-5, atol=1e-6)
    assert not torch.allclose(weights(plain), weights(network()))
