"""transformers' models with random weights, saved to disk: the outside oracle of the tests."""

import torch
from torch import nn
from transformers import MaskFormerConfig as TheirConfig
from transformers import MaskFormerForInstanceSegmentation, ResNetConfig
from transformers.models.maskformer.configuration_maskformer import MaskFormerDetrConfig
from transformers.models.maskformer.configuration_maskformer_swin import MaskFormerSwinConfig

STAGES = ["stage1", "stage2", "stage3", "stage4"]
SWIN_TINY = MaskFormerSwinConfig(out_features=STAGES)
SWIN_WINDOW_12 = MaskFormerSwinConfig(
    embed_dim=32, num_heads=[1, 2, 4, 8], window_size=12, out_features=STAGES
)
RESNET_50 = ResNetConfig(out_features=STAGES)
RESNET_SMALL = ResNetConfig(
    embedding_size=8,
    hidden_sizes=[8, 16, 24, 32],
    depths=[1, 2, 1, 1],
    layer_type="basic",
    out_features=STAGES,
)
DECODER_SMALL = MaskFormerDetrConfig(
    d_model=32, decoder_layers=2, decoder_ffn_dim=48, decoder_attention_heads=4, num_queries=7
)


@torch.no_grad()
def randomize(model: nn.Module, seed: int = 0) -> None:
    """Weights with which activations neither vanish nor blow up, and no tensor is trivial."""
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        for name, p in module.named_parameters(recurse=False):
            if p.ndim > 1:
                fan_in = 1 if isinstance(module, nn.Embedding) else p[0].numel()
                std = 0.5 if name == "relative_position_bias_table" else fan_in**-0.5
                p.normal_(0, std, generator=generator)
            elif name == "weight":
                p.uniform_(0.5, 1.5, generator=generator)
            else:
                p.normal_(0, 0.2, generator=generator)
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.2, generator=generator)
            module.running_var.uniform_(1, 4, generator=generator)
    for name, module in model.named_modules():
        if name.endswith(("layer.2.normalization", "class_predictor")):
            module.weight.mul_(0.5 if "normalization" in name else 2)


def their_maskformer(backbone, decoder=None, num_labels: int = 10, **options):
    config = TheirConfig(
        backbone_config=backbone,
        decoder_config=decoder or MaskFormerDetrConfig(),
        id2label={i: f"class {i}" for i in range(num_labels)},
        **options,
    )
    model = MaskFormerForInstanceSegmentation(config).eval()
    randomize(model)
    return model
