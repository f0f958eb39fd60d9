"""MaskFormerOutput: what a forward pass returns, by attribute, by key and by index."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from torch import Tensor

from maskformer_fast import ops


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
    pixel_features        [B, C, h, w]
    auxiliary             predictions of all layers, where they were computed
    loss, losses          total (scalar) and its unweighted parts by name, [L] each
    region                [B, 2]        rows and columns of the mask grid that the image covers
    thing_classes         labels that are things, as post-processing needs them

    Keys are the names of those that are not None; indices count them in the order of transformers:
    loss, class_queries_logits, masks_queries_logits, ...
    """

    class_queries_logits: Tensor
    mask_queries: Tensor
    pixel_features: Tensor
    auxiliary: Auxiliary | None = None
    loss: Tensor | None = None
    losses: dict[str, Tensor] | None = None
    region: Tensor | None = None
    thing_classes: list[int] | None = None
    _masks: Tensor | None = field(default=None, repr=False)

    @property
    def masks_queries_logits(self) -> Tensor:
        if self._masks is None:
            self._masks = ops.mask_logits(
                self.mask_queries, self.pixel_features.to(self.mask_queries.dtype)
            )
        return self._masks

    def keys(self) -> list[str]:
        names = (
            "class_queries_logits",
            "mask_queries",
            "pixel_features",
            "auxiliary",
            "losses",
            "region",
            "thing_classes",
        )
        order = ["loss", names[0], "masks_queries_logits", *names[1:]]
        return [
            name
            for name in order
            if name == "masks_queries_logits" or getattr(self, name) is not None
        ]

    def __getitem__(self, key: str | int | slice) -> Any:
        if isinstance(key, str):
            if key not in self.keys():
                raise KeyError(key)
            return getattr(self, key)
        names = self.keys()[key]
        if isinstance(names, str):
            return getattr(self, names)
        return tuple(getattr(self, name) for name in names)

    def __iter__(self) -> Iterator[str]:
        return iter(self.keys())

    def __contains__(self, key: object) -> bool:
        return key in self.keys()

    def to_tuple(self) -> tuple[Any, ...]:
        return self[:]
