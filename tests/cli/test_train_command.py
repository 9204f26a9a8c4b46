"""`flatminima train`: what it writes, what decides the result, and one line with exit code 2 for bad input."""

from __future__ import annotations

import json
import socket
import sys

import pytest
import torch

from flatminima import data
from flatminima.cli import train_options as command
from flatminima.cli.app import main
from flatminima.data import corrupt_labels, load_tensors
from flatminima.models import build
from flatminima.optim import SAM
from flatminima.training import TrainConfig, evaluate, load_checkpoint, methods, read_weights, train
from processes import start

DIGITS = ["--data", "digits", "--limit", "120", "--batch-size", "40", "--epochs", "2"]
MLP = ["train", "--model", "flatminima.models:mlp", "--model-arg", "widths=(64,16,10)", *DIGITS]
CNN = [
    "train",
    "--model",
    "flatminima.models:wide_resnet",
    *DIGITS,
    "--model-arg",
    "depth=10",
    "--model-arg",
    "channels=1",
    "--model-arg",
    "dropout=0.5",
    "--model-arg",
    "width=1",
]


@pytest.fixture
def cli(monkeypatch, capsys):
    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["flatminima", *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            main()
        captured = capsys.readouterr()
        return int(stop.value.code or 0), captured.out, captured.err

    return run


def test_it_is_the_librarys_training(cli, tmp_path):
    """Weights equal to those of `training.train` with the same choices, bit for bit; the files say what happened."""
    code, out, err = cli(
        *MLP, "--output", tmp_path, "--method", "sam", "--method-arg", "rho=0.1", "--optimizer", "AdamW",
        "--optimizer-arg", "weight_decay=0.1", "--lr", "0.01", "--schedule", "cosine", "--seed", "4",
        "--label-noise", "0.25", "--test-split", "test", "--json",
    )  # fmt: skip
    assert code == 0, err
    x, y = load_tensors("digits", "train", limit=120)
    y = corrupt_labels(y, 0.25, 10, 4)
    model = build("mlp", seed=4, widths=(64, 16, 10))
    optimizer = SAM(torch.optim.AdamW(model.parameters(), lr=0.01, weight_decay=0.1), rho=0.1)
    config = TrainConfig(lr=0.01, batch_size=40, epochs=2, seed=4, schedule="cosine")
    history = train(model, x, y, config=config, optimizer=optimizer)
    found = read_weights(tmp_path / "weights.safetensors")
    assert all(torch.equal(found[name], p) for name, p in model.state_dict().items())
    result = json.loads(out)
    assert result["train"]["loss"] == history.final.loss and result["steps"] == 6
    assert result["test"]["error"] == evaluate(model, *load_tensors("digits", "test")).error
    assert result == json.loads((tmp_path / "result.json").read_text())
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [row["epoch"] for row in rows] == [1, 2] and rows[1]["step"] == 6
    assert rows[1]["test_error"] == result["test"]["error"] and rows[0]["loss"] == history.epochs[0].loss
    assert "training labels are now wrong" in err and "epoch 2/2: loss" in err and "0:00:00 left" in err


@pytest.mark.parametrize("method", command.METHODS)
def test_every_method_trains_and_says_what_it_saw(cli, tmp_path, method):
    code, out, err = cli(*MLP, "--output", tmp_path, "--method", method, "--optimizer", "adam")
    assert code == 0, err
    assert out.startswith(f"{method} with adam: 2 epochs, 6 steps")
    row = json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[-1])
    expected = {"pertopt": "relative_noise", "fisher_trace": "trace"}.get(method)
    assert expected is None or row[expected] > 0


def test_the_same_again_reads_what_is_there_and_other_settings_are_refused(cli, tmp_path):
    arguments = [*MLP, "--output", tmp_path]
    assert cli(*arguments)[0] == 0
    weights = tmp_path / "weights.safetensors"
    first = read_weights(weights)
    code, out, err = cli(*arguments)
    assert code == 0 and "2 epochs" in out and "epoch 2/2" not in err
    assert all(torch.equal(v, first[k]) for k, v in read_weights(weights).items())
    code, _, err = cli(*arguments, "--lr", "0.5")
    assert code == 2 and "lr=0.01, not 0.5" in err and "--fresh" in err and err.count("\n") == 1
    assert cli(*arguments, "--lr", "0.5", "--fresh")[0] == 0
    assert not any(torch.equal(v, first[k]) for k, v in read_weights(weights).items())


