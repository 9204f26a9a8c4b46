"""Every network: parameters against published or hand-derived counts, shapes, gradients, initial weights."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from flatminima import models
from flatminima.errors import ModelError, UnknownName, UsageError


def count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def wide_count(depth: int, width: int) -> int:
    """WRN-d-k with batch norm and projections where the shape changes, summed by hand for 10 classes."""
    total, before = 3 * 16 * 9, 16
    for stage in range(3):
        channels = 16 * width * 2**stage
        for block in range((depth - 4) // 6):
            total += 2 * before + 9 * before * channels + 2 * channels + 9 * channels * channels
            total += before * channels if block == 0 and (stage or before != channels) else 0
            before = channels
    return total + 2 * before + (before + 1) * 10


def dense_count(depth: int, growth: int) -> int:
    """DenseNet-BC of three blocks, summed by hand for 10 classes."""
    channels = 2 * growth
    total = 27 * channels
    for block in range(3):
        for _ in range((depth - 4) // 6):
            total += 2 * channels + 4 * growth * channels + 8 * growth + 36 * growth * growth
            channels += growth
        if block < 2:
            total += 2 * channels + channels * (channels // 2)
            channels //= 2
    return total + 2 * channels + (channels + 1) * 10


COUNTS: list[tuple[str, Callable[[], nn.Module], int]] = [
    ("PyTorch's MNIST example of 2018", models.mnist_cnn, 21_840),
    ("by hand: 785 x 512 + 513 x 512 + 513 x 10", models.mlp, 669_706),
    ("He et al. 2016, table 6: 0.27M", models.resnet20, 272_282),
    ("the same network by its other name", lambda: models.wide_resnet(22, 1), 272_282),
    ("MixMatch, Zagoruyko: 1.5M", models.wide_resnet, 1_467_610),
    ("by hand", lambda: models.wide_resnet(58, 3), wide_count(58, 3)),
    ("Zagoruyko table 4: 8.9M", lambda: models.wide_resnet(16, 8), wide_count(16, 8)),
    ("Huang: 0.8M", models.densenet, 769_162),
    ("by hand", lambda: models.densenet(depth=40, growth=24), dense_count(40, 24)),
    (
        "by hand",
        models.vgg,
        9 * (3 * 64 + 64 * 64 + 64 * 128 + 128**2 + 128 * 256 + 256**2 + 256 * 512 + 512**2)
        + 2 * 2 * (64 + 128 + 256 + 512)
        + 513 * 512
        + 513 * 10,
    ),
    (
        "by hand",
        models.plain_cnn,
        9 * (3 * 64 + 64 * 64 + 64 * 128 + 128**2) + 4 * (64 + 128) + (128 * 64 + 1) * 256 + 257 * 10,
    ),
    (
        "J20 app. E by hand",
        models.six_layer_cnn,
        9 * (3 * 64 + 64**2 + 64 * 128 + 128**2 + 128 * 192 + 192**2) + 2 * (64 + 128 + 192) + 193 * 10,
    ),
    ("by hand", models.mnist_fcn, 785 * 600 + 2 * 601 * 600 + 601 * 10),
    ("PyTorch's MNIST example: 1,199,882", models.mnist_cnn4, 1_199_882),
    ("by hand: 215k", models.small_cnn, 26 * 16 + (25 * 16 + 1) * 32 + 1569 * 128 + 129 * 10),
    ("by hand", models.random_features, 25 * 32 + 25 * 32 * 128 + 9 * 128 * 10),
    ("20 * 5 * 5 inputs to fc1", lambda: models.mnist_cnn(channels=3, image_size=32), 760 + 5020 + 25_050 + 510),
]


@pytest.mark.parametrize(("source", "build", "expected"), COUNTS)
def test_parameter_counts(source: str, build: Callable[[], nn.Module], expected: int) -> None:
    with torch.device("meta"):  # shapes only: WRN-16-8 is 11 million numbers
        assert count(build()) == expected, source


def test_hand_formulas_agree_with_the_published_counts() -> None:
    assert wide_count(28, 2) == 1_467_610 and dense_count(100, 12) == 769_162


SMALL: list[tuple[str, dict[str, object], tuple[int, ...]]] = [
    ("mlp", {"widths": (12, 7, 5), "activation": "tanh"}, (2, 1, 6)),
    ("mlp", {"widths": [6, 3], "bias": False}, (6,)),
    ("mnist_cnn", {"classes": 5}, (1, 28, 28)),
    ("mnist_cnn", {"dropout": 0.5, "image_size": 16}, (1, 16, 16)),
    ("resnet20", {"depth": 8, "classes": 5}, (3, 16, 16)),
    ("resnet20", {"depth": 8, "norm": "group", "activation": "gelu"}, (3, 16, 12)),
    ("resnet20", {"norm": "none", "channels": 1}, (1, 16, 16)),
    ("wide_resnet", {"depth": 10, "width": 2, "dropout": 0.3}, (3, 16, 16)),
    ("vgg", {"dropout": 0.5, "classes": 5}, (3, 32, 32)),
    ("vgg", {"norm": "none"}, (3, 32, 32)),
    ("vgg", {"width": 8}, (3, 16, 16)),
    ("mnist_fcn", {"width": 8, "dropout": 0.2}, (1, 28, 28)),
    ("mnist_cnn4", {"dropout": 0.2, "image_size": 9}, (1, 9, 9)),
    ("small_cnn", {"norm": "batch", "dropout": 0.2}, (1, 28, 28)),
    ("plain_cnn", {"width": 8, "image_size": 18, "dropout": 0.1}, (3, 18, 18)),
    ("six_layer_cnn", {"width": 4, "image_size": 10}, (3, 10, 10)),
    ("densenet", {"depth": 10, "growth": 4}, (3, 16, 16)),
    ("densenet", {"depth": 16, "growth": 12, "norm": "group"}, (3, 16, 16)),
]


@pytest.mark.parametrize(("name", "options", "shape"), SMALL)
def test_logits_and_gradients_are_finite(name: str, options: dict[str, object], shape: tuple[int, ...]) -> None:
    """Would catch a layer that the forward pass leaves out: its gradient would be None."""
    model = models.build(name, seed=0, **options)
    generator = torch.Generator().manual_seed(1)
    logits = model(torch.rand(3, *shape, generator=generator))
    cross_entropy(logits, torch.tensor([0, 1, 2])).backward()
    assert logits.shape[0] == 3 and logits.ndim == 2 and bool(logits.isfinite().all())
    assert logits.abs().max() < 30  # an untrained network is not already certain
    for parameter_name, parameter in model.named_parameters():
        assert parameter.grad is not None, parameter_name
        assert bool(parameter.grad.isfinite().all()) and float(parameter.grad.abs().sum()) > 0, parameter_name


GREY = ("mlp", "mnist_cnn", "mnist_cnn4", "mnist_fcn", "random_features", "small_cnn")


def test_every_network_is_listed_and_runs_with_its_defaults() -> None:
    assert models.__all__ == sorted(models.__all__)
    assert set(models.MODELS) == set(models.__all__) - {"MODELS", "build"}
    for name, factory in models.MODELS.items():
        shape = (2, 1, 28, 28) if name in GREY else (2, 3, 32, 32)
        with torch.device("meta"):
            assert factory()(torch.empty(shape)).shape == (2, 10), name


def test_mnist_cnn_keeps_the_examples_names() -> None:
    """Checkpoints of PyTorch's example load: names and shapes as in its 2018 source."""
    shapes = {name: tuple(value.shape) for name, value in models.mnist_cnn(dropout=0.5).state_dict().items()}
    assert shapes == {
        "conv1.weight": (10, 1, 5, 5),
        "conv1.bias": (10,),
        "conv2.weight": (20, 10, 5, 5),
        "conv2.bias": (20,),
        "fc1.weight": (50, 320),
        "fc1.bias": (50,),
        "fc2.weight": (10, 50),
        "fc2.bias": (10,),
    }


