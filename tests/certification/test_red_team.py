"""The red team: what it tries (attacks.py), and how often a certificate of a known world is violated (worlds.py).

With `python tests/certification/test_red_team.py --repetitions 2000` the worlds are drawn more often.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import pickle
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from attacks import ATTACKS, Attack, data, fresh, outcome, trained
from scipy.stats import binom
from torch import nn
from worlds import WORLDS, World, memorised

from flatminima import Minimum
from flatminima.bounds import binomial_tail_inverse
from flatminima.certification import Certificate, Recipe, Scales, certify, certify_around
from flatminima.certification.division.split import fair_draw, group_numbers
from flatminima.certification.gibbs.posteriors import POSTERIORS
from flatminima.core.samples import as_samples
from flatminima.training import TrainConfig

pytestmark = pytest.mark.slow

DELTA = 0.3  # large, so that too many violations show
SURE = 1e-4  # probability of a false alarm of each comparison
SAMPLES = 120

_SHORT = TrainConfig(lr=0.1, epochs=3, batch_size=30)


def most(repetitions: int, delta: float = DELTA) -> int:
    """Violations that happen at most, but for one world in 10,000, if each has probability delta."""
    return int(binom.ppf(1 - SURE, repetitions, delta))


def by_recipe(recipe: Recipe) -> Callable[[World, int], Certificate]:
    def run(world: World, seed: int) -> Certificate:
        groups = None if world.groups is None else world.groups(5 * SAMPLES)
        n = SAMPLES if groups is None else 5 * SAMPLES
        network = world.inputs
        return certify(
            lambda: nn.Linear(network, 2), world.draw(n, seed), recipe=recipe, delta=DELTA, seed=seed, groups=groups
        )

    return run


def around(posterior: str) -> Callable[[World, int], Certificate]:
    """A network fitted to all samples, those of the prior included; the prior's is trained here on its half."""

    def run(world: World, seed: int) -> Certificate:
        groups = None if world.groups is None else world.groups(5 * SAMPLES)
        n = SAMPLES if groups is None else 5 * SAMPLES
        x, y = world.draw(n, seed)
        torch.manual_seed(seed)
        network = memorised(nn.Linear(world.inputs, 2), (x, y), steps=20, lr=0.1)
        inputs = world.inputs
        return certify_around(
            Minimum(network, (x, y)),
            posterior,
            prior=lambda: nn.Linear(inputs, 2),
            prior_fraction=0.5,
            prior_training=_SHORT,
            scales=Scales((0.1, 1.0, 10.0)),
            etas=(0.5, 1.0),
            draws=60,
            delta=DELTA,
            seed=seed,
            groups=groups,
        )

    return run


PATHS: dict[str, Callable[[World, int], Certificate]] = {
    "half for the prior": by_recipe(Recipe(prior_fraction=0.5, epochs=0, sigma=0.05, prior=_SHORT)),
    "a posterior that is trained": by_recipe(Recipe(prior_fraction=0.3, epochs=4, lr=0.1, sigma=0.5, prior=_SHORT)),
    "data-free, sigma fitted": by_recipe(
        Recipe(prior_fraction=0.0, epochs=8, lr=0.2, fit_sigma=True, nats=1.4, objective="quadratic")
    ),
} | {name: around(name) for name in POSTERIORS}


def violations(path: str, world: World, repetitions: int, first: int = 0) -> tuple[int, int, int]:
    """How many bounds, and hold-out bounds, lie below the error of every predictor, and of how many certificates."""
    bound = holdout = given = 0
    for seed in range(first, first + repetitions):
        certificate = PATHS[path](world, seed)
        if certificate.is_certificate:
            given += 1
            bound += certificate.risk_bound < world.error
            holdout += certificate.holdout_bound is not None and certificate.holdout_bound < world.error
    return bound, holdout, given


@pytest.mark.parametrize("world", WORLDS, ids=lambda w: w.name)
def test_a_division_that_favours_the_prior_would_show(world: World) -> None:
    """The exact hold-out bound of a predictor that remembers the prior's samples is violated as often as it says.

    It answers each input by what it saw of it, and errs on half of all new samples. With all copies of a sample on one
    side its bound was violated in every draw, or in none.
    """
    repetitions, violated = 400, 0
    for seed in range(repetitions):
        n = SAMPLES if world.groups is None else 5 * SAMPLES
        x, y = world.draw(n, seed)
        samples = as_samples((x, y))
        numbers = None if world.groups is None else group_numbers(world.groups(n), n)
        division = fair_draw(samples, 0.5, seed, numbers)
        nearest = torch.cdist(x[division.bound], x[division.prior]).sort(dim=1, stable=True).indices[:, :3]
        errors = int((y[division.prior][nearest].float().mean(1).round().long() != y[division.bound]).sum())
        violated += binomial_tail_inverse(errors, len(division.bound), DELTA) < world.error
    assert 0.1 * repetitions <= violated <= most(repetitions), violated


@pytest.mark.parametrize("path", PATHS)
def test_every_path_and_posterior_covers(path: str) -> None:
    repetitions = 3  # each of seven worlds; the command at the top draws as many as are asked for
    for k, world in enumerate(WORLDS):
        bound, _, given = violations(path, world, repetitions, first=1_000 * k)
        assert given == repetitions, world.name
        assert bound <= most(repetitions), world.name


