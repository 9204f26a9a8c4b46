"""The input Jacobian of the probabilities against an explicit one and its singular values."""

import pytest
import torch
from measure_oracle import blobs, cnn, generator, mlp
from torch import nn

from flatminima import Minimum
from flatminima.core.statistic import Fixed
from flatminima.errors import UsageError
from flatminima.measures import robustness
from flatminima.statistics import InputJacobian


def _norms(model, x):
    """||d softmax(f(x)) / dx||_2^2 of each sample, by singular values."""
    rows = []
    for sample in x:
        jacobian = torch.autograd.functional.jacobian(lambda t: model(t.unsqueeze(0)).softmax(1)[0], sample)
        rows.append(torch.linalg.svdvals(jacobian.flatten(1))[0] ** 2)
    return torch.stack(rows)


@pytest.mark.parametrize("kind", ["mlp", "cnn"])
def test_explicit_jacobians(kind):
    """Catches logits in place of probabilities, a Frobenius norm, a missing square; batches of 7, 7, 7 and 2."""
    x, y = blobs(23, 5, 3)
    model = mlp(5, 8, 3)
    if kind == "cnn":
        model, x = cnn(), torch.randn(23, 2, 7, 6, generator=generator(4), dtype=torch.float64)
    norms = _norms(model, x)
    found = robustness(Minimum(model, (x, y), batch_size=7))
    assert found.value == pytest.approx(float(norms.mean()), rel=1e-8)
    assert found.stderr == pytest.approx(float(norms.std() / 23**0.5), rel=1e-8)


def test_a_subset_is_the_start_of_the_seeds_order():
    x, y = blobs(23, 5, 3)
    minimum = Minimum(mlp(5, 8, 3), (x, y), batch_size=4)
    chosen = minimum.samples.order(9)[:6]
    found = robustness(minimum, samples=6, seed=9)
    assert found.value == pytest.approx(float(_norms(minimum.model, x[chosen]).mean()), rel=1e-8)
    assert found.details["n"] == 6


def test_two_classes_in_closed_form():
    """Logits (0, w x): the Jacobian is p (1 - p) (-w, w)^T, its squared norm 2 (p (1 - p) w)^2."""
    net = nn.Linear(1, 2, bias=False).double()
    with torch.no_grad():
        net.weight.copy_(torch.tensor([[0.0], [3.0]]))
    x = torch.tensor([[0.0], [0.5]], dtype=torch.float64)
    p = torch.sigmoid(3 * x).flatten()
    expected = float((2 * (p * (1 - p) * 3).square()).mean())
    assert robustness(Minimum(net, (x, torch.tensor([0, 1])))).value == pytest.approx(expected, rel=1e-10)


def test_it_is_the_mean_square_of_the_given_norms():
    found = robustness(Fixed({InputJacobian(300, 0): torch.tensor([1.0, 3.0]).double()}))
    assert (found.value, found.stderr) == (5.0, pytest.approx(4.0))


class Looked(nn.Module):
    """Tokens whose embedding is also the head, beside kinds and a mask that are no words."""

    def __init__(self, classes):
        super().__init__()
        self.words, self.kinds = nn.Embedding(5, 3), nn.Embedding(2, 3)
        self.inner = nn.Linear(6, classes)

    def forward(self, input_ids, kinds):
        x = torch.tanh(self.words(input_ids.view(-1, 2)) + self.kinds(kinds))
        return self.inner((x @ self.words.weight.T @ self.words.weight).flatten(1))

    def of(self, embedded, kinds):
        x = torch.tanh(embedded + self.kinds(kinds))
        return self.inner((x @ self.words.weight.T @ self.words.weight).flatten(1))


@pytest.mark.parametrize("classes", [3, 70])  # beyond 64 by products
def test_tokens_are_differentiated_by_their_embeddings(classes):
    """The Jacobian written out; the head's use of the embedding's weights, kinds of token and masks are left alone."""
    torch.manual_seed(0)
    net = Looked(classes).double()
    x, kinds = torch.randint(0, 5, (9, 2), generator=generator(0)), torch.arange(18).view(9, 2) % 2
    found = robustness(Minimum(net, ({"input_ids": x, "kinds": kinds}, torch.arange(9) % classes)))
    norms = []
    for i in range(9):

        def probabilities(e, i=i):
            return net.of(e, kinds[i : i + 1]).softmax(1)[0]

        jacobian = torch.autograd.functional.jacobian(probabilities, net.words(x[i : i + 1]).detach())
        norms.append(float(torch.linalg.matrix_norm(jacobian.flatten(1), 2)) ** 2)
    assert found.value == pytest.approx(sum(norms) / 9, rel=1e-6)
    assert "embeddings" in found.details["note"]
    assert all(not m._forward_hooks for m in net.modules())


