"""MaskFormer: pixel-level module, transformer module, segmentation module.

(Cheng et al., "Per-Pixel Classification is Not All You Need for Semantic Segmentation", 2021.)
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import PyTorchModelHubMixin
from torch import Tensor, nn

from maskformer_fast import checkpoints
from maskformer_fast.config import MaskFormerConfig
from maskformer_fast.criterion import MaskFormerCriterion
from maskformer_fast.model.backbones import build_backbone
from maskformer_fast.model.output import Auxiliary, MaskFormerOutput
from maskformer_fast.model.pixel_decoder import FPN, MaskProjection, TransformerFPN
from maskformer_fast.model.transformer import TransformerModule
from maskformer_fast.targets import Targets


class PixelLevelModule(nn.Module):
    """Backbone and pixel decoder: an image becomes one embedding per pixel at stride 4."""

    def __init__(self, config: MaskFormerConfig) -> None:
        super().__init__()
        self.backbone = build_backbone(config.backbone, config.backbone_config)
        channels, size = self.backbone.channels, config.feature_size
        self.decoder: FPN
        if config.pixel_decoder == "fpn":
            self.decoder = FPN(channels, size, config.mask_feature_size)
            self.memory_channels = channels[-1]
        else:
            self.decoder = TransformerFPN(
                channels,
                size,
                config.mask_feature_size,
                layers=config.encoder_layers,
                heads=config.num_heads,
                feedforward=config.feedforward_size,
                dropout=config.dropout,
            )
            self.memory_channels = size

    def forward(
        self, pixel_values: Tensor, project: bool = True
    ) -> tuple[Tensor | MaskProjection, Tensor]:
        """[B, 3, H, W] -> pixel_features [B, C, h, w] and what the transformer reads, stride 32.

        project  False: instead of pixel_features what is left to do for them
        """
        return self.decoder(self.backbone(pixel_values), project)

    def load_backbone(self, path_or_hub_id: str) -> None:
        """ImageNet weights of the backbone, from a transformers-format Swin or ResNet.

        Raises ValueError where they are of another backbone or size than the configuration.
        """
        name, options, tensors = checkpoints.load_backbone(path_or_hub_id)
        if type(self.backbone) is not type(build_backbone(name, options)):
            raise ValueError(f"{path_or_hub_id}: expected weights of another backbone, got {name}")
        checkpoints.load_state(self.backbone, tensors, path_or_hub_id)


class SegmentationModule(nn.Module):
    """Queries [L, B, Q, D] -> class logits [L, B, Q, K+1] and mask queries [L, B, Q, C]."""

    def __init__(self, size: int, num_labels: int, mask_size: int) -> None:
        super().__init__()
        self.classifier = nn.Linear(size, num_labels + 1)
        self.mask_embedder = nn.ModuleList(
            [nn.Linear(size, size), nn.Linear(size, size), nn.Linear(size, mask_size)]
        )

    def forward(self, queries: Tensor) -> tuple[Tensor, Tensor]:
        first, second, last = self.mask_embedder
        return self.classifier(queries), last(second(first(queries).relu()).relu())


class MaskFormer(
    nn.Module,
    PyTorchModelHubMixin,
    library_name="maskformer_fast",
    pipeline_tag="image-segmentation",
    tags=["maskformer", "panoptic-segmentation"],
):
    """MaskFormer as a module: images in, pairs of class distribution and mask out.

        model = MaskFormer.from_pretrained("folder or hub id")
        output = model(pixel_values)                # .class_queries_logits, .masks_queries_logits
        output = model(pixel_values, targets)       # .loss

    `from_pretrained` reads this package's folders and those of transformers (config.json and
    safetensors); `save_pretrained` and `push_to_hub` write this package's.
    """

    def __init__(self, config: MaskFormerConfig) -> None:
        super().__init__()
        self.config = config
        self.pixel_level = PixelLevelModule(config)
        self.transformer = TransformerModule(
            self.pixel_level.memory_channels,
            queries=config.num_queries,
            size=config.hidden_size,
            heads=config.num_heads,
            feedforward=config.feedforward_size,
            layers=config.decoder_layers,
            dropout=config.dropout,
        )
        self.segmentation = SegmentationModule(
            config.hidden_size, config.num_labels, config.mask_feature_size
        )
        self.criterion = MaskFormerCriterion(
            config.num_labels,
            class_weight=config.class_weight,
            mask_weight=config.mask_weight,
            dice_weight=config.dice_weight,
            no_object_weight=config.no_object_weight,
            ignore_void=config.ignore_void,
        )

    def forward(
        self,
        pixel_values: Tensor,
        targets: Targets | None = None,
        *,
        mask_labels: Sequence[Tensor] | None = None,
        class_labels: Sequence[Tensor] | None = None,
        pixel_mask: Tensor | None = None,
    ) -> MaskFormerOutput:
        """Predict, and with ground truth compute the loss.

        pixel_values  [B, 3, H, W]  normalised images, padded at the bottom right
        targets       Targets of the B images on the same device, or instead, in the list form,
        mask_labels   B tensors [T_b, H, W], 0/1, and
        class_labels  B integer tensors [T_b]
        pixel_mask    [B, H, W]  True where an image is, False where padding is

        Raises TypeError or ValueError naming the argument that is off.
        """
        if pixel_values.dim() != 4 or pixel_values.shape[1] != 3:
            raise ValueError(
                f"pixel_values: expected shape [B, 3, H, W], got {tuple(pixel_values.shape)}"
            )
        if not (targets is None or isinstance(targets, Targets)):
            raise TypeError(
                f"targets: expected Targets, got {type(targets).__name__}"
                " (lists of masks and labels: mask_labels=, class_labels=)"
            )
        if (mask_labels is None) != (class_labels is None):
            raise ValueError("mask_labels, class_labels: expected both or neither")
        if mask_labels is not None and class_labels is not None:
            if targets is not None:
                raise ValueError("targets: expected either targets or mask_labels, got both")
            targets = Targets.from_masks(
                mask_labels, class_labels, num_classes=self.config.num_labels
            ).to(pixel_values.device)
        masks_only = targets is None and not self.training
        few_queries = self.config.num_queries < self.config.mask_feature_size
        project = not (masks_only and few_queries and pixel_values.device.type == "cpu")
        pixel_features, memory = self.pixel_level(pixel_values, project)
        every_layer = self.config.deep_supervision and (self.training or targets is not None)
        queries = self.transformer(memory, every_layer)  # [L, B, Q, D]
        class_logits, mask_queries = self.segmentation(queries)
        loss, losses = None, None
        if targets is not None:
            loss, losses = self.criterion(class_logits, mask_queries, pixel_features, targets)
        return MaskFormerOutput(
            class_logits[-1],
            mask_queries[-1],
            pixel_features,
            auxiliary=Auxiliary(class_logits, mask_queries) if every_layer else None,
            loss=loss,
            losses=losses,
            region=None if pixel_mask is None else region(pixel_mask, pixel_features.shape),
            thing_classes=self.config.thing_classes or None,
        )

    @classmethod
    def from_detectron2(cls, file: str | Path, **overrides: Any) -> MaskFormer:
        """The model in a detectron2 .pkl or .pth file; nothing in it is executed.

        overrides  fields of MaskFormerConfig that weights do not show (`id2label`, ...)

        Raises ValueError naming the file and what is missing, left over or of another shape.
        """
        config, tensors = checkpoints.read_detectron2(file, **overrides)
        model = cls(config)
        checkpoints.load_state(model, tensors, str(file))
        return model.eval()

    def _save_pretrained(self, save_directory: Path) -> None:
        checkpoints.save(save_directory, self.config, self.state_dict())

    @classmethod
    def from_pretrained(  # type: ignore[override]  # without **kwargs: a misspelt name is an error
        cls,
        pretrained_model_name_or_path: str | Path,
        *,
        map_location: str | torch.device = "cpu",
        revision: str | None = None,
        cache_dir: str | Path | None = None,
        force_download: bool = False,
        local_files_only: bool = False,
        token: str | bool | None = None,
    ) -> MaskFormer:
        """A model in evaluation mode, from a local folder or else from the hub.

        map_location     device of its weights; the dtype is float32
        the other names  those of huggingface_hub.snapshot_download

        Raises ValueError where the folder or repository does not hold a complete MaskFormer.
        """
        config, tensors = checkpoints.load(
            pretrained_model_name_or_path,
            revision=revision,
            cache_dir=cache_dir,
            force_download=force_download,
            local_files_only=local_files_only,
            token=token,
        )
        model = cls(config)
        checkpoints.load_state(model, tensors, str(pretrained_model_name_or_path))
        return model.to(map_location).eval()


def region(pixel_mask: Tensor, shape: torch.Size) -> Tensor:
    """[B, 2]: rows and columns of the grid that the unpadded images cover.

    pixel_mask  [B, H, W]  True in the top-left corner that the image fills
    shape       B, C, h, w  of the pixel features
    """
    if pixel_mask.dim() != 3 or len(pixel_mask) != shape[0]:
        raise ValueError(
            f"pixel_mask: expected shape [B={shape[0]}, H, W], got {tuple(pixel_mask.shape)}"
        )
    extent = [pixel_mask[:, :, 0].sum(1), pixel_mask[:, 0].sum(1)]
    sides = zip(extent, shape[-2:], pixel_mask.shape[-2:], strict=True)
    return torch.stack([pixels * cells / side for pixels, cells, side in sides], dim=1).float()
