"""Augmentations against plain slicing, image by image."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn.functional import pad

from flatminima.data import augmentation, random_crop, random_flip, random_shift
from flatminima.errors import DataError, UnknownName


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def pictures(n: int = 300, height: int = 6, width: int = 5) -> Tensor:
    return torch.arange(n * 2 * height * width, dtype=torch.float32).view(n, 2, height, width) + 1


def test_flips_are_whole_images_about_half_of_them() -> None:
    images = pictures()
    out = random_flip(images, generator())
    kept = (out == images).flatten(1).all(1)
    mirrored = (out == images.flip(-1)).flatten(1).all(1)
    assert bool((kept ^ mirrored).all())
    assert abs(int(mirrored.sum()) - 150) < 4 * 75**0.5  # four standard deviations of a binomial
    assert random_flip(images, generator(), probability=0).equal(images)
    assert random_flip(images, generator(), probability=1).equal(images.flip(-1))


@pytest.mark.parametrize(("padding", "size"), [(0, None), (2, None), (1, 4), (0, 3)])
def test_crops_are_windows_of_the_padded_image_every_offset_among_them(padding: int, size: int | None) -> None:
    """Would catch rows and columns exchanged (6 x 5 images), a window shared by the batch, and missing offsets."""
    images = pictures()
    out = random_crop(images, generator(), padding=padding, size=size, fill=-1.0)
    rows, columns = (6, 5) if size is None else (size, size)
    assert out.shape == (300, 2, rows, columns)
    padded = pad(images, (padding,) * 4, value=-1.0)
    offsets = set()
    for image, whole in zip(out, padded, strict=True):
        found = [
            (top, left)
            for top in range(6 + 2 * padding - rows + 1)
            for left in range(5 + 2 * padding - columns + 1)
            if whole[:, top : top + rows, left : left + columns].equal(image)
        ]
        assert len(found) == 1
        offsets.update(found)
    assert len(offsets) == (6 + 2 * padding - rows + 1) * (5 + 2 * padding - columns + 1)


def test_a_seed_decides_and_the_input_is_untouched() -> None:
    images = pictures()
    before = images.clone()
    for augment in (random_flip, random_crop, random_shift, augmentation("4-crop-f")):
        assert augment is not None
        assert augment(images, generator(1)).equal(augment(images, generator(1)))
        assert not augment(images, generator(1)).equal(augment(images, generator(2)))
    assert images.equal(before)


def test_uint8_stays_uint8() -> None:
    images = pictures(3).to(torch.uint8)
    assert random_shift(random_flip(images, generator()), generator(), pixels=1).dtype == torch.uint8


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(DataError, match="no window of 9x9 in 6x5"):
        random_crop(pictures(), generator(), padding=1, size=9)
    with pytest.raises(DataError, match="no window"):
        random_crop(pictures(), generator(), padding=-1)
    with pytest.raises(DataError, match=r"\(n, channels, height, width\); got \(4, 3\)"):
        random_flip(torch.zeros(4, 3), generator())
    with pytest.raises(DataError, match="probability=2"):
        random_flip(pictures(), generator(), probability=2)
    assert augmentation("none") is None
    with pytest.raises(UnknownName, match="augmentation"):
        augmentation("mixup")


@pytest.mark.parametrize(("scheme", "side", "pixels"), [("1-crop-f", 16, 1), ("4-crop-f", 16, 2), ("4-crop-f", 8, 1)])
def test_padding_is_scaled_with_a_reduced_image(scheme: str, side: int, pixels: int) -> None:
    """An eighth of the side, as at 32 x 32; each crop is one of the shifted images, mirrored or not."""
    image = torch.rand(1, 1, side, side, generator=torch.Generator().manual_seed(0)) + 1
    augment = augmentation(scheme, side=side)
    assert augment is not None
    moved = augment(image.expand(400, 1, side, side), torch.Generator().manual_seed(1))
    rows = {(int((m[0] == 0).all(1).sum()), int((m[0] == 0).all(0).sum())) for m in moved}
    assert rows == {(i, j) for i in range(pixels + 1) for j in range(pixels + 1)}  # black rows and columns
    printed = augmentation(scheme, side=32), augmentation(scheme)
    large = torch.rand(5, 1, 32, 32)
    one, two = (a(large, torch.Generator().manual_seed(3)) for a in printed if a is not None)
    assert torch.equal(one, two)


def test_a_scheme_without_padding_is_not_scaled() -> None:
    assert augmentation("none", side=16) is None and augmentation("flip", side=16) is augmentation("flip")
    with pytest.raises(DataError, match="side=0"):
        augmentation("flip", side=0)
