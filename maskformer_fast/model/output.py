"""MaskFormerOutput: what a forward pass returns, by attribute, by key and by index."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from typing import Any, NamedTuple

from torch import Tensor

from maskformer_fast import ops
from maskformer_fast.model.pixel_decoder import MaskProjection
from maskformer_fast.ops.registry import resolve


class Auxiliary(NamedTuple):
    """Predictions of every supervised decoder layer; the last entry of L is the model's output."""

    class_logits: Tensor  # [L, B, Q, K+1]
    mask_queries: Tensor  # [L, B, Q, C]


@dataclass
class MaskFormerOutput:
    """Predictions of B images, and the loss where targets were given.

    class_queries_logits  [B, Q, K+1]   the last class is "no object"
    masks_queries_logits  [B, Q, h, w]  computed from the two embeddings on first use
    mask_queries          [B, Q, C]
    pixel_features        [B, C, h, w]  computed on first use where only masks were expected
    auxiliary             predictions of all layers, where they were computed
    loss, losses          total (scalar) and its unweighted parts by name, [L] each
    region                [B, 2]        rows and columns of the mask grid that the image covers
    thing_classes         labels that are things, as post-processing needs them

    Iteration, indices and `to_tuple` go over the tensors that Trainer and older code look for, in
    the order of transformers: loss (if there is one), class_queries_logits, masks_queries_logits.
    By key every field that is not None is found.
    """

    class_queries_logits: Tensor
    mask_queries: Tensor
    _features: Tensor | MaskProjection
    auxiliary: Auxiliary | None = None
    loss: Tensor | None = None
    losses: dict[str, Tensor] | None = None
    region: Tensor | None = None
    thing_classes: list[int] | None = None
    _masks: Tensor | None = field(default=None, repr=False)

    @property
    def pixel_features(self) -> Tensor:
        if isinstance(self._features, MaskProjection):
            self._features = self._features.pixel_features()
        return self._features

    @property
    def masks_queries_logits(self) -> Tensor:
        if self._masks is None:
            self._masks = self._compute_masks()
        return self._masks

    def _compute_masks(self) -> Tensor:
        queries = self.mask_queries
        backend = resolve("mask_logits", "auto", queries.device.type, queries.dtype)
        # The composed filters stand in for the op's "cpu" backend, and for no other.
        if isinstance(self._features, MaskProjection) and backend == "cpu" and len(queries) > 0:
            return self._features.mask_logits(queries)
        return ops.mask_logits(queries, self.pixel_features.to(queries.dtype), backend=backend)

    def keys(self) -> list[str]:
        predictions = ["class_queries_logits", "masks_queries_logits"]
        return predictions if self.loss is None else ["loss", *predictions]

    def items(self) -> list[tuple[str, Tensor]]:
        return [(name, getattr(self, name)) for name in self.keys()]

    def __contains__(self, key: object) -> bool:
        return key in COMPUTED or (key in FIELDS and getattr(self, str(key)) is not None)

    def __getitem__(self, key: str | int | slice) -> Any:
        if not isinstance(key, str):
            return self.to_tuple()[key]
        if key not in self:
            raise KeyError(key)
        return getattr(self, key)

    def get(self, key: str, default: Any = None) -> Any:
        return getattr(self, key) if key in self else default

    def __iter__(self) -> Iterator[str]:
        return iter(self.keys())

    def __len__(self) -> int:
        return len(self.keys())

    def to_tuple(self) -> tuple[Tensor, ...]:
        return tuple(tensor for _, tensor in self.items())


COMPUTED = {"pixel_features", "masks_queries_logits"}
FIELDS = {f.name for f in fields(MaskFormerOutput) if f.name[0] != "_"} | COMPUTED