def test_dropout_augmentation_averaging_and_a_start_from_weights(cli, tmp_path):
    code, _, err = cli(
        *CNN, "--output", tmp_path / "a", "--dropout", "0.25", "--augment", "1-crop-f", "--average-from", "2",
        "--average-lr", "0.02",
    )  # fmt: skip
    assert code == 0, err
    changed = [json.loads((tmp_path / "a" / "run.json").read_text())[k] for k in ("dropout", "augment", "average_lr")]
    assert changed == [0.25, "1-crop-f", 0.02]
    weights = tmp_path / "a" / "weights.safetensors"
    code, _, err = cli(*CNN, "--output", tmp_path / "b", "--init", weights, "--lr", "1e-30", "--epochs", "1")
    assert code == 0, err
    a, b = read_weights(weights), read_weights(tmp_path / "b" / "weights.safetensors")
    assert all(torch.allclose(a[k], b[k]) for k in a if k.endswith(("weight", "bias")))
    model = build("wide_resnet", depth=10, width=1, channels=1)
    assert load_checkpoint(model, weights) == ()


BAD = [
    (["--method", "sma"], "unknown method 'sma': did you mean 'sam'"),
    (["--method", "sam", "--method-arg", "gamma=1"], "unknown option of method sam 'gamma'"),
    (["--method", "sam", "--method-arg", "rho=-1"], "got sam_rho=-1"),
    (["--method-arg", "rho"], "got --method-arg 'rho'; expected key=value"),
    (["--optimizer", "adamm"], "unknown optimizer 'adamm'"),
    (["--optimizer-arg", "momentum=a=b", "--optimizer-arg", "momentum=1"], "got --optimizer-arg momentum twice"),
    (["--lr", "0"], "got --lr 0.0; it must be positive"),
    (["--epochs", "0"], "Invalid value for '--epochs'"),
    (["--schedule", "linear"], "unknown schedule 'linear'"),
    (["--augment", "flop"], "unknown augmentation 'flop': did you mean 'flip'"),
    (["--dropout", "1"], "got --dropout 1.0; it must be in [0, 1)"),
    (["--dropout", "0.5"], "has no dropout layer"),
    (["--label-noise", "2"], "got --label-noise 2.0; it must be in [0, 1]"),
    (["--average-from", "9"], "average_from=9: must be in 1 to 2"),
    (["--target-loss", "-1"], "target_loss=-1.0: must be positive"),
    (["--init", "/no/such.pt"], "no file /no/such.pt for --init"),
    (["--app-dir", "/no/such"], "no folder /no/such for --app-dir"),
    (["--test-split", "tset"], "tset"),
    (["--test-split", "train"], "got 'train' for both --split and --test-split"),
    (["--validation-split", "test", "--test-split", "test"], "what chooses the weights is no test of them"),
    (["--keep-best"], "--keep-best and --stop-after go by --validation-split"),
    (["--stop-after", "2"], "--keep-best and --stop-after go by --validation-split"),
    (["--keep-best", "--average-from", "2", "--validation-split", "test"], "each decide the final weights"),
    (["--precision", "float16"], "unknown precision 'float16'"),
    (["--precision", "bfloat16", "--method", "fisher_trace"], "differences that need float32"),
    (["--channels-last", "--data", "digits", "--model", "flatminima.models:nothing"], "has no 'nothing'"),
    (["--loss", "mae"], "unknown loss 'mae'"),
    (["--loss", "mse"], "mse needs equal shapes"),
    (["--loss", "mse", "--label-noise", "0.1"], "--label-noise redraws the labels of classes; --loss mse has none"),
    (["--loss", "token_cross_entropy"], "token_cross_entropy needs logits (tokens, classes)"),
    (["--device", "gpu"], "device 'gpu' cannot be used here"),
]


@pytest.mark.parametrize(("arguments", "message"), BAD, ids=lambda v: " ".join(v) if isinstance(v, list) else "")
def test_bad_input_is_one_line_and_exit_code_2(cli, tmp_path, arguments, message):
    """And nothing is left in the folder that would refuse the corrected command."""
    code, out, err = cli(*MLP, "--output", tmp_path / "run", *arguments)
    assert (code, out) == (2, "") and message in err and err.count("\n") == 1, err
    assert not (tmp_path / "run").exists()


