"""The name tables: (ours, theirs), one for each format. `names.py` tells how to read a pattern."""

from maskformer_fast.checkpoints.names import NameTable, Rules, prefixed

BACKBONE = "pixel_level.backbone."
ENCODER = "pixel_level.decoder.encoder.layers.#."
DECODER = "transformer.decoder.layers.#."

TRANSFORMERS_SWIN: Rules = (
    ("patch_embedding.{conv,norm}.", "embeddings.{patch_embeddings.projection,norm}."),
    (
        "stages.#.#.{norm1,norm2}.",
        "encoder.layers.#.blocks.#.{layernorm_before,layernorm_after}.",
    ),
    (
        "stages.#.#.attention.qkv.",
        "encoder.layers.#.blocks.#.attention.self.{query,key,value}.",
    ),
    ("stages.#.#.attention.out.", "encoder.layers.#.blocks.#.attention.output.dense."),
    (
        "stages.#.#.attention.bias_table",
        "encoder.layers.#.blocks.#.attention.self.relative_position_bias_table",
    ),
    (
        "stages.#.#.{linear1,linear2}.",
        "encoder.layers.#.blocks.#.{intermediate,output}.dense.",
    ),
    ("merges.#.{norm,reduction}.", "encoder.layers.#.downsample.{norm,reduction}."),
)
TRANSFORMERS_RESNET: Rules = (
    ("stem.{conv,norm}.", "embedder.embedder.{convolution,normalization}."),
    (
        "stages.#.#.convs.#.{conv,norm}.",
        "encoder.stages.#.layers.#.layer.#.{convolution,normalization}.",
    ),
    (
        "stages.#.#.shortcut.{conv,norm}.",
        "encoder.stages.#.layers.#.shortcut.{convolution,normalization}.",
    ),
)
HF_PIXELS = "model.pixel_level_module."
HF_QUERIES = "model.transformer_module."
HF_LAYERS = HF_QUERIES + "decoder.layers.#."
TRANSFORMERS_HEADS: Rules = (
    ("pixel_level.decoder.stem.{conv,norm}.", HF_PIXELS + "decoder.fpn.stem.{0,1}."),
    ("pixel_level.decoder.laterals.#.{conv,norm}.", HF_PIXELS + "decoder.fpn.layers.#.proj.{0,1}."),
    ("pixel_level.decoder.outputs.#.{conv,norm}.", HF_PIXELS + "decoder.fpn.layers.#.block.{0,1}."),
    ("pixel_level.decoder.mask_projection.", HF_PIXELS + "decoder.mask_projection."),
    ("transformer.query_embeddings.", HF_QUERIES + "queries_embedder."),
    ("transformer.input_projection.", HF_QUERIES + "input_projection."),
    ("transformer.decoder.norm.", HF_QUERIES + "decoder.layernorm."),
    (
        DECODER + "{self_attention,cross_attention}.{q,k,v,out}.",
        HF_LAYERS + "{self_attn,encoder_attn}.{q_proj,k_proj,v_proj,out_proj}.",
    ),
    (
        DECODER + "{self_norm,cross_norm,ffn_norm}.",
        HF_LAYERS + "{self_attn_layer_norm,encoder_attn_layer_norm,final_layer_norm}.",
    ),
    (DECODER + "{linear1,linear2}.", HF_LAYERS + "{fc1,fc2}."),
    ("segmentation.classifier.", "class_predictor."),
    ("segmentation.mask_embedder.#.", "mask_embedder.#.0."),
)
TRANSFORMERS_SPELLINGS: Rules = (  # the second on-disk naming
    (
        DECODER + "{self_attention,cross_attention}.out.",
        HF_LAYERS + "{self_attn,encoder_attn}.o_proj.",
    ),
    (DECODER + "{linear1,linear2}.", HF_LAYERS + "mlp.{fc1,fc2}."),
)
# The final norm of Swin's trunk is unused by MaskFormer, which has one norm per stage.
TRANSFORMERS_IGNORED = (
    r"relative_position_index$|num_batches_tracked$|^criterion\.empty_weight$"
    r"|^(model\.pixel_level_module\.encoder\.model\.|swin\.)?layernorm\."
)
TRANSFORMERS = NameTable(
    "transformers",
    (
        *prefixed(TRANSFORMERS_SWIN, BACKBONE, HF_PIXELS + "encoder.model."),
        (BACKBONE + "norms.#.", HF_PIXELS + "encoder.hidden_states_norms.#."),
        *prefixed(TRANSFORMERS_RESNET, BACKBONE, HF_PIXELS + "encoder."),
        *TRANSFORMERS_HEADS,
        *TRANSFORMERS_SPELLINGS,
    ),
    TRANSFORMERS_IGNORED,
)
TRANSFORMERS_IMAGENET = {  # backbones alone, out of classifiers
    name: NameTable(
        f"transformers {title}",
        prefixed(rules, "", f"{name}.") + rules,
        TRANSFORMERS_IGNORED + r"|^classifier\.",
    )
    for name, title, rules in (
        ("swin", "Swin", TRANSFORMERS_SWIN),
        ("resnet", "ResNet", TRANSFORMERS_RESNET),
    )
}

