"""Data sets on disk as index maps: COCO panoptic, semantic PNG, and generated scenes."""

from maskformer_fast.data.coco_panoptic import CocoPanoptic
from maskformer_fast.data.sample import PanopticSample
from maskformer_fast.data.semantic_png import SemanticPng

__all__ = ["CocoPanoptic", "PanopticSample", "SemanticPng"]
