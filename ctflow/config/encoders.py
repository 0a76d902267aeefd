"""Typed configuration of the two encoders: the A-VAE (pixels) and CT-CLIP (text and volume)."""

from __future__ import annotations

from dataclasses import dataclass, field

from ctflow.intensity import IntensityWindow
from ctflow.whitening import Whitening


def _published_window() -> IntensityWindow:
    return IntensityWindow(hu_min=-1000.0, hu_max=1400.0, low=0.0, high=1.0)


def _flux_whitening() -> Whitening:
    return Whitening(shift=[0.1159], scale=[0.3611])


@dataclass
class AVAEConfig:
    """Shape of a slice autoencoder in FLUX topology, and what belongs to its weights.

    Attributes:
        in_channels: Image channels of the weights: 1, or 3 as in FLUX (a slice is then replicated on the way
            in, and the channels are averaged on the way out).
        latent_channels: Channels of a latent.
        block_out_channels: Width of each level; each level but the last halves the sides, so 4 levels give /8
            and 5 levels /16.
        layers_per_block: Resnets per level on the way down; the way up has one more.
        norm_num_groups: Groups of every group norm; divides every width.
        clamp_logvar: Clamp the posterior's log-variance to [-30, 20], as diffusers does. The single-file FLUX
            layout knows no clamp.
        intensity: Window between HU and the images this autoencoder works on.
        whitening: Per-channel shift and scale of its latents.
    """

    in_channels: int = 1
    latent_channels: int = 16
    block_out_channels: list[int] = field(default_factory=lambda: [128, 256, 512, 512])
    layers_per_block: int = 2
    norm_num_groups: int = 32
    clamp_logvar: bool = True
    intensity: IntensityWindow = field(default_factory=IntensityWindow)
    whitening: Whitening = field(default_factory=Whitening)

    def __post_init__(self) -> None:
        if self.in_channels not in (1, 3):
            raise ValueError(f"an A-VAE has 1 or 3 image channels, found in_channels={self.in_channels}")
        if not self.block_out_channels or min(self.latent_channels, self.layers_per_block) < 1:
            raise ValueError(f"an A-VAE needs levels, latent channels and layers, found {self}")
        odd = [w for w in self.block_out_channels if w < 1 or w % self.norm_num_groups]
        if odd:
            raise ValueError(f"widths {odd} are not divisible by norm_num_groups={self.norm_num_groups}")
        if len(self.whitening.shift) not in (1, self.latent_channels):
            raise ValueError(
                f"whitening has {len(self.whitening.shift)} channels, the latents have {self.latent_channels}"
            )

    @property
    def downscale(self) -> int:
        """Pixels per latent position along a side."""
        return 2 ** (len(self.block_out_channels) - 1)


def flux_avae_config(in_channels: int = 3) -> AVAEConfig:
    """FLUX's autoencoder (83,819,683 parameters) with the published CTFlow intensity window."""
    return AVAEConfig(in_channels=in_channels, intensity=_published_window(), whitening=_flux_whitening())


@dataclass
class BertConfig:
    """CT-CLIP's text tower; names and published values are those of transformers' ``BertConfig``.

    Attributes:
        vocab_size: Entries of the vocabulary.
        hidden_size: Width of a token.
        num_hidden_layers: Transformer layers.
        num_attention_heads: Attention heads; must divide ``hidden_size``.
        intermediate_size: Hidden width of a layer's MLP.
        max_position_embeddings: Most tokens of a text.
        type_vocab_size: Kinds of text parts.
        layer_norm_eps: Added to the variance in layer norms.
        hidden_act: The MLP's activation, by transformers' name.
        pad_token_id: Index of the padding token.
        hidden_dropout_prob: Dropout of hidden states in training.
        attention_probs_dropout_prob: Dropout of attention weights in training.
    """

    vocab_size: int = 30522
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    max_position_embeddings: int = 512
    type_vocab_size: int = 2
    layer_norm_eps: float = 1e-12
    hidden_act: str = "gelu"
    pad_token_id: int = 0
    hidden_dropout_prob: float = 0.1
    attention_probs_dropout_prob: float = 0.1

    def __post_init__(self) -> None:
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"hidden_size={self.hidden_size} is not divisible by "
                f"num_attention_heads={self.num_attention_heads}"
            )


