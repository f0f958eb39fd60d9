"""MaskFormerCriterion: equal to transformers' loss, by hand, over processes, and at the edges."""

import math
import os

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from op_cases import random_targets
from small_models import small_batch, small_config
from torch import nn, tensor
from transformers.models.maskformer.modeling_maskformer import (
    MaskFormerHungarianMatcher,
    MaskFormerLoss,
)

from maskformer_fast import MaskFormer, MaskFormerCriterion, Targets
from maskformer_fast.ops import mask_logits

CLASSES, QUERIES, SIZE = 5, 8, 16


def predictions(layers: int, images: int, *, queries: int = QUERIES, seed: int = 0):
    generator = torch.Generator().manual_seed(seed)
    shapes = [(layers, images, queries, CLASSES + 1), (layers, images, queries, SIZE)]
    shapes += [(images, SIZE, 12, 10)]
    return [torch.randn(s, generator=generator).requires_grad_() for s in shapes]


def as_lists(targets: Targets):
    """mask_labels and class_labels of transformers, without the padding."""
    masks, labels = [], []
    for pixels, label, count in zip(
        targets.pixels, targets.labels, targets.num_targets.tolist(), strict=True
    ):
        index = torch.arange(count)[:, None, None]
        masks.append((pixels[:count] if pixels.dtype == torch.bool else pixels == index).float())
        labels.append(label[:count])
    return masks, labels


@pytest.mark.parametrize("masks", [False, True])
def test_equals_transformers_loss(masks):
    class_logits, queries, features = predictions(3, 2)
    targets = random_targets([4, 2], (48, 40), num_classes=CLASSES, masks=masks)
    ours = MaskFormerCriterion(CLASSES)
    total, losses = ours(class_logits, queries, features, targets)
    gradients = torch.autograd.grad(total, (class_logits, queries, features))

    weights = {"loss_cross_entropy": 1.0, "loss_mask": 20.0, "loss_dice": 1.0}
    matcher = MaskFormerHungarianMatcher(cost_class=1.0, cost_mask=20.0, cost_dice=1.0)
    theirs = MaskFormerLoss(CLASSES, matcher, weights, eos_coef=0.1)
    mask_labels, class_labels = as_lists(targets)
    expected_total = 0
    for layer in range(3):
        logits = mask_logits(queries[layer], features)
        expected = theirs(logits, class_logits[layer], mask_labels, class_labels)
        for name, value in expected.items():
            difference = (losses[name][layer] - value).abs().item()
            print(f"layer {layer} {name}: {value.item():.6f}, difference {difference:.1e}")
            assert difference <= 1e-5
            expected_total = expected_total + weights[name] * value
    torch.testing.assert_close(total, expected_total, rtol=1e-6, atol=1e-5)
    expected_gradients = torch.autograd.grad(expected_total, (class_logits, queries, features))
    for got, expected in zip(gradients, expected_gradients, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)


def test_cross_entropy_by_hand():
    # Two queries, one target of class 0; query 0 matches it: weights 1 and 0.1.
    criterion = MaskFormerCriterion(1, mask_weight=0, dice_weight=0)
    class_logits = tensor([[[[2.0, 0.0], [0.0, 1.0]]]])
    targets = Targets.from_segments([tensor([[0]])], [tensor([0])])
    total, _ = criterion(class_logits, torch.ones(1, 1, 2, 1), torch.ones(1, 1, 1, 1), targets)
    expected = (math.log1p(math.exp(-2)) + 0.1 * math.log1p(math.exp(-1))) / 1.1
    assert total.item() == pytest.approx(expected, abs=1e-6)


def test_more_targets_than_queries_leaves_the_rest_out_but_counts_them():
    class_logits, queries, features = predictions(2, 1, queries=3)
    targets = random_targets([5], (24, 20), num_classes=CLASSES, masks=False)
    criterion = MaskFormerCriterion(CLASSES)
    matched = criterion.match(class_logits, queries, features, targets)
    assert ((matched >= 0).sum(2) == 3).all()
    total, losses = criterion(class_logits, queries, features, targets)
    total.backward()
    assert total.isfinite() and all(p.grad.isfinite().all() for p in (queries, features))
    assert (losses["loss_dice"] <= 3 / 5).all()  # three of five rows, divided by five


def test_images_and_batches_without_a_target():
    class_logits, queries, features = predictions(2, 2)
    criterion = MaskFormerCriterion(CLASSES)
    for counts in ([3, 0], [0, 0]):
        targets = random_targets(counts, (24, 20), num_classes=CLASSES, masks=False)
        total, losses = criterion(class_logits, queries, features, targets)
        gradients = torch.autograd.grad(total, (class_logits, queries, features))
        assert total.isfinite() and all(g.isfinite().all() for g in gradients)
        if counts == [0, 0]:
            assert (losses["loss_mask"] == 0).all() and (losses["loss_dice"] == 0).all()
            assert gradients[0].abs().sum() > 0
            assert (gradients[1] == 0).all() and (gradients[2] == 0).all()


@pytest.mark.parametrize("decoder", ["fpn", "transformer_fpn"])
def test_a_batch_without_targets_reaches_every_parameter(decoder):
    model = MaskFormer(small_config(pixel_decoder=decoder)).train()
    pixel_values, targets = small_batch([0, 0])
    model(pixel_values, targets).loss.backward()
    unreached = [name for name, p in model.named_parameters() if p.grad is None]
    assert unreached == []


