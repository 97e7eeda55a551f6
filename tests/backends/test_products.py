import pytest
import torch

from backends.products import moments_with


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("size", [(1, 40, 7), (1, 300, 217), (3, 40, 7), (1, 5, 12)])
def test_moments_are_products_with_themselves_and_others(size: tuple[int, int, int], dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(size, generator=generator, dtype=dtype)
    others = torch.randn((*size[:2], 4), generator=generator, dtype=dtype)
    wide = torch.cat([features, others], dim=2)
    for given in (features, wide[..., : size[2]]):  # of its own and as a part of something
        moments = moments_with(given, others)
        assert moments.dtype == dtype
        torch.testing.assert_close(moments, features.mT @ wide, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(moments_with(given), features.mT @ features, rtol=1e-4, atol=1e-4)


def test_moments_with_themselves_are_symmetric() -> None:
    features = torch.randn(1, 500, 109, generator=torch.Generator().manual_seed(0))
    moments = moments_with(features)
    torch.testing.assert_close(moments, moments.mT, rtol=0, atol=1e-3)
