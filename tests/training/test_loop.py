"""Training against steps written out by hand, and the promises about seeds, modes and stopping."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from flatminima.data import load_tensors, random_flip
from flatminima.errors import DataError, NumericalError, UnknownName, UsageError
from flatminima.models import build
from flatminima.training import TrainConfig, evaluate, train
from flatminima.training.schedule import Plateau, constant, cosine, step
from flatminima.training.steps import batch_sizes


def blobs(n: int = 60, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Three Gaussian classes in the plane, well apart."""
    generator = torch.Generator().manual_seed(seed)
    targets = torch.arange(n) % 3
    centres = torch.tensor([[3.0, 0.0], [-3.0, 0.0], [0.0, 3.0]])
    return centres[targets] + torch.randn(n, 2, generator=generator), targets


def small(seed: int = 0, dropout: float = 0.0) -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(2, 8), nn.ReLU(), nn.Dropout(dropout), nn.Linear(8, 3))


def weights(model: nn.Module) -> Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


def test_full_batch_sgd_is_gradient_descent_by_hand() -> None:
    """Would catch momentum, weight decay or the schedule going somewhere else; written out in six lines."""
    x, y = blobs()
    config = TrainConfig(
        lr=0.1, momentum=0.9, weight_decay=0.01, batch_size=60, epochs=4, schedule="step", milestones=(2,)
    )
    trained, manual = small(), small()
    history = train(trained, x, y, config=config)
    velocity = [torch.zeros_like(parameter) for parameter in manual.parameters()]
    for epoch in range(4):
        gradients = torch.autograd.grad(cross_entropy(manual(x), y), list(manual.parameters()))
        for parameter, gradient, speed in zip(manual.parameters(), gradients, velocity, strict=True):
            speed.mul_(0.9).add_(gradient + 0.01 * parameter.detach())
            parameter.data -= (0.1 if epoch < 2 else 0.01) * speed
    assert torch.allclose(weights(trained), weights(manual), atol=1e-6)
    assert history.steps == 4 and history.stopped_because == "epochs"
    assert [entry.lr for entry in history.epochs] == pytest.approx([0.1, 0.1, 0.01, 0.01])


def test_training_fits_and_the_history_is_that_of_the_final_weights() -> None:
    x, y = load_tensors("digits", limit=300)
    model = build("mlp", seed=0, widths=(64, 32, 10))
    history = train(model, x, y, config=TrainConfig(optimizer="adam", lr=0.01, epochs=15, batch_size=32))
    assert history.final.error < 0.02
    assert history.final == evaluate(model, x, y)
    assert history.epochs[-1].loss < history.epochs[0].loss / 5
    assert all(entry.seconds > 0 for entry in history.epochs)
    assert json.loads(json.dumps(history.to_dict()))["stopped_because"] == "epochs"


def test_a_seed_decides_everything_and_the_global_stream_is_left_alone() -> None:
    """Dropout and augmentation included; would catch a draw from torch's global state."""
    x, y = blobs()

    def run(seed: int, junk: int) -> Tensor:
        torch.manual_seed(junk)
        before = torch.get_rng_state()
        model = small(dropout=0.3)
        train(
            model,
            x,
            y,
            config=TrainConfig(epochs=3, batch_size=16, seed=seed),
            augment=lambda batch, generator: batch + 0.1 * torch.randn(batch.shape, generator=generator),
        )
        assert torch.get_rng_state().equal(before)
        return weights(model)

    assert run(1, junk=5).equal(run(1, junk=6))
    assert not run(1, junk=5).equal(run(2, junk=5))
    assert not run(0, junk=5).equal(run(2**32, junk=5))  # the generator alone would not tell these apart


def test_every_sample_is_seen_once_an_epoch_in_another_order() -> None:
    seen: list[Tensor] = []

    def spy(batch: Tensor, _: torch.Generator) -> Tensor:
        seen.append(batch[:, 0].clone())
        return batch

    x = torch.arange(20.0).view(20, 1).repeat(1, 2) / 20
    train(small(), x, torch.arange(20) % 3, config=TrainConfig(epochs=2, batch_size=8), augment=spy)
    assert [len(batch) for batch in seen] == [8, 8, 4] * 2
    first, second = torch.cat(seen[:3]), torch.cat(seen[3:])
    assert first.sort().values.equal(x[:, 0]) and second.sort().values.equal(x[:, 0])
    assert not first.equal(second)


