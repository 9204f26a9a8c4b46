"""Runs of `certify` that end early and go on, and their records."""

from __future__ import annotations

import json
import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from small_tasks import QUICK, SHORT, blobs, net, wide
from torch import nn

from flatminima import certify, interrupts, progress
from flatminima.certification import Certificate, Recipe, recompute
from flatminima.errors import CheckpointError, UsageError
from flatminima.training import TrainConfig, read_weights

pytestmark = pytest.mark.slow


class Killed(Exception):
    pass


@pytest.mark.parametrize("stage", ["prior", "posterior"])
def test_a_run_that_was_killed_goes_on_and_ends_with_the_same_bits(stage: str, tmp_path: Path) -> None:
    data = blobs(400)
    recipe = replace(QUICK, epochs=3, batch_size=50)

    def model() -> nn.Module:
        return nn.Sequential(nn.Linear(2, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.2), nn.Linear(8, 2))

    def kill(task: str, done: float, total: float) -> None:
        if task == stage and done > 0.5 * total:
            raise Killed

    with pytest.raises(Killed), progress.listening(kill):
        certify(model, data, recipe=recipe, output=tmp_path, evaluations=1)
    assert not (tmp_path / "certificate.json").exists()
    steps: list[str] = []
    with progress.listening(lambda task, done, total: steps.append(task)):
        resumed = certify(model, data, recipe=recipe, output=tmp_path, evaluations=1)
    whole = certify(model, data, recipe=recipe)
    assert steps.count("prior") < 3 * 4
    assert (resumed.kl, resumed.empirical_risk, resumed.risk_bound) == (
        whole.kl,
        whole.empirical_risk,
        whole.risk_bound,
    )


@pytest.mark.parametrize(("stage", "step"), [("prior", 5), ("posterior", 7), ("posterior", 9)])
def test_a_signal_keeps_the_step_and_the_same_call_ends_with_the_same_bits(
    stage: str, step: int, tmp_path: Path
) -> None:
    """In the middle of an epoch; whatever state an epoch's end had is older."""
    data, recipe = blobs(400), replace(QUICK, epochs=3, batch_size=50)

    def signalled(task: str, done: float, total: float) -> None:
        if task == stage and done == step:
            os.kill(os.getpid(), signal.SIGTERM)

    with interrupts.handled(), pytest.raises(interrupts.Interrupted), progress.listening(signalled):
        certify(net, data, recipe=recipe, output=tmp_path, evaluations=1)
    steps: list[tuple[str, float]] = []
    with progress.listening(lambda task, done, total: steps.append((task, done))):
        resumed = certify(net, data, recipe=recipe, output=tmp_path, evaluations=1)
    assert next(done for task, done in steps if task == stage) == step + 1
    whole = certify(net, data, recipe=recipe)
    assert (resumed.kl, resumed.empirical_risk) == (whole.kl, whole.empirical_risk)


def test_state_of_another_run_is_not_taken(tmp_path: Path) -> None:
    certify(net, blobs(400), recipe=QUICK, output=tmp_path)
    other = certify(net, blobs(400, seed=1), recipe=QUICK, output=tmp_path, evaluations=1)
    assert other.risk_bound == certify(net, blobs(400, seed=1), recipe=QUICK).risk_bound