def test_void_pixels_count_as_background_unless_ignored():
    class_logits, queries, features = predictions(1, 1)
    segments = tensor([[0, -1]]).repeat_interleave(12, 0).repeat_interleave(5, 1)
    background = Targets.from_masks([(segments == 0)[None]], [tensor([1])])
    void = Targets.from_segments([segments], [tensor([1])])
    count = MaskFormerCriterion(CLASSES)(class_logits, queries, features, void)[0]
    same = MaskFormerCriterion(CLASSES)(class_logits, queries, features, background)[0]
    torch.testing.assert_close(count, same)
    ignoring = MaskFormerCriterion(CLASSES, ignore_void=True)
    total = ignoring(class_logits, queries, features, void)[0]
    assert total != count
    [gradient] = torch.autograd.grad(total, features)
    assert (gradient[..., 5 + 1 :] == 0).all()  # one cell beyond the border still interpolates
    assert (gradient[..., :5] != 0).any()


def test_images_of_different_sizes_equal_single_images():
    """Padding is void: with `ignore_void` it changes no sum, whatever the other images' sizes."""
    class_logits, queries, features = predictions(1, 1)
    segments, labels = torch.randint(-1, 3, (12, 10)), tensor([0, 1, 2])
    alone = Targets.from_segments([segments], [labels])
    padded = Targets.from_segments([segments], [labels], size=(24, 20))
    wide = torch.zeros(1, SIZE, 24, 20)
    wide[..., :12, :10] = features.detach()
    criterion = MaskFormerCriterion(CLASSES, ignore_void=True)
    torch.testing.assert_close(
        criterion(class_logits, queries, features.detach(), alone)[0],
        criterion(class_logits, queries, wide, padded)[0],
    )


def test_nan_logits_match_without_an_error():
    class_logits, queries, features = predictions(1, 1)
    targets = random_targets([4], (24, 20), num_classes=CLASSES, masks=False)
    with torch.no_grad():
        queries[0, 0, 2] = torch.nan
    matched = MaskFormerCriterion(CLASSES).match(class_logits, queries, features, targets)
    assert (matched != 2).all() and len(set(matched.flatten().tolist())) == 4


def test_no_object_may_weigh_nothing():
    criterion = MaskFormerCriterion(CLASSES, no_object_weight=0)
    targets = random_targets([0], (24, 20), num_classes=CLASSES, masks=False)
    assert criterion(*predictions(1, 1), targets)[0] == 0


def test_a_label_beyond_the_classes_is_refused():
    targets = Targets.from_segments([torch.zeros(24, 20, dtype=torch.long)], [tensor([CLASSES])])
    with pytest.raises(ValueError, match=rf"targets: expected labels in \[0, {CLASSES}\)"):
        MaskFormerCriterion(CLASSES)(*predictions(1, 1), targets)


def test_half_precision_predictions_give_a_float32_loss():
    class_logits, queries, features = (t.bfloat16() for t in predictions(2, 2))
    targets = random_targets([4, 2], (24, 20), num_classes=CLASSES, masks=False)
    total, _ = MaskFormerCriterion(CLASSES)(class_logits, queries, features, targets)
    assert total.dtype == torch.float32 and total.isfinite()


class Linear(nn.Module):
    """Predictions that depend on shared parameters, so that gradients can be averaged."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.classes, self.masks = nn.Linear(SIZE, CLASSES + 1), nn.Linear(SIZE, SIZE)
        self.criterion = MaskFormerCriterion(CLASSES)

    def forward(self, queries, features, targets):
        return self.criterion(self.classes(queries), self.masks(queries), features, targets)[0]


def four_images(counts: list[int]):
    _, queries, features = predictions(2, 4)
    targets = random_targets(counts, (24, 20), num_classes=CLASSES, masks=False)
    return queries.detach(), features.detach(), targets


def part_of(targets: Targets, images: slice) -> Targets:
    return Targets(targets.labels[images], targets.num_targets[images], targets.segments[images])


UNEQUAL = {"6 and 2 targets": [5, 1, 0, 2], "1 and 0": [1, 0, 0, 0], "none": [0, 0, 0, 0]}


def train_one_of_two(rank: int, address: str, results: str) -> None:
    dist.init_process_group("gloo", init_method=address, rank=rank, world_size=2)
    half, found = slice(2 * rank, 2 * rank + 2), {}
    for name, counts in UNEQUAL.items():
        queries, features, targets = four_images(counts)
        model = nn.parallel.DistributedDataParallel(Linear())
        loss = model(queries[:, half], features[half], part_of(targets, half))
        loss.backward()
        losses = [torch.zeros_like(loss) for _ in range(2)]
        dist.all_gather(losses, loss.detach())
        found[name] = [torch.stack(losses).mean(), *(p.grad for p in model.module.parameters())]
    torch.save(found, f"{results}.{rank}")
    dist.barrier()
    # Destroying the group may never end: it waits, with the GIL, for a thread that wants the GIL.
    os._exit(0)


def test_two_processes_with_unequal_targets_equal_one(tmp_path):
    address, results = f"file://{tmp_path}/store", str(tmp_path / "results")
    mp.spawn(train_one_of_two, (address, results), nprocs=2)
    for name, counts in UNEQUAL.items():
        model = Linear()
        loss = model(*four_images(counts))
        loss.backward()
        expected = [loss.detach(), *(p.grad for p in model.parameters())]
        for rank in range(2):
            got = torch.load(f"{results}.{rank}", weights_only=True)[name]
            print(f"{name}, rank {rank}: loss difference {(got[0] - loss).abs().item():.1e}")
            torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-6)