def test_a_network_for_other_inputs_is_one_line_and_leaves_nothing(cli, tmp_path):
    shape = ["--model", "flatminima.models:mlp", "--model-arg", "widths=(63,10)"]
    code, out, err = cli("train", *shape, *DIGITS, "--output", tmp_path / "run")
    assert (code, out) == (2, "") and "the network does not take inputs of shape (1, 8, 8) a sample" in err, err
    assert err.count("\n") == 1 and not (tmp_path / "run").exists()


REGRESSION = """
import torch
def network():
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))
"""


def test_another_loss_from_the_command_line(cli, tmp_path, monkeypatch):
    """Squared error of one-hot digits: equal to the library's; no error rate is claimed; the folder keeps its loss."""

    def one_hot(split, limit=None):
        x, y = load_tensors("digits", split, limit=limit)
        return x, torch.nn.functional.one_hot(y, 10).float()

    def samples(request, *_):
        return one_hot("train", 120), {"test": one_hot("test")} if request.samples.test_split else {}

    monkeypatch.setattr("flatminima.cli.train_run._samples", samples)
    (tmp_path / "regression_net.py").write_text(REGRESSION)
    start = ["train", "--model", "regression_net:network", "--app-dir", tmp_path, *DIGITS, "--output", tmp_path / "run"]
    code, out, err = cli(*start, "--loss", "mse", "--test-split", "test", "--lr", "0.05")
    assert code == 0 and "error" not in out and "test       loss" in out, (out, err)
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["loss"] == "mse" and result["train"]["error"] is None
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))
    config = TrainConfig(lr=0.05, momentum=0.0, batch_size=40, epochs=2)
    history = train(model, *one_hot("train", 120), config=config, loss="mse")
    assert result["train"]["loss"] == pytest.approx(history.final.loss, rel=1e-6)
    code, _, err = cli(*start, "--loss", "binary_cross_entropy")
    assert code == 2 and "holds a training with --loss mse, not" in err


SEVERAL = """
import torch
from torch import nn
class Both(nn.Module):
    def __init__(self):
        super().__init__()
        self.of_image, self.of_table, self.head = nn.Linear(16, 4), nn.Linear(3, 4), nn.Linear(8, 2)
    def forward(self, image, table):
        return self.head(torch.cat([self.of_image(image.flatten(1)), self.of_table(table)], 1).relu())
class Samples(torch.utils.data.Dataset):
    def __init__(self, n, named):
        g = torch.Generator().manual_seed(n)
        self.image, self.table, self.named = torch.randn(n, 1, 4, 4, generator=g), torch.randn(n, 3, generator=g), named
        self.y = (self.table[:, 0] > 0).long()
    def __len__(self):
        return len(self.y)
    def __getitem__(self, i):
        both = {"image": self.image[i], "table": self.table[i]} if self.named else (self.image[i], self.table[i])
        return both, self.y[i]
def data(split, named=0):
    return Samples(60 if split == "train" else 20, named)
"""


@pytest.mark.parametrize("named", [0, 1])
@pytest.mark.parametrize("method", ["plain", "fisher_trace"])
def test_networks_of_several_inputs_train(cli, tmp_path, named, method):
    """By position and by name: equal to the library's training, with a test split and the tracker beside it."""
    (tmp_path / "several_inputs.py").write_text(SEVERAL)
    code, out, err = cli(
        "train", "--model", "several_inputs:Both", "--app-dir", tmp_path, "--data", "several_inputs:data",
        "--data-arg", f"named={named}", "--test-split", "test", "--epochs", 3, "--batch-size", 20, "--lr", 0.1,
        "--method", method, "--output", tmp_path / "run", "--track", 4,
    )  # fmt: skip
    assert code == 0 and "test       loss" in out, (out, err)
    assert "60 samples of 1x4x4 and 3" in err
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    module = sys.modules["several_inputs"]
    torch.manual_seed(0)
    model, samples = module.Both(), module.data("train")
    inputs = (samples.image, samples.table)
    chosen = methods.method(method, model, torch.optim.SGD(model.parameters(), 0.1), steps_per_epoch=3)
    history = train(
        model, {"image": inputs[0], "table": inputs[1]} if named else inputs, samples.y,
        config=TrainConfig(lr=0.1, epochs=3, batch_size=20), optimizer=chosen.optimizer, backward=chosen.backward,
    )  # fmt: skip
    assert result["train"]["loss"] == history.final.loss and result["test"]["n"] == 20
    code, _, err = cli(
        "train", "--model", "several_inputs:Both", "--app-dir", tmp_path, "--data", "several_inputs:data",
        "--output", tmp_path / "other", "--augment", "flip",
    )  # fmt: skip
    assert code == 2 and "augmentation is of images; got several inputs" in err


