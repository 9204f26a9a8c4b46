"""Texts as a language model takes them: tokens, masks and labels, from text, JSON lines, Parquet or csv files.

A sample is a text, or with `packing` a block of `length` tokens of all texts after each other. Padding is under the
mask and its labels are -100, which the losses leave out.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from flatminima.data.sources import subset
from flatminima.errors import DataError, MissingExtra, UnknownName, UsageError
from flatminima.untrusted import Unreadable, refuse_no_text

SUFFIXES = (".csv", ".jsonl", ".parquet", ".txt")
_IGNORED = -100
_TEXT = ("text", "sentence", "content", "document", "review", "prompt", "tokens", "words")
_LABEL = ("label", "labels", "target", "class", "ner_tags", "tags", "pos_tags")
_USUAL_LENGTH = 512  # tokens, where neither the caller nor the model says how many

_Row = Mapping[str, Any]


@dataclass(frozen=True)
class Texts:
    """Samples for a `Minimum`.

    Attributes:
        inputs: input_ids and attention_mask (samples, length) int64, and token_type_ids where the tokenizer makes them.
        targets: (samples, length) with -100 where nothing is to be predicted, or classes (samples,).
        notes: what a reader of numbers on them must know, one line each.
        classes: names of the labels.
    """

    inputs: dict[str, Tensor]
    targets: Tensor
    notes: tuple[str, ...]
    classes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.targets)


def load_texts(
    source: str | Path | Sequence[str] | Sequence[_Row],
    tokenizer: Any,
    task: str = "causal_lm",
    *,
    length: int | None = None,
    packing: bool = False,
    text_column: str | None = None,
    label_column: str | None = None,
    classes: Sequence[str] | None = None,
    limit: int | None = None,
) -> Texts:
    """Texts of a file, or given, in tokens.

    Args:
        source: a .txt file (a text a line), .jsonl, .parquet or .csv; or texts, or rows.
        tokenizer: of transformers; a fast one for token classification.
        task: "causal_lm", "sequence_classification" or "token_classification" (words and a label for each).
        length: tokens a sample: longer texts are cut. None: what the tokenizer says, at most 512, or the longest text.
        packing: for language models: texts after each other, an end of text between them, in blocks of `length` tokens;
            what does not fill a block at the end is left out.
        text_column, label_column: where they cannot be guessed.
        classes: names of the labels in the order of the model's outputs; None: as they are sorted.
        limit: keep a random subset of so many texts, as `load` does.

    Raises:
        DataError: no such file, no texts, a text or label that is missing, a label that is no class.
        UnknownName: a column. UsageError: a length below 2, packing for a classifier.
        MissingExtra: no reader of Parquet is installed.
    """
    if length is not None and length < 2:
        raise UsageError(f"got length={length}; a token and the next one are needed: at least 2")
    if packing and task != "causal_lm":
        raise UsageError(f"got packing for {task}; texts of a classifier keep their own labels: leave it out")
    rows, where = _rows(source)
    rows = [rows[i] for i in subset(len(rows), limit)]
    column = _column(rows[0], text_column, _TEXT, "text", where)
    texts = [_text(row, column, i, where, words=task == "token_classification") for i, row in enumerate(rows)]
    most = length or _length(tokenizer)
    if task == "causal_lm":
        return _packed(texts, tokenizer, most, where) if packing else _language(texts, tokenizer, most, where)
    labels_in = _column(rows[0], label_column, _LABEL, "label", where)
    labels = [row.get(labels_in) for row in rows]
    if task == "sequence_classification":
        return _sequences(texts, labels, tokenizer, most, classes, where)
    if task == "token_classification":
        return _words(texts, labels, tokenizer, most, classes, where)
    raise UnknownName("task", task, ("causal_lm", "sequence_classification", "token_classification"))


# -- samples ---------------------------------------------------------------------------------------------------------


def _language(texts: list[str], tokenizer: Any, length: int, where: str) -> Texts:
    encoded, cut = _encoded(texts, tokenizer, length)
    mask = encoded["attention_mask"]
    short = (mask.sum(1) < 2).nonzero()
    if len(short):
        raise DataError(
            f"text {int(short[0])} of {where} has fewer than 2 tokens, so that there is none to predict: leave it out"
        )
    targets = encoded["input_ids"].masked_fill(mask == 0, _IGNORED)
    predicted = int((targets[:, 1:] != _IGNORED).sum())
    return Texts(
        encoded, targets, (_said(len(texts), mask, cut), f"{predicted} tokens are predicted from those before")
    )


def _packed(texts: list[str], tokenizer: Any, length: int, where: str) -> Texts:
    end = getattr(tokenizer, "eos_token_id", None)
    stream: list[int] = []
    for found in tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]:
        stream += [*found, *([] if end is None else [end])]
    blocks = len(stream) // length
    if not blocks:
        raise DataError(f"{where} holds {len(stream)} tokens, less than one block of {length}: pass a smaller length")
    ids = torch.tensor(stream[: blocks * length], dtype=torch.int64).view(blocks, length)
    left = len(stream) - ids.numel()
    note = f"{len(texts)} texts packed into {blocks} blocks of {length} tokens; {left} tokens at the end left out"
    return Texts({"input_ids": ids, "attention_mask": torch.ones_like(ids)}, ids.clone(), (note,))


def _sequences(
    texts: list[str], labels: list[Any], tokenizer: Any, length: int, classes: Sequence[str] | None, where: str
) -> Texts:
    names = _classes(labels, classes)
    targets = torch.tensor([_class(y, names, i, where) for i, y in enumerate(labels)], dtype=torch.int64)
    encoded, cut = _encoded(texts, tokenizer, length)
    notes = [_said(len(texts), encoded["attention_mask"], cut)]
    if classes is None and names:
        notes.append(f"classes in alphabetical order: {', '.join(f'{name} = {i}' for i, name in enumerate(names))}")
    return Texts(encoded, targets, tuple(notes), names)


def _words(
    texts: list[Any], labels: list[Any], tokenizer: Any, length: int, classes: Sequence[str] | None, where: str
) -> Texts:
    """The first token of each word has its label, the others -100."""
    if not getattr(tokenizer, "is_fast", False):
        raise DataError("token classification needs a fast tokenizer, which tells the words of its tokens")
    for i, (words, tags) in enumerate(zip(texts, labels, strict=True)):
        if not isinstance(tags, list) or len(tags) != len(words):
            got = len(tags) if isinstance(tags, list) else tags
            raise DataError(f"row {i} of {where} has {len(words)} words and {got!r} labels; expected one a word")
    names = _classes([y for tags in labels for y in tags], classes)
    encoded, cut = _encoded(texts, tokenizer, length, words=True)
    targets = torch.full_like(encoded["input_ids"], _IGNORED)
    for i, tags in enumerate(labels):
        before = None
        for k, word in enumerate(_word_ids(tokenizer, texts[i], targets.shape[1])):
            if word is not None and word != before:
                targets[i, k] = _class(tags[word], names, i, where)
            before = word
    note = f"{int((targets != _IGNORED).sum())} labelled words, each by its first token"
    return Texts(encoded, targets, (_said(len(texts), encoded["attention_mask"], cut), note), names)


def _word_ids(tokenizer: Any, words: list[str], length: int) -> list[int | None]:
    found: list[int | None] = tokenizer(words, is_split_into_words=True, truncation=True, max_length=length).word_ids()
    return found


def _encoded(texts: list[Any], tokenizer: Any, length: int, words: bool = False) -> tuple[dict[str, Tensor], int]:
    """Tokens and mask padded to the longest text that is left, and how many texts were cut."""
    if getattr(tokenizer, "pad_token_id", None) is None and len(texts) > 1:
        raise DataError("the tokenizer has no padding token: set tokenizer.pad_token, for example to its eos_token")
    whole = tokenizer(texts, is_split_into_words=words, verbose=False)["input_ids"]
    cut = sum(len(found) > length for found in whole)
    encoded = tokenizer(
        texts,
        is_split_into_words=words,
        truncation=True,
        max_length=length,
        padding=True,
        padding_side="right",  # on the left it would move the positions of the tokens
        return_tensors="pt",
    )
    kept = ("input_ids", "attention_mask", "token_type_ids")
    return {name: encoded[name] for name in kept if name in encoded}, cut


def _said(texts: int, mask: Tensor, cut: int) -> str:
    said = f"{texts} texts of at most {mask.shape[1]} tokens, {int(mask.sum())} in all"
    return f"{said}; {cut} longer ones cut" if cut else said


def _length(tokenizer: Any) -> int:
    said = int(getattr(tokenizer, "model_max_length", _USUAL_LENGTH) or _USUAL_LENGTH)
    return min(said, _USUAL_LENGTH)


# -- labels ----------------------------------------------------------------------------------------------------------


def _classes(labels: list[Any], classes: Sequence[str] | None) -> tuple[str, ...]:
    if classes is not None:
        return tuple(str(c) for c in classes)
    names = sorted({y for y in labels if isinstance(y, str)})
    return () if all(_is_number(name) for name in names) else tuple(names)


def _is_number(text: str) -> bool:
    return text.removeprefix("-").isdigit()


def _class(label: Any, names: tuple[str, ...], row: int, where: str) -> int:
    """The place of a label among the classes; whole numbers are places already."""
    if isinstance(label, str):
        if label in names:
            return names.index(label)
        if _is_number(label):
            return int(label)
        raise DataError(f"row {row} of {where} has the label {label!r}; the model's classes are {', '.join(names)}")
    if label is None or (isinstance(label, float) and not label.is_integer()):
        raise DataError(f"row {row} of {where} has the label {label!r}; expected a class")
    return int(label)


# -- files -----------------------------------------------------------------------------------------------------------


def _rows(source: Any) -> tuple[list[_Row], str]:
    """Rows with columns, and what to call them."""
    if isinstance(source, str | Path):
        path = Path(source).expanduser()
        if not path.exists():
            raise DataError(f"no file {source} for --data; check the path")
        rows, where = _read(path), str(source)
    else:
        rows, where = [{"text": row} if isinstance(row, str) else row for row in source], "the texts"
    if not rows:
        raise DataError(f"{where} holds no texts")
    return rows, where


def _read(path: Path) -> list[_Row]:
    suffix = path.suffix.lower()
    if path.is_dir() or suffix not in SUFFIXES:
        raise DataError(f"got {path} as texts; expected a file that ends with one of {', '.join(SUFFIXES)}")
    if not path.is_file():
        raise DataError(f"{path} is no regular file; expected texts")
    try:
        if suffix == ".parquet":
            return _parquet(path)
        refuse_no_text(path)
        text = path.read_text(encoding="utf-8-sig")
    except Unreadable as reason:
        raise DataError(f"{path} cannot be read as text: {reason}") from None
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 at byte {error.start}: save it as UTF-8") from None
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from None
    if suffix == ".txt":
        return [{"text": line} for line in text.split("\n") if line.strip()]
    if suffix == ".csv":
        try:
            return list(csv.DictReader(io.StringIO(text, newline="")))
        except csv.Error as error:
            raise DataError(f"{path} is no CSV: {error}") from None
    return _json_lines(text, path)


def _json_lines(text: str, path: Path) -> list[_Row]:
    rows: list[_Row] = []
    for i, line in enumerate(text.split("\n"), 1):  # a text may hold other ends of lines
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            reason = getattr(error, "msg", None) or "nested too deeply"
            raise DataError(f"line {i} of {path} is not JSON: {reason}; one object a line is expected") from None
        if not isinstance(row, str | dict):
            raise DataError(f"line {i} of {path} is a {type(row).__name__}; expected an object or a text")
        rows.append({"text": row} if isinstance(row, str) else row)
    return rows


def _parquet(path: Path) -> list[_Row]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise MissingExtra("pyarrow", "data", f"{path}") from None
    try:
        rows: list[_Row] = parquet.read_table(path).to_pylist()
    except pyarrow.ArrowException as error:
        raise DataError(f"{path} is no Parquet file: {str(error).splitlines()[0]}") from None
    return rows


def _column(row: _Row, asked: str | None, usual: tuple[str, ...], what: str, where: str) -> str:
    if asked is not None:
        if asked not in row:
            raise UnknownName("column", asked, row, f"{where} has {', '.join(row)}")
        return asked
    found = [name for name in usual if name in row]
    if not found:
        raise DataError(f"no {what} column in {where}, which has {', '.join(row)}: say which with --{what}-column")
    return found[0]


def _text(row: _Row, column: str, index: int, where: str, words: bool) -> Any:
    text = row.get(column)
    if words:
        if not isinstance(text, list) or not text:
            raise DataError(f"row {index} of {where} has {text!r} in {column!r}; expected a list of words")
        return [str(word) for word in text]
    if not isinstance(text, str) or not text.strip():
        raise DataError(f"row {index} of {where} has {text!r} in {column!r}; expected a text")
    return text
