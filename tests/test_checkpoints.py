"""Published weights in, every format; own format out; and files that must be refused."""

import io
import os
import pickle
from collections import OrderedDict

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.testing import assert_close
from transformers import ResNetForImageClassification, SwinConfig, SwinForImageClassification
from transformers_oracle import DECODER_SMALL, RESNET_SMALL, randomize, their_maskformer

from maskformer_fast import MaskFormer, MaskFormerConfig, checkpoints
from maskformer_fast.checkpoints.names import rename
from maskformer_fast.checkpoints.tables import DETECTRON2, TRANSFORMERS
from maskformer_fast.model.backbones import build_backbone

HEADS = {
    "num_labels": 5,
    "feature_size": 32,
    "mask_feature_size": 16,
    "num_queries": 7,
    "hidden_size": 32,
    "feedforward_size": 48,
    "decoder_layers": 2,
}
SWIN = {
    "embed_dim": 16,
    "depths": [1, 2, 1, 1],
    "num_heads": [1, 2, 4, 8],
    "window_size": 4,
    "mlp_ratio": 2.0,
}
RESNET = {
    "depths": [2, 1, 1, 1],
    "hidden_sizes": [32, 48, 64, 80],
    "embedding_size": 16,
    "layer_type": "bottleneck",
}
OURS = {
    "swin": MaskFormerConfig(backbone="swin", backbone_config=SWIN, **HEADS),
    "resnet": MaskFormerConfig(backbone="resnet", backbone_config=RESNET, **HEADS),
    "resnet, 6 encoder layers": MaskFormerConfig(
        backbone="resnet", backbone_config=RESNET, pixel_decoder="transformer_fpn", **HEADS
    ),
}
IMAGE = torch.randn(1, 3, 50, 70, generator=torch.Generator().manual_seed(0))


@pytest.fixture(params=OURS)
def model(request):
    model = MaskFormer(OURS[request.param]).eval()
    randomize(model)
    return model


@pytest.fixture(scope="module")
def theirs(tmp_path_factory):
    """A small model of transformers and its folder."""
    folder = tmp_path_factory.mktemp("theirs")
    model = their_maskformer(
        RESNET_SMALL, DECODER_SMALL, fpn_feature_size=32, mask_feature_size=16, mask_weight=7.0
    )
    model.save_pretrained(folder)
    return model, folder


@torch.inference_mode()
def assert_same_outputs(first, second):
    a, b = first(IMAGE), second(IMAGE)
    for name in ("class_queries_logits", "masks_queries_logits"):
        assert_close(a[name], b[name], atol=1e-4, rtol=0)


# Names


def test_rules_carry_indices_over_and_pair_alternatives():
    rules = (("a.#.{x,y}.#.", "b#.{first,second}.#."),)
    renamed, left = rename(
        {"a.10.y.3.weight": torch.ones(1), "a.1.z.3.weight": torch.ones(1)}, rules
    )
    assert list(renamed) == ["b10.second.3.weight"]
    assert left == ["a.1.z.3.weight"]


def test_rules_stack_and_split():
    split = {f"m.{part}.bias": torch.full((2,), float(i)) for i, part in enumerate("qkv")}
    stacked, left = rename(split, (("m.{q,k,v}.", "in_proj_"),))
    assert stacked["in_proj_bias"].tolist() == [0, 0, 1, 1, 2, 2] and not left
    assert_close(rename(stacked, (("in_proj_", "m.{q,k,v}."),))[0], split)


def test_an_incomplete_stack_is_left_over():
    renamed, left = rename({"m.q.bias": torch.ones(1)}, (("m.{q,k,v}.", "in_proj_"),))
    assert not renamed and left == ["m.q.bias"]


BY_HAND = {  # ours: detectron2's, each with the shape of the model "resnet, 6 encoder layers"
    "pixel_level.backbone.stem.norm.running_mean": "backbone.stem.conv1.norm.running_mean",
    "pixel_level.backbone.stages.3.0.convs.1.conv.weight": "backbone.res5.0.conv2.weight",
    "pixel_level.backbone.stages.0.0.shortcut.norm.bias": "backbone.res2.0.shortcut.norm.bias",
    "pixel_level.decoder.stem.conv.weight": "sem_seg_head.pixel_decoder.layer_4.weight",
    "pixel_level.decoder.laterals.0.norm.bias": "sem_seg_head.pixel_decoder.adapter_3.norm.bias",
    "pixel_level.decoder.outputs.2.conv.weight": "sem_seg_head.pixel_decoder.layer_1.weight",
    "pixel_level.decoder.mask_projection.bias": "sem_seg_head.pixel_decoder.mask_features.bias",
    "pixel_level.decoder.encoder.layers.5.ffn_norm.weight": (
        "sem_seg_head.pixel_decoder.transformer.encoder.layers.5.norm2.weight"
    ),
    "transformer.query_embeddings.weight": "sem_seg_head.predictor.query_embed.weight",
    "transformer.decoder.layers.1.cross_norm.weight": (
        "sem_seg_head.predictor.transformer.decoder.layers.1.norm2.weight"
    ),
    "segmentation.classifier.weight": "sem_seg_head.predictor.class_embed.weight",
    "segmentation.mask_embedder.2.bias": "sem_seg_head.predictor.mask_embed.layers.2.bias",
}