@dataclass
class CTViTConfig:
    """CT-CLIP's volume tower: patches, spatial then temporal attention, vector quantisation.

    "Temporal" is the published word for the slice axis.

    Attributes:
        dim: Token width.
        codebook_size: Codes of the quantiser.
        image_size: Rows and columns of the input.
        patch_size: Rows and columns of a patch.
        temporal_patch_size: Slices of a patch.
        spatial_depth: Layers attending within a slab of slices.
        temporal_depth: Layers attending along the slabs.
        dim_head: Width of a head.
        heads: Attention heads.
        quantize: Replace tokens by their nearest code (published: yes, also at inference).
        raw_temporal_reshape: Read the temporal layers' ``[(b h w), t, d]`` tokens as ``[b, t, h, w, d]``
            without moving axes when the convolutional position is computed, as the published weights were
            trained.
    """

    dim: int = 512
    codebook_size: int = 8192
    image_size: int = 480
    patch_size: int = 20
    temporal_patch_size: int = 10
    spatial_depth: int = 4
    temporal_depth: int = 4
    dim_head: int = 32
    heads: int = 8
    quantize: bool = True
    raw_temporal_reshape: bool = False

    def __post_init__(self) -> None:
        if self.image_size % self.patch_size:
            raise ValueError(f"image_size={self.image_size} is not divisible by patch_size={self.patch_size}")

    @property
    def grid(self) -> int:
        """Patches along rows or columns."""
        return self.image_size // self.patch_size


@dataclass
class VolumeGrid:
    """Input of CT-CLIP's volume tower.

    Attributes:
        axes: Order and direction of the axes: ``SPR``, this project's, or ``SLP``, the order in which the
            published code reads CT-RATE's files (slices, then nibabel's first axis, then its second).
        shape: Sizes along ``axes`` after the centre crop or pad.
        spacing_mm: Spacing along ``axes``.
        hu_limit: HU are clipped to ± this and divided by it, so that the input is in [-1, 1].
    """

    axes: str = "SPR"
    shape: list[int] = field(default_factory=lambda: [240, 480, 480])
    spacing_mm: list[float] = field(default_factory=lambda: [1.5, 0.75, 0.75])
    hu_limit: float = 1000.0

    def __post_init__(self) -> None:
        if len(self.shape) != 3 or len(self.spacing_mm) != 3 or min(*self.shape, *self.spacing_mm) <= 0:
            raise ValueError(f"a volume grid needs three positive sizes and spacings, found {self}")
        if self.axes not in ("SPR", "SLP"):
            raise ValueError(f"axes of a volume grid are SPR or SLP, found {self.axes!r}")


@dataclass
class CTCLIPConfig:
    """The report-volume pair; the defaults have the published dimensions.

    Attributes:
        bert: Text tower.
        ctvit: Volume tower.
        grid: Preprocessing of the volume.
        dim_latent: Width of the shared latent space.
        max_tokens: Reports are padded or truncated to this many tokens.
        adapter_width: Width of the adapter over the text tower's hidden states; 0: none. With one, training
            leaves both towers as they are (``ctflow.models.ctclip``).
        sentence_ends: Token ids that end a sentence. With them a token attends to its sentence and to the
            first token alone, which attends to all: what is where stays together, however long the report.
            Empty (published): every token attends to all.
        published_extras: Hold the published parameters on which no output depends (BERT's pooler, pixel
            decoders, a second pair of projections and others), so that an export is complete. Fresh models
            go without.
        published_position_ids: Among them, the positions 0, 1, 2, … that some published files hold.
    """

    bert: BertConfig = field(default_factory=BertConfig)
    ctvit: CTViTConfig = field(default_factory=CTViTConfig)
    grid: VolumeGrid = field(default_factory=VolumeGrid)
    dim_latent: int = 512
    max_tokens: int = 512
    adapter_width: int = 0
    sentence_ends: list[int] = field(default_factory=list)
    published_extras: bool = False
    published_position_ids: bool = False

    def __post_init__(self) -> None:
        if self.max_tokens > self.bert.max_position_embeddings:
            raise ValueError(
                f"max_tokens={self.max_tokens} exceeds BERT's {self.bert.max_position_embeddings} positions"
            )
        if self.adapter_width < 0 or self.adapter_width % 4:
            raise ValueError(f"adapter_width is 0 or a multiple of 4, found {self.adapter_width}")
        vit, (depth, rows, columns) = self.ctvit, self.grid.shape
        if rows != vit.image_size or columns != vit.image_size or depth % vit.temporal_patch_size:
            raise ValueError(
                f"grid.shape={self.grid.shape} does not fit the volume tower: image_size={vit.image_size}, "
                f"temporal_patch_size={vit.temporal_patch_size}"
            )

    @property
    def dim_image(self) -> int:
        """Width of the flattened volume embedding (published: 294,912)."""
        return self.ctvit.grid**2 * self.ctvit.dim


def published_ctclip_config() -> CTCLIPConfig:
    """CT-CLIP as published (438,148,761 parameters), its quirks on."""
    grid, vit = VolumeGrid(axes="SLP"), CTViTConfig(raw_temporal_reshape=True)
    return CTCLIPConfig(ctvit=vit, grid=grid, published_extras=True)
