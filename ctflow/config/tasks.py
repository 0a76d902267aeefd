"""Configuration of the three networks' trainings: A-VAE, CT-CLIP, FMvT or its student."""

from __future__ import annotations

from dataclasses import dataclass, field

from ctflow.config.encoders import AVAEConfig, CTCLIPConfig
from ctflow.config.evaluation import FeatureFiles
from ctflow.config.flow_network import FlowNetworkConfig
from ctflow.config.generation import FIXED_SOLVERS, RolloutConfig
from ctflow.config.models import FlowConfig

TASKS = ("autoencoder", "clip", "flow")
STUDENT_SOLVERS = {"euler": 1, "midpoint": 2}
"""Evaluations of a student in one step, by solver."""


@dataclass
class OptimizerConfig:
    """Optimizer, linear warm-up and decay of its rate (``ctflow.training.schedule.learning_rate``).

    Attributes:
        name: ``adamw``, or ``muon``: Muon for the matrices of transformer blocks and AdamW for the rest.
        lr: Base learning rate, reached at the end of the warm-up.
        matrix_lr: Muon's base learning rate; it follows the same schedule.
        momentum: Muon's momentum.
        betas: AdamW's two betas.
        weight_decay: AdamW's decoupled weight decay.
        fused: AdamW as one kernel: faster on a GPU, other rounding.
        warmup_steps: Optimizer steps of linear warm-up.
        decay_rate: 0 keeps the rate constant after the warm-up; the published schedule has 2.
        ref_steps: Steps after the warm-up at which the rate has fallen to ``lr / √(1 + decay_rate)``.
        eta_min: Floor of the decay.
        end_step: Step at which the rate has fallen linearly to zero; 0: it does not fall.
        fall_share: Share of ``end_step`` in which it falls.
    """

    name: str = "adamw"
    lr: float = 1e-4
    betas: list[float] = field(default_factory=lambda: [0.9, 0.999])
    weight_decay: float = 0.0
    fused: bool = False
    warmup_steps: int = 100
    decay_rate: float = 2.0
    ref_steps: int = 500_000
    eta_min: float = 1e-6
    matrix_lr: float = 2e-3
    momentum: float = 0.95
    end_step: int = 0
    fall_share: float = 0.4

    def __post_init__(self) -> None:
        if self.name not in ("adamw", "muon"):
            raise ValueError(f"optimizer name must be adamw or muon, found {self.name!r}")
        if self.matrix_lr <= 0 or not 0 <= self.momentum < 1:
            raise ValueError(
                f"matrix_lr is positive and momentum lies in [0, 1), "
                f"found {self.matrix_lr} and {self.momentum}"
            )
        if self.end_step < 0 or not 0 < self.fall_share <= 1:
            raise ValueError(
                f"end_step is not negative and fall_share lies in (0, 1], found {self.end_step} and "
                f"{self.fall_share}"
            )
        if self.lr <= 0 or self.warmup_steps < 0 or self.ref_steps < 1 or self.decay_rate < 0:
            raise ValueError(
                f"lr and ref_steps must be positive, warmup and decay not negative, found {self}"
            )
        if len(self.betas) != 2 or not all(0 <= b < 1 for b in self.betas):
            raise ValueError(f"betas must be two numbers in [0, 1), found {self.betas}")


@dataclass
class AdversaryConfig:
    """The hinge PatchGAN of the A-VAE.

    Attributes:
        start_step: Batch from which on the discriminator is trained and weighs in; negative: never.
        weight: Factor on the adaptive weight of the generator's adversarial term.
        channels: Filters of the first layer, doubled by each further one.
        layers: Strided layers.
        optimizer: The discriminator's own optimizer.
    """

    start_step: int = 2000
    weight: float = 0.5
    channels: int = 32
    layers: int = 3
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)


