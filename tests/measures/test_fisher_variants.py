"""The full Fisher matrix, and what the authors' code computes beside the paper, against dense float64 truths."""

import copy
import math

import pytest
import torch
from measure_oracle import blobs, generator, randomise, vector
from torch import nn

from flatminima import Minimum
from flatminima.errors import UsageError
from flatminima.measures import (
    fisher_frobenius,
    fisher_logdet,
    fisher_logdet_full,
    fisher_spectral_radius,
    fisher_trace,
)
from flatminima.statistics import FisherMatrix, FisherParts, TrainingGram


def smooth(outputs=1):
    return randomise(nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, outputs)), 3)


def binary(n=60):
    x = torch.randn(n, 3, generator=generator(1), dtype=torch.float64)
    return x, (torch.rand(n, 1, generator=generator(2), dtype=torch.float64) < 0.5).double()


def dense_fisher(model, x):
    """(1/n) sum_x J^T (diag p - p p^T) J by one Jacobian a sample."""
    params = dict(model.named_parameters())
    total = 0
    for row in x:
        call = lambda p, row=row: torch.func.functional_call(model, p, (row[None],))[0]  # noqa: E731
        parts = torch.func.jacrev(call)(params)
        jacobian = torch.cat([v.reshape(len(v), -1) for v in parts.values()], 1)
        p = call(params).softmax(0)
        total = total + jacobian.T @ (p.diag() - p.outer(p)) @ jacobian
    return (total / len(x)).detach()


def test_the_matrix_is_the_dense_one_in_any_batches():
    """Also with a convolution, whose gradients come in another form, and where the data ends within a batch."""
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Tanh(), nn.Flatten(), nn.Linear(8, 3))
    net = randomise(net, 4)
    x = torch.randn(23, 1, 4, 4, generator=generator(5), dtype=torch.float64)
    y = torch.arange(23) % 3
    for batch_size in (1, 5, 64):
        m = Minimum(net, (x, y), batch_size=batch_size)
        assert torch.allclose(m[FisherMatrix()], dense_fisher(net, x), rtol=1e-10, atol=1e-14)
        part = m.samples.order(7)[:9]
        assert torch.allclose(m[FisherMatrix(9, 7)], dense_fisher(net, x[part]), rtol=1e-10, atol=1e-14)


def test_the_reference_value_of_a_logistic_regression():
    given, expected = vector("jia_gamma_exact")
    net = nn.Linear(2, 1, bias=False).double()
    net.weight.data.copy_(torch.tensor([given["w"]]))
    x = torch.tensor(given["X"], dtype=torch.float64)
    found = fisher_logdet_full(Minimum(net, (x, net(x).detach().sigmoid()), "binary_cross_entropy"))
    assert found.value == pytest.approx(expected["gamma"], rel=1e-12)
    assert found.details["trace"] == pytest.approx(expected["trace"], rel=1e-12)
    assert found.details["trace_bound"] / 2 == pytest.approx(expected["bound_rhs"], rel=1e-12)


def test_a_smooth_network_with_one_output_has_a_determinant_below_the_bound_by_the_trace():
    found = fisher_logdet_full(Minimum(smooth(), binary(), "binary_cross_entropy"))
    matrix = Minimum(smooth(), binary(), "binary_cross_entropy")[FisherMatrix()]
    assert found.details["null"] == 0
    assert found.value == pytest.approx(float(torch.linalg.slogdet(matrix).logabsdet), rel=1e-8)
    assert found.value <= found.details["trace_bound"]


@pytest.mark.parametrize("activation", [nn.Tanh(), nn.ReLU()], ids=["tanh", "relu"])
def test_assumption_1_fails_for_every_softmax_network_and_again_for_relu(activation):
    """An erratum beyond J-a. Softmax: h + 1 null directions, the shift of all rows of the last layer; ReLU: one more a
    unit. Shown with far more samples than parameters, so that the rank is not short for want of data."""
    net = randomise(nn.Sequential(nn.Linear(3, 4), activation, nn.Linear(4, 3)), 3)
    x = 2 * torch.randn(400, 3, generator=generator(1), dtype=torch.float64)
    m = Minimum(net, (x, torch.arange(400) % 3))
    found = fisher_logdet_full(m)
    null = (4 + 1) + (4 if isinstance(activation, nn.ReLU) else 0)
    assert found.value is None and "singular" in found.undefined and found.details["null"] == null
    pseudo = fisher_logdet_full(m, pseudo=True)
    spectrum = torch.linalg.eigvalsh(m[FisherMatrix()])
    assert pseudo.value == pytest.approx(float(spectrum[null:].log().sum()), rel=1e-8)
    assert float(spectrum[:null].abs().max()) < 1e-12 < float(spectrum[null])
    assert pseudo.value <= pseudo.details["trace_bound"]


