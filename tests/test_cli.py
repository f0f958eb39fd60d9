"""The command line: what it writes is consistent, and bad input is a message and an exit code."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from small_models import small_config

from maskformer_fast import MaskFormer, cli
from maskformer_fast.cli import FAILED, INTERRUPTED, OK, main
from maskformer_fast.data.files import read_id_map, read_label_map
from maskformer_fast.predict import default_weights, predict

USAGE = 2
ODD = '{"model_type": "maskformer_fast", "num_labels": "ten"}'


def small_model(num_labels=3, **options):
    torch.manual_seed(0)
    options = {"thing_classes": [], "num_queries": 12, "decoder_layers": 1} | options
    return MaskFormer(small_config(num_labels=num_labels, **options)).eval()


@pytest.fixture(scope="module")
def model():
    """Random weights whose queries are sure of a class and of some pixels."""
    model = small_model(id2label={0: "sky", 2: "cat"}, thing_classes=[1, 2])
    with torch.no_grad():
        for parameter in model.segmentation.parameters():
            parameter.mul_(8)
        model.segmentation.classifier.bias[-1] = -20
    return model


@pytest.fixture(scope="module")
def weights(tmp_path_factory, model):
    folder = tmp_path_factory.mktemp("weights")
    model.save_pretrained(folder)
    return str(folder)


@pytest.fixture
def pictures(tmp_path):
    """A folder with a picture of 30 x 50, a transparent one of one pixel, and one of 3 x 200."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (30, 50, 3), dtype=np.uint8)).save(folder / "a.png")
    Image.new("RGBA", (1, 1), (9, 9, 9, 9)).save(folder / "b.png")
    Image.fromarray(rng.integers(0, 256, (3, 200), dtype=np.uint8)).save(folder / "c.jpg")
    return folder


@pytest.fixture
def run(weights, tmp_path, capsys):
    """predict with the small model: exit code, JSON lines of stdout, stderr."""

    def call(*arguments, weights=weights, out=tmp_path / "out"):
        arguments = ["predict", *arguments, "--weights", weights, "--out", out]
        code = main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return code, [json.loads(line) for line in captured.out.splitlines()], captured.err

    return call


def read_map(document, out):
    size = document["height"], document["width"]
    read = read_label_map if document["task"] == "semantic" else read_id_map
    return read(out / document["map"], size)


@pytest.mark.parametrize("task", ["panoptic", "semantic", "instance"])
def test_what_is_written_is_consistent(run, pictures, tmp_path, task):
    code, documents, log = run(
        pictures, "--task", task, "--threshold", 0.2, "--overlap-threshold", 0
    )
    assert (code, log) == (OK, "")
    assert [d["file"] for d in documents] == [
        str(pictures / n) for n in ("a.png", "b.png", "c.jpg")
    ]
    assert [(d["height"], d["width"]) for d in documents] == [(30, 50), (1, 1), (3, 200)]
    for document, name in zip(documents, "abc", strict=True):
        assert document["task"] == task
        assert document == json.loads((tmp_path / "out" / f"{name}.json").read_text())
        ids = read_map(document, tmp_path / "out")
        for segment in document["segments"]:
            rows, columns = np.nonzero(ids == segment["id"])
            assert segment["area"] == len(rows)
            box = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1] if len(rows) else 0
            assert np.all(np.array(segment["box"]) == box)
            assert segment["label"] == ("sky", "class 1", "cat")[segment["label_id"]]
            assert ("score" in segment) == (task != "semantic")
        void = set() if task == "semantic" else {0}
        assert set(np.unique(ids)) <= {s["id"] for s in document["segments"]} | void
        with Image.open(tmp_path / "out" / document["overlay"]) as overlay:
            overlay.load()
            assert overlay.mode == "RGB" and max(overlay.size) >= document["width"]
    assert len(documents[0]["segments"]) > 1


def test_cli_and_python_agree(run, pictures, model, tmp_path):
    _, [document], _ = run(pictures / "a.png")
    with Image.open(pictures / "a.png") as picture:
        [prediction] = predict(model, [picture])
    assert document["segments"] == prediction.segments
    np.testing.assert_array_equal(read_map(document, tmp_path / "out"), prediction.segmentation)


