"""Information of integers and texts: tables that were trained hold it, indices, masks and words next to none."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import pytest
import torch
from holders import TABLE, WithBuffer
from torch import Tensor

from flatminima.certification.hidden_numbers import numbers_held
from flatminima.certification.information import MOST_NUMBERS, in_texts, is_data

SIGNS = torch.randn(64, 512, generator=torch.Generator().manual_seed(2)) > 0
BUFFERS = {
    "bool": SIGNS,
    "int8": SIGNS.to(torch.int8) * 2 - 1,
    "twice": torch.cat([SIGNS.to(torch.int8).reshape(1, -1)] * 2),
    "beside a mask": torch.cat([torch.ones(2_048, 512).tril().bool(), SIGNS]),
    "columns": torch.stack([SIGNS.reshape(-1)] * 2, 1),
    "vector": (SIGNS.reshape(-1)).float(),
    "complex": torch.complex(*TABLE.repeat(1, 2).chunk(2, 1)),
}


@pytest.mark.parametrize("kind", BUFFERS)
def test_integers_and_truth_values_that_were_trained_are_no_structure(kind: str) -> None:
    assert numbers_held(WithBuffer("b", BUFFERS[kind])) == ["b"]


def relative(w: int, token: bool = False) -> Tensor:
    """Swin's relative_position_index of w x w windows; BEiT's, with a token beside them."""
    at = torch.stack(torch.meshgrid(torch.arange(w), torch.arange(w), indexing="ij")).flatten(1)
    steps = at[:, :, None] - at[:, None, :] + w - 1
    index = steps[0] * (2 * w - 1) + steps[1]
    if not token:
        return index
    whole, last = torch.zeros(w * w + 1, w * w + 1, dtype=index.dtype), (2 * w - 1) ** 2
    whole[1:, 1:], whole[0], whole[:, 0] = index, last, last + 1
    return whole


def offsets(w: int) -> Tensor:
    """LeViT's attention_bias_idxs: offsets without their signs, numbered as they come."""
    numbers: dict[tuple[int, int], int] = {}
    points = list(itertools.product(range(w), range(w)))
    pairs = [(abs(a - c), abs(b - d)) for a, b in points for c, d in points]
    return torch.tensor([numbers.setdefault(pair, len(numbers)) for pair in pairs])


def buckets(n: int) -> Tensor:
    """T5's buckets of relative positions."""
    steps = torch.arange(n)[None] - torch.arange(n)[:, None]
    far = 8 + (torch.log(steps.abs().clamp(min=1) / 8) / math.log(16) * 8).long()
    return (steps > 0) * 16 + torch.where(steps.abs() < 8, steps.abs(), far.clamp(max=15))


def windows() -> Tensor:
    """Swin's mask of shifted windows, as truth values."""
    part = torch.arange(56).ge(49).long() + torch.arange(56).ge(53).long()
    cells = (part[:, None] * 3 + part).view(8, 7, 8, 7).permute(0, 2, 1, 3).reshape(-1, 49)
    return cells[:, None] != cells[:, :, None]


STRUCTURE: dict[str, Callable[[], Tensor]] = {
    "positions": lambda: torch.arange(8_192)[None],
    "causal": lambda: torch.ones(1, 1, 1_024, 1_024).tril().bool(),
    "local": lambda: torch.ones(512, 512).tril().bool() ^ torch.ones(512, 512).tril(-64).bool(),
    "triangle": lambda: torch.triu_indices(128, 128, 1),
    "one-hot": lambda: torch.eye(100).long(),
    "blocks": lambda: torch.block_diag(*[torch.ones(16, 16)] * 32).bool(),
    "chessboard": lambda: (torch.arange(64)[:, None] + torch.arange(64)) % 2 == 1,
    "masked layer": lambda: (torch.arange(512) % 27)[:, None] >= torch.arange(28),
    "swin": lambda: relative(7),
    "swin, wide": lambda: relative(24),
    "beit": lambda: relative(14, token=True),
    "levit, a list": lambda: offsets(14),
    "t5": lambda: buckets(256),
    "shifted windows": windows,
    "permuted": lambda: torch.arange(4_096).view(64, 64).T.reshape(-1),
    "grid": lambda: torch.stack(torch.meshgrid(torch.arange(9), torch.arange(9), indexing="ij")).reshape(2, -1),
    "a hundred fine classes in twenty": lambda: torch.arange(100) * 7 % 20,
    "none": lambda: torch.zeros(0, dtype=torch.int64),
    "of no values": lambda: torch.zeros(100, device="meta", dtype=torch.int64),
}


@pytest.mark.parametrize("kind", STRUCTURE)
def test_indices_and_masks_are_structure(kind: str) -> None:
    assert numbers_held(WithBuffer("b", STRUCTURE[kind]())) == []


@pytest.mark.parametrize("high", [2, 10, 1 << 40])
def test_integers_drawn_at_random_are_data_by_their_bits(high: int) -> None:
    """The size of noise is known: log2(high) bits an entry; 64 numbers are 2,048 bits."""
    entries = int(32 * MOST_NUMBERS / math.log2(high))
    drawn = torch.randint(0, high, (4 * entries,), generator=torch.Generator().manual_seed(0))
    assert is_data(drawn[: int(1.2 * entries) + MOST_NUMBERS]) and is_data(drawn)
    assert not is_data(drawn[: min(MOST_NUMBERS, entries // 2)])


def test_words_hold_none_and_codes_all() -> None:
    words = ["the quick brown fox", "jumps over the lazy dog", "and says nothing", "that a network would need"]
    long = " ".join(words * 50)
    assert in_texts(words * 50) == 0
    assert in_texts([long]) > MOST_NUMBERS  # by its length
    assert in_texts([long], documentation=True) == 0
    digits = [str(int(v)) for v in torch.randint(0, 10**9, (200,), generator=torch.Generator().manual_seed(0))]
    assert in_texts(digits, documentation=True) > 150
