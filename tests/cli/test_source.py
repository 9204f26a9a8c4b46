"""One source for every command: functions, configuration files, several inputs, a batch as one argument, no data."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from flatminima import Minimum, measures
from flatminima.cli.app import main
from flatminima.cli.configuration import Configuration, arguments_of
from flatminima.cli.messages import own_words
from flatminima.errors import UsageError
from flatminima.models import resnet20

SHAPES = ("3,32,32", "3x8x8")

CODE = """
import torch
from dataclasses import dataclass
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

torch.manual_seed(0)
X, Y = torch.randn(40, 3, 5, 5), torch.arange(40) % 2
T = torch.randn(40, 2)

class Two(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(1)
        self.image, self.table = nn.Linear(75, 2), nn.Linear(2, 2)
    def forward(self, image, table): return self.image(image.flatten(1)) + self.table(table)

class Batch(Two):
    def forward(self, batch):
        if isinstance(batch, dict): batch = batch["image"], batch["table"]
        return super().forward(*batch)

@dataclass
class Config:
    width: int
    depth: int = 1

def single(width=8):
    torch.manual_seed(1)
    return nn.Sequential(nn.Flatten(), nn.Linear(75, width), nn.ReLU(), nn.Linear(width, 2))
def typed(config: Config): return single(config.width)
def loose(cfg): return single(cfg.model.width)
def pair(split): return X[:30] if split == "train" else X[30:], Y[:30] if split == "train" else Y[30:]
def bytes_last(split, n=20): return (X[:n].permute(0, 2, 3, 1) * 30 + 128).clamp(0, 255).byte(), Y[:n]
def parts(): return {"train": TensorDataset(X[:30], Y[:30]), "test": TensorDataset(X[30:], Y[30:])}
def loader(split): return DataLoader(TensorDataset(X, Y), batch_size=7)
def several(split): return (X, T), Y
def named(split): return {"image": X, "table": T}, Y
ready = TensorDataset(X, Y)
class Own(Dataset):
    def __len__(self): return 40
    def __getitem__(self, i): return X[i], int(Y[i])
class Named(Own):
    def __getitem__(self, i): return {"x": X[i], "label": int(Y[i])}
def texts(split): return X, ["no" if y == 0 else "yes" for y in Y] if split == "train" else ["yes"] * 40
def arrow(split):
    import datasets
    return datasets.Dataset.from_dict({"x": X.tolist(), "label": texts(split)[1]})
def wide():
    import datasets
    return datasets.DatasetDict(train=arrow("train"), test=arrow("test"))
def frame():
    import pandas
    return pandas.DataFrame({f"p{i}": X.flatten(1)[:, i].numpy() for i in range(75)} | {"label": Y.numpy()})
def prices(): return X, X.flatten(1)[:, :2]
def shifted(split): return (X, Y) if split == "train" else (X + 3, Y)
"""


@pytest.fixture
def cli(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    (tmp_path / "own.py").write_text(CODE)
    (tmp_path / "my-models.2.py").write_text(CODE)
    monkeypatch.delitem(sys.modules, "own", raising=False)

    def call(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["flatminima", *arguments])
        with pytest.raises(SystemExit) as stop:
            main()
        captured = capsys.readouterr()
        return int(stop.value.code or 0), captured.out, captured.err

    return call


def measured(cli: Callable[..., tuple[int, str, str]], *arguments: str, model: str = "own:single") -> tuple[float, str]:
    """Value of fisher_trace, and what was said."""
    asked = ["measure", "--model", model, "--app-dir", ".", "--measures", "fisher_trace", "--json"]
    code, out, err = cli(*asked, *arguments)
    assert code == 0, err
    return json.loads(out)["measures"]["fisher_trace"]["value"], err


def truth(model: str, data: object) -> float:
    import own  # type: ignore[import-not-found]

    torch.manual_seed(0)
    return float(measures.fisher_trace(Minimum(getattr(own, model)().eval(), data)))


@pytest.mark.parametrize(
    ("target", "rows", "said"),
    [
        ("own:pair", 30, "30 images 5x5x3, 2 classes, as stored"),
        ("own:parts", 30, "30 samples of 3x5x5, class labels, as own:parts gives them"),
        ("own:loader", 40, "40 samples of 3x5x5"),
        ("own:ready", 40, "40 samples of 3x5x5"),
    ],
)
def test_a_function_gives_samples_of_any_kind(cli, target: str, rows: int, said: str) -> None:  # type: ignore[no-untyped-def]
    value, err = measured(cli, "--data", target)
    import own  # type: ignore[import-not-found]

    assert value == pytest.approx(truth("single", (own.X[:rows], own.Y[:rows])), rel=1e-5)
    assert said in err


@pytest.mark.parametrize("target", ["Own", "Named", "texts", "arrow", "wide", "frame"])
def test_samples_of_every_type_give_one_number(cli, target: str) -> None:  # type: ignore[no-untyped-def]
    """A class of the user's (which `_is_data` took for data), labels that are text, data sets and frames of others."""
    value, _ = measured(cli, "--data", f"own:{target}")
    import own  # type: ignore[import-not-found]

    assert value == pytest.approx(truth("single", (own.X, own.Y)), rel=1e-5)


@pytest.mark.parametrize("target", ["texts", "arrow", "wide"])
def test_a_label_is_the_same_class_in_every_split_of_a_function(cli, target: str) -> None:  # type: ignore[no-untyped-def]
    """Its test split holds one of the two names, which sorted by itself would be class 0."""
    value, _ = measured(cli, "--data", f"own:{target}", "--split", "test")
    import own  # type: ignore[import-not-found]

    assert value == pytest.approx(truth("single", (own.X, torch.ones_like(own.Y))), rel=1e-5)


def test_numbers_of_a_function_are_predicted(cli) -> None:  # type: ignore[no-untyped-def]
    value, err = measured(cli, "--data", "own:prices", "--loss", "mse")
    import own  # type: ignore[import-not-found]

    torch.manual_seed(0)
    minimum = Minimum(own.single().eval(), (own.X, own.X.flatten(1)[:, :2]), "mse")
    assert value == pytest.approx(float(measures.fisher_trace(minimum)), rel=1e-5) and "numbers to predict" in err


def test_a_slice_is_of_the_split_that_the_function_gives(cli) -> None:  # type: ignore[no-untyped-def]
    """The function is asked for train, and would have given its other split for 'train[:50%]'."""
    value, _ = measured(cli, "--data", "own:shifted", "--split", "train[:50%]")
    import own  # type: ignore[import-not-found]

    assert value == pytest.approx(truth("single", (own.X[:20], own.Y[:20])), rel=1e-5)


def test_standard_scaling_of_a_function_is_by_its_train_split(cli) -> None:  # type: ignore[no-untyped-def]
    value, _ = measured(cli, "--data", "own:shifted", "--split", "test", "--scaling", "standard")
    import own  # type: ignore[import-not-found]

    std, mean = torch.std_mean(own.X.double(), (0, 2, 3), correction=0, keepdim=True)
    x = ((own.X + 3 - mean) / std).float()
    assert value == pytest.approx(truth("single", (x, own.Y)), rel=1e-4)


def test_standard_scaling_of_another_file_is_by_the_training_data(
    cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:  # type: ignore[no-untyped-def]
    """`--test-data` has a train split of its own by name, and other statistics: all its samples would be right."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(60, 75)).astype(np.float32)
    np.savez(tmp_path / "train.npz", x=x, y=(x[:, 0] > 0).astype(int))
    np.savez(tmp_path / "held.npz", x=x + 9, y=(x[:, 0] > 0).astype(int))
    (tmp_path / "first.py").write_text(
        "import torch\ndef net():\n    layer = torch.nn.Linear(75, 2)\n    torch.nn.init.zeros_(layer.weight)\n"
        "    torch.nn.init.zeros_(layer.bias)\n    layer.weight.data[1, 0] = 9.0\n    return layer\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    first = importlib.import_module("first")

    for k in (1, 2):
        torch.save({n: t * k for n, t in first.net().state_dict().items()}, tmp_path / f"{k}.pt")
    asked = ["rank", "1.pt", "2.pt", "--model", "first:net", "--app-dir", ".", "--measures", "none", "--json"]
    code, out, err = cli(*asked, "--data", "train.npz", "--test-data", "held.npz", "--scaling", "standard")
    assert code == 0, err
    errors = [one["test_error"] for one in json.loads(out)["choice"]["candidates"]]
    assert errors == pytest.approx([float((x[:, 0] <= 0).mean())] * 2)  # all are far on the right: class 1


def test_two_images_are_scaled_alike(cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    rng = np.random.default_rng(0)
    left, right = (rng.integers(0, 256, (20, 5, 5, 3), dtype=np.uint8) for _ in range(2))
    np.savez(tmp_path / "pairs.npz", left=left, right=right, label=np.arange(20) % 2)
    (tmp_path / "pairs.py").write_text(
        "import torch\nclass Net(torch.nn.Module):\n    def __init__(self):\n        super().__init__()\n"
        "        torch.manual_seed(0)\n        self.layer = torch.nn.Linear(150, 2)\n"
        "    def forward(self, a, b): return self.layer(torch.cat([a.flatten(1), b.flatten(1)], 1))\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    pairs = importlib.import_module("pairs")

    x = [torch.from_numpy(v.transpose(0, 3, 1, 2).astype(np.float32) / 255) for v in (left, right)]
    for options, seen in (([], x), (["--mean", "0.5", "--std", "0.25"], [(t - 0.5) / 0.25 for t in x])):
        value, err = measured(cli, "--data", "pairs.npz", "--columns", "left;right", *options, model="pairs:Net")
        found = measures.fisher_trace(Minimum(pairs.Net().eval(), (tuple(seen), torch.arange(20) % 2)))
        assert value == pytest.approx(float(found), rel=1e-5) and "with right: images 5x5x3" in err


@pytest.mark.parametrize("model", ["own:Two", "own:Batch"])
@pytest.mark.parametrize("data", ["own:several", "own:named"])
def test_training_calls_a_network_as_measuring_does(cli, tmp_path: Path, model: str, data: str) -> None:  # type: ignore[no-untyped-def]
    asked = ["train", "--model", model, "--app-dir", ".", "--data", data, "--epochs", "1", "--output", "run", "--json"]
    code, out, err = cli(*asked)
    assert code == 0, err
    assert json.loads(out)["train"]["n"] == 40


@pytest.mark.parametrize(
    "command",
    [
        ["measure", "--measures", "margin"],
        ["rank", "a.pt", "b.pt", "--measures", "none"],
        ["landscape", "--dimensions", "1", "--steps", "3", "--output", "drawn"],
        ["train", "--epochs", "1", "--output", "trained"],
        ["certify", "--dry-run"],
    ],
    ids=lambda command: command[0],
)
def test_what_was_understood_is_one_line_and_the_same_in_every_command(
    cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: list[str]
) -> None:  # type: ignore[no-untyped-def]
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "i.npz", x=rng.integers(0, 256, (20, 5, 5, 3), dtype=np.uint8), y=np.arange(20) % 2)
    monkeypatch.syspath_prepend(tmp_path)
    own = importlib.import_module("own")
    for k in "ab":
        torch.save(own.single().state_dict(), tmp_path / f"{k}.pt")
    code, _, err = cli(*command, "--model", "own:single", "--app-dir", ".", "--data", "i.npz")
    assert code == 0, err
    assert "Note: data: 20 images 5x5x3, 2 classes, scaled by 1/255" in err.splitlines()


def test_bytes_of_a_function_are_scaled_as_a_files(cli) -> None:  # type: ignore[no-untyped-def]
    value, err = measured(cli, "--data", "own:bytes_last", "--data-arg", "n=16")
    import own  # type: ignore[import-not-found]

    x = (own.X[:16].permute(0, 2, 3, 1) * 30 + 128).clamp(0, 255).byte().permute(0, 3, 1, 2).float() / 255
    assert value == pytest.approx(truth("single", (x, own.Y[:16])), rel=1e-5)
    assert "16 images 5x5x3, 2 classes, scaled by 1/255" in err
    code, _, err = cli(
        "measure", "--model", "own:single", "--app-dir", ".", "--data", "own:bytes_last", "--data-arg", "m=1"
    )
    assert code == 2 and "check --data-arg key=value" in err


@pytest.mark.parametrize("model", ["own:Two", "own:Batch"])
@pytest.mark.parametrize("data", ["own:several", "own:named"])
def test_several_inputs_and_a_batch_as_one_argument(cli, model: str, data: str) -> None:  # type: ignore[no-untyped-def]
    value, _ = measured(cli, "--data", data, model=model)
    import own  # type: ignore[import-not-found]

    assert value == pytest.approx(truth("Two", ((own.X, own.T), own.Y)), rel=1e-5)


def test_an_image_and_columns_from_one_file(cli, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (20, 5, 5, 3), dtype=np.uint8)
    ages, sizes, labels = rng.normal(size=20), rng.normal(size=20), np.arange(20) % 2
    np.savez(tmp_path / "two.npz", picture=images, age=ages, size=sizes, label=labels)
    value, err = measured(cli, "--data", "two.npz", "--columns", "picture;age,size", model="own:Two")
    x = torch.from_numpy(images.transpose(0, 3, 1, 2).astype(np.float32) / 255)
    table = torch.from_numpy(np.stack([ages, sizes], 1).astype(np.float32))
    own_truth = truth("Two", ((x, table), torch.from_numpy(labels)))
    assert value == pytest.approx(own_truth, rel=1e-5) and "with age+size: rows of 2 numbers" in err
    by_name, _ = measured(cli, "--data", "two.npz", "--columns", "image=picture;table=age,size", model="own:Batch")
    assert by_name == pytest.approx(own_truth, rel=1e-5)


@pytest.mark.parametrize(
    ("name", "text", "model"),
    [
        ("c.json", '{"width": 5}', "own:single"),
        ("c.toml", "width = 5", "own:single"),
        ("c.yaml", "width: 5", "own:typed"),
        ("c.json", '{"model": {"width": 5}}', "own:loose"),
        ("c.json", '{"width": 5}', "my-models.2.py:single"),
    ],
)
def test_a_configuration_file_makes_the_network(cli, tmp_path: Path, name: str, text: str, model: str) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / name).write_text(text)
    asked = ["measure", "--model", model, "--app-dir", ".", "--no-data", "--measures", "parameter_count", "--json"]
    code, out, err = cli(*asked, "--model-config", name)
    assert code == 0, err
    assert json.loads(out)["measures"]["parameter_count"]["value"] == 75 * 5 + 5 + 10 + 2


def test_a_configuration_runs_no_code(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("a: !!python/object/apply:os.system ['true']")
    with pytest.raises(UsageError, match=r"cannot be read as \.yaml"):
        arguments_of(lambda cfg: cfg, path)
    path.write_text("- 1")
    with pytest.raises(UsageError, match="expected names and values"):
        arguments_of(lambda cfg: cfg, path)
    with pytest.raises(AttributeError, match="it has a"):
        _ = Configuration(a=1).b


def test_mean_and_deviation_are_those_of_torchvision(cli, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 256, (20, 5, 5, 3), dtype=np.uint8), np.arange(20) % 2
    np.savez(tmp_path / "i.npz", x=images, y=labels)
    x = torch.from_numpy(images.transpose(0, 3, 1, 2).astype(np.float32) / 255)
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))
    expected = (x - mean) / std
    by_hand = ["--mean", "0.485,0.456,0.406", "--std", "0.229,0.224,0.225"]
    values = [measured(cli, "--data", "i.npz", *o)[0] for o in (["--scaling", "imagenet"], by_hand)]
    own_truth = truth("single", (expected, torch.from_numpy(labels)))
    assert values == pytest.approx([own_truth, own_truth], rel=1e-5)
    one, _ = measured(cli, "--data", "i.npz", "--mean", "0.5", "--std", "0.5")
    assert one == pytest.approx(truth("single", ((x - 0.5) / 0.5, torch.from_numpy(labels))), rel=1e-5)


def test_no_data_measures_the_weights(cli) -> None:  # type: ignore[no-untyped-def]
    """Every measure that a network with data would give the same value of, whatever the data."""
    start = ["measure", "--model", "own:single", "--app-dir", ".", "--no-data"]
    code, out, err = cli(*start, "--initial", "factory", "--json")
    assert code == 0, err
    found = json.loads(out)["measures"]
    import own  # type: ignore[import-not-found]

    torch.manual_seed(0)
    minimum = Minimum(own.single().eval(), (own.X, own.Y))
    margin = ("frobenius_norm", "group_norm", "spectral_norm", "path_norm", "lipschitz")
    expected = {name: float(getattr(measures, name)(minimum, over_margin=False)) for name in margin}
    expected |= {n: float(getattr(measures, n)(minimum)) for n in ("parameter_count", "parameter_norm", "vc_dimension")}
    expected["distance_from_init"] = 0.0
    assert {n: e["value"] for n, e in found.items() if e["value"] is not None} == pytest.approx(expected)
    assert "not over the margin" in found["path_norm"]["details"]["note"]
    assert "at its initial weights" in found["spectral_complexity"]["undefined"]
    assert found.keys() - expected == {"power_law_exponent", "spectral_complexity"}  # the matrices are too small
    assert cli(*start, "--fail-if", "parameter_count>1")[0] == 3
    code, _, err = cli(*start, "--fail-if", "margin>1")
    assert code == 2 and "not among the measures without data" in err
    code, _, err = cli(*start, "--measures", "parameter_norm,hessian_trace,fisher_trace")
    assert code == 2 and "hessian_trace, fisher_trace cannot be measured with --no-data: it reads the samples" in err


def test_a_convolution_needs_the_shape_of_an_input(cli) -> None:  # type: ignore[no-untyped-def]
    start = ["measure", "--model", "flatminima.models:resnet20", "--model-arg", "depth=8", "--no-data", "--json"]
    start += ["--measures", "path_norm,parameter_norm"]
    code, out, err = cli(*start)
    assert code == 0, err
    assert "give --input-shape 3,32,32" in json.loads(out)["measures"]["path_norm"]["undefined"]
    values = [json.loads(cli(*start, "--input-shape", shape)[1])["measures"]["path_norm"]["value"] for shape in SHAPES]
    torch.manual_seed(0)
    model = resnet20(depth=8).eval()
    for shape, value in zip(((3, 32, 32), (3, 8, 8)), values, strict=True):
        minimum = Minimum(model, (torch.randn(4, *shape), torch.arange(4)))
        assert value == pytest.approx(float(measures.path_norm(minimum, over_margin=False)))
    for wrong in (["--input-shape", "3,a"], ["--initial", "none.pt"]):
        assert cli(*start, *wrong)[0] == 2
    code, _, err = cli("measure", "--model", "own:single", "--app-dir", ".", "--data", "own:pair", "--input-shape", "3")
    assert code == 2 and "--input-shape goes with --no-data" in err


def test_initial_weights_are_given_to_the_measures_that_take_them(
    cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.syspath_prepend(tmp_path)
    own = importlib.import_module("own")
    before = {n: t + 0.5 for n, t in own.single().state_dict().items()}
    torch.save(before, tmp_path / "before.pt")
    start = ["measure", "--model", "own:single", "--app-dir", ".", "--json", "--initial", "before.pt"]
    code, out, err = cli(*start, "--data", "own:pair", "--measures", "distance_from_init")
    assert code == 0, err
    count = sum(t.numel() for t in before.values())
    assert json.loads(out)["measures"]["distance_from_init"]["value"] == pytest.approx(0.5 * count**0.5, rel=1e-6)
    code, out, err = cli(*start, "--no-data", "--measures", "spectral_complexity")
    assert code == 0, err
    minimum = Minimum(own.single().eval(), (own.X, own.Y))
    expected = float(measures.spectral_complexity(minimum, over_margin=False, initial=before))
    assert json.loads(out)["measures"]["spectral_complexity"]["value"] == pytest.approx(expected)


def test_messages_name_options() -> None:
    assert own_words("pass label_column") == "pass --label-column"
    assert own_words("pass layout='chw' or layout='hwc'") == "pass --layout chw or --layout hwc"
    assert (
        own_words("give more samples or a smaller prior_fraction") == "give more samples or a smaller --prior-fraction"
    )


@pytest.mark.parametrize(
    "text",
    [
        "column 'label_column' of x",
        "cannot read /data/batch_size/net.pt: there is no such file",
        "no file batch_size.pt",
        "/runs/seed=1,subset=100/limit=5/w.pt: not a checkpoint",
        "/runs/mode='RGB'/w.pt is a folder",
        "layers=3.pt: there is no such file",
        r"C:\runs\layers=3\loss='a'.pt",
        "no column 'y' (columns a, image_size, label_column)",
    ],
)
def test_paths_and_names_of_columns_are_no_options(text: str) -> None:
    """The user's own words stay: a path that a message changed is a file that is not there."""
    assert own_words(text) == text
