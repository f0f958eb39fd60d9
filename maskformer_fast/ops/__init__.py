"""The operations of mask classification; every function's docstring is its contract."""

from maskformer_fast.ops.instance_masks import InstanceMasks, instance_masks
from maskformer_fast.ops.linear_assignment import Assignment, linear_assignment
from maskformer_fast.ops.mask_logits import mask_logits, mask_probs
from maskformer_fast.ops.mask_loss import mask_loss
from maskformer_fast.ops.matching_cost import matching_cost, matching_cost_from_logits
from maskformer_fast.ops.panoptic_map import PanopticMap, panoptic_map
from maskformer_fast.ops.semantic_map import semantic_map, semantic_map_from_features

__all__ = [
    "Assignment",
    "InstanceMasks",
    "PanopticMap",
    "instance_masks",
    "linear_assignment",
    "mask_logits",
    "mask_loss",
    "mask_probs",
    "matching_cost",
    "matching_cost_from_logits",
    "panoptic_map",
    "semantic_map",
    "semantic_map_from_features",
]
