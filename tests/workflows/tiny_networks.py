"""Tiny networks of transformers at random, in folders as `save_pretrained` writes them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

SWIN = {
    "embed_dim": 12, "depths": [1] * 4, "num_heads": [1] * 4, "window_size": 2,
    "out_features": ["stage1", "stage2", "stage3", "stage4"],
}  # fmt: skip
SEGFORMER = {
    "depths": [1] * 4, "hidden_sizes": [8, 16, 24, 32], "num_attention_heads": [1] * 4,
    "decoder_hidden_size": 16,
}  # fmt: skip
DETR = {
    "encoder_in_channels": [16, 24, 32], "encoder_hidden_dim": 16, "encoder_ffn_dim": 16, "d_model": 16,
    "num_queries": 12, "decoder_in_channels": [16, 16, 16], "decoder_ffn_dim": 16, "decoder_layers": 2,
    "decoder_attention_heads": 2, "encoder_attention_heads": 2, "num_denoising": 0,
}  # fmt: skip


def network(kind: str, labels: int | None) -> Any:
    """A tiny random network of a class of transformers."""
    hugging: Any = pytest.importorskip("transformers")
    labels_of = {} if labels is None else {"num_labels": labels}
    torch.manual_seed(1)
    if kind == "SegformerForSemanticSegmentation":
        config = hugging.SegformerConfig(**SEGFORMER, **labels_of)
    elif kind == "DepthAnythingForDepthEstimation":
        vit = hugging.Dinov2Config(
            hidden_size=24, num_hidden_layers=2, num_attention_heads=2, image_size=56, patch_size=14, mlp_ratio=1,
            out_features=["stage1", "stage2"], reshape_hidden_states=False,
        )  # fmt: skip
        config = hugging.DepthAnythingConfig(
            backbone_config=vit, reassemble_hidden_size=24, reassemble_factors=[2, 1], neck_hidden_sizes=[8, 8],
            fusion_hidden_size=8, head_hidden_size=8, head_in_index=-1,
        )  # fmt: skip
    elif kind == "DPTForDepthEstimation":
        config = hugging.DPTConfig(
            hidden_size=32, num_hidden_layers=4, num_attention_heads=2, intermediate_size=32, image_size=64,
            patch_size=16, backbone_out_indices=[0, 1, 2, 3], is_hybrid=False, neck_hidden_sizes=[8, 8, 16, 16],
            fusion_hidden_size=16,
        )  # fmt: skip
    elif kind == "GLPNForDepthEstimation":
        config = hugging.GLPNConfig(
            depths=[1] * 4, hidden_sizes=[8, 16, 24, 32], num_attention_heads=[1] * 4, decoder_hidden_size=8
        )  # fmt: skip
    elif kind.startswith("Mask2Former"):
        config = hugging.Mask2FormerConfig(
            backbone_config=hugging.SwinConfig(**SWIN), feature_size=32, mask_feature_size=32, hidden_dim=32,
            encoder_feedforward_dim=32, encoder_layers=1, decoder_layers=2, num_attention_heads=2,
            dim_feedforward=32, num_queries=10, **labels_of,
        )  # fmt: skip
    elif kind.startswith("MaskFormer"):
        config = hugging.MaskFormerConfig(
            backbone_config=hugging.SwinConfig(**SWIN), fpn_feature_size=32, mask_feature_size=32,
            decoder_config=hugging.DetrConfig(
                d_model=16, encoder_layers=1, decoder_layers=1, encoder_ffn_dim=16, decoder_ffn_dim=16,
                encoder_attention_heads=2, decoder_attention_heads=2, num_queries=10,
            ), **labels_of,
        )  # fmt: skip
    elif kind.startswith("RTDetr"):
        body = hugging.RTDetrResNetConfig(
            embedding_size=8, hidden_sizes=[8, 16, 24, 32], depths=[1] * 4, layer_type="basic",
            out_features=["stage2", "stage3", "stage4"],
        )  # fmt: skip
        config = hugging.RTDetrConfig(backbone_config=body, **DETR, **labels_of)
    else:
        assert kind == "DFineForObjectDetection"
        body = hugging.HGNetV2Config(
            stem_channels=[3, 8, 8], stage_in_channels=[8, 8, 16, 24], stage_mid_channels=[8, 8, 8, 8],
            stage_out_channels=[8, 16, 24, 32], stage_num_blocks=[1] * 4, stage_numb_of_layers=[2] * 4,
            hidden_sizes=[8, 16, 24, 32], depths=[1] * 4, embedding_size=8,
            out_features=["stage2", "stage3", "stage4"],
        )  # fmt: skip
        config = hugging.DFineConfig(backbone_config=body, **DETR, **labels_of)
    made = getattr(hugging, kind)(config)
    if kind.endswith("DepthEstimation"):  # which end with a ReLU: at random all of it would be 0
        convolutions = [m for m in made.head.modules() if isinstance(m, nn.Conv2d)]
        with torch.no_grad():
            for convolution in convolutions:
                convolution.weight.mul_(10)
            convolutions[-1].bias.fill_(1.0)
    return made


def saved(kind: str, folder: Path, labels: int | None = None, **options: Any) -> Path:
    """The folder of a tiny random network, with a preprocessor's file of mean and std 0.5.

    Args:
        options: entries of the network's config.
    """
    made = network(kind, labels)
    for name, value in options.items():
        setattr(made.config, name, value)
    made.save_pretrained(folder)
    about = {"do_normalize": True, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    (folder / "preprocessor_config.json").write_text(json.dumps(about))
    return folder
