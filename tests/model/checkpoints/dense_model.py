"""Random dense heads on small models."""

from typing import Any

import torch
from transformers import (
    Tipsv2DptConfig,
    Tipsv2DptForDensePrediction,
    Tipsv2Model,
    Tipsv2VisionConfig,
)

NUM_BINS, NUM_CLASSES, FUSION = 12, 5, 16


def dense_model(
    model: Tipsv2Model, *, depth_activation: str = "relu"
) -> Tipsv2DptForDensePrediction:
    """Three random heads over a copy of a model's vision tower of four layers."""
    settings = model.vision_model.config.to_dict()
    for name in ("out_features", "out_indices", "stage_names"):
        settings.pop(name, None)
    width = settings["hidden_size"]
    labels: dict[str, Any] = {"num_labels": NUM_CLASSES}
    config = Tipsv2DptConfig(
        backbone_config=Tipsv2VisionConfig.from_dict(
            settings
            | {"out_indices": [1, 2, 3, 4], "apply_layernorm": True, "reshape_hidden_states": False}
        ),
        neck_hidden_sizes=[width // 8, width // 4, width // 2, width],
        fusion_hidden_size=FUSION,
        num_depth_bins=NUM_BINS,
        depth_decoder_activation=depth_activation,
        **labels,
    )
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(1)
        dense = Tipsv2DptForDensePrediction(config)
        for parameter in dense.parameters():
            # Small steps keep three stages of fusion from growing beyond what 1e-5 can tell apart.
            parameter.copy_(0.05 * torch.randn_like(parameter))
        dense.backbone.load_state_dict(model.vision_model.state_dict())
    dense.eval()
    return dense
