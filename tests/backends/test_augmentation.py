import pytest
import torch
from PIL import Image

from backends.augmentation import RandomResizedCrop, ShiftFlip


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_every_shifted_image_is_a_crop_of_the_padded_one_or_its_mirror():
    images = torch.randint(1, 256, (64, 3, 6, 5), dtype=torch.uint8, generator=generator())
    out = ShiftFlip(padding=2, flip=True)(images, generator(1))
    assert out.shape == images.shape
    assert out.dtype == torch.uint8
    padded = torch.nn.functional.pad(images, [2] * 4)
    seen = set()
    for image, wide in zip(out, padded, strict=True):
        crops = {
            (row, column, flipped): torch.equal(image, crop.flip(-1) if flipped else crop)
            for row in range(5)
            for column in range(5)
            for flipped in (False, True)
            for crop in [wide[:, row : row + 6, column : column + 5]]
        }
        matches = [key for key, equal in crops.items() if equal]
        assert len(matches) == 1
        seen.add(matches[0])
    assert {row for row, _, _ in seen} == {column for _, column, _ in seen} == set(range(5))
    assert {flipped for _, _, flipped in seen} == {False, True}


def test_no_padding_and_no_flip_leave_images_alone():
    images = torch.randint(256, (4, 3, 8, 8), dtype=torch.uint8, generator=generator())
    assert torch.equal(ShiftFlip(padding=0, flip=False)(images, generator()), images)


def test_digits_are_never_mirrored_without_flip():
    images = torch.arange(8, dtype=torch.uint8).expand(200, 1, 8, 8)
    out = ShiftFlip(padding=2, flip=False)(images, generator())
    assert (out[:, 0, 3, 2:6].to(torch.int16).diff(dim=1) >= 0).all()


def test_resized_crop_has_the_size_asked_for_and_follows_its_generator():
    image = Image.effect_noise((40, 30), 80).convert("RGB")
    crop = RandomResizedCrop(min_share=0.08)
    first, again, other = (crop(image, 16, generator(seed)).tobytes() for seed in (0, 0, 1))
    assert len(first) == 16 * 16 * 3
    assert first == again != other


def test_resized_crop_covers_at_least_the_share_it_was_given():
    crop = RandomResizedCrop(min_share=0.5)
    for seed in range(200):
        left, top, right, bottom = crop._box(40, 30, generator(seed))
        assert 0 <= left < right <= 40
        assert 0 <= top < bottom <= 30
        assert (right - left) * (bottom - top) >= 0.5 * 1200 * 0.95  # whole pixels


def test_a_very_long_image_gives_its_middle_square():
    assert RandomResizedCrop(min_share=0.9)._box(1000, 10, generator()) == (495, 0, 505, 10)


@pytest.mark.parametrize("share", [0.0, 1.5])
def test_a_share_outside_its_range_is_refused(share):
    with pytest.raises(ValueError, match=r"0 < min_share <= 1"):
        RandomResizedCrop(min_share=share)


def test_a_negative_padding_is_refused():
    with pytest.raises(ValueError, match=r"padding >= 0"):
        ShiftFlip(padding=-1, flip=False)