def test_divergence_is_one_line_and_exit_code_1(cli, tmp_path):
    code, _, err = cli(*MLP, "--output", tmp_path, "--lr", "1e30")
    assert code == 1 and "training diverged at step" in err and "Traceback" not in err


def test_names_known_without_torch_are_torchs():
    for name in command.AUGMENTATIONS:
        data.augmentation(name)
    assert set(command.AUGMENTATIONS) == set(data.augment._SCHEMES)
    for schedule in command.SCHEDULES:
        TrainConfig(schedule=schedule)
    for precision in command.PRECISIONS:
        TrainConfig(precision=precision)


def test_tensorboard_reads_what_is_written(cli, tmp_path):
    pytest.importorskip("tensorboard", reason="tensorboard is not installed: pip install 'flatminima[tensorboard]'")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    assert cli(*MLP, "--output", tmp_path, "--tensorboard")[0] == 0
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [e.value for e in events.Scalars("loss")] == pytest.approx([row["loss"] for row in rows])


def test_tensorboard_that_is_not_there_is_named(cli, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    code, _, err = cli(*MLP, "--output", tmp_path / "run", "--tensorboard")
    assert code == 2 and "pip install 'flatminima[tensorboard]'" in err


def rows_of(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_more_epochs_go_on_from_a_finished_run(cli, tmp_path):
    """To the bits of a run that was that long from the start; where the schedule would have been another, refused."""
    more = [*MLP, "--warmup", "1", "--optimizer", "adam"]
    assert cli(*more, "--output", tmp_path / "whole", "--epochs", "5")[0] == 0
    assert cli(*more, "--output", tmp_path / "longer", "--epochs", "3")[0] == 0
    code, out, err = cli(*more, "--output", tmp_path / "longer", "--epochs", "5")
    assert code == 0 and "5 epochs, 15 steps" in out, err
    a, b = ((tmp_path / name / "weights.safetensors").read_bytes() for name in ("whole", "longer"))
    assert a == b
    assert [row["loss"] for row in rows_of(tmp_path / "whole")] == [row["loss"] for row in rows_of(tmp_path / "longer")]
    cosine = [*MLP, "--schedule", "cosine", "--output", tmp_path / "cosine"]
    assert cli(*cosine)[0] == 0
    code, _, err = cli(*cosine, "--epochs", "4")
    assert code == 2 and "epochs=2, not 4 (a cosine falls to 0" in err and err.count("\n") == 1


def test_validation_chooses_and_stops(cli, tmp_path):
    code, out, err = cli(
        *MLP, "--output", tmp_path, "--epochs", "40", "--lr", "0.5", "--label-noise", "0.4", "--keep-best",
        "--stop-after", "3", "--split", "train[:120]", "--validation-split", "train[-200:]", "--test-split", "test",
    )  # fmt: skip
    assert code == 0, err
    rows, result = rows_of(tmp_path), json.loads((tmp_path / "result.json").read_text())
    losses = [row["validation_loss"] for row in rows]
    best = losses.index(min(losses))
    assert result["stopped_because"] == "validation" and len(rows) == best + 4 and result["best_epoch"] == best + 1
    assert result["validation"]["loss"] == losses[best] and result["test"]["error"] == rows[best]["test_error"]
    assert f"best epoch {best + 1}, whose weights are kept" in out
    model = build("mlp", seed=0, widths=(64, 16, 10))
    load_checkpoint(model, tmp_path / "weights.safetensors")
    assert evaluate(model, *load_tensors("digits", "train[-200:]")).loss == losses[best]


def test_precision_and_memory_format_are_the_librarys(cli, tmp_path):
    options = ["--channels-last", "--precision", "bfloat16", "--warmup", "1", "--dropout", "0.1"]
    code, _, err = cli(*CNN, "--output", tmp_path, *options)
    assert code == 0, err
    torch.manual_seed(0)
    model = methods_model()
    x, y = load_tensors("digits", "train", limit=120)
    config = TrainConfig(batch_size=40, epochs=2, channels_last=True, precision="bfloat16", warmup=1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    train(model, x, y, config=config, optimizer=optimizer)
    found = read_weights(tmp_path / "weights.safetensors")
    assert all(torch.equal(found[name], v) for name, v in model.state_dict().items())
    changed = json.loads((tmp_path / "run.json").read_text())
    assert changed["precision"] == "bfloat16" and changed["channels_last"] is True and changed["warmup"] == 1


def methods_model():
    from flatminima.models import wide_resnet

    model = wide_resnet(depth=10, width=1, channels=1, dropout=0.5).train()
    methods.set_dropout(model, 0.1)
    return model


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"WORLD_SIZE": "2"}, "without RANK, MASTER_ADDR, MASTER_PORT: start with torchrun"),
        ({"WORLD_SIZE": "two"}, "WORLD_SIZE is 'two' in the environment"),
        ({"WORLD_SIZE": "2", "RANK": "0", "MASTER_ADDR": "127.0.0.1"}, "not all came within 1 s: start with torchrun"),
        ({"WORLD_SIZE": "2", "RANK": "1", "MASTER_ADDR": "127.0.0.1"}, "not all came within 1 s: start with torchrun"),
    ],
    ids=["no rank", "no number", "first", "second"],
)  # fmt: skip
@pytest.mark.parametrize("command", ["train", "measure"])
def test_a_world_size_that_a_launcher_left_is_noticed(cli, tmp_path, monkeypatch, environment, message, command):
    """torch would wait for half an hour, without a word, for processes that nobody has started."""
    from datetime import timedelta

    from flatminima.cli import torchrun

    monkeypatch.setattr(torchrun, "_PATIENCE", timedelta(seconds=1))
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    if "MASTER_ADDR" in environment:
        monkeypatch.setenv("MASTER_PORT", str(port))
    arguments = (
        [*MLP, "--output", tmp_path / "run"] if command == "train" else ["measure", *MLP[1:5], "--data", "digits"]
    )
    code, out, err = cli(*arguments)
    assert (code, out) == (2, "") and message in err and err.count("\n") == 1, err
    assert not (tmp_path / "run").exists()


