"""semantic_map where a kernel could go wrong: cells, pruning, groups of classes, workspace, order
of threads."""

import pytest
import torch
from backends import CUDA_BACKENDS, device_of, each_backend
from map_cases import (
    ADVERSARIAL,
    adversarial_maps,
    assert_equal_off_ties,
    exact_scores,
    is_tie,
    output_sizes,
    random_predictions,
    regions,
    run_on,
)

from maskformer_fast.ops import compiled_maps
from maskformer_fast.ops.cuda_launch import Kernels
from maskformer_fast.ops.semantic_map import ORDERS, semantic_map

each_order = pytest.mark.parametrize("order", ORDERS)


@each_backend("semantic_map")
@each_order
@pytest.mark.parametrize("name", ADVERSARIAL)
def test_adversarial_maps(backend, order, name):
    mask_logits = adversarial_maps(name, 7)
    few, confident = random_predictions(1, 7, 3, 1, 1)[0], 3 * random_predictions(1, 7, 40, 1, 1)[0]
    for class_logits in (few, confident):
        for size in output_sizes(mask_logits):
            for region in regions(mask_logits):
                arguments = (backend, semantic_map, class_logits, mask_logits, size)
                options = {"order": order, "region": region}
                got, scores = run_on(*arguments, return_scores=True, **options)
                exact = exact_scores(class_logits, mask_logits, size, order, region)
                assert_equal_off_ties(got[0], exact.argmax(0), is_tie(exact), share=0.1)
                torch.testing.assert_close(scores[0].double(), exact.amax(0), rtol=1e-5, atol=1e-30)
                labels = run_on(*arguments, **options)
                assert_equal_off_ties(labels[0], exact.argmax(0), is_tie(exact), share=0.1)


@each_backend("semantic_map", of=["cpu"])  # the others do not prune, or cannot be told not to
@each_order
@pytest.mark.parametrize("name", ["smooth", "many_tiles", "checkerboard"])
def test_pruning_changes_no_bit(backend, order, name, monkeypatch):
    class_logits, mask_logits = random_predictions(1, 7, 40, 1, 1)[0], adversarial_maps(name, 7)
    size = [8 * cells for cells in mask_logits.shape[-2:]]
    options = {"order": order, "return_scores": True, "backend": backend}
    pruned = semantic_map(class_logits, mask_logits, size, **options)
    monkeypatch.setattr(compiled_maps, "PRUNE", False)
    assert all(map(torch.equal, pruned, semantic_map(class_logits, mask_logits, size, **options)))


@pytest.mark.parametrize("op", ["semantic_map", "instance_masks"])
@each_backend("semantic_map", of=CUDA_BACKENDS)
def test_cuda_workspace_is_below_32_mib(backend, op):
    classes = [150] if op == "semantic_map" else []
    for h, w in ((200, 336), (256, 512)):
        workspace = Kernels(backend).workspace(
            op, torch.device(device_of(backend)), 4, 100, h, w, 4 * h, 4 * w, *classes
        )
        assert workspace.numel() < 32 * 2**20


# More classes than a group, more queries than a GPU's shared memory, many pixels a cell.
LARGE = [(1, 5, 200, 6, 19, 24, 75), (1, 20, 150, 9, 18, 36, 71), (1, 700, 9, 3, 4, 6, 9)]
LARGE += [(1, 5000, 3, 2, 3, 5, 6), (1, 4, 90, 1, 1, 90, 50), (2, 3, 70, 5, 1, 45, 33)]


@each_backend("semantic_map")
@each_order
@pytest.mark.parametrize("spread", [0.1, 1.0])
@pytest.mark.parametrize("shape", LARGE, ids=str)
def test_many_of_everything(backend, order, spread, shape):
    *sizes, height, width = shape
    class_logits, mask_logits = random_predictions(*sizes)
    class_logits *= spread
    arguments = (backend, semantic_map, class_logits, mask_logits, (height, width))
    got, scores = run_on(*arguments, order=order, return_scores=True)
    labels = run_on(*arguments, order=order)
    for image in range(len(got)):
        exact = exact_scores(
            class_logits[[image]], mask_logits[[image]], (height, width), order, None
        )
        torch.testing.assert_close(scores[image].double(), exact.amax(0), rtol=1e-5, atol=1e-30)
        for found in (got, labels):
            assert_equal_off_ties(found[image], exact.argmax(0), is_tie(exact), share=0.1)


@each_backend("semantic_map")
@each_order
@pytest.mark.parametrize("spread", [0.1, 1.0])
def test_the_same_bits_in_any_order_of_threads(backend, order, spread, monkeypatch):
    class_logits, mask_logits = random_predictions(2, 9, 80, 6, 19)
    arguments = (backend, semantic_map, spread * class_logits, mask_logits, (25, 70))
    runs = []
    for seed in (0, 1, 2):
        monkeypatch.setenv("MASKFORMER_EMULATION_SEED", str(seed))
        runs.append(run_on(*arguments, order=order, return_scores=True))
    for labels, scores in runs[1:]:
        assert torch.equal(labels, runs[0][0])
        assert torch.equal(scores, runs[0][1])
