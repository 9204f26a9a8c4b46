"""Networks that a study trained are kept beside it, and no study trains one again."""

import pytest
import torch
from matplotlib.figure import Figure

from flatminima.data import augmentation
from flatminima.models import build
from flatminima.studies import Study, networks, reproduce, resumable
from flatminima.studies.networks import FOLDER, find, keep, name_of
from flatminima.studies.resumable import train
from flatminima.training import Evaluation, History, TrainConfig

RECIPE = TrainConfig(epochs=3, batch_size=8)


def samples(seed=1):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(30, 4, generator=generator), torch.arange(30) % 3


def network(seed=0):
    return build("mlp", seed=seed, widths=(4, 8, 3))


def fitted(config, sources):
    model = network()
    follow = (lambda epoch, model: epoch) if config["follow"] else None
    history, seen = train(model, *samples(), config=RECIPE, follow=follow)
    weights = float(model[-1].weight.detach().double().sum())
    return {"weights": weights, "epochs": len(history.epochs), "final": history.final.loss, "seen": seen}


def study(name, follow=False):
    configs = [{"follow": follow}]
    return Study(name, "-", "-", (), lambda scale: configs, fitted, lambda r: [], lambda r: Figure(), {"smoke": "-"})


@pytest.fixture
def trainings(monkeypatch):
    """How often anything was trained."""
    counted = []

    class Counted(resumable.Training):
        def __init__(self, *args, **options):
            counted.append(1)
            super().__init__(*args, **options)

    monkeypatch.setattr(resumable, "Training", Counted)
    return counted


@pytest.mark.parametrize("follow", [False, True])
def test_a_run_measured_again_trains_nothing_and_has_the_same_numbers(tmp_path, trainings, follow):
    first = reproduce(study("one", follow), tmp_path)
    (kept,) = (tmp_path / FOLDER).iterdir()
    assert first["runs"][0]["networks"] == [kept.name]
    for file in (*(tmp_path / "one" / "runs").iterdir(), tmp_path / "one" / "results.json"):
        file.unlink()
    again = reproduce(study("one", follow), tmp_path)
    assert again["runs"][0]["result"] == first["runs"][0]["result"] and len(trainings) == 1


def test_two_studies_that_ask_for_one_training_share_it(tmp_path, trainings):
    first, second = (reproduce(study(name), tmp_path)["runs"][0]["result"] for name in ("one", "two"))
    assert first == second and len(trainings) == 1


STEPS = []


class Counted(torch.optim.SGD):
    """With momentum, whose buffers a run may read when the training is done."""

    def step(self, *args):
        STEPS.append(1)
        return super().step(*args)


def optimized(config, sources):
    model = network()
    optimizer = Counted(model.parameters(), lr=0.1, momentum=0.9)
    train(model, *samples(), config=RECIPE, optimizer=optimizer)
    speed = sum(float(optimizer.state[p]["momentum_buffer"].abs().sum()) for p in model.parameters())
    return {"speed": speed, "weights": float(model[-1].weight.detach().double().sum())}


def by_optimizer(output):
    how = Study("by", "-", "-", (), lambda scale: [{}], optimized, lambda r: [], lambda r: Figure(), {"smoke": "-"})
    STEPS.clear()
    found = reproduce(how, output)["runs"][0]
    (output / "by" / "results.json").unlink()
    for file in (output / "by" / "runs").iterdir():
        file.unlink()
    return found["result"], len(STEPS)


def test_an_optimizer_of_ones_own_comes_back_as_it_was_after_its_last_step(tmp_path):
    """Else PertOPT's own diagnostics would be of an optimizer that has made no step."""
    first, steps = by_optimizer(tmp_path)
    again, more = by_optimizer(tmp_path)
    assert again == first and steps == 3 * 4 and more == 0
    (state,) = (tmp_path / FOLDER).glob("*.state/state.pt")
    state.write_bytes(b"damaged")
    assert by_optimizer(tmp_path) == (first, steps)


def test_studies_that_look_on_during_training_do_not_share_it(tmp_path, trainings):
    """What a function does cannot be compared."""
    for name in ("one", "two"):
        reproduce(study(name, follow=True), tmp_path)
    assert len(trainings) == 2


def test_the_name_tells_whatever_decides_the_weights():
    x, y = samples()
    images = torch.rand(30, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    base = name_of(network(), x, y, RECIPE)
    assert base == name_of(network(), x.clone(), y.clone(), TrainConfig(epochs=3, batch_size=8))
    others = {
        "start": name_of(network(1), x, y, RECIPE),
        "shape": name_of(build("mlp", seed=0, widths=(4, 9, 3)), x, y, RECIPE),
        "activation": name_of(build("mlp", seed=0, widths=(4, 8, 3), activation="tanh"), x, y, RECIPE),
        "inputs": name_of(network(), samples(2)[0], y, RECIPE),
        "labels": name_of(network(), x, y.flip(0), RECIPE),
        "recipe": name_of(network(), x, y, TrainConfig(epochs=3, batch_size=8, lr=0.02)),
        "own": name_of(network(), x, y, RECIPE, own={"beta": 1.0}),
        **{
            scheme: name_of(network(), images, y, RECIPE, augmentation(scheme))
            for scheme in ("none", "flip", "1-crop-f", "4-crop-f")
        },
    }
    assert len({base, *others.values()}) == len(others) + 1


def test_a_name_leaves_the_random_state_and_the_samples_alone():
    x, y = torch.rand(20, 3, 8, 8), torch.arange(20) % 3
    before, state = x.clone(), torch.get_rng_state()
    name_of(network(), x, y, RECIPE, lambda batch, generator: batch.mul_(2))
    assert torch.equal(x, before) and torch.equal(torch.get_rng_state(), state)


def test_a_damaged_or_foreign_file_is_trained_again(tmp_path, trainings):
    first = reproduce(study("one"), tmp_path)["runs"][0]["result"]
    (kept,) = (tmp_path / FOLDER).iterdir()
    for count, content in enumerate((b"", b"damaged", kept.read_bytes()[:-5]), 2):
        kept.write_bytes(content)
        (tmp_path / "one" / "results.json").unlink()
        for file in (tmp_path / "one" / "runs").iterdir():
            file.unlink()
        assert reproduce(study("one"), tmp_path)["runs"][0]["result"] == first and len(trainings) == count


def test_what_is_kept_comes_back(tmp_path):
    model, file = network(), tmp_path / "new" / "a.safetensors"
    past = History((networks.Epoch(1.0, 0.5, 0.1, 2.0),), Evaluation(0.25, 0.125, 30), "epochs", 4)
    keep(file, model, past, [[1, 0.5]])
    found = find(file)
    assert found.history == past and found.seen == [[1, 0.5]]
    assert all(torch.equal(found.weights[name], value) for name, value in model.state_dict().items())
    assert find(tmp_path / "absent") is None