def test_detectron2_names_by_hand():
    state = MaskFormer(OURS["resnet, 6 encoder layers"]).state_dict()
    named, left = DETECTRON2.from_ours(state)
    assert not left
    for ours, d2 in BY_HAND.items():
        assert_close(named[d2], state[ours])
    layer = "sem_seg_head.predictor.transformer.decoder.layers.0.multihead_attn."
    q, k, v = named[layer + "in_proj_weight"].chunk(3)  # torch.nn.MultiheadAttention's order
    attention = "transformer.decoder.layers.0.cross_attention."
    assert_close(q, state[attention + "q.weight"])
    assert_close(k, state[attention + "k.weight"])
    assert_close(v, state[attention + "v.weight"])


# transformers' format


@pytest.mark.parametrize(
    "spelling", [{}, {".out_proj.": ".o_proj.", ".fc1.": ".mlp.fc1.", ".fc2.": ".mlp.fc2."}]
)
def test_both_spellings_of_transformers_load(theirs, tmp_path, spelling):
    model, folder = theirs
    tensors = load_file(folder / "model.safetensors")
    for old, new in spelling.items():
        tensors = {name.replace(old, new): tensor for name, tensor in tensors.items()}
    save_file(tensors, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_bytes((folder / "config.json").read_bytes())
    assert_same_outputs(MaskFormer.from_pretrained(tmp_path), model)


def test_configuration_comes_from_tensors_and_their_config(theirs, tmp_path):
    _, folder = theirs
    config, _ = checkpoints.load(folder)
    assert (config.num_labels, config.num_queries, config.num_heads) == (10, 7, 4)
    assert (config.mask_weight, config.id2label[3]) == (7.0, "class 3")
    assert config.backbone_config["layer_type"] == "basic"
    tensors = load_file(folder / "model.safetensors")
    processor = {"size": 640, "max_size": 2560, "image_mean": [0.5, 0.5, 0.5]}
    config, _ = checkpoints.from_transformers({}, tensors, processor=processor)
    assert (config.short_side, config.long_side, config.image_mean) == (640, 2560, [0.5] * 3)


def test_sharded_and_old_weight_files_load(theirs, tmp_path):
    model, _ = theirs
    sharded, old = tmp_path / "sharded", tmp_path / "old"
    model.save_pretrained(sharded, max_shard_size="200KB")
    assert len(list(sharded.glob("*.safetensors"))) > 1
    assert_same_outputs(MaskFormer.from_pretrained(sharded), model)
    old.mkdir()
    (old / "config.json").write_bytes((sharded / "config.json").read_bytes())
    torch.save(model.state_dict(), old / "pytorch_model.bin")
    assert_same_outputs(MaskFormer.from_pretrained(old), model)


def test_an_index_may_not_leave_its_folder(theirs, tmp_path):
    (tmp_path / "config.json").write_bytes((theirs[1] / "config.json").read_bytes())
    index = tmp_path / "model.safetensors.index.json"
    index.write_text('{"weight_map": {"a": "../model.safetensors"}}')
    with pytest.raises(ValueError, match="files of its own folder"):
        checkpoints.load(tmp_path)


@pytest.mark.parametrize("name", ["swin", "resnet"])
@torch.inference_mode()
def test_imagenet_backbones_load(name, tmp_path):
    if name == "swin":
        config = SwinConfig(embed_dim=8, depths=[1, 2, 1, 1], num_heads=[1, 2, 2, 4], window_size=2)
        classifier = SwinForImageClassification(config).eval()
    else:
        classifier = ResNetForImageClassification(RESNET_SMALL).eval()
    randomize(classifier)
    classifier.save_pretrained(tmp_path)
    found, config, tensors = checkpoints.load_backbone(tmp_path)
    backbone = build_backbone(found, config).eval()
    checkpoints.load_state(backbone, tensors, "backbone")
    image = torch.randn(1, 3, 64, 64)
    expected = classifier(image, output_hidden_states=True).hidden_states[-1]
    if name == "swin":  # the last stage's norm starts as an identity: only standardised
        expected = torch.nn.functional.layer_norm(expected, expected.shape[-1:])
        expected = expected.transpose(1, 2).unflatten(2, (2, 2))
    assert found == name
    assert_close(backbone(image)[-1], expected, atol=1e-5, rtol=1e-5)


# Own format and detectron2's


def test_save_and_load_round_trip(model, tmp_path):
    model.save_pretrained(tmp_path)
    again = MaskFormer.from_pretrained(tmp_path)
    assert again.config == model.config
    assert_close(again.state_dict(), model.state_dict())


@pytest.mark.parametrize("suffix", [".pkl", ".pth"])
def test_detectron2_files_convert(model, tmp_path, suffix):
    named, left = DETECTRON2.from_ours(model.state_dict())
    assert not left
    named["criterion.empty_weight"] = torch.ones(6)
    named["pixel_mean"] = torch.ones(3, 1, 1)
    path = tmp_path / ("weights" + suffix)
    if suffix == ".pkl":
        arrays = {name: tensor.numpy() for name, tensor in named.items()}
        path.write_bytes(pickle.dumps({"model": arrays, "__author__": "third_party"}))
    else:
        torch.save({"model": named, "iteration": 3}, path)
    converted = MaskFormer.from_detectron2(path, thing_classes=[1], dropout=0.0)
    assert converted.config.thing_classes == [1]
    converted.save_pretrained(tmp_path / "out")
    assert_same_outputs(MaskFormer.from_pretrained(tmp_path / "out"), model)


@pytest.mark.parametrize(
    "missing", ["predictor.class_embed.bias", "pixel_decoder.layer_3.weight", "layer_4.norm.bias"]
)
def test_incomplete_detectron2_files_are_refused(model, tmp_path, missing):
    named, _ = DETECTRON2.from_ours(model.state_dict())
    kept = {name: tensor for name, tensor in named.items() if not name.endswith(missing)}
    assert len(kept) == len(named) - 1
    torch.save({"model": kept}, tmp_path / "weights.pth")
    with pytest.raises(ValueError, match=r"weights.pth: does not fit the model; missing: .*near"):
        MaskFormer.from_detectron2(tmp_path / "weights.pth")


def test_detectron2_names_of_the_first_release(model):
    named, _ = DETECTRON2.from_ours(model.state_dict())
    old = {
        name.replace("sem_seg_head.pixel_decoder.", "sem_seg_head."): t for name, t in named.items()
    }
    config, tensors = checkpoints.from_detectron2(old)
    assert config.backbone_config.items() >= model.config.backbone_config.items()
    assert_close(tensors, dict(model.state_dict()))


# Refusals


def test_left_over_and_missing_names_are_told_with_the_nearest_format(model):
    state = dict(model.state_dict())
    with pytest.raises(ValueError, match=r"left-over.* and \d+ more; nearest format: maskformer_f"):
        checkpoints.from_detectron2(state)
    named, _ = TRANSFORMERS.from_ours(state)
    with pytest.raises(ValueError, match=r"left-over.*nearest format: transformers"):
        checkpoints.from_detectron2(named)
    del state["segmentation.classifier.bias"]
    state["segmentation.classifier.weight"] = torch.ones(2, 32)
    state["new"] = torch.ones(1)
    told = r"missing: segmentation.classifier.bias; left over: new; .*\(expected \[6, 32\], got \[2"
    with pytest.raises(ValueError, match=told):
        checkpoints.load_state(model, state, "weights")


def test_unsupported_options_of_transformers_are_named():
    with pytest.raises(ValueError, match="downsample_in_bottleneck must be False, got True"):
        checkpoints.from_transformers({"backbone_config": {"downsample_in_bottleneck": True}}, {})


def test_folders_that_are_not_weights_are_refused(tmp_path):
    file = tmp_path / "weights.pkl"
    file.write_bytes(b"")
    with pytest.raises(ValueError, match=r"convert .*weights.pkl OUT"):
        checkpoints.load(file)
    with pytest.raises(ValueError, match="neither a folder nor a hub id"):
        checkpoints.load(tmp_path / "nothing")
    with pytest.raises(ValueError, match=r"config.json: expected a JSON file"):
        checkpoints.load(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(ValueError, match="got 'bert'"):
        checkpoints.load(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "maskformer"}')
    with pytest.raises(ValueError, match=r"expected model.safetensors"):
        checkpoints.load(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"no safetensors")
    with pytest.raises(ValueError, match=r"model.safetensors: expected a safetensors file"):
        checkpoints.load(tmp_path)


def test_hub_ids_are_downloaded(theirs, monkeypatch):
    calls = []

    def download(repo, allow_patterns, **options):
        calls.append((repo, options))
        return str(theirs[1])

    monkeypatch.setattr(checkpoints.files, "snapshot_download", download)
    config, _ = checkpoints.load("someone/model", revision="main")
    assert config.num_labels == 10 and calls == [("someone/model", {"revision": "main"})]

    def fail(repo, **_):
        raise OSError("offline")

    monkeypatch.setattr(checkpoints.files, "snapshot_download", fail)
    with pytest.raises(ValueError, match="the hub did not give it: offline"):
        checkpoints.load("someone/model")


# Pickles


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_plain_pickles_are_read(tmp_path, protocol):
    content = OrderedDict(
        half=np.arange(6, dtype=np.float16).reshape(2, 3),
        fortran=np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        big_endian=np.arange(3, dtype=">i4"),
        empty=np.zeros((0, 4), np.float32),
        number=np.float32(1.5),
        plain=["text", b"bytes", 3, 2.5, True, None, {"nested": (1, 2)}],
    )
    path = tmp_path / "weights.pkl"
    path.write_bytes(pickle.dumps(content, protocol))
    read = checkpoints.read_pickle(path)
    assert read["plain"] == ["text", b"bytes", 3, 2.5, True, None, {"nested": [1, 2]}]
    for name in ("half", "fortran", "empty", "number"):
        assert_close(read[name], torch.from_numpy(np.array(content[name], order="C")))
    assert read["big_endian"].tolist() == [0, 1, 2]


class Calls:
    def __init__(self, *call):
        self.call = call

    def __reduce__(self):
        return self.call


MALICIOUS = {
    "system": (pickle.dumps(Calls(os.system, ("touch executed",))), r"(posix|nt)\.system"),
    "eval": (pickle.dumps([Calls(eval, ("1",))]), "builtins.eval"),
    "text codec": (pickle.dumps(np.ones(2), 0).replace(b"latin1", b"rot_13"), "rot_13"),
    "objects": (pickle.dumps(np.array([{}], dtype=object)), "no number"),
    "class": (pickle.dumps({"a": np.ndarray}), "a value of type type"),
    "memo": (b"\x80\x02]r\xff\xff\xff\x7f.", "a memo of"),
    "truncated": (pickle.dumps({"a": np.ones(9)})[:-20], "not a plain pickle"),
    "wrong size": (pickle.dumps(np.ones(9)).replace(b"K\x09\x85", b"K\x08\x85"), "72 bytes"),
    "empty": (b"", "not a plain pickle"),
}


@pytest.mark.parametrize("kind", MALICIOUS)
def test_other_pickles_are_refused_unexecuted(kind, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    content, message = MALICIOUS[kind]
    path = tmp_path / "weights.pkl"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=f"weights.pkl: .*{message}"):
        checkpoints.read_pickle(path)
    assert not (tmp_path / "executed").exists()


def test_references_that_multiply_are_refused(tmp_path):
    level: list = ["x"] * 10
    for _ in range(12):
        level = [level] * 10
    path = tmp_path / "weights.pkl"
    path.write_bytes(pickle.dumps(level))
    with pytest.raises(ValueError, match="more than 1000000 values"):
        checkpoints.read_pickle(path)


def test_torch_files_are_read_without_execution(tmp_path):
    buffer = io.BytesIO()
    torch.save({"model": Calls(os.system, ("touch executed",))}, buffer)
    path = tmp_path / "weights.pth"
    path.write_bytes(buffer.getvalue())
    with pytest.raises(ValueError, match=r"weights.pth: expected weights saved by torch.save"):
        checkpoints.read_detectron2(path)


def test_files_that_convert_cannot_read_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"expected a .pkl or .pth file"):
        checkpoints.read_detectron2(tmp_path / "weights.bin")
    with pytest.raises(ValueError, match="no such file"):
        checkpoints.read_detectron2(tmp_path / "weights.pkl")
    (tmp_path / "list.pkl").write_bytes(pickle.dumps([1]))
    with pytest.raises(ValueError, match="expected a dictionary of weights"):
        checkpoints.read_detectron2(tmp_path / "list.pkl")
