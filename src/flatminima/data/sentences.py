"""Sentences that the package makes itself: a small grammar of reviews, good or bad, for examples and tests."""

from __future__ import annotations

import random
from typing import Any

from flatminima.errors import MissingExtra, UsageError

CLASSES = ("bad", "good")
_NOUNS = ("film", "book", "play", "song", "meal", "room", "trip", "game")
_PARTS = ("ending", "start", "middle", "sound", "price", "light")
_WORDS = {"good": ("lovely", "bright", "clever", "warm", "fine"), "bad": ("dull", "cold", "weak", "slow", "grim")}
_FRAMES = (
    "the {noun} was {word} and its {part} was {other}",
    "i found the {part} of this {noun} {word}",
    "a {word} {noun} with a {other} {part}",
    "what a {word} {part} this {noun} has",
)
_SPECIAL = ("[PAD]", "[UNK]", "[EOS]")


def sentences(count: int, *, seed: int = 0, flipped: float = 0.0) -> list[dict[str, str]]:
    """Rows with "text" and "label", "good" and "bad" in turn.

    Args:
        count: of rows, at least 1.
        seed: of the words.
        flipped: share of the labels that are the other one: what cannot be learnt, only memorised.

    Raises:
        UsageError: no rows, a share outside [0, 1].

    Examples:
        >>> sentences(2)[1]["label"]
        'bad'
    """
    if count < 1 or not 0 <= flipped <= 1:
        raise UsageError(f"got count={count!r}, flipped={flipped!r}; at least 1, and in [0, 1]")
    draw = random.Random(seed)
    rows = []
    for i in range(count):
        label = ("good", "bad")[i % 2]
        word, other = draw.sample(_WORDS[label], 2)
        frame, noun, part = draw.choice(_FRAMES), draw.choice(_NOUNS), draw.choice(_PARTS)
        said = label if draw.random() >= flipped else ("bad" if label == "good" else "good")
        rows.append({"text": frame.format(noun=noun, part=part, word=word, other=other), "label": said})
    return rows


def word_tokenizer(texts: list[str], *, length: int = 16) -> Any:
    """A tokenizer of transformers with a token for each word of the texts, [PAD], [UNK] and [EOS].

    Raises:
        MissingExtra: transformers is not installed.
    """
    try:
        from tokenizers import Tokenizer, models, pre_tokenizers
        from transformers import PreTrainedTokenizerFast
    except ImportError:
        raise MissingExtra("transformers", "hf", "word_tokenizer") from None
    words = sorted({word for text in texts for word in text.lower().split()})
    known = {word: i for i, word in enumerate((*_SPECIAL, *words))}
    inner = Tokenizer(models.WordLevel(known, unk_token="[UNK]"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="[PAD]", unk_token="[UNK]", eos_token="[EOS]", model_max_length=length
    )