def test_float32_networks_lose_no_small_eigenvalue():
    """The threshold is float64's, so the matrix must be too."""
    net = smooth().float()
    x, y = binary()
    found = fisher_logdet_full(Minimum(net, (x.float(), y.float()), "binary_cross_entropy"))
    double = copy.deepcopy(net).double()
    exact = fisher_logdet_full(Minimum(double, (x.float().double(), y), "binary_cross_entropy"))
    assert found.value == pytest.approx(exact.value, rel=1e-9)


def test_a_large_network_is_undefined_at_once():
    net = nn.Linear(2000, 3)
    found = fisher_logdet_full(Minimum(net, (torch.randn(4, 2000), torch.arange(4) % 3)))
    assert "too large" in found.undefined


# -- the authors' code -----------------------------------------------------------------------------------------------


class Rescaled(nn.Module):
    def __init__(self, model, norm):
        super().__init__()
        self.model, self.norm = model, norm

    def forward(self, x):
        z = self.model(x)
        return self.norm * z / z.norm(dim=1, keepdim=True)


def test_rescaled_logits_are_those_of_a_network_that_rescales():
    net, (x, y) = smooth(3), blobs(40, 3, 3)
    plain = Minimum(net, (x, y), batch_size=16)
    inner = Minimum(Rescaled(net, 25.0), (x, y), batch_size=16)
    for measure in (fisher_logdet, fisher_trace, fisher_frobenius):
        found = measure(plain, subset=8, logit_norm=25.0)
        assert found.value == pytest.approx(measure(inner, subset=8).value, rel=1e-9)
        assert abs(found.value / measure(plain, subset=8).value - 1) > 1e-2
    scaled = copy.deepcopy(net)
    with torch.no_grad():
        scaled[2].weight *= 3.0
        scaled[2].bias *= 3.0
    # what it is for: the last layer's scale is no longer seen by the loss
    again = fisher_trace(Minimum(Rescaled(scaled, 25.0), (x, y)), subset=8)
    assert again.value == pytest.approx(
        fisher_trace(Minimum(scaled, (x, y)), subset=8, logit_norm=25.0).value, rel=1e-9
    )
    with pytest.raises(UsageError, match="logit norm"):
        fisher_trace(plain, subset=8, logit_norm=0.0)


def normed():
    net = nn.Sequential(nn.Linear(3, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Linear(6, 3))
    return randomise(net, 8)


def by_chunks(net, x, y, subset, chunk):
    """ln det J J^T, row i of J from one backward pass through sample i's chunk in training mode."""
    training = copy.deepcopy(net).train()
    rows = []
    for part in subset.split(chunk):
        for v in nn.functional.cross_entropy(training(x[part]), y[part], reduction="none"):
            grads = torch.autograd.grad(v, list(training.parameters()), retain_graph=True)
            rows.append(torch.cat([g.reshape(-1) for g in grads]))
    jacobian = torch.stack(rows)
    return float(torch.linalg.slogdet(jacobian @ jacobian.T).logabsdet)


@pytest.mark.parametrize("chunk", [2, 3, 6, 100])
def test_batch_statistics_run_through_chunks(chunk):
    """Row i of J is d loss_i / d w of its chunk in training mode; a larger chunk than the subset is the subset."""
    net, (x, y) = normed(), blobs(30, 3, 3)
    m = Minimum(net, (x, y), batch_size=4)
    before = copy.deepcopy(net.state_dict())
    order = m.samples.order(5)
    expected = [by_chunks(net, x, y, part, chunk) for part in (order[:6], order[6:12])]
    options = {"subset": 6, "trials": 2, "seed": 5}
    found = fisher_logdet(m, **options, batchnorm="batch", chunk=chunk)
    assert found.value == pytest.approx(sum(expected) / 2, rel=1e-8)
    assert abs(found.value - fisher_logdet(m, **options).value) > 1e-3
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items()), "running statistics moved"
    assert not net.training
    wide = m[TrainingGram(6, 2, 5, chunk)]
    assert found.value == pytest.approx(float(wide.log_determinants().values.mean()), rel=1e-12)