def test_semantic_map_of_many_classes_has_16_bits(pictures, weights, tmp_path, run):
    many = small_model(num_labels=400)
    with torch.no_grad():
        many.segmentation.classifier.weight.zero_()
        many.segmentation.classifier.bias[300] = 50
    many.save_pretrained(tmp_path / "many")
    _, [document], _ = run(pictures / "a.png", "--task", "semantic", weights=tmp_path / "many")
    assert [segment["label_id"] for segment in document["segments"]] == [300]
    assert (read_map(document, tmp_path / "out") == 300).all()


def test_thresholds_reach_the_rules(run, pictures, tmp_path):
    _, [document], _ = run(pictures / "a.png", "--threshold", 1)
    assert document["segments"] == []
    assert not read_map(document, tmp_path / "out").any()


def test_equal_stems_do_not_overwrite_each_other(run, pictures, tmp_path):
    for name in ("a.jpg", "a-2.png", "A.png"):
        Image.new("RGB", (4, 4)).save(pictures / name)
    _, documents, _ = run(pictures / "a.png", pictures)
    maps = [document["map"] for document in documents]
    assert len({name.casefold() for name in maps}) == len(maps) == 7
    for document in documents:
        name = document["map"].removesuffix(".map.png")
        assert json.loads((tmp_path / "out" / f"{name}.json").read_text()) == document


def test_bad_pictures_are_reported_and_the_others_predicted(run, pictures, tmp_path):
    (pictures / "broken.png").write_bytes((pictures / "a.png").read_bytes()[:60])
    (tmp_path / "empty").mkdir()
    code, documents, log = run(pictures, tmp_path / "empty", tmp_path / "absent.png")
    assert code == FAILED
    assert [document["map"][0] for document in documents] == ["a", "b", "c"]
    messages = log.splitlines()
    assert len(messages) == 4 and messages[-1] == "3 failed"
    for what in ("empty: no pictures", "absent.png: no such file", "broken.png: not a readable"):
        assert sum(what in message for message in messages) == 1


def test_result_that_cannot_be_written_is_reported(run, pictures, tmp_path):
    (tmp_path / "out" / "a.map.png").mkdir(parents=True)
    code, documents, log = run(pictures)
    assert code == FAILED and len(documents) == 2
    assert f"error: {pictures / 'a.png'}: " in log and "a.map.png" in log and "1 failed" in log


def test_out_that_cannot_be_made(run, pictures, tmp_path):
    (tmp_path / "file").touch()
    code, documents, log = run(pictures, out=tmp_path / "file")
    assert (code, documents) == (FAILED, [])
    assert f"{tmp_path / 'file'}: expected a folder to write to, got a file" in log
    code, _, log = run(pictures, out=tmp_path / "file" / "below")
    assert code == FAILED and "file/below" in log


@pytest.mark.parametrize("content", [None, {}, {"config.json": "{"}, {"config.json": ODD}])
def test_bad_weights_folder(run, pictures, tmp_path, content):
    folder = tmp_path / "bad"
    if content is not None:
        folder.mkdir()
        for name, text in content.items():
            (folder / name).write_text(text)
    code, documents, log = run(pictures, weights=folder)
    assert (code, documents) == (FAILED, [])
    assert str(folder) in log and "Traceback" not in log
    assert not (tmp_path / "out").exists()


