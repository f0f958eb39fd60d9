"""Backbones: four features at strides 4 to 32 for any image size, and what each is made of."""

import sys
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from maskformer_fast.model.backbones import build_backbone
from maskformer_fast.model.backbones.resnet import FrozenBatchNorm2d
from maskformer_fast.model.backbones.swin import (
    Swin,
    WindowAttention,
    drop_path,
    kept,
    shift_mask,
    window_rows,
)

SMALL = {
    "swin": {"embed_dim": 8, "depths": [2, 2, 1, 1], "num_heads": [1, 2, 2, 2], "window_size": 3},
    "resnet": {"depths": [1, 1, 1, 1], "hidden_sizes": [8, 16, 32, 64], "embedding_size": 8},
}
each_backbone = pytest.mark.parametrize("name", SMALL)


@each_backbone
@pytest.mark.parametrize("size", [(64, 96), (33, 47), (1, 1), (5, 130)], ids=str)
def test_features_have_strides_4_to_32_for_any_size(name, size):
    backbone = build_backbone(name, SMALL[name])
    features = backbone(torch.randn(2, 3, *size))
    for feature, channels, stride in zip(features, backbone.channels, (4, 8, 16, 32), strict=True):
        assert feature.shape == (2, channels, *(-(-side // stride) for side in size))


@each_backbone
def test_compiles_as_one_graph_at_two_sizes(name):
    backbone = build_backbone(name, SMALL[name]).eval()
    compiled = torch.compile(backbone, fullgraph=True, backend="eager", dynamic=False)
    for size in ((40, 56), (64, 33)):  # a graph for each: symbolic sizes take Swin 20 s more
        image = torch.randn(1, 3, *size)
        for got, expected in zip(compiled(image), backbone(image), strict=True):
            assert_close(got, expected)


@each_backbone
def test_prediction_first_and_training_after(name):
    backbone = build_backbone(name, SMALL[name])
    image = torch.randn(1, 3, 40, 40)
    with torch.inference_mode():
        backbone(image)
    sum(feature.square().mean() for feature in backbone(image)).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in backbone.parameters())


def test_defaults_are_resnet_50_and_swin_tiny():
    parameters = {
        name: sum(t.numel() for n, t in build_backbone(name, {}).state_dict().items())
        for name in SMALL
    }
    resnet_50 = 25_557_032 - 2_049_000 + 2 * 26_560  # published, less its head, and statistics
    swin_tiny = 28_288_354 - 769_000 - 1_536 + 2 * (96 + 192 + 384 + 768)  # less head; four norms
    assert parameters == {"resnet": resnet_50, "swin": swin_tiny}


def test_frozen_norm_is_batch_norm_in_evaluation_and_has_no_parameter():
    batch_norm, frozen = nn.BatchNorm2d(5).eval(), FrozenBatchNorm2d(5)
    for tensor in (batch_norm.weight, batch_norm.bias, batch_norm.running_mean):
        nn.init.normal_(tensor)
    nn.init.uniform_(batch_norm.running_var, 0.5, 2)
    frozen.load_state_dict({n: batch_norm.state_dict()[n] for n in frozen.state_dict()})
    x = torch.randn(2, 5, 4, 4)
    assert_close(frozen.train()(x), batch_norm(x))
    assert frozen.half()(x.half()).dtype == torch.float16
    assert not list(frozen.parameters())


def test_shift_mask_by_hand():
    # One row of two windows of two pixels, shifted by one: the last pixel came from the other side.
    mask = shift_mask(2, 4, 2, 1, torch.device("cpu"), torch.float32)  # [windows, 1, N, N]
    assert mask.shape == (2, 1, 4, 4)
    rows_apart = [[0, 0, 1, 1], [0, 0, 1, 1], [1, 1, 0, 0], [1, 1, 0, 0]]
    assert (mask[0, 0] < 0).int().tolist() == rows_apart
    assert (mask[1, 0] < 0).int().tolist() == (torch.ones(4, 4) - torch.eye(4)).int().tolist()


def test_window_rows_by_hand():
    # Two images, each a row of three pixels in two windows of 2x2, shifted left and up by one.
    taken, places = window_rows(2, 1, 3, 2, 1, torch.device("cpu"))
    void = 6
    first = [[void, void, 1, 2], [void, void, void, 0]]
    second = [[void, void, 4, 5], [void, void, void, 3]]
    assert taken.view(2, 2, 4).tolist() == [first, second]
    assert places.tolist() == [7, 2, 3, 15, 10, 11]


@pytest.mark.parametrize("shift", [0, 3])
@pytest.mark.parametrize("size", [(14, 21), (16, 9), (1, 1)], ids=str)
def test_every_pixel_has_one_place_in_the_windows(size, shift):
    taken, places = window_rows(2, *size, 7, shift, torch.device("cpu"))
    pixels = torch.arange(2 * size[0] * size[1])
    assert taken[places].equal(pixels)
    assert (taken < len(pixels)).sum() == len(pixels)


def test_swin_windows_far_apart_do_not_see_each_other():
    swin = Swin(**(SMALL["swin"] | {"depths": [1, 1, 1, 1]})).eval()  # no shifted block
    image = torch.randn(1, 3, 24, 24)
    changed = image.clone()
    changed[..., 12:, 12:] += 1  # the bottom right window of stage 1
    first, second = swin(image)[0], swin(changed)[0]
    assert_close(first[..., :3, :], second[..., :3, :])
    assert not torch.allclose(first[..., 3:, 3:], second[..., 3:, 3:])


@pytest.mark.parametrize("shift", [0, 3])
def test_window_attention_is_the_same_in_training(shift):
    attention = WindowAttention(8, heads=2, window=7)
    nn.init.normal_(attention.bias_table)
    x = torch.randn(2, 9, 15, 8)
    with torch.no_grad():
        expected = attention(x, shift)
    assert_close(attention(x, shift), expected)


def test_swin_state_has_no_caches():
    swin = Swin(**SMALL["swin"])
    before = set(swin.state_dict())
    swin(torch.randn(1, 3, 40, 40))
    assert set(swin.state_dict()) == before
    assert not any("index" in name or "mask" in name for name in before)


def test_what_swin_keeps_is_no_part_of_a_captured_graph(monkeypatch):
    cached = kept(lambda size: torch.zeros(size))
    before = cached(3)
    assert cached(3) is before
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    assert cached(3) is not before  # the cache may drop it while the graph lives
    made = cached(4)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    assert cached(3) is before and cached(4) is not made


def test_swin_in_half_precision():
    swin = Swin(**SMALL["swin"]).eval()
    image = torch.randn(1, 3, 40, 40)
    expected = swin(image)
    for got, full in zip(swin.bfloat16()(image.bfloat16()), expected, strict=True):
        assert got.dtype == torch.bfloat16
        assert_close(got.float(), full, rtol=0.1, atol=0.2)  # 8 bits of mantissa, 6 blocks


def test_drop_path_drops_whole_images_and_keeps_the_mean():
    torch.manual_seed(0)
    dropped = drop_path(torch.ones(4000, 2, 2, 1), 0.25, training=True)
    per_image = dropped.flatten(1)
    assert (per_image == per_image[:, :1]).all()
    assert sorted(per_image.unique().tolist()) == [0, pytest.approx(4 / 3)]
    assert dropped.mean().item() == pytest.approx(1, abs=0.05)
    assert (drop_path(torch.ones(2, 1), 0.25, training=False) == 1).all()


@pytest.mark.parametrize(
    ("name", "config", "message"),
    [
        ("resnet", {"depths": [3, 4, 6]}, "depths and hidden_sizes must have 4 entries"),
        ("resnet", {"norm": "group"}, "norm must be one of .* got 'group'"),
        ("resnet", {"layer_type": "wide"}, "layer_type must be 'basic' or 'bottleneck'"),
        ("swin", {"depths": [2, 2]}, "depths and num_heads must have 4 entries"),
        ("swin", {"num_heads": [5, 6, 12, 24]}, "divide the stage's width 96, got 5"),
    ],
)
def test_bad_sizes_are_named(name, config, message):
    with pytest.raises(ValueError, match=message):
        build_backbone(name, config)


def test_without_timm_the_message_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ValueError, match=r"'convnext_tiny'.*pip install maskformer-fast\[timm\]"):
        build_backbone("convnext_tiny", {})


class ModelOfTimm(nn.Module):
    """What timm's features_only models look like: five levels, channels last."""

    output_fmt = "NHWC"

    def __init__(self, strides):
        super().__init__()
        self.strides = strides
        self.feature_info = SimpleNamespace(reduction=lambda: strides, channels=lambda i: 10 + i)

    def forward(self, x):
        side = x.shape[-1]
        return [torch.zeros(1, side // s, side // s, 10 + i) for i, s in enumerate(self.strides)]


def timm_with(strides):
    return SimpleNamespace(
        is_model=lambda name: name == "known",
        create_model=lambda name, features_only: ModelOfTimm(strides),
    )


def test_timm_levels_are_chosen_by_stride(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", timm_with([2, 4, 8, 16, 32]))
    backbone = build_backbone("known", {})
    assert backbone.channels == [11, 12, 13, 14]
    shapes = [feature.shape for feature in backbone(torch.zeros(1, 3, 64, 64))]
    assert shapes == [(1, 11, 16, 16), (1, 12, 8, 8), (1, 13, 4, 4), (1, 14, 2, 2)]


def test_timm_models_that_do_not_fit_are_refused(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", timm_with([16, 16, 16]))
    with pytest.raises(ValueError, match=r"strides \[4, 8, 16, 32\], got \[16, 16, 16\]"):
        build_backbone("known", {})
    with pytest.raises(ValueError, match="'swin', 'resnet' or a timm model, got 'unknown'"):
        build_backbone("unknown", {})