def torchrun(*arguments, folder):
    import os
    import subprocess

    environment = {k: v for k, v in os.environ.items() if k not in ("WORLD_SIZE", "RANK")} | {"OMP_NUM_THREADS": "1"}
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
        "-m",
        "flatminima",
    ]
    return subprocess.run(
        [*command, *map(str, arguments), "--output", str(folder)],
        capture_output=True, text=True, env=environment, timeout=300, check=False,
    )  # fmt: skip


def test_torchrun_trains_what_one_process_does(cli, tmp_path):
    """One of the two writes and speaks; batches of 40 are shared; what cannot be shared is refused."""
    options = [*MLP, "--method", "sam", "--lr", "0.1", "--test-split", "test", "--json"]
    code, out, err = cli(*options, "--output", tmp_path / "one")
    assert code == 0, err
    two = torchrun(*options, folder=tmp_path / "two")
    assert two.returncode == 0 and "UserWarning" not in two.stderr, two.stderr
    alone, shared = json.loads(out), json.loads(two.stdout)
    assert shared["train"]["loss"] == pytest.approx(alone["train"]["loss"], rel=1e-5)
    assert shared["test"]["error"] == alone["test"]["error"] and two.stderr.count("Weights:") == 1
    a, b = (read_weights(tmp_path / name / "weights.safetensors") for name in ("one", "two"))
    for name, value in a.items():
        torch.testing.assert_close(b[name], value, rtol=1e-4, atol=1e-5)
    assert len(rows_of(tmp_path / "two")) == 2


def test_what_two_processes_cannot_share_is_refused(tmp_path):
    """With the variables that torchrun sets."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    rendezvous = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    arguments = [*map(str, MLP), "--method", "fisher_trace", "--output", str(tmp_path / "three")]
    both = [start(*arguments, stderr=tmp_path / r, environment=rendezvous | {"RANK": r}) for r in "01"]
    for process in both:
        process.join(100)
    assert all(process.exitcode for process in both)
    assert "--method fisher_trace runs in one process, got 2" in (tmp_path / "0").read_text()
    assert not (tmp_path / "three").exists()