def test_initial_convolutions_are_hes() -> None:
    """Variance 2 / (9 * outputs); 32 channels in and 64 out tell fan in from fan out."""
    weight = models.build("resnet20", seed=0).body[6].conv1.weight.detach().double()  # type: ignore[index,union-attr]
    assert weight.shape == (64, 32, 3, 3)
    expected = 2 / (9 * 64)
    assert abs(float(weight.square().mean()) - expected) < 4 * expected * math.sqrt(2 / weight.numel())


def test_without_norm_the_signal_keeps_its_size() -> None:
    """Would catch branches at full size, whose variance doubles with each of the 27 blocks."""
    model = models.build("resnet20", seed=0, depth=56, norm="none")
    x = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        before = model.stem(x)  # type: ignore[operator]
        after = model.body(before)  # type: ignore[operator]
    assert 1 / 3 < float(after.std() / before.std()) < 3


def test_a_narrow_vgg_has_every_layer_narrow() -> None:
    wide, narrow = (models.build("vgg", seed=0, width=width) for width in (64, 8))
    shapes = [[tuple(p.shape) for p in model.parameters()] for model in (wide, narrow)]
    for of_wide, of_narrow in zip(*shapes, strict=True):
        fixed = (3, 10)  # colours and classes; a kernel's side is 3, too
        assert of_narrow == tuple(n if n in fixed else n // 8 for n in of_wide)
    default = models.build("vgg", seed=0)
    assert [tuple(p.shape) for p in default.parameters()] == shapes[0], "64 is the paper's"


def test_vgg_pools_four_times_before_its_average() -> None:
    """Neither the parameter count nor the output shape tells how often."""
    seen: list[tuple[int, ...]] = []
    model = models.build("vgg", seed=0)
    average = next(module for module in model.modules() if isinstance(module, nn.AdaptiveAvgPool2d))
    average.register_forward_pre_hook(lambda _, inputs: seen.append(tuple(inputs[0].shape)))
    with torch.no_grad():
        model(torch.rand(2, 3, 32, 32))
    assert seen == [(2, 512, 2, 2)]


def test_a_block_is_the_identity_plus_a_branch() -> None:
    """Would catch a shortcut taken after the activation where the shape stays: x is negative here."""
    model = models.build("resnet20", seed=0, depth=8)
    block = model.body[0]  # type: ignore[index,union-attr]
    nn.init.zeros_(block.conv2.weight)
    x = -torch.rand(2, 16, 5, 5)
    assert block(x).equal(x)


def test_a_seed_gives_the_weights_and_leaves_the_global_stream() -> None:
    before = torch.get_rng_state()
    one, two, other = (models.build("mlp", seed=seed, widths=(4, 3)) for seed in (0, 0, 1))
    assert torch.get_rng_state().equal(before)
    assert one[1].weight.equal(two[1].weight) and not one[1].weight.equal(other[1].weight)  # type: ignore[index]
    models.build("mlp", widths=(4, 3))
    assert not torch.get_rng_state().equal(before)


@pytest.mark.parametrize(
    ("name", "options", "match"),
    [
        ("resnet21", {}, "did you mean 'resnet20'"),
        ("mlp", {"width": 3}, "no option 'width': it takes widths, activation, bias"),
        ("mlp", {"widths": (3,)}, "widths="),
        ("mlp", {"activation": "rellu"}, "did you mean 'relu'"),
        ("resnet20", {"depth": 21}, "6 b \\+ 2"),
        ("resnet20", {"norm": "layer"}, "unknown norm"),
        ("wide_resnet", {"depth": 20}, "6 b \\+ 4"),
        ("wide_resnet", {"width": 0}, "width=0"),
        ("densenet", {"depth": 20}, "6 b \\+ 4"),
        ("mnist_cnn", {"image_size": 15}, "at least 16"),
        ("mnist_cnn", {"dropout": 1.0}, "dropout=1.0"),
        ("plain_cnn", {"image_size": 3}, "image_size=3"),
        ("six_layer_cnn", {"image_size": 3}, "image_size=3"),
    ],
)
def test_options_that_do_not_fit(name: str, options: dict[str, object], match: str) -> None:
    with pytest.raises(UsageError, match=match) as caught:
        models.build(name, **options)
    assert isinstance(caught.value, ModelError | UnknownName)


def test_random_features_have_unit_length_and_a_silent_head() -> None:
    model = models.build("random_features", seed=0, widths=(4, 6))
    x = torch.rand(5, 1, 28, 28)
    assert model[:-1](x).shape == (5, 54)
    assert torch.allclose(model[:-1](x).norm(dim=1), torch.ones(5))
    assert torch.equal(model(x), torch.zeros(5, 10))
    with pytest.raises(ModelError, match="at least 12"):
        models.random_features(image_size=11)