@pytest.mark.parametrize(
    ("n", "size", "expected"),
    [(9, 4, [4, 5]), (8, 4, [4, 4]), (1, 4, [1]), (3, 1, [1, 1, 1]), (6, 4, [4, 2]), (3, 8, [3])],
)
def test_no_batch_of_one_is_left_for_batchnorm(n: int, size: int, expected: list[int]) -> None:
    assert batch_sizes(n, size) == expected


def test_it_stops_once_the_whole_sets_loss_is_below_the_target() -> None:
    x, y = blobs(n=30)
    model = small(dropout=0.2)
    history = train(model, x, y, config=TrainConfig(lr=0.1, epochs=200, batch_size=10, target_loss=0.05))
    assert history.stopped_because == "target_loss" and len(history.epochs) < 200
    assert history.final.loss < 0.05 <= history.epochs[-2].loss
    assert history.epochs[-1].loss == history.final.loss == evaluate(model, x, y).loss


def test_a_look_within_an_epoch_stops_nearer_the_target() -> None:
    x, y = blobs(n=120)
    config = TrainConfig(lr=0.02, epochs=50, batch_size=2, target_loss=0.3)
    coarse, fine = small(), small()
    late = train(coarse, x, y, config=config)
    early = train(fine, x, y, config=replace(config, look_every=3))
    assert early.stopped_because == "target_loss" and early.steps % 3 == 0 and early.steps < late.steps
    assert late.final.loss < early.final.loss < 0.3
    assert early.epochs[-1].loss == evaluate(fine, x, y).loss


def test_a_step_in_bfloat16_is_that_of_float32_to_eight_bits() -> None:
    x, y = blobs(n=60)
    start, exact, half = small(), small(), small()
    config = TrainConfig(lr=0.1, epochs=1, batch_size=60)
    train(exact, x, y, config=config)
    train(half, x, y, config=replace(config, precision="bfloat16"))
    assert all(p.dtype == torch.float32 for p in half.parameters())
    whole, rounded = weights(exact) - weights(start), weights(half) - weights(start)
    assert 0 < float((rounded - whole).norm() / whole.norm()) < 4 * 2**-8  # some of four products round alike


def test_differences_are_not_taken_in_bfloat16() -> None:
    x, y = blobs()
    with pytest.raises(UsageError, match=r"precision=bfloat16.*float32"):
        train(small(), x, y, config=TrainConfig(precision="bfloat16"), backward=lambda loss, a, b: loss(a, b))


def test_divergence_names_the_step() -> None:
    x, y = blobs()
    model = small()
    model.eval()
    with pytest.raises(NumericalError, match=r"diverged at step \d+ \(epoch \d+\).*learning rate 1e\+30"):
        train(model, x, y, config=TrainConfig(lr=1e30, epochs=5, batch_size=10))
    assert not model.training  # restored on exceptions too


def test_modes_and_rates_are_restored_and_hooks_are_called() -> None:
    x, y = blobs()
    model = nn.Sequential(nn.Linear(2, 4), nn.BatchNorm1d(4), nn.Linear(4, 3))
    model[1].eval()
    frozen = model[1].running_mean
    assert isinstance(frozen, Tensor)
    before = frozen.clone()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.2)
    epochs: list[int] = []
    progress: list[tuple[int, int]] = []
    train(
        model,
        x,
        y,
        config=TrainConfig(epochs=2, batch_size=30, schedule="cosine"),
        optimizer=optimizer,
        on_epoch=lambda epoch, _: epochs.append(epoch),
        progress=lambda done, total, text: progress.append((done, total)),
    )
    assert [module.training for module in model] == [True, False, True]
    assert frozen.equal(before)  # a frozen BatchNorm stays frozen while its neighbours train
    assert optimizer.param_groups[0]["lr"] == 0.2
    assert epochs == [0, 1] and progress == [(1, 4), (2, 4), (3, 4), (4, 4)]