def test_tokens_that_nothing_looks_up_are_not_continuous():
    class Counts(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Linear(5, 2)

        def forward(self, x):
            return self.inner(nn.functional.one_hot(x, 5).sum(1).float())

    x = torch.randint(0, 5, (9, 2), generator=generator(0))
    assert "not continuous" in robustness(Minimum(Counts(), (x, torch.arange(9) % 2))).undefined


def test_regression_has_no_probabilities():
    x = blobs(9, 3, 2)[0]
    assert "needs a classifier" in robustness(Minimum(mlp(3, 4, 2), (x, x[:, :2]), "mse")).undefined


def test_no_samples_are_refused():
    x, y = blobs(9, 3, 2)
    with pytest.raises(UsageError, match="samples=0; it must be at least 1"):
        robustness(Minimum(mlp(3, 4, 2), (x, y)), samples=0)


CLASSES = 70  # beyond 64 the norms come from products, not from a backward pass a class


@pytest.mark.parametrize("kind", ["mlp", "cnn"])
def test_many_classes(kind):
    """Lanczos against all singular values; batches of 7, 7, 7 and 2, of which only the first 20 samples count."""
    x, y = blobs(23, 5, 3)
    model = mlp(5, 8, CLASSES)
    if kind == "cnn":
        model, x = cnn(), torch.randn(23, 2, 7, 6, generator=generator(4), dtype=torch.float64)
        model = nn.Sequential(model, nn.Linear(model(x).shape[1], CLASSES).double())
    minimum = Minimum(model, (x, y), batch_size=7)
    norms = _norms(model, x)
    assert torch.allclose(minimum[InputJacobian(20, 3)].square(), norms[minimum.samples.order(3)[:20]], rtol=1e-6)
    backward = minimum.passes.backward / 20
    assert backward < CLASSES, "cheaper than a pass a class"
    assert torch.equal(minimum[InputJacobian(20, 3)], Minimum(model, (x, y), batch_size=7)[InputJacobian(20, 3)])
    assert torch.allclose(minimum[InputJacobian(20, 3)], Minimum(model, (x, y), batch_size=20)[InputJacobian(20, 3)])


@pytest.mark.parametrize("margin", [27.0, 60.0, 95.0])
@pytest.mark.parametrize("classes", [10, CLASSES])
def test_classes_of_which_one_is_nearly_certain(classes, margin):
    """Norms of 1e-9, 1e-24 and 1e-39, in float32: 1 - p_y is 0 there, and beyond 1e-16 in float64 too."""
    x = blobs(9, 5, 3)[0].float()
    model = mlp(5, 8, classes).float()
    with torch.no_grad():
        model[-1].bias[4] += margin
    minimum = Minimum(model, (x, torch.full((9,), 4)))
    found = minimum[InputJacobian()]
    exact = []
    for sample in x.double()[minimum.samples.order(0)]:
        logits = model.double()(sample)
        of_logits = torch.autograd.functional.jacobian(model, sample)
        log_p = logits.log_softmax(0)
        rest = [torch.cat([log_p[:c], log_p[c + 1 :]]).logsumexp(0) for c in range(classes)]  # ln(1 - p_c)
        of_softmax = -(log_p.unsqueeze(0) + log_p.unsqueeze(1)).exp()
        of_softmax.diagonal().copy_((log_p + torch.stack(rest)).exp())
        exact.append(torch.linalg.svdvals(of_softmax @ of_logits)[0])
    assert float(found.min()) < torch.finfo(torch.float32).eps
    assert torch.allclose(found, torch.stack(exact), rtol=1e-5, atol=0)


def test_many_classes_of_a_constant_network():
    class Constant(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(CLASSES))

        def forward(self, x):
            return 0 * x.sum(1, keepdim=True) + self.weight

    x, y = blobs(9, 5, 3)
    assert robustness(Minimum(Constant().double(), (x, y))).value == 0


class _Once(torch.autograd.Function):
    """tanh whose backward pass cannot be differentiated."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.tanh()

    @staticmethod
    def backward(ctx, grad):
        (x,) = ctx.saved_tensors
        return _no_derivative(grad * (1 - x.tanh().square()))


class _Barrier(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        raise NotImplementedError("derivative of the kernel is not implemented")


_no_derivative = _Barrier.apply


def test_many_classes_without_a_second_derivative():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.last = nn.Linear(5, 8).double(), nn.Linear(8, CLASSES).double()

        def forward(self, x):
            return self.last(_Once.apply(self.first(x)))

    torch.manual_seed(0)
    x, y = blobs(9, 5, 3)
    model = Net()
    assert robustness(Minimum(model, (x, y))).value == pytest.approx(float(_norms(model, x).mean()), rel=1e-8)
