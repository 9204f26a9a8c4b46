"""Texts in tokens: packing, padding, labels of words, and what is wrong with a file."""

from __future__ import annotations

import json

import pytest
import torch

pytest.importorskip("transformers", reason="needs transformers: pip install 'flatminima[hf]'")

from flatminima.data.sentences import CLASSES, sentences, word_tokenizer
from flatminima.data.text import load_texts
from flatminima.errors import DataError, UnknownName, UsageError

TEXTS = ["a b c d", "b c", "d a b c a b"]
TOKENIZER = word_tokenizer(TEXTS)
ID = TOKENIZER.convert_tokens_to_ids


def test_texts_of_a_language_model_are_padded_under_the_mask():
    found = load_texts(TEXTS, TOKENIZER, length=5)
    assert found.inputs["input_ids"].tolist() == [
        [ID("a"), ID("b"), ID("c"), ID("d"), 0],
        [ID("b"), ID("c"), 0, 0, 0],
        [ID("d"), ID("a"), ID("b"), ID("c"), ID("a")],
    ]
    assert found.targets.tolist()[1] == [ID("b"), ID("c"), -100, -100, -100]
    assert found.inputs["attention_mask"].sum(1).tolist() == [4, 2, 5]
    assert "3 texts of at most 5 tokens, 11 in all; 1 longer ones cut" in found.notes[0]
    assert found.notes[1].startswith("8 tokens are predicted")


def test_padding_is_on_the_right_whatever_the_tokenizer_likes():
    left = word_tokenizer(TEXTS)
    left.padding_side = "left"
    found, expected = load_texts(TEXTS, left), load_texts(TEXTS, TOKENIZER)
    assert torch.equal(found.inputs["input_ids"], expected.inputs["input_ids"])
    assert torch.equal(found.targets, expected.targets) and left.padding_side == "left"


def test_packing_puts_texts_after_each_other_with_an_end_between():
    found = load_texts(TEXTS, TOKENIZER, length=4, packing=True)
    words = ["a", "b", "c", "d", "[EOS]", "b", "c", "[EOS]", "d", "a", "b", "c"]
    assert found.inputs["input_ids"].flatten().tolist() == [ID(w) for w in words]
    assert torch.equal(found.targets, found.inputs["input_ids"]) and bool(found.inputs["attention_mask"].all())
    assert "3 blocks of 4 tokens; 3 tokens at the end left out" in found.notes[0]
    with pytest.raises(DataError, match="less than one block of 99"):
        load_texts(TEXTS, TOKENIZER, length=99, packing=True)


def test_a_word_of_several_tokens_has_its_label_once():
    rows = [
        {"tokens": ["a", "b c", "d"], "tags": ["O", "X", "O"]},
        {"tokens": ["d"], "tags": ["X"]},
    ]
    found = load_texts(rows, TOKENIZER, "token_classification")
    assert found.classes == ("O", "X")
    assert found.inputs["input_ids"].tolist() == [[ID("a"), ID("b"), ID("c"), ID("d")], [ID("d"), 0, 0, 0]]
    assert found.targets.tolist() == [[0, 1, -100, 0], [1, -100, -100, -100]]
    with pytest.raises(DataError, match=r"row 0 of the texts has 3 words and 2 labels"):
        load_texts([{"tokens": ["a", "b", "c"], "tags": [0, 1]}], TOKENIZER, "token_classification")