def test_hub_without_network(run, pictures, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    code, _, log = run(pictures, weights="no-such-owner/no-such-model")
    assert code == FAILED
    assert "error: no-such-owner/no-such-model is no folder, and the hub did not give it" in log


def test_device_that_is_not_there(run, pictures):
    code, _, log = run(pictures, "--device", "nonsense")
    assert code == FAILED and log.startswith("error: --device nonsense: cannot be used")
    assert log.count("\n") == 1


@pytest.mark.parametrize("value", ["1.5", "nan", "half"])
def test_threshold_out_of_range(run, pictures, value, capsys):
    with pytest.raises(SystemExit, match=str(USAGE)):
        run(pictures / "a.png", "--mask-threshold", value)
    assert "--mask-threshold" in capsys.readouterr().err


def test_failure_of_the_model_names_the_picture(run, pictures, monkeypatch):
    def fail(*_, **__):
        raise ValueError("class_logits: no")

    monkeypatch.setattr(cli, "predict", fail)
    code, documents, log = run(pictures / "a.png")
    assert (code, documents) == (FAILED, [])
    assert f"error: {pictures / 'a.png'}: class_logits: no" in log


@pytest.mark.parametrize(
    "arguments", [[], ["predict"], ["predict", "a.png", "--out", "o", "--task", "depth"], ["paint"]]
)
def test_usage(arguments, capsys):
    with pytest.raises(SystemExit, match=str(USAGE)):
        main(arguments)
    captured = capsys.readouterr()
    assert captured.out == "" and "usage:" in captured.err


def test_interrupt(run, pictures, monkeypatch):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "predict", interrupt)
    code, documents, log = run(pictures)
    assert (code, documents, log) == (INTERRUPTED, [], "interrupted\n")


def test_info(capsys):
    assert main(["info"]) == OK
    assert "panoptic_map" in capsys.readouterr().out


def test_convert(capsys, tmp_path):
    assert main(["convert", str(tmp_path / "in.pkl"), str(tmp_path / "out")]) == FAILED
    captured = capsys.readouterr()
    assert captured.out == "" and "in.pkl: no such file" in captured.err
    (tmp_path / "in.pkl").write_bytes(b"not a pickle")
    assert main(["convert", str(tmp_path / "in.pkl"), str(tmp_path / "out")]) == FAILED
    assert "in.pkl" in capsys.readouterr().err


def test_predict_refuses(model):
    with pytest.raises(ValueError, match=r"task: expected one of .*'depth'"):
        predict(model, [np.zeros((4, 4, 3), np.uint8)], "depth")


def test_default_weights_are_in_the_package_and_small():
    assert (default_weights() / "model.safetensors").stat().st_size < 8e6
    model = MaskFormer.from_pretrained(default_weights())
    assert len(model.config.id2label) == model.config.num_labels == 10


def test_predict_refuses_a_model_in_training_mode():
    with pytest.raises(ValueError, match="model: expected one in evaluation mode"):
        predict(small_model().train(), [np.zeros((4, 4, 3), np.uint8)])


def test_errors_of_the_environment_are_told_without_a_traceback(capsys, monkeypatch, tmp_path):
    (tmp_path / "junk.pth").write_bytes(b"junk")
    assert main(["convert", str(tmp_path / "junk.pth"), str(tmp_path / "out")]) == FAILED
    assert "junk.pth: expected weights saved by torch.save" in capsys.readouterr().err
    monkeypatch.setenv("MASKFORMER_FAST_BACKEND", "triton")
    Image.new("RGB", (40, 40)).save(tmp_path / "p.png")
    weights = tmp_path / "weights"
    small_model().save_pretrained(weights)
    arguments = [str(tmp_path / "p.png"), "--weights", str(weights), "--out", str(tmp_path / "out")]
    assert main(["predict", *arguments]) == FAILED
    assert "backend 'triton' cannot run" in capsys.readouterr().err


def test_as_a_program(pictures, weights, tmp_path):
    """stdout holds data only, also when something fails; no progress bar in a pipe."""
    (pictures / "notes.png").write_text("hello")
    arguments = ["predict", pictures, "--weights", weights, "--out", tmp_path / "out"]
    result = subprocess.run(
        [sys.executable, "-m", "maskformer_fast", *arguments],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        check=False,
    )
    assert result.returncode == FAILED
    assert [json.loads(line)["width"] for line in result.stdout.splitlines()] == [50, 1, 200]
    assert "notes.png: not a readable image" in result.stderr
    assert "Traceback" not in result.stderr and len(result.stderr.splitlines()) == 2
