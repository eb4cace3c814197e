"""The sizes of the TIPSv2 family as transformers configurations: four released ones and a new S/14.

Source: google-deepmind/tips (architectures, widths, depths) and transformers' `tipsv2`.
"""

from dataclasses import dataclass
from functools import cache

from transformers import Tipsv2Config, Tipsv2TextConfig, Tipsv2VisionConfig

PATCH_SIZE = 14
RELEASED_VOCAB = 32_000
RELEASED_NATIVE_SIZE = 448


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """One size of the family; both towers have one width and there is no projection between them.

    Hidden widths are those of feed-forward layers; for SwiGLU of gate and value each.
    """

    name: str
    width: int
    heads: int
    vision_layers: int
    vision_mlp: int
    swiglu: bool = False
    text_layers: int = 12
    text_mlp: int

    def build(
        self,
        *,
        vocab_size: int = RELEASED_VOCAB,
        native_size: int = RELEASED_NATIVE_SIZE,
        temperature: float = 0.07,
    ) -> Tipsv2Config:
        """Make the transformers configuration.

        Args:
            vocab_size: Pieces of the tokenizer.
            native_size: Side in pixels of the learnt position grid: 32 x 32 positions in TIPSv2.
            temperature: Initial value of the learnt temperature; CLIP's, as TIPSv2's is not
                published.
        """
        return Tipsv2Config(
            text_config={
                "vocab_size": vocab_size,
                "hidden_size": self.width,
                "intermediate_size": self.text_mlp,
                "num_hidden_layers": self.text_layers,
                "num_attention_heads": self.heads,
            },
            vision_config={
                "hidden_size": self.width,
                "num_hidden_layers": self.vision_layers,
                "num_attention_heads": self.heads,
                # transformers derives SwiGLU's hidden width from an MLP of 4 D: two thirds of it,
                # rounded up to a multiple of 8. Others get the ratio that gives the exact width.
                "mlp_ratio": 4 if self.swiglu else self.vision_mlp / self.width,
                "use_swiglu_ffn": self.swiglu,
                "image_size": native_size,
                "patch_size": PATCH_SIZE,
            },
            temperature_init_value=temperature,
        )


VARIANTS: dict[str, Variant] = {
    variant.name: variant
    for variant in (
        # Not released in v2. The vision tower is v1's S/14; the text tower follows the rule of
        # B, L and g: 12 blocks, the width and heads of the vision tower, an MLP four times as wide.
        Variant(name="s14", width=384, heads=6, vision_layers=12, vision_mlp=1536, text_mlp=1536),
        Variant(name="b14", width=768, heads=12, vision_layers=12, vision_mlp=3072, text_mlp=3072),
        Variant(name="l14", width=1024, heads=16, vision_layers=24, vision_mlp=4096, text_mlp=4096),
        # Its text tower has the depth and the MLP width of its vision tower.
        Variant(
            name="so400m14",
            width=1152,
            heads=16,
            vision_layers=27,
            vision_mlp=4304,
            text_layers=27,
            text_mlp=4304,
        ),
        Variant(
            name="g14",
            width=1536,
            heads=24,
            vision_layers=40,
            vision_mlp=4096,
            swiglu=True,
            text_mlp=6144,
        ),
    )
}


def variant(name: str) -> Variant:
    """Look up a size by name; ValueError if it is unknown."""
    if name not in VARIANTS:
        raise ValueError(f"no variant {name!r}: choose one of {', '.join(VARIANTS)}")
    return VARIANTS[name]


def tower_configs(config: Tipsv2Config) -> tuple[Tipsv2VisionConfig, Tipsv2TextConfig]:
    """Configurations of the towers; of a built configuration, so they are objects."""
    vision, text = config.vision_config, config.text_config
    assert isinstance(vision, Tipsv2VisionConfig)
    assert isinstance(text, Tipsv2TextConfig)
    return vision, text


def variant_name(config: Tipsv2Config) -> str:
    """Name of a released size, or of width and depth, such as "w192d6"."""
    vision, _ = tower_configs(config)
    own = f"w{vision.hidden_size}d{vision.num_hidden_layers}"
    return _names_of_sizes().get(_sizes(config), own)


@cache
def _names_of_sizes() -> dict[tuple[object, ...], str]:
    return {_sizes(known.build()): name for name, known in VARIANTS.items()}


def _sizes(config: Tipsv2Config) -> tuple[object, ...]:
    vision, text = tower_configs(config)
    return (
        vision.hidden_size,
        vision.num_hidden_layers,
        vision.num_attention_heads,
        int(vision.hidden_size * vision.mlp_ratio),
        vision.use_swiglu_ffn,
        vision.patch_size,
        text.num_hidden_layers,
        text.intermediate_size,
    )