def test_the_authors_chunks_are_the_default():
    """Ten samples share their statistics; the whole subset as one batch is another score."""
    net = randomise(nn.Sequential(nn.Linear(3, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Linear(6, 3)), 8)
    x, y = blobs(40, 3, 3)
    m = Minimum(net, (x, y))
    part = m.samples.order(0)[:20]
    found = fisher_logdet(m, subset=20, trials=1, batchnorm="batch")
    assert found.value == pytest.approx(by_chunks(net, x, y, part, 10), rel=1e-8)
    whole = fisher_logdet(m, subset=20, trials=1, batchnorm="batch", chunk=20)
    assert whole.value == pytest.approx(by_chunks(net, x, y, part, 20), rel=1e-8)
    assert abs(whole.value - found.value) > 1
    for measure in (fisher_trace, fisher_frobenius, fisher_spectral_radius):
        options = {"subset": 20, "trials": 1, "batchnorm": "batch"}
        assert (
            measure(m, **options).value
            == measure(m, **options, chunk=10).value
            != measure(m, **options, chunk=20).value
        )


def test_chunks_that_do_not_make_up_a_subset_are_refused():
    m = Minimum(normed(), blobs(30, 3, 3))
    with pytest.raises(UsageError, match=r"got subset=15 and a chunk of 10; .*chunk=15 takes it whole"):
        fisher_trace(m, subset=15, batchnorm="batch")
    with pytest.raises(UsageError, match="at least 2"):
        fisher_trace(m, subset=15, batchnorm="batch", chunk=1)


def test_batch_statistics_need_a_batchnorm():
    m = Minimum(smooth(3), blobs(20, 3, 3))
    assert "no BatchNorm" in fisher_trace(m, subset=5, batchnorm="batch").undefined
    with pytest.raises(UsageError, match="'running' or 'batch'"):
        fisher_trace(m, subset=5, batchnorm="eval")


def test_both_at_once():
    net, (x, y) = normed(), blobs(30, 3, 3)
    found = fisher_trace(Minimum(net, (x, y)), subset=6, trials=2, batchnorm="batch", logit_norm=25.0)
    training = Rescaled(copy.deepcopy(net), 25.0).train()
    m = Minimum(net, (x, y))
    squares = []
    for part in m.samples.order(0)[:12].split(6):
        losses = nn.functional.cross_entropy(training(x[part]), y[part], reduction="none")
        for value in losses:
            grads = torch.autograd.grad(value, list(training.parameters()), retain_graph=True)
            squares.append(sum(float(g.square().sum()) for g in grads))
    assert found.value == pytest.approx(sum(squares) / 12, rel=1e-9)
    assert math.isfinite(found.stderr)


# -- the full matrix of part of the data ------------------------------------------------------------------------------


def regression(n, seed):
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 3, generator=g, dtype=torch.float64)
    net = nn.Sequential(nn.Linear(3, 2), nn.Tanh(), nn.Linear(2, 1)).double()
    with torch.no_grad():
        for p in net.parameters():
            p.copy_(torch.randn(p.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64))
    return Minimum(net, (x, net(x).detach()), "mse", batch_size=n)


def test_the_full_determinant_of_part_of_the_data_covers_that_of_all():
    """200 draws of 150 of 600; uncorrected it is too small, by more than its error bar."""
    m = regression(600, 0)
    exact = fisher_logdet_full(m)
    assert exact.stderr is None and exact.details["error_of"] == "exact"
    found = [fisher_logdet_full(m, samples=150, seed=s) for s in range(200)]
    share = sum(low <= exact.value <= high for low, high in (e.interval() for e in found)) / 200
    assert 0.90 <= share <= 0.99, share
    means = [sum(e.details["uncorrected"] for e in found) / 200, sum(e.value for e in found) / 200]
    assert means[0] < means[1] and abs(means[1] - exact.value) < 0.5 * abs(means[0] - exact.value)


def test_parts_of_the_full_matrix_are_those_of_their_samples():
    m = regression(60, 0)
    order = m.samples.order(3)
    parts = m[FisherParts(47, 3, 4)]
    for part, (a, b) in zip(parts, ((0, 11), (11, 23), (23, 35), (35, 47)), strict=True):
        x, y = m.samples.take(order[a:b])
        expected = Minimum(m.model, (x, y), "mse")[FisherMatrix()]
        torch.testing.assert_close(part, expected, rtol=1e-9, atol=1e-12)


def test_a_rank_that_depends_on_the_samples_has_no_error_bar():
    net = smooth()
    found = fisher_logdet_full(Minimum(net, binary(), "binary_cross_entropy"), samples=8, pseudo=True)
    assert found.stderr is None and found.details["error_of"] == "data" and "depends on which" in found.details["note"]


def test_numbers_that_are_no_vectors_have_no_norm_to_set():
    """Of (n,) outputs the last axis is the samples': each value then depended on its neighbours in the batch."""
    net = nn.Sequential(nn.Linear(3, 1), nn.Flatten(0))
    data = torch.randn(12, 3, generator=torch.Generator().manual_seed(0)), torch.zeros(12)
    found = fisher_logdet(Minimum(net, data, "mse"), subset=3, logit_norm=25.0)
    assert found.value is None and "a number a sample" in found.undefined