@dataclass
class AutoencoderTask:
    """Training of the A-VAE.

    Attributes:
        network: The A-VAE; its whitening is measured when training ends.
        init_from: Sharing folder or published weights to start from (weights only); empty: from scratch.
        train_encoder: False trains the decoder alone: latents and their whitening stay what they are, so that
            shards already encoded and transformers trained on them stay valid.
        latent_noise: Greatest deviation of the white noise that whitened latents get before they are decoded;
            it is drawn evenly from [0, latent_noise] for each slice. A generator's latents are never without
            errors: such a decoder takes a part of them away, and reconstructs clean latents a little worse
            (Zheng et al. 2025, arXiv 2510.11690, noise-augmented decoding). With train_encoder=false alone.
        redrawn_share: Share of the slices that are decoded from latents as a generator draws them, of those
            that ``data.redrawn`` holds; the others from their own posterior. With train_encoder=false alone.
        flat_fraction: Share of training slices replaced by flat ones, half air and half at the top of the
            window: start and end slices are none that scans contain, and a rollout decodes them.
        kl_weight: Weight of the KL divergence, averaged over latent values; the mean absolute error in the
            network's intensity range weighs 1.
        perceptual_weight: Weight of the VGG-16 feature distance; 0 switches it off.
        perceptual_weights_path: torchvision's ``vgg16`` state dict on disk, needed where the weight is not 0.
        adversary: The discriminator.
        optimizer: The A-VAE's optimizer.
        ema_cap: Greatest decay of the moving average.
        gradient_clip: Greatest norm of either network's gradients; 0: no clipping.
        whitening_batches: Training batches whose posterior samples the whitening is measured on; 0 keeps the
            network's own, e.g. FLUX's in fine-tuning.
    """

    network: AVAEConfig = field(default_factory=AVAEConfig)
    init_from: str = ""
    train_encoder: bool = True
    latent_noise: float = 0.0
    redrawn_share: float = 0.0
    flat_fraction: float = 0.0
    kl_weight: float = 1e-6
    perceptual_weight: float = 0.0
    perceptual_weights_path: str = ""
    adversary: AdversaryConfig = field(default_factory=AdversaryConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    ema_cap: float = 0.999
    gradient_clip: float = 1.0
    whitening_batches: int = 32

    def __post_init__(self) -> None:
        if not 0 <= self.flat_fraction < 1:
            raise ValueError(f"flat_fraction lies in [0, 1), found {self.flat_fraction}")
        if not self.train_encoder and (not self.init_from or self.whitening_batches):
            raise ValueError(
                "train_encoder=false needs init_from=FOLDER, whose encoder stays, and whitening_batches=0, "
                f"found init_from={self.init_from!r}, whitening_batches={self.whitening_batches}"
            )
        if self.latent_noise < 0 or (self.latent_noise and self.train_encoder):
            raise ValueError(
                "latent_noise is not negative and needs train_encoder=false: the whitening is known then, "
                f"found latent_noise={self.latent_noise}, train_encoder={self.train_encoder}"
            )
        if not 0 <= self.redrawn_share <= 1 or (self.redrawn_share and self.train_encoder):
            raise ValueError(
                "redrawn_share lies in [0, 1] and needs train_encoder=false: redrawn latents are of one "
                f"encoder, found redrawn_share={self.redrawn_share}, train_encoder={self.train_encoder}"
            )
        if self.perceptual_weight > 0 and not self.perceptual_weights_path:
            raise ValueError(
                f"perceptual_weight={self.perceptual_weight} needs perceptual_weights_path, "
                "a vgg16 state dict on disk"
            )


@dataclass
class ClipTask:
    """Training of the embedded pair of text and image encoder.

    Columns are statements that rules find in a report (``ctflow.reports``): label stated, label denied, label
    with side, with lobe, with word of size, and sizes in mm, ml or ratio.

    Attributes:
        network: The CT-CLIP.
        init_from: Sharing folder or published weights whose architecture, weights and vocabulary to start
            from (``network`` and ``vocabulary_size`` are then the folder's, but for ``adapter_width``);
            empty: from scratch.
        train_text: False trains the volume tower and the projections alone: the text states stay what they
            are, and so do shards already encoded and transformers trained on them.
        sentence_attention: Tokens attend to their sentence and to the first token alone
            (``network.sentence_ends`` is then found in the vocabulary); not with an adapter.
        vocabulary_size: Most entries of the WordPiece vocabulary, trained on the training reports.
        label_weight: Weight of the auxiliary loss: linear heads from the text's pooled state, its mean token
            state and the volume to the label tables and to the columns.
        column_least: Reports of the training set that a column needs.
        size_weight: Weight of the sizes' loss, relative to that of the other columns.
        word_weight: Weight of the masked words' loss; it keeps information that no column covers.
        text_warmup: First batches that train the text tower alone: cheap, and the text states, which
            condition the FMvT, become informative at once.
        optimizer: The pair's optimizer.
        ema_cap: Greatest decay of the moving average.
        gradient_clip: Greatest norm of the gradients; 0: no clipping.
    """

    network: CTCLIPConfig = field(default_factory=CTCLIPConfig)
    init_from: str = ""
    train_text: bool = True
    sentence_attention: bool = False
    vocabulary_size: int = 1024
    label_weight: float = 1.0
    column_least: int = 10
    size_weight: float = 0.5
    word_weight: float = 0.2
    text_warmup: int = 0
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    ema_cap: float = 0.999
    gradient_clip: float = 1.0

    def __post_init__(self) -> None:
        if not self.train_text and not self.init_from:
            raise ValueError("train_text=false needs init_from=FOLDER, whose text tower stays")


@dataclass
class FlowMonitor:
    """Rollouts in the validation of the FMvT.

    Attributes:
        rollout_every: Every so many validations a rollout of a few cases is generated, earlier also before
            the first step and at validations 1, 2, 4, 8 …; 0: never.
        cases: Validation cases generated.
        max_blocks: Longest rollout.
        frechet: Log Fréchet distances of the generated cases (needs ``rollout_every``).
        backbones: Weights of trained networks, as in an evaluation: ``inception`` adds ``val/fid``, ``i3d``
            ``val/fvd_f16`` and ``ct3d`` ``val/fd_ct3d``.
    """

    rollout_every: int = 0
    cases: int = 2
    max_blocks: int = 4
    frechet: bool = True
    backbones: FeatureFiles = field(default_factory=FeatureFiles)


@dataclass
class StudentConfig:
    """Distillation: an FMvT that takes in one step what its teacher takes in many guided ones.

    The student's solver, time grid and churn are those of ``flow.rollout`` (``euler`` or ``midpoint``,
    ``steps``, ``time_shift``; ``churn`` and ``churn_below`` with ``euler``), which its export names: without
    guidance.

    Attributes:
        teacher: Checkpoint folder of the FMvT to learn from, and to start from where ``init_from`` is empty;
            empty: ordinary flow matching.
        substeps: The teacher's steps in one of the student's, equally spaced before the grid's shift.
        solver: The teacher's solver: ``euler``, ``midpoint`` or ``heun``.
        text_guidance: The teacher's scale of guidance by the text.
        guidance_from: The teacher's text guides at times from this one on.
        on_policy: Share of samples that start where the student's own steps (of the averaged network) lead;
            the others start from noised data.
    """

    teacher: str = ""
    substeps: int = 2
    solver: str = "midpoint"
    text_guidance: float = 1.0
    guidance_from: float = 0.0
    on_policy: float = 0.5

    def __post_init__(self) -> None:
        if self.solver not in FIXED_SOLVERS:
            raise ValueError(f"a teacher's solver is one of {FIXED_SOLVERS}, found {self.solver!r}")
        if self.substeps < 1 or not 0 <= self.on_policy <= 1:
            raise ValueError(
                f"substeps is at least 1 and on_policy lies in [0, 1], found {self.substeps} and "
                f"{self.on_policy}"
            )
        if self.text_guidance < 0 or not 0 <= self.guidance_from <= 1:
            raise ValueError(
                "text_guidance is not negative and guidance_from lies in [0, 1], found "
                f"{self.text_guidance} and {self.guidance_from}"
            )


TRAINED_PARTS = {
    "local_head": "flow.network.local_channels, e.g. 48",
    "fine": "flow.network.fine_size and flow.network.fine_depth, e.g. 128 and 4",
    "start_head": "flow.network.start_directions, e.g. 64",
}
"""Parts of an FMvT that can be trained alone, and the options that give a network one of them."""


@dataclass
class FlowTask:
    """Training of the FMvT.

    Attributes:
        network: The transformer.
        flow: Path, times and the noises and dropouts of training.
        text: ``tokens`` (masked hidden states) or ``pooled`` (one token, as published).
        init_from: Sharing folder or published weights to fine-tune from (weights only, fresh optimizer).
        trained_parts: Parts of the network that alone are trained: ``local_head``, ``fine``, ``start_head``.
            The rest stays as ``init_from`` has it, which takes a third to a half of the time. Empty: all.
        student: Distillation of a teacher into few steps without guidance.
        measured_blocks: Training blocks whose spectrum is measured for ``network.spectrum``, and first blocks
            whose principal directions are for ``network.start_directions`` (held in half precision).
        avae: A-VAE of the latent shards, for decoding and export; empty: searched among runs by fingerprint.
        clip: Text encoder of the latent shards, for the export; empty: searched among runs by fingerprint.
        optimizer: Optimizer and its schedule.
        ema_cap: Greatest decay of the moving average.
        gradient_clip: Greatest norm of the gradients; 0: no clipping.
        rollout: Sampling recommended for the weights: what validation uses and the export names.
        monitor: Rollouts, images and Fréchet distances in validation.
    """

    network: FlowNetworkConfig = field(default_factory=FlowNetworkConfig)
    flow: FlowConfig = field(default_factory=FlowConfig)
    text: str = "tokens"
    init_from: str = ""
    trained_parts: list[str] = field(default_factory=list)
    student: StudentConfig = field(default_factory=StudentConfig)
    measured_blocks: int = 2048
    avae: str = ""
    clip: str = ""
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    ema_cap: float = 0.9999
    gradient_clip: float = 1.0
    rollout: RolloutConfig = field(default_factory=lambda: RolloutConfig(steps=20))
    monitor: FlowMonitor = field(default_factory=FlowMonitor)

    def __post_init__(self) -> None:
        if self.text not in ("tokens", "pooled"):
            raise ValueError(f"text must be 'tokens' or 'pooled', found {self.text!r}")
        if self.measured_blocks < 1:
            raise ValueError(f"measured_blocks must be at least 1, found {self.measured_blocks}")
        if unknown := set(self.trained_parts) - set(TRAINED_PARTS):
            raise ValueError(
                f"trained_parts are some of {', '.join(TRAINED_PARTS)}, found {', '.join(sorted(unknown))}"
            )
        if self.trained_parts and not self.init_from:
            raise ValueError("trained_parts needs init_from=FOLDER, whose network stays")
        if not (self.init_from or self.student.teacher):
            self.network.check_parts()
        grid = self.rollout
        plain = (grid.text_guidance, grid.previous_guidance) == (1, 1)
        if self.student.teacher and not (plain and grid.solver in STUDENT_SOLVERS):
            raise ValueError(
                f"a student samples without guidance by {' or '.join(STUDENT_SOLVERS)} steps: "
                "flow.rollout has text_guidance=1 and previous_guidance=1, found "
                f"{grid.solver}, {grid.text_guidance} and {grid.previous_guidance}"
            )
        if self.student.teacher and self.flow.decoded_share:
            raise ValueError(
                "a student's loss counts all channels alike: flow.flow.decoded_share=0, found "
                f"{self.flow.decoded_share}"
            )
        if self.student.teacher and grid.churn and grid.solver != "euler":
            raise ValueError(
                "a student with churn takes Euler steps, because the last step of a churned solution is one: "
                f"flow.rollout has solver=euler, or churn=0, found {grid.solver} and {grid.churn}"
            )