@pytest.mark.parametrize("suffix", ["txt", "jsonl", "csv", "parquet"])
def test_files_hold_the_same_texts(tmp_path, suffix):
    rows = [{"text": "a b, c", "label": "good"}, {"text": 'b "c"\u2028d', "label": "bad"}]
    path = tmp_path / f"texts.{suffix}"
    if suffix == "txt":
        path.write_text("\n".join(r["text"] for r in rows) + "\n\n", encoding="utf-8")
    elif suffix == "jsonl":
        path.write_text("\n".join(json.dumps(r, ensure_ascii=False) for r in rows), encoding="utf-8")
    else:
        frame = pytest.importorskip("pandas").DataFrame(rows)
        frame.to_csv(path, index=False) if suffix == "csv" else frame.to_parquet(path)
    expected = load_texts([r["text"] for r in rows], TOKENIZER)
    assert torch.equal(load_texts(path, TOKENIZER).inputs["input_ids"], expected.inputs["input_ids"])
    if suffix != "txt":
        found = load_texts(path, TOKENIZER, "sequence_classification")
        assert found.targets.tolist() == [1, 0] and found.classes == ("bad", "good")
        assert "bad = 0, good = 1" in found.notes[1]
        named = load_texts(path, TOKENIZER, "sequence_classification", classes=["good", "bad"])
        assert named.targets.tolist() == [0, 1]


def test_labels_that_are_numbers_are_places_also_as_text():
    rows = [{"text": "a b", "label": str(k)} for k in (2, 10, 0)]
    assert load_texts(rows, TOKENIZER, "sequence_classification").targets.tolist() == [2, 10, 0]


@pytest.mark.parametrize(
    ("source", "options", "message"),
    [
        ("nowhere.txt", {}, "no file nowhere.txt"),
        ([], {}, "holds no texts"),
        (["a", "a b"], {}, "text 0 of the texts has fewer than 2 tokens"),
        (["a b", ""], {}, "row 1 of the texts has ''"),
        ([{"text": 3}], {}, "row 0 of the texts has 3 in 'text'"),
        ([{"body": "a b"}], {}, "no text column in the texts, which has body"),
        ([{"text": "a b", "label": None}], {"task": "sequence_classification"}, "the label None"),
        ([{"text": "a b", "label": 0.5}], {"task": "sequence_classification"}, "the label 0.5"),
        ([{"text": "a", "label": "x"}], {"task": "sequence_classification", "classes": ["y"]}, "classes are y"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(source, options, message):
    with pytest.raises(DataError, match=message) as caught:
        load_texts(source, TOKENIZER, **options)
    assert "\n" not in str(caught.value)


def test_damaged_files_are_named(tmp_path):
    bad = tmp_path / "t.jsonl"
    bad.write_text('{"text": "a b"}\n{"text": \n')
    with pytest.raises(DataError, match=r"line 2 of .* is not JSON"):
        load_texts(bad, TOKENIZER)
    (tmp_path / "t.txt").write_bytes(b"a b\xff")
    with pytest.raises(DataError, match="not UTF-8 at byte 3"):
        load_texts(tmp_path / "t.txt", TOKENIZER)
    (tmp_path / "t.parquet").write_bytes(b"nothing")
    pytest.importorskip("pyarrow")
    with pytest.raises(DataError, match="no Parquet file"):
        load_texts(tmp_path / "t.parquet", TOKENIZER)
    with pytest.raises(DataError, match="expected a file that ends with"):
        load_texts(tmp_path, TOKENIZER)


def test_options_outside_their_range():
    with pytest.raises(UsageError, match="length=1"):
        load_texts(TEXTS, TOKENIZER, length=1)
    with pytest.raises(UsageError, match="packing"):
        load_texts(TEXTS, TOKENIZER, "sequence_classification", packing=True)
    with pytest.raises(UnknownName):
        load_texts([{"text": "a b"}], TOKENIZER, text_column="txt")
    with pytest.raises(UsageError):
        sentences(0)


def test_sentences_are_made_from_their_seed():
    rows = sentences(40, seed=3)
    assert rows == sentences(40, seed=3) != sentences(40, seed=4)
    assert {row["label"] for row in rows} == set(CLASSES)
    assert len({row["text"] for row in rows}) > 30
    flipped = sentences(200, flipped=0.3)
    wrong = sum(
        a["label"] != b["label"] for a, b in zip(flipped, [{"label": c} for c in ("good", "bad") * 100], strict=True)
    )
    assert 35 < wrong < 85