@pytest.mark.parametrize("posterior", POSTERIORS)
def test_every_posterior_covers_a_hundred_coins(posterior: str) -> None:
    """Around a network fitted to the samples by least squares, whose labels are coins: every network errs on half."""
    repetitions, violated = 100, 0
    for seed in range(repetitions):
        g = torch.Generator().manual_seed(seed)
        x, y = torch.randn(40, 2, generator=g), torch.randint(0, 2, (40,), generator=g)
        network = nn.Linear(2, 2)
        fitted = torch.linalg.lstsq(torch.cat([x, torch.ones(40, 1)], 1), 2.0 * nn.functional.one_hot(y) - 1).solution
        with torch.no_grad():
            network.weight.copy_(fitted[:2].T)
            network.bias.copy_(fitted[2])
        certificate = certify_around(
            Minimum(network, (x, y)), posterior, prior="zero", scales=2.0, etas=(1.0,), draws=80, delta=DELTA, seed=seed
        )
        assert certificate.is_certificate
        violated += certificate.risk_bound < 0.5
    assert violated <= most(repetitions)


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda a: a.name)
def test_an_attack_certifies_nothing_false(attack: Attack) -> None:
    got, bound = outcome(attack)
    assert got == attack.now, (got, bound)


def test_the_documentation_lists_every_attack() -> None:
    text = (Path(__file__).parents[2] / "docs" / "certificates.md").read_text(encoding="utf-8")
    rows = {
        cells[0].strip(): (cells[1].strip(), cells[2].strip())
        for cells in (line.strip("|").split("|") for line in text.splitlines() if line.startswith("| "))
        if len(cells) == 3
    }
    for attack in ATTACKS:
        assert rows.get(attack.name) == (attack.before, attack.now), attack.name


def test_a_conditional_number_says_first_what_was_stated() -> None:
    recipe = Recipe(prior_fraction=0.0, epochs=0, sigma=1e-3)
    certificate = certify(trained(), data(), recipe=recipe, stated="trained on other samples")
    assert str(certificate).splitlines()[0].find("if, as stated, ") > 0
    assert "trained on other samples" in str(certificate).splitlines()[0]


def test_a_certificate_that_was_altered_is_no_other() -> None:
    """`is_certificate` is derived: no attribute, record or pickle sets it."""
    certificate = certify(trained(), data(), recipe=Recipe(prior_fraction=0.0, epochs=0, sigma=1e-3))
    assert certificate.standing == "score"
    values = certificate.to_dict() | {"is_certificate": True, "standing": "certificate", "statement": "Certificate: 0"}
    assert Certificate.from_dict(values).standing == "score"
    loaded = pickle.loads(pickle.dumps(certificate))
    assert loaded.standing == "score"
    for name in ("is_certificate", "standing", "risk_bound"):
        with pytest.raises(AttributeError):
            setattr(loaded, name, True)
    fewer = replace(certificate, assumptions=tuple(a for a in certificate.assumptions if a.status != "not checked"))
    assert fewer.standing == "score"  # a condition that is left out is none that holds


def test_a_network_that_is_changed_later_changes_no_certificate() -> None:
    network, prior = trained(), fresh()
    minimum = Minimum(network, data())
    certificate = certify_around(minimum, prior=prior, stated="untrained", draws=64)
    before = copy.deepcopy(certificate.to_dict())
    for p in (*network.parameters(), *prior.parameters()):
        p.data.zero_()
    assert certificate.to_dict() == before


def test_the_constant_answer_stands_beside_the_bound() -> None:
    g = torch.Generator().manual_seed(0)
    x, y = torch.randn(400, 5, generator=g), (torch.rand(400, generator=g) < 0.02).long()
    text = str(certify(lambda: nn.Linear(5, 2), (x, y), recipe=Recipe(epochs=0, prior=_SHORT)))
    assert re.search(r"constant", text)


def main() -> None:
    parser = argparse.ArgumentParser(description="how often certificates of known worlds are violated")
    parser.add_argument("--repetitions", type=int, default=1_000, help="draws of each world by each path")
    parser.add_argument("--path", choices=sorted(PATHS), help="one path only")
    parser.add_argument("--output", type=Path, help="JSON file to which rows are added; those it has are kept")
    arguments = parser.parse_args()
    repetitions = arguments.repetitions
    allowed = most(repetitions)
    print(f"delta {DELTA}: at most {allowed} of {repetitions} violations, but once in {1 / SURE:,.0f}")
    rows: list[dict[str, Any]] = []
    if arguments.output is not None and arguments.output.exists():
        rows = json.loads(arguments.output.read_text())["rows"]
    for path in [arguments.path] if arguments.path else PATHS:
        for world in WORLDS:
            if any((r["path"], r["world"], r["repetitions"]) == (path, world.name, repetitions) for r in rows):
                continue
            bound, holdout, given = violations(path, world, repetitions)
            print(f"{path:28s} {world.name:24s} {given} certificates, {bound} violated, hold-out {holdout}", flush=True)
            rows.append(
                {"path": path, "world": world.name, "repetitions": repetitions, "certificates": given, "most": allowed}
                | {"violated": bound, "holdout_violated": holdout}
            )
            if arguments.output is not None:
                document = {"delta": DELTA, "sure": SURE, "error": 0.5, "samples": SAMPLES, "rows": rows}
                arguments.output.write_text(json.dumps(document, indent=1) + "\n")
    raise SystemExit(any(max(r["violated"], r["holdout_violated"]) > r["most"] for r in rows))


if __name__ == "__main__":
    assert math.isfinite(DELTA)
    main()
