"""`flatminima measure --model hf:FOLDER --data texts`: run in this process, on models made here."""

from __future__ import annotations

import json
import math
import sys
from types import SimpleNamespace

import pytest
import torch

from flatminima.cli import main
from flatminima.data.sentences import sentences, word_tokenizer

transformers = pytest.importorskip("transformers", reason="needs transformers: pip install 'flatminima[hf]'")
pytestmark = pytest.mark.filterwarnings("ignore")
ROWS = sentences(24)


@pytest.fixture
def cli(monkeypatch, capsys):
    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["flatminima", *arguments])
        capsys.readouterr()  # of the fixtures
        with pytest.raises(SystemExit) as stop:
            main()
        captured = capsys.readouterr()
        return SimpleNamespace(exit_code=int(stop.value.code or 0), stdout=captured.out, stderr=captured.err)

    return call


@pytest.fixture
def folder(tmp_path):
    """A causal language model and a classifier, with one tokenizer, and their texts."""
    tokenizer = word_tokenizer([r["text"] for r in ROWS])
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        vocab_size=len(tokenizer), n_positions=16, n_embd=8, n_layer=1, n_head=2, bos_token_id=2, eos_token_id=2,
        label2id={"good": 0, "bad": 1}, id2label={0: "good", 1: "bad"}, pad_token_id=0,
    )  # fmt: skip
    for name, kind in (("lm", "GPT2LMHeadModel"), ("classes", "GPT2ForSequenceClassification")):
        getattr(transformers, kind)(config).save_pretrained(tmp_path / name)
        tokenizer.save_pretrained(tmp_path / name)
    (tmp_path / "texts.jsonl").write_text("\n".join(map(json.dumps, ROWS)))
    return tmp_path


def test_a_language_model_is_measured_on_texts(cli, folder):
    found = cli("measure", "--model", f"hf:{folder / 'lm'}", "--data", str(folder / "texts.jsonl"),
                "--measures", "fisher_trace,pacgen,frobenius_norm,margin", "--json")  # fmt: skip
    assert found.exit_code == 0, found.stderr
    document = json.loads(found.stdout)
    assert document["loss"] == "causal_lm" and document["samples"] == 24
    assert all(e["value"] is not None for e in document["measures"].values())
    assert "loss a token" in found.stderr and "a sequence" in found.stderr and "24 texts" in found.stderr
    assert document["measures"]["margin"]["details"]["unit"] == "token"


@pytest.mark.parametrize(("model", "loss"), [("lm", "causal_lm"), ("classes", "cross_entropy")])
def test_a_language_model_is_trained_on_texts(cli, folder, model, loss):
    """With the loss that it was made with; what is trained is what is measured."""
    typed = ["--model", f"hf:{folder / model}", "--data", str(folder / "texts.jsonl")]
    output = folder / "run"
    options = ["--epochs", "2", "--lr", "0.1", "--batch-size", "8", "--method", "sam", "--output", str(output)]
    found = cli("train", *typed, *options)
    assert found.exit_code == 0, found.stderr
    result = json.loads((output / "result.json").read_text())
    assert result["loss"] == loss and "24 texts" in found.stderr
    checkpoint = str(output / "weights.safetensors")
    found = cli("measure", *typed, "--checkpoint", checkpoint, "--measures", "margin", "--json")
    details = json.loads(found.stdout)["measures"]["margin"]["details"]
    assert details["train_loss"] == pytest.approx(result["train"]["loss"], rel=1e-5)
    found = cli("train", *typed, *options[:-1], str(folder / "noisy"), "--label-noise", "0.5")
    assert (found.exit_code == 2) == (model == "lm"), found.stderr
    assert model != "lm" or "causal_lm, has none" in found.stderr


def test_packing_and_the_loss_of_a_sequence(cli, folder):
    options = ["measure", "--model", f"hf:{folder / 'lm'}", "--data", str(folder / "texts.jsonl"), "--packing",
               "--length", "8", "--measures", "margin", "--json"]  # fmt: skip
    mean, total = cli(*options), cli(*options, "--loss", "causal_lm_sequence")
    losses = [json.loads(r.stdout)["measures"]["margin"]["details"]["train_loss"] for r in (mean, total)]
    assert losses[1] == pytest.approx(7 * losses[0], rel=1e-5)
    said = [next(line for line in r.stderr.splitlines() if "loss a token" in line) for r in (mean, total)]
    assert said[0].partition("; measured")[0] == said[1].partition("; measured")[0]
    perplexity = float(said[0].partition("perplexity ")[2].partition(",")[0])
    assert perplexity == pytest.approx(math.exp(losses[0]), rel=1e-3)


def test_a_classifier_takes_the_models_own_order_of_classes(cli, folder):
    found = cli("measure", "--model", f"hf:{folder / 'classes'}", "--data", str(folder / "texts.jsonl"),
                "--measures", "margin", "--json")  # fmt: skip
    assert found.exit_code == 0, found.stderr
    document = json.loads(found.stdout)
    model = transformers.GPT2ForSequenceClassification.from_pretrained(folder / "classes").eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder / "classes")
    wrong = 0
    for row in ROWS:
        logits = model(**tokenizer(row["text"], return_tensors="pt", return_token_type_ids=False)).logits
        wrong += int(logits.argmax()) != (0 if row["label"] == "good" else 1)
    assert document["loss"] == "cross_entropy"
    assert document["measures"]["margin"]["details"]["train_error"] == pytest.approx(wrong / 24)


def test_a_tokenizer_of_another_model_is_refused(cli, folder):
    word_tokenizer([f"a{i}" for i in range(99)] + [r["text"] for r in ROWS]).save_pretrained(folder / "lm")
    found = cli("measure", "--model", f"hf:{folder / 'lm'}", "--data", str(folder / "texts.jsonl"))
    assert found.exit_code == 2 and "not its own?" in found.stderr


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--model", "hf:"], "expected hf:NAME_OR_FOLDER"),
        (["--model", "hf:./nowhere"], "no folder ./nowhere"),
        (["--data", "nowhere.txt"], "no file nowhere.txt"),
        (["--packing"], "--packing without --length"),
        (["--length", "99"], "the model has 16 positions"),
        (["--split", "test"], "one file, without a split 'test'"),
        (["--text-column", "txt"], "unknown column 'txt': did you mean 'text'"),
    ],
)
def test_mistakes_are_answered_in_one_line(cli, folder, options, message):
    given = {"--model": f"hf:{folder / 'lm'}", "--data": str(folder / "texts.jsonl")}
    rest = []
    for option, value in zip(options[::2], [*options[1::2], None], strict=False):
        if option in given:
            given[option] = value
        else:
            rest += [option] + ([] if value is None else [value])
    found = cli("measure", *(word for pair in given.items() for word in pair), *rest, "--measures", "margin")
    assert found.exit_code == 2
    assert message in found.stderr and len(found.stderr.strip().splitlines()) == 1


def test_a_classifier_of_texts_is_certified(cli, folder):
    texts, stated = ["--data", str(folder / "texts.jsonl")], ["--stated", "random weights, seen no text"]
    quick = ["--prior-epochs", "1", "--passes", "1", "--json"]
    found = cli("certify", "--model", f"hf:{folder / 'classes'}", *texts, *stated, *quick)
    assert found.exit_code == 0, found.stderr
    assert json.loads(found.stdout)["n"] > 0 and "24 texts" in found.stderr
    found = cli("certify", "--model", f"hf:{folder / 'lm'}", *texts, *stated, *quick)
    assert found.exit_code == 2 and "one a sample, as classifiers have" in found.stderr