D2_PIXELS = "sem_seg_head.pixel_decoder."
D2_QUERIES = "sem_seg_head.predictor."
D2_ENCODER = D2_PIXELS + "transformer.encoder.layers.#."
D2_DECODER = D2_QUERIES + "transformer.decoder.layers.#."

DETECTRON2_SWIN: Rules = (
    ("patch_embedding.{conv,norm}.", "patch_embed.{proj,norm}."),
    ("stages.#.#.{norm1,norm2}.", "layers.#.blocks.#.{norm1,norm2}."),
    ("stages.#.#.attention.{qkv,out}.", "layers.#.blocks.#.attn.{qkv,proj}."),
    (
        "stages.#.#.attention.bias_table",
        "layers.#.blocks.#.attn.relative_position_bias_table",
    ),
    ("stages.#.#.{linear1,linear2}.", "layers.#.blocks.#.mlp.{fc1,fc2}."),
    ("merges.#.{norm,reduction}.", "layers.#.downsample.{norm,reduction}."),
    ("norms.#.", "norm#."),
)
DETECTRON2_RESNET: Rules = (
    ("stem.{conv,norm}.", "stem.{conv1,conv1.norm}."),
    (
        "stages.{0,1,2,3}.#.convs.{0,1,2}.{conv,norm}.",
        "res{2,3,4,5}.#.{conv1,conv1.norm,conv2,conv2.norm,conv3,conv3.norm}.",
    ),
    (
        "stages.{0,1,2,3}.#.shortcut.{conv,norm}.",
        "res{2,3,4,5}.#.{shortcut,shortcut.norm}.",
    ),
)
DETECTRON2_HEADS: Rules = (
    ("pixel_level.decoder.stem.{conv,norm}.", D2_PIXELS + "{layer_4,layer_4.norm}."),
    ("pixel_level.decoder.laterals.{0,1,2}.conv.", D2_PIXELS + "adapter_{3,2,1}."),
    ("pixel_level.decoder.laterals.{0,1,2}.norm.", D2_PIXELS + "adapter_{3,2,1}.norm."),
    ("pixel_level.decoder.outputs.{0,1,2}.conv.", D2_PIXELS + "layer_{3,2,1}."),
    ("pixel_level.decoder.outputs.{0,1,2}.norm.", D2_PIXELS + "layer_{3,2,1}.norm."),
    ("pixel_level.decoder.mask_projection.", D2_PIXELS + "mask_features."),
    ("pixel_level.decoder.input_projection.", D2_PIXELS + "input_proj."),
    (ENCODER + "self_attention.{q,k,v}.", D2_ENCODER + "self_attn.in_proj_"),
    (ENCODER + "self_attention.out.", D2_ENCODER + "self_attn.out_proj."),
    (ENCODER + "{self_norm,ffn_norm}.", D2_ENCODER + "{norm1,norm2}."),
    (ENCODER + "{linear1,linear2}.", D2_ENCODER + "{linear1,linear2}."),
    ("transformer.query_embeddings.", D2_QUERIES + "query_embed."),
    ("transformer.input_projection.", D2_QUERIES + "input_proj."),
    (
        DECODER + "{self_attention,cross_attention}.{q,k,v}.",
        D2_DECODER + "{self_attn,multihead_attn}.in_proj_",
    ),
    (
        DECODER + "{self_attention,cross_attention}.out.",
        D2_DECODER + "{self_attn,multihead_attn}.out_proj.",
    ),
    (DECODER + "{self_norm,cross_norm,ffn_norm}.", D2_DECODER + "{norm1,norm2,norm3}."),
    (DECODER + "{linear1,linear2}.", D2_DECODER + "{linear1,linear2}."),
    ("transformer.decoder.norm.", D2_QUERIES + "transformer.decoder.norm."),
    ("segmentation.classifier.", D2_QUERIES + "class_embed."),
    ("segmentation.mask_embedder.#.", D2_QUERIES + "mask_embed.layers.#."),
)
DETECTRON2 = NameTable(
    "detectron2",
    prefixed(DETECTRON2_SWIN + DETECTRON2_RESNET, BACKBONE, "backbone.") + DETECTRON2_HEADS,
    r"relative_position_index$|num_batches_tracked$|^criterion\.empty_weight$|^pixel_(mean|std)$",
)
OURS = NameTable(
    "maskformer_fast",
    tuple((ours, ours) for ours, _ in TRANSFORMERS.rules + DETECTRON2.rules),
    "$^",
)
FORMATS = (OURS, TRANSFORMERS, DETECTRON2, *TRANSFORMERS_IMAGENET.values())
