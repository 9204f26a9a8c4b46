"""J20 Table 1's choice of strength, M and threshold by one split of the images, as in its section 7.2."""

import dataclasses
import json
from pathlib import Path

import pytest

from flatminima.studies import STUDIES, _jia_table, reproduce
from flatminima.studies.claims import claims
from flatminima.studies.resumable import keeping

TABLE = STUDIES["jia-regularizer"]
BETAS = (0.0, 10.0, 50.0)
RESULTS = Path(__file__).resolve().parents[2] / "results" / "studies"


def configs(seed):
    (base,) = (c for c in TABLE.list_runs("smoke") if c["beta"] == 0.0)
    base = {key: value for key, value in base.items() if key != "beta"} | {"epochs": 2, "trials": 2}
    return [base | {"seed": seed} | one for one in _jia_table._methods(BETAS, seed, sweep=True)]


def test_the_first_seed_tries_every_setting_and_the_others_take_its_choice():
    first, second = configs(0), configs(1)
    assert [c.get("beta") for c in first] == [0.0, 10.0, 50.0, 10.0, 10.0, 10.0, 10.0, 10.0, None]
    assert [c.get("clip", True) for c in second] == [True, True, False] and second[0]["beta"] == 0.0
    for scale, networks, sets in (("half", 3, 1), ("paper", 4, 2)):
        runs = TABLE.list_runs(scale, 2)
        betas = len(dict.fromkeys(c["beta"] for c in runs if "beta" in c))
        assert len(runs) == networks * sets * (betas + 5 + 1 + 4 * 3)
        assert all((c["seed"] - c["choice"]["seeds_before"]) == 2_000 for c in runs if "choice" in c)


@pytest.mark.parametrize("scale", ["half", "paper"])
def test_each_network_is_trained_as_its_own_paper_has_it(scale):
    """Sec. 7.2: "identical to those in their original paper"; He et al. 2016 count steps, 64,000 on 45,000 images."""
    steps = 45_000 / 128
    printed = {
        "CNN": (0.01, 200, [100, 150], 0.1, 128, 1e-4, True),
        "ResNet": (0.1, round(64_000 / steps), [round(32_000 / steps), round(48_000 / steps)], 0.1, 128, 1e-4, False),
        "WRN": (0.1, 200, [60, 120, 160], 0.2, 128, 5e-4, True),
        "DenseNet": (0.1, 300, [150, 225], 0.1, 64, 1e-4, True),
    }
    for name, wanted in printed.items():
        for c in TABLE.list_runs(scale):
            if c["name"] == name:
                own = [c["lr"], c["epochs"], c["milestones"], c.get("gamma", 0.1), c.get("batch_size", 128)]
                assert (*own, c.get("weight_decay", 1e-4), c.get("nesterov", True)) == wanted


def test_a_network_s_recipe_reaches_its_training(monkeypatch):
    class Enough(Exception):
        pass

    seen = {}

    def train(model, x, y, *, config, optimizer, **more):
        group = optimizer.param_groups[0]
        seen.update({key: group[key] for key in ("lr", "weight_decay", "nesterov")})
        seen.update(gamma=config.gamma, batch=config.batch_size, milestones=config.milestones, epochs=config.epochs)
        raise Enough

    monkeypatch.setattr(_jia_table, "train", train)
    (smoke,) = (c for c in TABLE.list_runs("smoke") if c["beta"] == 0.0)
    with pytest.raises(Enough):
        _jia_table.run(
            smoke | _jia_table._ORIGINAL["WRN"] | {"batch_size": 16, "nesterov": False}, {"digits": "digits"}
        )
    assert seen == {"lr": 0.05, "weight_decay": 5e-4, "nesterov": False, "gamma": 0.2, "batch": 16} | {
        "milestones": (60, 120, 160),
        "epochs": 200,
    }


@pytest.mark.parametrize("best", [0, 3, 6])
def test_a_choice_is_the_setting_that_errs_least_on_the_first_split(tmp_path, best):
    tried = configs(0)[1:-1]
    asked = []

    def others(config):
        asked.append(config)
        return {"validation_error": 0.2 if config == tried[best] else 0.3}

    with keeping(tmp_path, others=others):
        with_clipping, without = (_jia_table._chosen(c, {}) for c in configs(1)[1:])
    assert asked == tried * 2
    assert with_clipping == tried[best] | {"seed": 1}
    assert without == tried[best] | {"seed": 1, "clip": False}


def test_a_choice_is_the_same_whatever_ran_before(tmp_path):
    """From the results of the first seed, where they are; else it makes them itself."""
    few = [c for c in configs(0) if c.get("beta") in (10.0, 50.0) and "max_norm" not in c and "sub_batches" not in c]
    choice = {"choice": {"seeds_before": 1, "among": [{"beta": 10.0}, {"beta": 50.0}]}, "seed": 1}
    last = {key: value for key, value in few[0].items() if key != "beta"} | choice
    study = dataclasses.replace(TABLE, configurations=lambda _: [*few, last])
    document = reproduce(study, tmp_path, scale="smoke")
    *tried, chosen = (run["result"] for run in document["runs"])
    best = min(tried, key=lambda result: result["validation_error"])
    assert (chosen["seed"], chosen["beta"]) == (1, best["beta"])
    assert len(document["runs"][-1]["networks"]) == 1, "the first seed's were read, not trained again"
    assert _jia_table.run(last, {"digits": "digits"}) == chosen


def test_settings_are_compared_over_the_seeds_that_all_have():
    def row(seed, beta, error):
        return {"seed": seed, "beta": beta, "validation_error": error, "sub_batches": 8, "max_norm": 5.0}

    chosen = [row(0, 10.0, 0.30), row(1, 10.0, 0.50), row(2, 10.0, 0.50)]  # its later seeds are harder
    other = [row(0, 50.0, 0.31)]
    assert _jia_table.best_held_out([chosen, other]) is chosen
    assert _jia_table.best_held_out([other, chosen]) is chosen
    plain = [row(seed, 0.0, 0.4) for seed in range(3)]
    ours, partners = _jia_table.regularized([*plain, *other, *chosen])
    assert ours == chosen and partners == plain
    assert _jia_table.best_held_out([]) == []


def test_the_note_on_clipping_counts_its_pairs():
    """Where 5 is chosen, the networks with and without clipping are the same to the last digit in nine pairs of ten."""
    (note,) = (c.note for c in claims(study="jia-regularizer") if c.id == "j-clipping-necessary")
    document = json.loads((RESULTS / "jia-regularizer" / "results.json").read_text(encoding="utf-8"))
    own = [run["result"] for run in document["runs"] if run["result"]["name"] in ("WRN", "DenseNet")]
    by_settings = {tuple(r[k] for k in ("name", "seed", "beta", "sub_batches", "max_norm")): r for r in own}
    unclipped = [(key, r) for key, r in by_settings.items() if key[-1] is None]
    same = [r["train_loss"] == by_settings[(*key[:-1], 5.0)]["train_loss"] for key, r in unclipped]
    assert (sum(same), len(same)) == (
        9,
        10,
    ) and "nine of their ten pairs with and without clipping are the same" in note
