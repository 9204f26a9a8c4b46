"""FisherTrace weighs sub-batches by what their loss counts, and notices where a loss is no mean over samples."""

from __future__ import annotations

import copy
import warnings
from functools import partial

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy, mse_loss, normalize
from torch.nn.utils.parametrizations import spectral_norm

from flatminima.errors import UsageError
from flatminima.optim import SAM, FisherTrace
from flatminima.optim.counts import Counts, Part

WEIGHT = torch.tensor([1.0, 5.0, 25.0], dtype=torch.float64)
ALPHA, BETA = 0.1, 3.0


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)).double()


def inputs(n: int = 24, *more: int) -> Tensor:
    return torch.randn(n, *more, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def labels(*shape: int, masked: float = 0.0) -> Tensor:
    g = torch.Generator().manual_seed(2)
    found = torch.randint(0, 3, shape, generator=g)
    found[torch.rand(shape, generator=g) < masked] = -100
    return found


def masked_labels(rows: slice) -> Tensor:
    """Samples of some of four sub-batches of six do not count at all."""
    found = labels(24, masked=0.3)
    found[rows] = -100
    return found


def tokens(out: Tensor, y: Tensor) -> Tensor:
    return cross_entropy(out.flatten(0, 1), y.flatten())


def masked_mean(out: Tensor, y: Tensor) -> Tensor:
    """An average that is 0 where nothing counts, as many write it."""
    mask = (y >= 0).double()
    return (mse_loss(out[:, 0], y.double(), reduction="none") * mask).sum() / mask.sum().clamp(min=1)


def binary(out: Tensor, y: Tensor) -> Tensor:
    return binary_cross_entropy_with_logits(out[:, 0], (y > 0).double())


def flat(model: nn.Module) -> Tensor:
    return torch.cat([p.grad.reshape(-1) for p in model.parameters() if p.grad is not None]).clone()


# loss, inputs, targets, and what a part of the targets counts
CASES = {
    "samples": (cross_entropy, inputs(), labels(24), lambda y: len(y)),
    "binary": (binary, inputs(), labels(24), lambda y: len(y)),
    "class weights": (partial(cross_entropy, weight=WEIGHT), inputs(), labels(24), lambda y: WEIGHT[y].sum()),
    "masked": (cross_entropy, inputs(), labels(24, masked=0.5), lambda y: (y >= 0).sum()),
    "a part is absent": (cross_entropy, inputs(), masked_labels(slice(6, 12)), lambda y: (y >= 0).sum()),
    "the first is absent": (cross_entropy, inputs(), masked_labels(slice(0, 6)), lambda y: (y >= 0).sum()),
    "all but the last": (cross_entropy, inputs(), masked_labels(slice(0, 18)), lambda y: (y >= 0).sum()),
    "smoothed, masked": (
        partial(cross_entropy, label_smoothing=0.2), inputs(), labels(24, masked=0.5), lambda y: (y >= 0).sum()
    ),
    "smoothed, weighted, masked": (
        partial(cross_entropy, label_smoothing=0.2, weight=WEIGHT), inputs(), masked_labels(slice(0, 6)),
        lambda y: WEIGHT[y[y >= 0]].sum(),
    ),
    "another ignored label": (
        nn.CrossEntropyLoss(ignore_index=1), inputs(), labels(24), lambda y: (y != 1).sum()
    ),
    "tokens": (tokens, inputs(24, 5), labels(24, 5, masked=0.6), lambda y: (y >= 0).sum()),
    "an average that is 0 where nothing counts": (
        masked_mean, inputs(), masked_labels(slice(0, 12)), lambda y: (y >= 0).sum()
    ),
    "unequal parts": (partial(cross_entropy, weight=WEIGHT), inputs(22), labels(22), lambda y: WEIGHT[y].sum()),
}  # fmt: skip


def truth(model, loss_fn, x, y, count, m=4):
    """grad sum_i (W_i/W) [L_i + beta (alpha/2) ||grad L_i||^2] in one graph, by counts written by hand."""
    parameters, total, mean, squares = list(model.parameters()), float(count(y)), 0.0, 0.0
    for xi, yi in zip(x.tensor_split(m), y.tensor_split(m), strict=True):
        share = float(count(yi)) / total
        if share:
            loss = loss_fn(model(xi), yi)
            g = torch.autograd.grad(loss, parameters, create_graph=True)
            mean, squares = mean + share * loss, squares + share * sum((t**2).sum() for t in g)
    grads = torch.autograd.grad(mean + BETA * ALPHA / 2 * squares, parameters)
    return torch.cat([g.reshape(-1) for g in grads]), float(mean.detach()), float(squares.detach())


@pytest.mark.parametrize("name", CASES)
@pytest.mark.filterwarnings("error")
def test_sub_batches_weigh_what_their_loss_counts(name):
    """Weighted by samples, class weights make the main gradient 51 % wrong, and one absent part makes all of it NaN."""
    loss_fn, x, y, count = CASES[name]
    model = network()
    expected, loss, squares = truth(model, loss_fn, x, y, count)
    plain = torch.autograd.grad(loss_fn(model(x), y), list(model.parameters()))
    for settings in ({"mode": "exact"}, {"step": 1e-6}):
        model.zero_grad()
        reg = FisherTrace(model, beta=BETA, alpha=ALPHA, sub_batches=4, **settings)
        found = reg.backward(loss_fn, x, y)
        tolerance = {"rtol": 1e-9, "atol": 1e-11} if "mode" in settings else {"rtol": 1e-3, "atol": 1e-5}
        torch.testing.assert_close(flat(model), expected, **tolerance)
        assert float(found) == pytest.approx(loss, rel=1e-10) == float(loss_fn(model(x), y).detach())
        assert reg.last.trace == pytest.approx(squares, rel=1e-9) and reg.main_gradient == "auto"
    model.zero_grad()
    FisherTrace(model, beta=1e-14, sub_batches=4).backward(loss_fn, x, y)
    torch.testing.assert_close(flat(model), torch.cat([g.reshape(-1) for g in plain]), rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("name", ["class weights", "the first is absent", "tokens"])
def test_a_draw_of_weighted_sub_batches_is_unbiased(name):
    """The mean over the choices of one of four is the gradient with all four."""
    loss_fn, x, y, count = CASES[name]
    model = network()
    expected, _, _ = truth(model, loss_fn, x, y, count)
    reg = FisherTrace(model, beta=BETA, alpha=ALPHA, sub_batches=4, mode="exact", active=1)
    found = {}
    for _ in range(60):
        model.zero_grad()
        reg.backward(loss_fn, x, y)
        found[tuple(reg._chosen(4))] = None
        found[tuple(flat(model)[:2].tolist())] = flat(model)
    kept = [v for v in found.values() if v is not None]
    assert len(kept) == 4
    torch.testing.assert_close(torch.stack(kept).mean(0), expected, rtol=1e-8, atol=1e-10)


def test_float32_counts_are_found_to_rounding():
    _, x, y, _ = CASES["class weights"]
    model, x = network().float(), x.float()
    weighted = partial(cross_entropy, weight=WEIGHT.float())
    plain = torch.autograd.grad(weighted(model(x), y), list(model.parameters()))
    FisherTrace(model, beta=1e-12, sub_batches=8).backward(weighted, x, y)
    torch.testing.assert_close(flat(model), torch.cat([g.reshape(-1) for g in plain]), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("weighted", [False, True])
def test_a_part_without_labels_weighs_exactly_nothing_in_float32(weighted):
    """Its own loss is NaN: a weight of rounding would spread that to the whole gradient."""
    loss_fn = partial(cross_entropy, weight=WEIGHT.float()) if weighted else cross_entropy
    model = network().float()
    for seed in range(5):
        x = torch.randn(24, 6, generator=torch.Generator().manual_seed(seed))
        y = labels(24).index_fill(0, torch.arange(6, 12), -100)
        plain = torch.autograd.grad(loss_fn(model(x), y), list(model.parameters()))
        model.zero_grad()
        FisherTrace(model, beta=1e-12, sub_batches=4).backward(loss_fn, x, y)
        torch.testing.assert_close(flat(model), torch.cat([g.reshape(-1) for g in plain]), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("dtype", "ratio", "weight"),
    [
        (torch.float32, 1e-6, 0.0),  # rounding: nothing counts
        (torch.float32, -1e-6, 0.0),
        (torch.float32, 1e-4, 6e-4),  # a small weight is one
        (torch.float32, -1e-4, 0.0),  # and never negative
        (torch.float64, 1e-6, 6e-6),
        (torch.float64, 1e-11, 0.0),
        (torch.bfloat16, 5e-3, 0.0),
        (torch.bfloat16, 0.1, 0.6),
        (torch.float32, 4 / 6 * (1 + 5e-6), 4.0),  # samples are what counts
        (torch.float32, 4 / 6 * (1 - 5e-6), 4.0),
        (torch.float32, 4 / 6 * 1.001, 4.004),
        (torch.float64, 4 / 6 * (1 + 5e-6), 4.00002),
        (torch.float16, 4 / 6 * 1.001, 4.0),
    ],
)
def test_a_weight_is_exact_where_rounding_hides_what_it_is(dtype, ratio, weight):
    """Weight of a part of 4 samples from its ratio to one of 6, to what the outputs' dtype resolves."""
    reference, part = (Part(None, [torch.ones(1, dtype=dtype)], None, n, 1.0) for n in (6, 4))
    found = Counts._rounded(reference, part, ratio)
    assert found == weight if weight in (0.0, 4.0) else found == pytest.approx(weight, rel=1e-9)
    double = Part(None, [torch.ones(1, dtype=torch.float64)], None, 6, 1.0)
    assert Counts._rounded(double, part, ratio) == found, "the coarser of the two decides"


def test_nothing_counts_in_the_whole_batch():
    """What the loss itself says of it, and no weight becomes NaN by our doing."""
    model = network()
    y = torch.full((24,), -100)
    assert torch.isnan(FisherTrace(model, sub_batches=4).backward(cross_entropy, inputs(), y))
    model.zero_grad()
    assert float(FisherTrace(model, sub_batches=4).backward(masked_mean, inputs(), y)) == 0
    assert not flat(model).any()


def test_a_sample_that_is_nan_is_not_taken_for_an_absent_one():
    x = inputs()
    x[7] = torch.nan
    model = network()
    assert torch.isnan(FisherTrace(model, sub_batches=4).backward(cross_entropy, x, labels(24)))
    assert torch.isnan(flat(model)).any()


def contrastive(out: Tensor, y: Tensor) -> Tensor:
    similar = normalize(out, dim=1) @ normalize(out, dim=1).T
    return cross_entropy(similar, torch.arange(len(out)))


NOT_MEANS = {
    "sum": partial(cross_entropy, reduction="sum"),
    "root of a mean": lambda out, y: mse_loss(out[:, 0], y.double()).sqrt(),
    "contrastive": contrastive,
    "largest": lambda out, y: cross_entropy(out, y, reduction="none").max(),
}


@pytest.mark.parametrize("name", NOT_MEANS)
def test_a_loss_that_is_no_mean_falls_back_to_the_whole_batch_with_a_warning(name):
    """Once; the gradient of that very step is the batch's own already, and the choice is in the state."""
    model, loss_fn, x, y = network(), NOT_MEANS[name], inputs(), labels(24)
    plain = torch.cat([g.reshape(-1) for g in torch.autograd.grad(loss_fn(model(x), y), list(model.parameters()))])
    reg = FisherTrace(model, beta=1e-14, sub_batches=4)
    with pytest.warns(UserWarning, match=r"% off the gradient of the batch"):
        loss = reg.backward(loss_fn, x, y)
    torch.testing.assert_close(flat(model), plain, rtol=1e-9, atol=1e-11)
    assert float(loss) == pytest.approx(float(loss_fn(model(x), y).detach()))
    again = FisherTrace(model, beta=1e-14, sub_batches=4)
    again.load_state_dict(reg.state_dict())
    for one in (reg, again):
        model.zero_grad()
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            one.backward(loss_fn, x, y)
        torch.testing.assert_close(flat(model), plain, rtol=1e-9, atol=1e-11)


class Centred(nn.Module):
    """Couples the samples of a batch, and is no layer that anybody knows."""

    def forward(self, x: Tensor) -> Tensor:
        return x - x.mean(0) if self.training else x


def test_a_layer_that_couples_the_batch_is_noticed_in_training_mode():
    model = network()
    model.insert(1, Centred())
    x, y = inputs(), labels(24)
    plain = torch.autograd.grad(cross_entropy(model(x), y), list(model.parameters()))
    with pytest.warns(UserWarning, match="a layer couples them"):
        FisherTrace(model, beta=1e-14, sub_batches=4).backward(cross_entropy, x, y)
    torch.testing.assert_close(flat(model), torch.cat([g.reshape(-1) for g in plain]), rtol=1e-9, atol=1e-11)


@pytest.mark.filterwarnings("error")
def test_dropout_is_no_reason_to_warn_and_the_comparison_leaves_no_trace():
    """Every pass has other masks. Afterwards random numbers, modes, buffers and weights are as after one pass."""
    model = network()
    model.insert(2, nn.Dropout(0.5))
    model[0].eval()
    before, modes = copy.deepcopy(model.state_dict()), [m.training for m in model.modules()]
    x, y = inputs(), labels(24, masked=0.4)
    torch.manual_seed(3)
    for xi in x.tensor_split(4):
        model(xi)
    after = torch.get_rng_state()
    torch.manual_seed(3)
    reg = FisherTrace(model, sub_batches=4)
    reg.backward(cross_entropy, x, y)
    assert torch.equal(after, torch.get_rng_state()) and reg.main_gradient == "auto"
    assert modes == [m.training for m in model.modules()]
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


class Always(nn.Module):
    """Dropout that does not know of modes."""

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.dropout(x, 0.5)


@pytest.mark.filterwarnings("error")
def test_a_network_that_is_random_in_every_mode_is_judged_by_its_loss() -> None:
    model = network()
    model.insert(2, Always())
    weighted = partial(cross_entropy, weight=WEIGHT)
    reg = FisherTrace(model, sub_batches=4)
    reg.backward(weighted, inputs(), labels(24))
    assert reg.main_gradient == "auto"
    with pytest.warns(UserWarning, match="off the gradient of the batch"):
        FisherTrace(model, sub_batches=4).backward(NOT_MEANS["sum"], inputs(), labels(24))


class Half(nn.Module):
    """Outputs in 16 bits, as under autocast."""

    def forward(self, x: Tensor) -> Tensor:
        return x.bfloat16()


@pytest.mark.filterwarnings("error")
def test_outputs_in_sixteen_bits_say_their_weights_to_sixteen_bits() -> None:
    model = network().float()
    model.append(Half())

    def weighted(out: Tensor, y: Tensor) -> Tensor:
        return cross_entropy(out.float(), y, weight=WEIGHT.float())

    x, y = inputs().float(), labels(24)
    plain = torch.autograd.grad(weighted(model(x), y), list(model.parameters()))
    reg = FisherTrace(model, beta=1e-12, sub_batches=4)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("flatminima.optim.combination._APART", {})  # the passes are 16 bits wide at their end
        reg.backward(weighted, x, y)
    torch.testing.assert_close(flat(model), torch.cat([g.reshape(-1) for g in plain]), rtol=0.05, atol=0.01)
    assert reg.main_gradient == "auto"


class Returning(nn.Module):
    """A model that returns its loss, as those of transformers do."""

    def __init__(self) -> None:
        super().__init__()
        self.net = network()

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        return cross_entropy(self.net(batch["x"]), batch["y"])


def test_a_model_that_returns_its_loss_is_compared_or_told():
    model, x, y = Returning(), inputs(), masked_labels(slice(0, 6))
    plain = torch.autograd.grad(model({"x": x, "y": y}), list(model.parameters()))
    expected = torch.cat([g.reshape(-1) for g in plain])
    kept = labels(24)
    batch = {"x": x, "y": y}

    def count(part: dict[str, Tensor], _: object) -> float:
        return float((part["y"] >= 0).sum())

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        FisherTrace(model, beta=1e-14, sub_batches=4).backward(lambda loss, _: loss, batch, {}, count=count)
        torch.testing.assert_close(flat(model), expected, rtol=1e-9, atol=1e-11)
        reg = FisherTrace(model, beta=1e-14, sub_batches=4)
        reg.backward(lambda loss, _: loss, {"x": x, "y": kept}, {})  # nothing is masked yet
    partly = labels(24, masked=0.5)
    with pytest.warns(UserWarning, match="off the gradient of the batch"):
        reg.backward(lambda loss, _: loss, {"x": x, "y": partly}, {})


class Observer(nn.Module):
    """Counts batches in a buffer, written in place or replaced."""

    def __init__(self, *, replaced: bool) -> None:
        super().__init__()
        self.replaced = replaced
        self.register_buffer("n", torch.zeros((), dtype=torch.long))
        self.register_buffer("last", None)

    def forward(self, x: Tensor) -> Tensor:
        if self.replaced:
            self.n, self.last = self.n + 1, x.detach().mean(0)
        else:
            self.n.add_(1)
        return x


@pytest.mark.parametrize("main_gradient", ["auto", "batch"])
@pytest.mark.parametrize("kind", ["spectral norm", "observer", "replaced"])
def test_buffers_move_as_one_pass_over_the_batch_moves_them(kind, main_gradient):
    """FisherTrace passes 2 M times, SAM twice; both passes of a difference start from the same buffers."""
    model = network()
    model = nn.Sequential(spectral_norm(model[0]), model[1], model[2]) if kind == "spectral norm" else model
    if kind != "spectral norm":
        model.insert(1, Observer(replaced=kind == "replaced"))
    x, y = inputs(), labels(24)
    twin, start = copy.deepcopy(model), copy.deepcopy(model)
    cross_entropy(twin(x), y).backward()
    reg = FisherTrace(model, beta=1.0, alpha=ALPHA, sub_batches=4, step=1e-4, main_gradient=main_gradient)
    reg.backward(cross_entropy, x, y)
    begin = twin if main_gradient == "batch" else start  # the pass over the batch comes first
    expected = flat(twin).clone()
    for xi, yi in zip(x.tensor_split(4), y.tensor_split(4), strict=True):
        here, there = copy.deepcopy(begin), copy.deepcopy(begin)
        here.zero_grad(), there.zero_grad()
        cross_entropy(here(xi), yi).backward()
        g = flat(here)
        with torch.no_grad():
            for p, q in zip(there.parameters(), here.parameters(), strict=True):
                p -= 1e-4 / g.norm() * q.grad
        cross_entropy(there(xi), yi).backward()
        expected += ALPHA / 4 * (g - flat(there)) * g.norm() / 1e-4
    torch.testing.assert_close(flat(model), expected, rtol=1e-8, atol=1e-10)

    def equal(a: nn.Module) -> bool:
        theirs = dict(twin.named_buffers())
        return theirs.keys() == dict(a.named_buffers()).keys() and all(
            torch.equal(v, theirs[k]) for k, v in a.named_buffers()
        )

    assert equal(model)
    sam = copy.deepcopy(twin)
    opt = SAM(torch.optim.SGD(sam.parameters(), 0.0), rho=0.5, model=sam)

    def closure() -> Tensor:
        opt.zero_grad()
        loss = cross_entropy(sam(x), y)
        loss.backward()
        return loss

    opt.step(closure)
    cross_entropy(twin(x), y)
    assert equal(sam)


@pytest.mark.parametrize("kind", ["FSDP1", "FSDP2"])
@pytest.mark.filterwarnings("ignore:FSDP is switching to use:UserWarning")
def test_weights_in_shards_are_refused_in_one_line(kind, tmp_path):
    """torch's own error comes in the middle of a displacement."""
    from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard

    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        model = network().float()
        try:
            sharded = fully_shard(model) if kind == "FSDP2" else FullyShardedDataParallel(model, device_id="cpu")
        except (RuntimeError, ValueError, AssertionError) as error:
            pytest.skip(f"torch does not shard here: {error}")
        reg = FisherTrace(sharded)
        for call in (reg.backward, reg.error):
            with pytest.raises(UsageError, match=r"cut them into shards: use DistributedDataParallel") as raised:
                call(cross_entropy, inputs().float(), labels(24))
            assert "\n" not in str(raised.value)
    finally:
        dist.destroy_process_group()
