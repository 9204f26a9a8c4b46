"""The simulated device raises where an accelerator would, and nowhere else: else the tests that use it show nothing."""

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy, one_hot

from simulated_device import DEVICE, SimulatedDevice, lies_there


@pytest.fixture(autouse=True)
def device():
    with SimulatedDevice():
        yield


def there(*shape):
    return torch.randn(*shape).to("mps")


def test_what_is_made_of_tensors_there_lies_there():
    x = there(3, 4)
    made = [x, x.T, x[0], x @ x.T, x.sum(), torch.zeros_like(x), torch.ones(2, device=x.device), x.new_zeros(3)]
    made += [one_hot(x.argmax(1), 4), torch.cat([x, x]), x.double(), x.to(torch.float64), x[torch.tensor([0])]]
    assert all(t.device == DEVICE and lies_there(t) for t in made)


def test_moves_copy_in_both_directions():
    x = torch.randn(3)
    y = x.to("mps")
    y.add_(1)
    back = y.cpu()
    back.add_(1)
    assert x.device.type == back.device.type == "cpu" and y.device == DEVICE
    assert torch.allclose(back, x + 2) and y.tolist() == pytest.approx((x + 1).tolist())


@pytest.mark.parametrize(
    "mistake",
    [
        lambda x: x + torch.randn(4),
        lambda x: torch.cat([x, torch.randn(3, 4)]),
        lambda x: torch.randn(3, 4) @ x.T,
        lambda x: nn.Linear(4, 2)(x),
        lambda x: cross_entropy(x, torch.zeros(3, dtype=torch.int64)),
        lambda x: torch.where(torch.ones(3, 4) > 0, x, x),
        lambda x: x + torch.zeros(4),
        lambda x: torch.func.vmap(lambda r: r * torch.ones(4))(x),
    ],
)
def test_mixtures_are_refused(mistake):
    with pytest.raises(RuntimeError, match="same device"):
        mistake(there(3, 4))


def test_numbers_of_the_cpu_are_welcome():
    x = there(3, 4)
    assert (x * torch.tensor(2.0)).device == (x * 2).device == DEVICE


def test_numpy_and_generators_are_refused():
    x = there(3)
    with pytest.raises(TypeError, match="cpu\\(\\)"):
        x.numpy()
    with pytest.raises(RuntimeError, match="generator"):
        torch.randn(3, device=x.device, generator=torch.Generator())
    with pytest.raises(RuntimeError, match="generator"):
        torch.randn(3, generator=torch.Generator("mps"))
    assert torch.randn(3, device=x.device, generator=torch.Generator("mps")).device == DEVICE


def test_gradients_lie_with_their_parameters_and_hooks_may_ask():
    layer, asked = nn.Linear(4, 2).to("mps"), []
    out = layer(there(3, 4))
    out.register_hook(lambda gradient: asked.append(gradient.device))
    out.square().sum().backward()
    assert layer.weight.grad.device == DEVICE and asked == [DEVICE]
    (first,) = torch.autograd.grad(layer(there(3, 4)).square().sum(), layer.weight, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), layer.weight)
    assert first.device == second.device == DEVICE


def test_optimizers_run_there():
    layer = nn.Linear(4, 2).to("mps")
    for kind in (torch.optim.SGD, torch.optim.Adam):
        optimizer = kind(layer.parameters(), 0.1)
        layer(there(3, 4)).sum().backward()
        optimizer.step()
    assert optimizer.state[layer.weight]["exp_avg"].device == DEVICE
