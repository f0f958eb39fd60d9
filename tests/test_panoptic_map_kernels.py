"""panoptic_map where a kernel could go wrong: cells, tiles, words of queries, order of threads."""

import pytest
import torch
from backends import each_backend
from map_cases import (
    ADVERSARIAL,
    adversarial_maps,
    assert_equal_off_ties,
    near_ties,
    output_sizes,
    random_predictions,
    regions,
    run_on,
)

from maskformer_fast.ops.panoptic_map import DIALECTS, panoptic_map

each_dialect = pytest.mark.parametrize("dialect", DIALECTS)


@each_backend("panoptic_map")
@each_dialect
@pytest.mark.parametrize("name", ADVERSARIAL)
def test_adversarial_maps(backend, dialect, name):
    class_logits, mask_logits = random_predictions(1, 9, 3, 1, 1)[0], adversarial_maps(name, 9)
    rules = {"thing_classes": [0, 2], "score_threshold": 0.4, "overlap_threshold": 0.0}
    for size in output_sizes(mask_logits):
        for region in regions(mask_logits):
            options = {**rules, "dialect": dialect, "region": region}
            got = run_on(backend, panoptic_map, class_logits, mask_logits, size, **options)
            exact = panoptic_map(class_logits.double(), mask_logits.double(), size, **options)
            assert torch.equal(got.label, exact.label)
            kept = (exact.label[0] < 3) & (exact.score[0] > 0.4)
            tie = near_ties(exact.score[0], mask_logits[0], size, dialect, region, kept)
            sure = exact.segment_of_query[0] == got.segment_of_query[0]
            assert sure.all() or tie.any()  # a tied pixel may be a query's only one
            if sure.all():
                assert_equal_off_ties(got.segments[0], exact.segments[0], tie, share=0.1)
                assert ((got.area - exact.area).abs() <= tie.sum()).all()


# More queries than bits in a word, several tiles each way, images of different regions; a single
# cell; fewer pixels than cells; more queries than a CUDA block has counters for.
LARGER = {
    "tiles": (2, 70, 5, (9, 33), (50, 270), torch.tensor([[9.0, 33.0], [5.6, 20.3]])),
    "one_cell": (1, 40, 4, (1, 1), (30, 140), None),
    "smaller": (1, 40, 4, (40, 150), (30, 33), None),
    "queries": (1, 2100, 3, (3, 4), (24, 33), None),
}


@each_backend("panoptic_map")
@each_dialect
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", LARGER)
def test_larger_maps(backend, dialect, dtype, name):
    b, q, k, grid, size, region = LARGER[name]
    class_logits, mask_logits = random_predictions(b, q, k, *grid, dtype=dtype)
    options = {"thing_classes": [0, 2], "score_threshold": 0.7, "overlap_threshold": 0.1}
    options |= {"dialect": dialect, "region": region}
    got = run_on(backend, panoptic_map, class_logits, mask_logits, size, **options)
    exact = panoptic_map(
        class_logits.double(), mask_logits.double(), size, backend="reference", **options
    )
    assert torch.equal(got.label, exact.label)
    torch.testing.assert_close(got.score.double(), exact.score, rtol=1e-6, atol=0)
    assert torch.equal(got.segment_of_query, exact.segment_of_query)
    for image in range(b):
        kept = (exact.label[image] < k) & (exact.score[image] > 0.7)
        extent = None if region is None else region[image : image + 1]
        tie = near_ties(exact.score[image], mask_logits[image], size, dialect, extent, kept)
        assert_equal_off_ties(got.segments[image], exact.segments[image], tie)
        assert ((got.area[image] - exact.area[image]).abs() <= tie.sum()).all()


@each_backend("panoptic_map")
@each_dialect
def test_the_same_bits_in_any_order_of_threads(backend, dialect, monkeypatch):
    class_logits, mask_logits = random_predictions(2, 9, 4, 9, 9)
    options = {"thing_classes": [0], "score_threshold": 0.3, "overlap_threshold": 0.1}
    runs = []
    for seed in ("0", "1", "2"):
        monkeypatch.setenv("MASKFORMER_EMULATION_SEED", seed)  # of the emulated kernels
        runs.append(
            run_on(
                backend,
                panoptic_map,
                class_logits,
                mask_logits,
                (33, 34),
                dialect=dialect,
                **options,
            )
        )
    for field in range(5):
        assert torch.equal(runs[0][field], runs[1][field])
        assert torch.equal(runs[0][field], runs[2][field])
