"""MaskFormerConfig: everything that determines a model's shape and loss, as one JSON object."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

MODEL_TYPE = "maskformer_fast"
AT_LEAST_ONE = (
    "num_labels",
    "feature_size",
    "mask_feature_size",
    "num_queries",
    "hidden_size",
    "num_heads",
    "feedforward_size",
    "decoder_layers",
    "encoder_layers",
    "size_divisor",
    "short_side",
    "long_side",
)
PIXEL_DECODERS = ("fpn", "transformer_fpn")


@dataclass
class MaskFormerConfig:
    """Configuration of a `MaskFormer`; the defaults are those of the published ADE20K models.

    num_labels         K, classes without "no object"
    id2label           names of the classes
    thing_classes      labels that are things, the others are stuff; empty where that is unknown
    backbone           "swin", "resnet" or the name of a timm model
    backbone_config    keyword arguments of the backbone
    pixel_decoder      "fpn", or "transformer_fpn" with `encoder_layers` on the stride-32 feature
    feature_size       channels inside the pixel decoder, a multiple of 32
    mask_feature_size  C, channels of `mask_queries` and `pixel_features`
    hidden_size, num_heads, feedforward_size, decoder_layers, dropout   the transformer's
    deep_supervision   every decoder layer gets a loss, not only the last
    no_object_weight   class weight of "no object" in the cross entropy
    class_weight, mask_weight, dice_weight   of the losses and of the matching cost
    ignore_void        void pixels leave the cost and the losses; else they count as background
    image_mean, image_std   RGB, of pixels in [0, 1]
    size_divisor       images are padded to a multiple of it
    short_side, long_side   pixels; images are resized to the one within the other for prediction

    Raises ValueError where a value is out of range.
    """

    num_labels: int = 150
    id2label: dict[int, str] = field(default_factory=dict)
    thing_classes: list[int] = field(default_factory=list)
    backbone: str = "swin"
    backbone_config: dict[str, Any] = field(default_factory=dict)
    pixel_decoder: str = "fpn"
    feature_size: int = 256
    mask_feature_size: int = 256
    num_queries: int = 100
    hidden_size: int = 256
    num_heads: int = 8
    feedforward_size: int = 2048
    decoder_layers: int = 6
    encoder_layers: int = 6
    dropout: float = 0.1
    deep_supervision: bool = True
    no_object_weight: float = 0.1
    class_weight: float = 1.0
    mask_weight: float = 20.0
    dice_weight: float = 1.0
    ignore_void: bool = False
    image_mean: list[float] = field(default_factory=lambda: [0.485, 0.456, 0.406])
    image_std: list[float] = field(default_factory=lambda: [0.229, 0.224, 0.225])
    size_divisor: int = 32
    short_side: int = 512
    long_side: int = 2048

    def __post_init__(self) -> None:
        if not isinstance(self.id2label, dict):
            raise ValueError(f"id2label: expected names by label, got {self.id2label!r}")
        self.id2label = {int(label): name for label, name in self.id2label.items()}
        for name in AT_LEAST_ONE:
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"{name}: expected a whole number of at least 1, got {value!r}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout: expected a share in [0, 1), got {self.dropout}")
        if self.pixel_decoder not in PIXEL_DECODERS:
            raise ValueError(
                f"pixel_decoder: expected one of {PIXEL_DECODERS}, got {self.pixel_decoder!r}"
            )
        if self.feature_size % 32 != 0:
            raise ValueError(f"feature_size: expected a multiple of 32, got {self.feature_size}")
        if self.hidden_size % self.num_heads != 0:
            raise ValueError(
                f"hidden_size: expected a multiple of num_heads = {self.num_heads},"
                f" got {self.hidden_size}"
            )
        if self.hidden_size % 4 != 0:  # sine and cosine, of rows and of columns
            raise ValueError(f"hidden_size: expected a multiple of 4, got {self.hidden_size}")
        outside = [label for label in self.thing_classes if not 0 <= label < self.num_labels]
        if outside:
            raise ValueError(
                f"thing_classes: expected labels in [0, {self.num_labels}), got {outside}"
            )

    def to_dict(self) -> dict[str, Any]:
        return {"model_type": MODEL_TYPE, **asdict(self)}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> MaskFormerConfig:
        """The inverse of `to_dict`. Raises ValueError for another model type or an unknown name."""
        values = dict(values)
        model_type = values.pop("model_type", MODEL_TYPE)
        if model_type != MODEL_TYPE:
            raise ValueError(f"model_type: expected {MODEL_TYPE!r}, got {model_type!r}")
        unknown = sorted(set(values) - {f.name for f in fields(cls)})
        if unknown:
            raise ValueError(f"MaskFormerConfig: unknown names {unknown}")
        return cls(**values)

    def save(self, path: str | Path) -> None:
        """Write the configuration to `path` as JSON."""
        Path(path).write_text(json.dumps(self.to_dict(), indent=2) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: str | Path) -> MaskFormerConfig:
        """Read what `save` wrote."""
        return cls.from_dict(json.loads(Path(path).read_text(encoding="utf-8")))
