"""MaskFormer as a module: shapes, output, laziness, supervision, saving, errors."""

import pytest
import torch
from small_models import CLASSES, SMALL_SWIN, small_batch, small_config
from torch import nn

from maskformer_fast import MaskFormer, MaskFormerConfig, PerPixelBaseline, Targets, use_backend
from maskformer_fast.model.per_pixel import semantic_labels
from maskformer_fast.model.pixel_decoder import MaskProjection
from maskformer_fast.ops import mask_logits


@pytest.fixture(scope="module")
def model() -> MaskFormer:
    torch.manual_seed(0)
    return MaskFormer(small_config()).eval()


@pytest.mark.parametrize("decoder", ["fpn", "transformer_fpn"])
@pytest.mark.parametrize("size", [(64, 64), (50, 83), (33, 32)])
def test_shapes_at_any_size(decoder, size):
    model = MaskFormer(small_config(pixel_decoder=decoder)).eval()
    output = model(torch.randn(2, 3, *size))
    h, w = (-(-side // 4) for side in size)
    assert output.class_queries_logits.shape == (2, 6, CLASSES + 1)
    assert output.masks_queries_logits.shape == (2, 6, h, w)
    assert output.pixel_features.shape == (2, 16, h, w)
    assert output.loss is None


def test_masks_are_computed_on_first_use_only(model):
    output = model(torch.randn(1, 3, 64, 64))
    assert output._masks is None and output.auxiliary is None
    first = output.masks_queries_logits
    assert output.masks_queries_logits is first
    expected = mask_logits(output.mask_queries, output.pixel_features)
    torch.testing.assert_close(first, expected)


@pytest.mark.parametrize("queries", [6, 40])  # fewer and more than the channels of pixel_features
def test_masks_and_features_do_not_depend_on_which_is_read_first(queries):
    model = MaskFormer(small_config(num_queries=queries)).eval()
    pixel_values = torch.randn(2, 3, 50, 83)
    first, second = model(pixel_values), model(pixel_values)
    masks = first.masks_queries_logits
    features = second["pixel_features"]
    torch.testing.assert_close(second.masks_queries_logits, masks)
    torch.testing.assert_close(first.pixel_features, features)
    assert masks.is_contiguous() and features.shape == (2, 16, 13, 21)


@pytest.mark.parametrize("first", ["masks_queries_logits", "pixel_features"])
def test_results_of_float32_do_not_depend_on_autocast_where_they_are_read(model, first):
    pixel_values = torch.randn(2, 3, 50, 83)
    expected, output = model(pixel_values), model(pixel_values)
    with torch.autocast("cpu", torch.bfloat16):
        got = {name: output[name] for name in (first, "masks_queries_logits", "pixel_features")}
    for name, tensor in got.items():
        torch.testing.assert_close(tensor, expected[name])


def test_masks_of_evaluation_are_computed_by_the_backend_that_is_asked_for(model, monkeypatch):
    def refuse(*_):
        raise AssertionError("the composed filters are not the reference")

    pixel_values = torch.randn(1, 3, 64, 64)
    expected = model(pixel_values).masks_queries_logits
    output = model(pixel_values)
    with use_backend("cuda"), pytest.raises(RuntimeError, match="'cuda' cannot run"):
        output.masks_queries_logits  # noqa: B018
    monkeypatch.setattr(MaskProjection, "mask_logits", refuse)
    with use_backend("reference"):
        torch.testing.assert_close(model(pixel_values).masks_queries_logits, expected)
    monkeypatch.setenv("MASKFORMER_FAST_BACKEND", "reference")
    torch.testing.assert_close(model(pixel_values).masks_queries_logits, expected)


def test_outputs_stay_when_the_weights_change():
    model = MaskFormer(small_config()).eval()
    pixel_values = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        expected, output = model(pixel_values).masks_queries_logits, model(pixel_values)
        for parameter in model.parameters():
            parameter.zero_()
    assert output.masks_queries_logits.equal(expected)


def test_masks_of_evaluation_have_gradients():
    model = MaskFormer(small_config()).eval()
    output = model(torch.randn(1, 3, 64, 64))
    output.masks_queries_logits.square().mean().backward()
    assert model.pixel_level.decoder.mask_projection.weight.grad.abs().sum() > 0


def test_evaluation_decodes_the_last_layer_only_unless_a_loss_is_wanted(model):
    pixel_values, targets = small_batch([2, 1])
    shapes = []
    hook = model.segmentation.register_forward_hook(lambda _, i, o: shapes.append(o[0].shape[0]))
    assert model(pixel_values).auxiliary is None
    output = model(pixel_values, targets)
    hook.remove()
    assert shapes == [1, 3]
    assert output.auxiliary.class_logits.shape == (3, 2, 6, CLASSES + 1)
    assert output.auxiliary.mask_queries[-1].equal(output.mask_queries)


def test_the_loss_sums_over_layers_only_with_deep_supervision():
    pixel_values, targets = small_batch([2, 1])
    torch.manual_seed(0)
    deep = MaskFormer(small_config()).train()
    torch.manual_seed(0)
    shallow = MaskFormer(small_config(deep_supervision=False)).train()
    losses = [m(pixel_values, targets).losses["loss_dice"] for m in (deep, shallow)]
    assert [len(loss) for loss in losses] == [3, 1]
    torch.testing.assert_close(losses[0][-1:], losses[1])


def test_the_list_form_of_transformers_gives_the_same_loss(model):
    pixel_values, targets = small_batch([2, 1])
    masks = [targets.segments[b] == torch.arange(n)[:, None, None] for b, n in ((0, 2), (1, 1))]
    labels = [targets.labels[0], targets.labels[1, :1]]
    expected = model(pixel_values, targets).loss
    got = model(pixel_values=pixel_values, mask_labels=masks, class_labels=labels).loss
    torch.testing.assert_close(got, expected)


def test_output_by_key_index_and_tuple(model):
    pixel_values, targets = small_batch([1])
    output = model(pixel_values)
    assert output[0] is output["class_queries_logits"] is output.class_queries_logits
    assert output[1] is output["masks_queries_logits"]
    assert "loss" not in output and "region" not in list(output)
    with pytest.raises(KeyError, match="loss"):
        output["loss"]
    trained = model(pixel_values, targets)
    assert trained[0] is trained.loss and trained.to_tuple()[0] is trained.loss
    assert trained[:2][1] is trained.class_queries_logits
    assert len(trained) == 3 and len(output) == 2
    assert all(isinstance(value, torch.Tensor) for value in dict(trained.items()).values())
    assert trained["losses"] is trained.losses and trained.get("auxiliary") is trained.auxiliary
    assert output.get("loss", 1) == 1


def test_pixel_mask_gives_the_region_of_each_image(model):
    pixel_mask = torch.zeros(2, 64, 96, dtype=torch.bool)
    pixel_mask[0, :64, :96] = True
    pixel_mask[1, :30, :50] = True
    output = model(torch.randn(2, 3, 64, 96), pixel_mask=pixel_mask)
    assert output.region.tolist() == [[16.0, 24.0], [7.5, 12.5]]


def test_every_parameter_gets_a_gradient():
    model = MaskFormer(small_config(pixel_decoder="transformer_fpn")).train()
    model(*small_batch([2, 1])).loss.backward()
    assert [n for n, p in model.named_parameters() if p.grad is None] == []


def test_training_overfits_one_batch():
    torch.manual_seed(0)
    options = {"norm": "batch", **small_config().backbone_config}
    model = MaskFormer(small_config(backbone_config=options)).train()
    pixel_values = torch.zeros(1, 3, 64, 64)
    pixel_values[..., 20:50, 20:50] = 1.0
    segments = torch.zeros(64, 64, dtype=torch.long)
    segments[20:50, 20:50] = 1
    targets = Targets.from_segments([segments], [torch.tensor([0, 2])], num_classes=CLASSES)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    first = model(pixel_values, targets).loss.item()
    for _ in range(40):
        optimizer.zero_grad()
        loss = model(pixel_values, targets).loss
        loss.backward()
        optimizer.step()
    assert loss.item() < first / 3


def test_dropout_acts_on_attention_and_feed_forward_in_training_only():
    torch.manual_seed(0)
    model = MaskFormer(small_config(dropout=0.5))
    layer = model.transformer.decoder.layers[0]
    x = torch.randn(1, 6, 16)
    parts = {
        "attention": lambda: layer.self_attention(x, x, x),
        "residual": lambda: layer.attend_self(x, x),
        "feed-forward": lambda: layer.feed_forward(x),
    }
    for mode in (True, False):
        model.train(mode)
        for name, part in parts.items():
            assert part().equal(part()) != mode, name


def test_unknown_arguments_of_from_pretrained_are_refused(model, tmp_path):
    model.save_pretrained(tmp_path)
    with pytest.raises(TypeError, match="unexpected keyword argument 'torch_dtype'"):
        MaskFormer.from_pretrained(tmp_path, torch_dtype=torch.float16)


def test_lists_in_place_of_targets_are_refused_with_advice(model):
    with pytest.raises(TypeError, match=r"targets: expected Targets, got list .*mask_labels="):
        model(torch.randn(1, 3, 64, 64), [torch.ones(1, 64, 64)])


def test_bfloat16_autocast_trains():
    model = MaskFormer(small_config()).train()
    with torch.autocast("cpu", torch.bfloat16):
        loss = model(*small_batch([2, 1])).loss
    assert loss.dtype == torch.float32
    loss.backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())


def test_masks_of_bfloat16_autocast_can_be_read_after_it(model):
    pixel_values = torch.randn(1, 3, 64, 64)
    with torch.autocast("cpu", torch.bfloat16):
        inside, output = model(pixel_values).masks_queries_logits, model(pixel_values)
    expected = model(pixel_values).masks_queries_logits
    spread = expected.std().item()
    for masks in (inside, output.masks_queries_logits):
        assert (masks - expected).abs().max().item() < 0.1 * spread  # 8 bits of mantissa
    assert output.pixel_features.shape == (1, 16, 16, 16)


def test_save_and_load_give_the_same_model(model, tmp_path):
    model.save_pretrained(tmp_path)
    assert {p.name for p in tmp_path.iterdir()} >= {"config.json", "model.safetensors"}
    loaded = MaskFormer.from_pretrained(tmp_path)
    assert loaded.config == model.config and not loaded.training
    pixel_values = torch.randn(1, 3, 64, 64)
    assert loaded(pixel_values).class_queries_logits.equal(model(pixel_values).class_queries_logits)


def test_config_round_trip_and_errors(tmp_path):
    config = small_config(id2label={0: "sky", 1: "grass"})
    config.save(tmp_path / "config.json")
    assert MaskFormerConfig.load(tmp_path / "config.json") == config
    with pytest.raises(ValueError, match="unknown names"):
        MaskFormerConfig.from_dict({"queries": 3})
    for change, message in (
        ({"pixel_decoder": "unet"}, "pixel_decoder: expected one of"),
        ({"feature_size": 40}, "feature_size: expected a multiple of 32, got 40"),
        ({"num_heads": 3}, "hidden_size: expected a multiple of num_heads = 3"),
        ({"num_heads": 0}, "num_heads: expected a whole number"),
        ({"hidden_size": 6, "num_heads": 2}, "hidden_size: expected a multiple of 4"),
        ({"dropout": -1}, r"dropout: expected a share in \[0, 1\)"),
        ({"id2label": ["sky"]}, "id2label: expected names by label"),
        ({"thing_classes": [4]}, r"thing_classes: expected labels in \[0, 4\), got \[4\]"),
        ({"num_queries": 0}, "num_queries: expected a whole number of at least 1, got 0"),
    ):
        with pytest.raises(ValueError, match=message):
            small_config(**change)


def test_bad_input_is_named(model):
    images, targets = small_batch([1])
    masks, labels = [torch.ones(1, 64, 64)], [torch.tensor([CLASSES])]
    for arguments, message in (
        ({"pixel_values": images[0]}, r"pixel_values: expected shape \[B, 3, H, W\]"),
        ({"mask_labels": masks}, "expected both or neither"),
        ({"targets": targets, "mask_labels": masks, "class_labels": labels}, "got both"),
        ({"mask_labels": masks, "class_labels": labels}, r"class_labels|labels in \[0, 4\)"),
        ({"pixel_mask": torch.ones(64, 64)}, r"pixel_mask: expected shape \[B=1, H, W\]"),
        ({"targets": small_batch([1, 1])[1]}, "targets: expected 1 images, got 2"),
    ):
        with pytest.raises(ValueError, match=message):
            model(**({"pixel_values": images} | arguments))


def test_per_pixel_baseline_learns_and_ignores_void():
    baseline = PerPixelBaseline(small_config())
    pixel_values, targets = small_batch([2, 1])
    output = baseline(pixel_values, targets)
    assert output.logits.shape == (2, CLASSES, 16, 16)
    output.loss.backward()
    assert baseline.classifier.weight.grad.abs().sum() > 0
    assert baseline.semantic(pixel_values).shape == (2, 64, 64)
    assert baseline(*small_batch([0, 0])).loss == 0  # only void
    labels = semantic_labels(targets)
    assert labels[targets.segments < 0].eq(-1).all()
    assert labels[0][targets.segments[0] == 1].eq(targets.labels[0, 1]).all()


def test_backbone_of_the_configuration_is_used():
    assert isinstance(MaskFormer(small_config()).pixel_level.backbone, nn.Module)
    model = MaskFormer(small_config(**SMALL_SWIN))
    assert model(torch.randn(1, 3, 40, 52)).masks_queries_logits.shape[2:] == (10, 13)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("backbone", [{}, SMALL_SWIN], ids=["resnet", "swin"])
def test_a_batch_without_images_gives_empty_outputs(backbone, training):
    model = MaskFormer(small_config(**backbone)).train(training)
    output = model(torch.zeros(0, 3, 64, 64))
    assert output.class_queries_logits.shape == (0, 6, CLASSES + 1)
    assert output.masks_queries_logits.shape == (0, 6, 16, 16)
    assert output.pixel_features.shape == (0, 16, 16, 16)
