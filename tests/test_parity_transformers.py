"""The whole model gives transformers' logits on the same weights, read from disk.

Run with -s for the measured differences and the spread (standard deviation) of the logits.
"""

import pytest
import torch
from transformers_oracle import RESNET_50, SWIN_TINY, SWIN_WINDOW_12, their_maskformer

from maskformer_fast import MaskFormer

TOLERANCE = 1e-4  # float32, absolute
SMALLEST_SPREAD = 1.0  # logits near zero would agree whatever the model does
SIZES = [(2, 224, 224), (1, 512, 512), (2, 200, 336)]


@pytest.fixture(
    scope="module",
    params=[SWIN_TINY, SWIN_WINDOW_12, RESNET_50],
    ids=["swin-tiny", "swin-window-12", "resnet-50"],
)
def models(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("weights")
    theirs = their_maskformer(request.param)
    theirs.save_pretrained(folder)
    return MaskFormer.from_pretrained(folder), theirs, request.node.name


@pytest.mark.parametrize("size", SIZES, ids=str)
@torch.inference_mode()
def test_logits_equal_transformers(models, size):
    ours, theirs, _ = models
    batch, height, width = size
    pixel_values = torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(1))
    got, expected = ours(pixel_values), theirs(pixel_values)
    for name in ("class_queries_logits", "masks_queries_logits"):
        spread = expected[name].std().item()
        difference = (got[name] - expected[name]).abs().max().item()
        print(f"\n{name} {size}: difference {difference:.1e}, spread {spread:.2f}", end="")
        assert got[name].shape == expected[name].shape
        assert spread >= SMALLEST_SPREAD
        assert difference <= TOLERANCE
