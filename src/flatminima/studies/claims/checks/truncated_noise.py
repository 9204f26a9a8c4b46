"""Calculations that decide what Wang et al. say of Gaussian noise, truncated at kappa (W1 appendices B, C and E)."""

from __future__ import annotations

import math

import numpy as np
import torch
from scipy.optimize import minimize_scalar
from scipy.special import erf, erfinv
from scipy.stats import truncnorm
from torch.distributions import MultivariateNormal, kl_divergence

from flatminima import bounds
from flatminima.studies.claims.checks.outcome import Outcome, random

_DELTA = 0.05


def truncation_radius() -> Outcome:
    """sigma just below kappa / sqrt(2 erfinv(1/2m)), as printed there, and as (16) has it: is P(E) at least a half?"""
    m = 100
    inner = float(erfinv(1 / (2 * m)))
    radii = (math.sqrt(2 * inner), math.sqrt(2) * inner, math.sqrt(2) * float(erfinv(1 - 1 / (2 * m))))
    here, in_16, meant = (float(erf(radius / 0.999 / math.sqrt(2))) ** m for radius in radii)
    said = f"P(E) is {here:.0e} as printed, {in_16:.0e} in the form of (16), {meant:.2f} with 1 - 1/(2m)"
    return Outcome(here >= 0.5, f"{said}, for m = {m}")


def truncated_kl() -> Outcome:
    """KL of the truncated Gaussian against 2 (KL of the Gaussian + 1), at the largest sigma that is meant."""
    ratios = []
    for m in (2, 20, 200):
        kappa, tau = 0.5, 4.0
        sigma = kappa / (math.sqrt(2) * float(erfinv(1 - 1 / (2 * m))))
        w = np.full(m, math.sqrt(tau / m) / 2)
        whole = float(0.5 * (m * math.log(tau / sigma**2) - m + m * sigma**2 / tau + (w**2).sum() / tau))
        cut = float(bounds.kl_truncated_gaussian(w, np.full(m, sigma), np.full(m, kappa), tau))
        ratios.append(cut / (2 * (whole + 1)))
    return Outcome(max(ratios) <= 1, f"left over right {min(ratios):.2f} to {max(ratios):.2f}, m of 2 to 200")


def truncated_variance() -> Outcome:
    """Variance of a standard Gaussian cut at 0.5 to 4 deviations."""
    found = [float(truncnorm(-a, a).var()) for a in (0.5, 1.0, 2.0, 4.0)]
    return Outcome(max(found) < 1, f"{found[0]:.3f} to {found[-1]:.3f} of the Gaussian's")


def truncated_sigma() -> Outcome:
    """Is (16), as printed, where (14) is least?"""
    h, rho, kappa, tau, eta, m = 2.0, 3.0, 100.0, 50.0, 10.0, 4
    least = minimize_scalar(
        lambda s: (h / 2 + rho * math.sqrt(m) * kappa / 6 + 1 / (2 * tau * eta)) * s**2 - math.log(s) / eta,
        bounds=(1e-6, 1.0),
        method="bounded",
        options={"xatol": 1e-12},
    ).x
    printed = (eta * h + rho * math.sqrt(m) * kappa / 3 + 1 / tau) ** -0.5
    proved = (eta * h + rho * eta * math.sqrt(m) * kappa / 3 + 1 / tau) ** -0.5
    return Outcome(
        bool(abs(printed / least - 1) < 1e-3),
        f"{printed:.4f} as printed, {proved:.4f} by the proof, {least:.4f} by search",
    )


def gaussian_kl() -> Outcome:
    """(13) for random weights within the ball of squared radius tau, against PyTorch's KL of the two Gaussians."""
    rng, m, tau, slack = random(10), 5, 3.0, []
    prior = MultivariateNormal(torch.zeros(m, dtype=torch.float64), tau * torch.eye(m, dtype=torch.float64))
    for _ in range(200):
        w, sigma = rng.standard_normal(m), rng.uniform(0.1, 2, m)
        w *= math.sqrt(tau * float(rng.uniform())) / np.linalg.norm(w)
        own = MultivariateNormal(torch.from_numpy(w), torch.from_numpy(np.diag(sigma**2)))
        right = 0.5 * (m * math.log(tau) - np.log(sigma**2).sum() - m + (sigma**2).sum() / tau + 1)
        slack.append(float(right) - float(kl_divergence(own, prior)))
    return Outcome(min(slack) >= -1e-12, f"right less left {min(slack):.1e} to {max(slack):.2f} nats, 200 draws")


def truncated_bound() -> Outcome:
    """(14) of one weight, w^2 = tau, against Theorem 1 with the exact KL and variance of the same truncated noise."""
    kappa = math.sqrt(2) * float(erfinv(0.5))  # P(|u| < kappa) = 1/2 at sigma = 1
    at = (0.1, [1.0], [0.0], 0.0, kappa, 1.0, 1_000, _DELTA, 10.0)
    exact = float(bounds.truncated_gaussian(*at, sigma=1.0))
    printed = float(bounds.truncated_gaussian(*at, variant="printed", sigma=1.0))
    return Outcome(
        printed >= exact,
        f"{printed:.4f} as printed lies below Theorem 1 with the exact KL, {exact:.4f}: the factor of (12) is left out",
    )