@pytest.mark.parametrize("layers", ["all", "head"])
def test_the_record_is_recomputed_from_the_weights(layers: str, tmp_path: Path) -> None:
    data = blobs(400)
    recipe = replace(QUICK, layers=layers, fit_sigma=layers == "head", epochs=2)
    c = certify(net, data, recipe=recipe, output=tmp_path, test_data=blobs(100, seed=5), source={"model": "mlp"})
    path = tmp_path / "certificate.json"
    assert Certificate.from_dict(json.loads(path.read_text())).risk_bound == c.risk_bound
    assert json.loads(path.read_text())["is_certificate"]
    found = recompute(path, net(seed=7), data)
    assert len(found) == 11 and all(f.agrees for f in found)
    shuffled = torch.randperm(400, generator=torch.Generator().manual_seed(0))
    again = recompute(path, net(), (data[0][shuffled], data[1][shuffled]))
    assert next(f for f in again if f.name == "holdout_bound").agrees
    document = json.loads(path.read_text())
    path.write_text(json.dumps(document | {"risk_bound": 0.001, "kl": c.kl / 2}))
    assert {f.name for f in recompute(path, net(), data) if not f.agrees} == {"risk_bound", "kl"}
    with pytest.raises(UsageError, match="give the training data that it was made from"):
        recompute(path, net(), blobs(400, seed=1))
    with pytest.raises(UsageError, match="do not fit the model"):
        recompute(path, net(hidden=9), data)


@pytest.mark.parametrize("layers", ["all", "head"])
@pytest.mark.parametrize("fraction", [0.0, 0.5])
@pytest.mark.parametrize("epochs", [0, 2])
def test_what_is_kept_in_half_precision_is_what_was_certified(
    layers: str, fraction: float, epochs: int, tmp_path: Path
) -> None:
    """Of a seed's weights nothing is kept: they are made, and rounded, again."""
    fit = layers == "head" and epochs > 0
    recipe = Recipe(
        prior_fraction=fraction, prior=SHORT, layers=layers, epochs=epochs, passes=2, keep="float16", fit_sigma=fit,
        sigma=0.5,
    )  # fmt: skip
    c = certify(wide, blobs(400), recipe=recipe, output=tmp_path)
    found = recompute(tmp_path / "certificate.json", wide, blobs(400))
    assert c.is_certificate and [f.name for f in found if not f.agrees] == []
    names = (
        set(read_weights(tmp_path / "weights.safetensors")) if (tmp_path / "weights.safetensors").exists() else set()
    )
    assert any(n.startswith("base.") for n in names) == (fraction > 0)
    assert any(n.startswith("mean.") for n in names) == (epochs > 0)


def test_a_derived_verdict_cannot_be_written_in(tmp_path: Path) -> None:
    c = certify(net, blobs(400), recipe=QUICK)
    values = c.to_dict()
    values["assumptions"][0]["holds"] = False
    values["is_certificate"] = True
    assert not Certificate.from_dict(values).is_certificate


def test_a_prior_whose_training_was_read_from_a_file_is_stated(tmp_path: Path) -> None:
    """The same numbers; but nobody here saw who wrote the file."""
    options: dict[str, Any] = {
        "recipe": Recipe(passes=1, prior=TrainConfig(epochs=1)),
        "output": tmp_path,
        "evaluations": 1,
    }
    whole = certify(lambda: nn.Linear(2, 2), blobs(100), **options)
    again = certify(lambda: nn.Linear(2, 2), blobs(100), **options)
    assert (whole.standing, again.standing) == ("certificate", "conditional")
    assert again.risk_bound == whole.risk_bound
    assert "if, as stated, the prior.pt in the output folder is this command's own:" in again.statement


def test_a_record_under_another_name_has_its_weights_under_it(tmp_path: Path) -> None:
    """As those committed do; no other file that a record names is opened."""
    data = blobs(100)
    certify(net, data, recipe=replace(QUICK, passes=1), output=tmp_path / "made")
    document = json.loads((tmp_path / "made" / "certificate.json").read_text())
    (tmp_path / "own.safetensors").write_bytes((tmp_path / "made" / "weights.safetensors").read_bytes())
    (tmp_path / "own.json").write_text(json.dumps(document | {"weights": "own.safetensors"}))
    assert all(row.agrees for row in recompute(tmp_path / "own.json", net, data))
    (tmp_path / "other.json").write_text(json.dumps(document | {"weights": "own.safetensors"}))
    with pytest.raises(CheckpointError, match=r"no file weights\.safetensors beside"):
        recompute(tmp_path / "other.json", net, data)
