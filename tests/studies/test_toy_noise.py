"""The toy under noise: means over boxes, boundaries and smoothing, against closed forms."""

import math

import pytest
import torch

from flatminima.studies._toy import boundary, mean_under_noise, smoothed


def test_the_mean_over_a_box_is_exact():
    """E (w + u)^2 = w^2 + sigma^2 / 3, and E cos(w + u) = cos(w) sin(sigma) / sigma."""
    places, sigma = (
        torch.tensor([[1.0, 2.0], [0.0, -3.0]], dtype=torch.float64),
        torch.tensor([0.3, 2.0], dtype=torch.float64),
    )
    squares = mean_under_noise(lambda w: w.square().sum(), places, sigma)
    assert squares.tolist() == pytest.approx([5 + 0.03 + 4 / 3, 9 + 0.03 + 4 / 3], rel=1e-12)
    waves = mean_under_noise(lambda w: torch.cos(w[1]), places, sigma)
    assert waves.tolist() == pytest.approx([math.cos(v) * math.sin(2) / 2 for v in (2.0, -3.0)], rel=1e-12)


def test_noise_smooths_a_wave_and_not_a_slope():
    ends = torch.tensor([[0.0, 0.0], [0.0, math.pi]], dtype=torch.float64)
    sigma = torch.tensor([0.1, 1.0], dtype=torch.float64)
    assert smoothed(lambda w: torch.cos(w[1]), ends, sigma) == pytest.approx(math.sin(1.0), rel=1e-9)
    assert smoothed(lambda w: w[1], ends, sigma) == pytest.approx(1.0, rel=1e-9)


def test_a_boundary_has_the_length_that_its_shape_has():
    x = torch.tensor([[0.0, 0.0], [1.0, 1.0]], dtype=torch.float64)
    assert boundary(lambda p: (p[:, 0] > 0.5).long(), x) == pytest.approx(1.0)
    assert boundary(lambda p: (p.sum(1) > 1.0).long(), x) == pytest.approx(2.0, abs=0.02)
    assert boundary(lambda p: torch.zeros(len(p), dtype=torch.long), x) == 0.0