def test_an_optimizer_may_call_the_closure_twice() -> None:
    """As SAM does: the history counts each sample once, at the weights themselves and not the perturbed ones."""

    class Twice(torch.optim.SGD):
        def step(self, closure=None):  # type: ignore[no-untyped-def,override]
            assert closure is not None
            loss = closure()
            parameters = self.param_groups[0]["params"]
            backup = [parameter.detach().clone() for parameter in parameters]
            for parameter in parameters:
                parameter.data.mul_(-3)
            closure()
            for parameter, value in zip(parameters, backup, strict=True):
                parameter.data.copy_(value)
            super().step()
            return loss

    x, y = blobs()
    model = small()
    at_rest = evaluate(model, x, y)
    config = TrainConfig(epochs=1, batch_size=20)
    history = train(model, x, y, config=config, optimizer=Twice(model.parameters(), lr=0.0))
    assert history.steps == 3
    assert history.epochs[0].loss == pytest.approx(at_rest.loss, rel=1e-6)
    assert history.epochs[0].error == pytest.approx(at_rest.error)


def test_backward_may_be_replaced() -> None:
    """The calling convention of optim.FisherTrace.backward; here it does what the loop does itself."""
    x, y = blobs()
    model, plain = small(), small()

    def backward(loss_fn, inputs, targets):  # type: ignore[no-untyped-def]
        loss = loss_fn(model(inputs), targets)
        loss.backward()
        return loss

    config = TrainConfig(epochs=2, batch_size=20)
    history = train(model, x, y, config=config, backward=backward)
    train(plain, x, y, config=config)
    assert weights(model).equal(weights(plain))
    assert history.epochs[-1].error == history.final.error


def test_augmentation_reaches_the_images() -> None:
    x, y = load_tensors("digits", limit=64)
    with_flips, without = (build("mlp", seed=0, widths=(64, 10)) for _ in range(2))
    train(with_flips, x, y, config=TrainConfig(epochs=1), augment=random_flip)
    train(without, x, y, config=TrainConfig(epochs=1))
    assert not weights(with_flips).equal(weights(without))


def test_evaluate_weighs_samples_not_batches() -> None:
    """Against the definition in float64; batches of 4 and 3 have other means than the whole."""
    x, y = blobs(n=7)
    model = small().double()
    logits = model(x.double()).detach()
    truth = -(logits.log_softmax(1)[torch.arange(7), y]).mean()
    for batch_size in (1, 4, 7, 100):
        found = evaluate(model, x.double(), y, batch_size)
        assert found.loss == pytest.approx(float(truth), rel=1e-12)
        assert found.error == float((logits.argmax(1) != y).double().mean()) and found.n == 7


def test_evaluate_uses_eval_mode_and_restores_the_modes() -> None:
    x, y = blobs()
    model = small(dropout=0.5)
    model[0].eval()
    assert evaluate(model, x, y) == evaluate(model, x, y)
    assert [module.training for module in model] == [False, True, True, True] and model.training

    def fail(*_: object) -> None:
        raise RuntimeError("inside")

    model[1].register_forward_hook(fail)
    with pytest.raises(RuntimeError, match="inside"):
        evaluate(model, x, y)
    assert model.training and model[3].training


def test_samples_that_do_not_fit() -> None:
    x, y = blobs(n=6)
    model = small()
    with pytest.raises(DataError, match="no samples"):
        train(model, x[:0], y[:0])
    with pytest.raises(DataError, match="scale them to floats"):
        train(model, x.to(torch.uint8), y)
    with pytest.raises(DataError, match=r"targets of shape \(6,\)"):
        evaluate(model, x, y[:5])
    with pytest.raises(DataError, match="sample 5 has the label -1"):
        evaluate(model, x, torch.tensor([0, 1, 2, 0, 1, -1]))
    with pytest.raises(DataError, match="label is 7 but the model has 3 outputs"):
        train(model, x, torch.tensor([0, 1, 2, 0, 1, 7]))
    with pytest.raises(NumericalError, match="nan"):
        evaluate(model, x * math.nan, y)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"lr": 0.0}, "lr=0.0: must be positive"),
        ({"lr": math.nan}, "lr=nan"),
        ({"momentum": 1.0}, "momentum"),
        ({"weight_decay": -1.0}, "weight_decay"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"epochs": 0}, "epochs=0"),
        ({"target_loss": 0.0}, "target_loss"),
        ({"look_every": 0}, "look_every"),
        ({"precision": "float16"}, "precision"),
        ({"seed": -1}, "seed=-1"),
    ],
)
def test_configurations_out_of_range(options: dict[str, float], match: str) -> None:
    with pytest.raises(UsageError, match=match):
        TrainConfig(**options)  # type: ignore[arg-type]


