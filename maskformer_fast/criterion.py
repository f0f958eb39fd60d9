"""The training loss: cost -> assignment -> losses, all layers and images at once, no host read."""

from __future__ import annotations

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from maskformer_fast import ops
from maskformer_fast.targets import Targets

ALPHA, GAMMA = 0.25, 2.0  # of the focal terms, as published


class MaskFormerCriterion(nn.Module):
    """Set loss of mask classification, summed over the supervised decoder layers.

        loss = sum over layers of
               class_weight * cross_entropy + mask_weight * focal + dice_weight * dice

    cross_entropy  weighted mean over all queries; "no object" has weight `no_object_weight`
    focal, dice    sums over the matched pairs, divided by the number of targets (at least 1)

    Both denominators count the targets of all processes, at least 1 in all, and are then divided by
    the number of processes, so that the gradients, averaged over processes, are those of the
    whole batch.
    The same weights weigh the matching cost. `ignore_void` leaves void pixels out of cost and loss.

    (Cheng et al., "Per-Pixel Classification is Not All You Need for Semantic Segmentation", 2021.)
    """

    label_weights: Tensor  # [K+1]

    def __init__(
        self,
        num_labels: int,
        *,
        class_weight: float = 1.0,
        mask_weight: float = 20.0,
        dice_weight: float = 1.0,
        no_object_weight: float = 0.1,
        ignore_void: bool = False,
    ) -> None:
        super().__init__()
        self.class_weight, self.mask_weight = class_weight, mask_weight
        self.dice_weight, self.ignore_void = dice_weight, ignore_void
        self.num_labels = num_labels
        weights = torch.ones(num_labels + 1)
        weights[-1] = no_object_weight
        self.register_buffer("label_weights", weights, persistent=False)

    def forward(
        self,
        class_logits: Tensor,
        mask_queries: Tensor,
        pixel_features: Tensor,
        targets: Targets,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The total loss, a float32 scalar, and its unweighted parts by name, each [L].

        class_logits    [L, B, Q, K+1]
        mask_queries    [L, B, Q, C]
        pixel_features  [B, C, h, w]
        targets         Targets of B images, on the same device

        Names: loss_cross_entropy, loss_mask, loss_dice. Raises what the ops raise.
        """
        if not isinstance(targets, Targets):
            raise TypeError(f"targets: expected Targets, got {type(targets).__name__}")
        if targets.labels.shape[1] == 0:  # one padding row, so that every parameter is reached
            targets = targets.padded(1)
        query_of_target = self.match(class_logits, mask_queries, pixel_features, targets)
        matched = query_of_target >= 0  # [L, B, T]
        num_masks = _share_of_total(targets.num_targets.sum().float(), least=1.0)
        losses = {
            "loss_cross_entropy": self._classification(class_logits, query_of_target, targets)
        }
        logits = _matched_mask_logits(mask_queries, pixel_features, query_of_target.clamp(min=0))
        focal, dice = ops.mask_loss(
            logits,
            targets,
            alpha=ALPHA,
            gamma=GAMMA,
            ignore_void=self.ignore_void,
            valid=matched.flatten(0, 1),
        )
        losses["loss_mask"] = focal.unflatten(0, matched.shape[:2]).sum((1, 2)) / num_masks
        losses["loss_dice"] = dice.unflatten(0, matched.shape[:2]).sum((1, 2)) / num_masks
        weights = (self.class_weight, self.mask_weight, self.dice_weight)
        parts = zip(weights, losses.values(), strict=True)
        total = torch.stack([weight * loss.sum() for weight, loss in parts]).sum()
        return total, {name: loss.detach() for name, loss in losses.items()}

    def match(
        self,
        class_logits: Tensor,
        mask_queries: Tensor,
        pixel_features: Tensor,
        targets: Targets,
    ) -> Tensor:
        """The query of every target, [L, B, T] int64; -1 for padding and targets left over."""
        cost = ops.matching_cost(
            class_logits.to(mask_queries.dtype),
            mask_queries,
            pixel_features.to(mask_queries.dtype),
            targets,
            class_weight=self.class_weight,
            mask_weight=self.mask_weight,
            dice_weight=self.dice_weight,
            alpha=ALPHA,
            gamma=GAMMA,
            ignore_void=self.ignore_void,
        )
        return ops.linear_assignment(cost, targets.num_targets).query_of_target

    def _classification(
        self, class_logits: Tensor, query_of_target: Tensor, targets: Targets
    ) -> Tensor:
        """Weighted cross entropy of each layer, [L]."""
        layers, b, q, classes = class_logits.shape
        spare = torch.where(query_of_target >= 0, query_of_target, q)  # unmatched: a spare column
        wanted = torch.full((layers, b, q + 1), self.num_labels, device=class_logits.device)
        labels = targets.labels.expand(layers, -1, -1)
        wanted = wanted.scatter(2, spare, labels)[..., :q].flatten()
        logits = class_logits.to(torch.promote_types(class_logits.dtype, torch.float32))
        weights = self.label_weights.to(logits.dtype)
        entropy = F.cross_entropy(logits.reshape(-1, classes), wanted, weights, reduction="none")
        total_weight = weights[wanted].reshape(layers, -1).sum(1)
        least = torch.finfo(logits.dtype).tiny  # "no object" may weigh nothing
        return entropy.reshape(layers, -1).sum(1) / _share_of_total(total_weight, least)


def _matched_mask_logits(mask_queries: Tensor, pixel_features: Tensor, index: Tensor) -> Tensor:
    """Mask logits of the matched queries: [L, B, Q, C] and index [L, B, T] -> [L*B, T, h, w]."""
    layers, _, t = index.shape
    rows = mask_queries.gather(2, index[..., None].expand(-1, -1, -1, mask_queries.shape[3]))
    rows = rows.transpose(0, 1).flatten(1, 2)  # [B, L*T, C]
    logits = ops.mask_logits(rows, pixel_features.to(rows.dtype))
    return logits.unflatten(1, (layers, t)).transpose(0, 1).flatten(0, 1)


def _share_of_total(value: Tensor, least: float) -> Tensor:
    """The sum over all processes, at least `least`, divided by their number; no host read."""
    if not (dist.is_available() and dist.is_initialized()):
        return value.clamp(min=least)
    total = value.clone()
    dist.all_reduce(total)
    return total.clamp(min=least) / dist.get_world_size()
