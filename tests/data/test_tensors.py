"""Scaling against numpy in float64, and against the statistics everybody quotes for MNIST and CIFAR-10."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from flatminima.data import LabelledData, Normalisation, load, load_tensors, normalise
from flatminima.errors import DataError, UnknownName


def pictures(n: int, channels: int, seed: int = 0) -> LabelledData:
    values = np.random.RandomState(seed).randint(0, 256, (n, channels, 5, 3), dtype=np.uint8)
    return LabelledData(torch.from_numpy(values), torch.zeros(n, dtype=torch.int64))


@pytest.mark.parametrize(("n", "channels"), [(1, 1), (7, 3), (5000, 2)])
def test_statistics_are_numpys_over_all_chunks(n: int, channels: int) -> None:
    """Would catch a mean of chunk means: 5000 samples are a chunk of 4096 and one of 904."""
    data = pictures(n, channels)
    pixels = data.inputs.numpy() / 255
    found = Normalisation.of(data)
    assert np.allclose(found.mean, pixels.mean((0, 2, 3)), rtol=1e-12)
    assert np.allclose(found.std, pixels.std((0, 2, 3)), rtol=1e-10)
    truth = (pixels - pixels.mean((0, 2, 3), keepdims=True)) / pixels.std((0, 2, 3), keepdims=True)
    assert np.allclose(found(data).numpy(), truth, atol=1e-5)
    assert found(data).dtype == torch.float32


def test_train_statistics_serve_the_test_split_and_survive_json() -> None:
    train, test = pictures(9, 3, seed=1), pictures(4, 3, seed=2)
    recorded = Normalisation.of(train)
    again = Normalisation.from_dict(json.loads(json.dumps(recorded.to_dict())))
    assert again == recorded and hash(again) == hash(recorded)
    assert normalise(test, *dataclasses.astuple(recorded)).equal(again(test))
    assert not again(test).allclose(normalise(test))


def test_scaling_leaves_the_stored_data_alone() -> None:
    """Would catch in-place arithmetic on float inputs, where no copy is made by the conversion."""
    data = LabelledData(torch.rand(4, 2, 3, 3), torch.zeros(4, dtype=torch.int64), full_scale=1.0)
    before = data.inputs.clone()
    normalise(data)
    assert data.inputs.equal(before)


def test_a_constant_channel_is_centred_not_divided_by_zero() -> None:
    data = LabelledData(torch.full((3, 1, 2, 2), 51, dtype=torch.uint8), torch.zeros(3, dtype=torch.int64))
    assert Normalisation.of(data) == Normalisation((0.2,), (1.0,))
    assert normalise(data).abs().max() < 1e-7


@pytest.mark.parametrize(
    "call",
    [
        lambda: normalise(pictures(2, 1), (0.5,)),
        lambda: normalise(pictures(2, 3), (0.5,), (0.5,)),
        lambda: Normalisation((0.5,), (0.0,)),
        lambda: Normalisation((0.5, 0.5), (1.0,)),
        lambda: Normalisation.from_dict({"mean": [0.5]}),
        lambda: Normalisation.from_dict({"mean": [0.5], "std": ["wide"]}),
    ],
)
def test_normalisations_that_do_not_fit(call: object) -> None:
    with pytest.raises(DataError):
        call()  # type: ignore[operator]


def test_load_tensors_scales_by_the_convention_asked_for() -> None:
    x, y = load_tensors("digits", "test", limit=50)
    assert x.dtype == torch.float32 and y.dtype == torch.int64 and len(x) == len(y) == 50
    assert x.mul(16).equal(load("digits", "test", limit=50).inputs.float())
    standard, _ = load_tensors("digits", "test", limit=50, scaling="standard")
    recorded = Normalisation.of(load("digits"))
    assert standard.equal(load_tensors("digits", "test", limit=50, scaling=recorded)[0])
    whole, _ = load_tensors("digits", scaling="standard")
    assert abs(float(whole.mean())) < 1e-5 and abs(float(whole.std(correction=0)) - 1) < 1e-5
    with pytest.raises(UnknownName, match="did you mean 'standard'"):
        load_tensors("digits", scaling="standart")


def test_real_statistics_are_the_published_ones(shared: Path) -> None:
    """0.1307 and 0.3081 of PyTorch's MNIST example; 0.4914, 0.4822, 0.4465 of CIFAR-10."""
    mnist = Normalisation.of(load(shared / "mnist"))
    assert [round(number, 4) for number in (*mnist.mean, *mnist.std)] == [0.1307, 0.3081]
    cifar = Normalisation.of(load(shared / "cifar10", limit=10_000))
    assert np.allclose(cifar.mean, (0.4914, 0.4822, 0.4465), atol=0.003)
