"""``hf:FOLDER``: three kinds of heads, adapters, and what is refused; every model is made here, without a network."""

from __future__ import annotations

import json

import pytest
import torch

from flatminima import Minimum
from flatminima.data.sentences import sentences, word_tokenizer
from flatminima.data.text import load_texts
from flatminima.errors import CheckpointError, ModelError, UsageError
from flatminima.models.hf import HUB_LOSS, Reference, load

transformers = pytest.importorskip("transformers", reason="needs transformers: pip install 'flatminima[hf]'")
pytestmark = pytest.mark.filterwarnings("ignore")
ROWS = sentences(12)
TOKENIZER = word_tokenizer([r["text"] for r in ROWS])
BERT = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}


def gpt2():
    config = transformers.GPT2Config(
        vocab_size=len(TOKENIZER), n_positions=16, n_embd=8, n_layer=1, n_head=2, bos_token_id=2, eos_token_id=2
    )
    return transformers.GPT2LMHeadModel(config)


def bert(kind):
    config = transformers.BertConfig(vocab_size=len(TOKENIZER), max_position_embeddings=16, num_labels=2, **BERT)
    return kind(config)


MODELS = {
    "causal_lm": gpt2,
    "sequence_classification": lambda: bert(transformers.BertForSequenceClassification),
    "token_classification": lambda: bert(transformers.BertForTokenClassification),
}


@pytest.fixture
def folder(tmp_path):
    torch.manual_seed(0)
    path = tmp_path / "gpt2"
    gpt2().save_pretrained(path)
    TOKENIZER.save_pretrained(path)
    return path


@pytest.mark.parametrize("task", MODELS)
def test_a_folder_is_loaded_with_its_head_and_measured_on_texts(tmp_path, task):
    """The loss of the model itself, on the same tokens, is the truth."""
    torch.manual_seed(1)
    model = MODELS[task]().eval()
    model.save_pretrained(tmp_path / "m")
    TOKENIZER.save_pretrained(tmp_path / "m")
    found = load(f"hf:{tmp_path / 'm'}")
    assert found.task == task and not found.model.training and not found.notes
    rows = ROWS
    if task == "token_classification":
        rows = [{"tokens": r["text"].split(), "tags": [k % 2 for k, _ in enumerate(r["text"].split())]} for r in ROWS]
    texts = load_texts(rows, found.tokenizer, task)
    minimum = Minimum(found.model, (texts.inputs, texts.targets), HUB_LOSS[task], batch_size=5)
    losses = minimum.losses(torch.arange(len(texts)))
    for i in range(len(texts)):
        one = {name: t[i : i + 1] for name, t in texts.inputs.items()}
        truth = model(**one, labels=texts.targets[i : i + 1]).loss
        assert float(losses[i]) == pytest.approx(float(truth), rel=1e-5)


def test_an_adapter_is_measured_with_its_base_frozen(tmp_path, folder):
    peft = pytest.importorskip("peft", reason="needs peft")
    config = peft.LoraConfig(
        r=2, target_modules=["c_attn"], fan_in_fan_out=True, init_lora_weights=False, task_type="CAUSAL_LM"
    )
    torch.manual_seed(2)
    whole = transformers.GPT2LMHeadModel.from_pretrained(folder)
    adapted = peft.get_peft_model(whole, config)
    adapted.save_pretrained(tmp_path / "lora")
    found = load(f"hf:{tmp_path / 'lora'}")
    assert found.task == "causal_lm" and found.tokenizer is not None
    trainable = [n for n, p in found.model.named_parameters() if p.requires_grad]
    assert trainable and all("lora_" in n for n in trainable)
    ids = torch.randint(0, len(TOKENIZER), (3, 5))
    torch.testing.assert_close(found.model(ids).logits, adapted.eval()(ids).logits)
    assert any("frozen" in note for note in found.notes)
    for file in (tmp_path / "lora").glob("*.safetensors"):
        file.rename(file.with_suffix(".bin"))
    with pytest.raises(CheckpointError, match=r"adapter_model\.safetensors"):
        load(f"hf:{tmp_path / 'lora'}")


def test_pickles_are_refused(folder):
    state = transformers.GPT2LMHeadModel.from_pretrained(folder).state_dict()
    (folder / "model.safetensors").unlink()
    torch.save(state, folder / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"no \.safetensors file"):
        load(f"hf:{folder}")


def test_code_that_comes_with_a_model_is_never_run(folder):
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "own", "auto_map": {"AutoConfig": "own.Own", "AutoModelForCausalLM": "own.Model"}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "own.py").write_text("raise SystemExit('this file was run')\n")
    with pytest.raises(ModelError, match="never run"):
        load(f"hf:{folder}")


def test_what_is_no_such_model_is_said_in_one_line(tmp_path, folder):
    bert(transformers.BertForMaskedLM).save_pretrained(tmp_path / "mlm")
    with pytest.raises(ModelError, match="BertForMaskedLM; expected one of") as caught:
        load(f"hf:{tmp_path / 'mlm'}")
    assert "\n" not in str(caught.value)
    with pytest.raises(CheckpointError, match="no folder"):
        load("hf:./nowhere")
    (folder / "model.safetensors").write_bytes(b"nothing")
    with pytest.raises(CheckpointError, match="cannot be loaded"):
        load(f"hf:{folder}")
    for text in ("hf:", "hf:name@", "hf:@main"):
        with pytest.raises(UsageError, match="expected hf:"):
            Reference.of(text)
    with pytest.raises(UsageError, match="task"):
        load(f"hf:{folder}", task="translation")


def test_weights_that_the_file_lacks_are_named(tmp_path):
    torch.manual_seed(0)
    model = bert(transformers.BertForSequenceClassification)
    state = {k: v for k, v in model.state_dict().items() if "classifier" not in k}
    model.save_pretrained(tmp_path / "m", state_dict=state)
    found = load(f"hf:{tmp_path / 'm'}")
    assert any("classifier" in note and "random" in note for note in found.notes)