def test_configurations_compare_by_value() -> None:
    assert TrainConfig(milestones=[1, 2]) == TrainConfig(milestones=(1, 2))  # type: ignore[arg-type]
    assert hash(TrainConfig(seed=1)) != hash(TrainConfig(seed=2))
    with pytest.raises(UnknownName, match="optimizer"):
        TrainConfig(optimizer="sdg")
    with pytest.raises(UnknownName, match="schedule"):
        TrainConfig(schedule="linear")


@pytest.mark.parametrize("patience", [0, 1, 3])
def test_a_plateau_drops_where_torchs_does(patience: int) -> None:
    weight = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([weight], lr=1.0)
    theirs = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, factor=0.5, patience=patience, eps=0.0)
    ours = Plateau(patience)
    for loss in (torch.rand(60, generator=torch.Generator().manual_seed(0)) + torch.linspace(2, 0, 60)).tolist():
        ours.see(loss)
        theirs.step(loss)
        assert 0.5**ours.drops == optimizer.param_groups[0]["lr"]
    assert ours.drops > 1


def test_a_target_that_is_never_reached_changes_no_rate_of_a_plateau() -> None:
    """The loss in eval mode, which a target looks at, is another one where there is BatchNorm."""
    x, y = torch.rand(60, 1, 8, 8, generator=torch.Generator().manual_seed(0)), torch.arange(60) % 10
    options = {"epochs": 25, "batch_size": 20, "lr": 0.5, "schedule": "plateau", "patience": 0, "gamma": 0.7}
    rates, eval_losses = [], []
    for target in (None, 1e-9):
        model = build("small_cnn", seed=0, channels=1, image_size=8, width=4, norm="batch")
        history = train(model, x, y, config=TrainConfig(target_loss=target, **options))  # type: ignore[arg-type]
        rates.append([epoch.lr for epoch in history.epochs])
        eval_losses = [epoch.loss for epoch in history.epochs]
    assert rates[0] == rates[1] and rates[0][-1] < 0.5
    other = Plateau(0)
    drops = []
    for loss in eval_losses:
        drops.append(other.drops)
        other.see(loss)
    assert [0.5 * 0.7**k for k in drops] != pytest.approx(rates[1])  # so that the two losses do differ here


def test_channels_last_trains_the_same_network_to_rounding_and_leaves_plain_strides() -> None:
    x, y = torch.rand(40, 1, 16, 16, generator=torch.Generator().manual_seed(0)), torch.arange(40) % 10
    found = []
    for channels_last in (False, True):
        model = build("mnist_cnn", seed=0, image_size=16)
        train(model, x, y, config=TrainConfig(epochs=2, batch_size=16, channels_last=channels_last))
        assert all(p.is_contiguous() for p in model.parameters())
        found.append(torch.cat([p.detach().reshape(-1) for p in model.parameters()]))
    torch.testing.assert_close(found[0], found[1], rtol=1e-3, atol=1e-5)
    with pytest.raises(DataError, match="channels_last"):
        train(build("mlp", seed=0, widths=(4, 2)), torch.ones(4, 4), y[:4], config=TrainConfig(channels_last=True))


def test_schedules() -> None:
    assert [constant(epoch) for epoch in (0, 99)] == [1, 1]
    assert [step(epoch, (100, 150), 0.1) for epoch in (0, 99, 100, 149, 150)] == pytest.approx([1, 1, 0.1, 0.1, 0.01])
    assert [cosine(epoch, 4) for epoch in range(5)] == pytest.approx(
        [1, 0.5 + 0.5**1.5, 0.5, 0.5 - 0.5**1.5, 0], abs=1e-12
    )
    assert TrainConfig(lr=0.2, epochs=4, schedule="cosine").rate(2) == pytest.approx(0.1)
