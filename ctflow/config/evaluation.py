"""What ``python -m ctflow.eval`` can be told."""

from __future__ import annotations

from dataclasses import dataclass, field

from ctflow.config.generation import RolloutConfig

SETTINGS = ("full-body", "gt-head", "next-block")
PROTOCOLS = ("matched", "stylegan-v")


@dataclass
class BackboneFiles:
    """Local files of trained backbones; nothing is ever downloaded.

    Without a file the metric is replaced by one of another name (``fid`` by ``fid_rand2d``) or is n/a.

    Attributes:
        inception: torch-fidelity's Inception-v3 state dict.
        inception_sha256: Hash it must have; empty: any, and the hash found is reported.
        i3d: The I3D torchscript.
        i3d_sha256: Hash it must have; required, the file is a program.
        lpips: torchvision's AlexNet state dict.
        lpips_sha256: Hash it must have; empty: any, and the hash found is reported.
        clip: Folder of a CT-CLIP to score with; empty: the checkpoint's own text and image pair.
    """

    inception: str = ""
    inception_sha256: str = ""
    i3d: str = ""
    i3d_sha256: str = ""
    lpips: str = ""
    lpips_sha256: str = ""
    clip: str = ""

    def __post_init__(self) -> None:
        if self.i3d and not self.i3d_sha256:
            raise ValueError(
                f"i3d={self.i3d!r} is a program: give i3d_sha256, the hash of the file you trust"
            )


@dataclass
class EvalConfig:
    """An evaluation: which model, on which cases, under which protocol.

    Attributes:
        checkpoint: Folder of a whole system; empty: the newest run, else the embedded checkpoint.
        setting: ``full-body``, ``gt-head``, ``next-block`` or ``all``.
        slices: Folder of slice shards with the real cases.
        cases: Real cases generated from; with floors, as many others are needed and the set is shared out.
        floors: Score other real cases, and their A-VAE reconstructions, beside the model.
        batch_size: Cases generated together.
        resolution: Sides in pixels at which slices and clips are scored; empty: the model's own.
        protocol: ``matched``: real and generated clips from the same axial windows; ``stylegan-v``: real
        clips at a
            random offset, generated ones at offset 0.
        clip_lengths: Slices in a clip.
        clip_stride: Slices between the first slices of two clips of 16; longer clips start every half length.
        rollout: How volumes are generated.
        backbones: Local files of trained backbones.
        seed: Of noise, subsets and offsets.
        device: ``auto``, ``cpu`` or ``cuda``.
        output: Folder in which a folder per evaluation is made.
        cache: Folder of pooled features per case, from which an interrupted evaluation resumes.
    """

    checkpoint: str = ""
    setting: str = "next-block"
    slices: str = "runs/shards/slices/valid"
    cases: int = 128
    floors: bool = True
    batch_size: int = 8
    resolution: list[int] = field(default_factory=list)
    protocol: str = "matched"
    clip_lengths: list[int] = field(default_factory=lambda: [16, 128])
    clip_stride: int = 8
    rollout: RolloutConfig = field(default_factory=RolloutConfig)
    backbones: BackboneFiles = field(default_factory=BackboneFiles)
    seed: int = 0
    device: str = "auto"
    output: str = "runs/eval"
    cache: str = "runs/eval/cache"

    def __post_init__(self) -> None:
        if self.setting not in (*SETTINGS, "all"):
            raise ValueError(f"setting is {', '.join(SETTINGS)} or all, found {self.setting!r}")
        if self.protocol not in PROTOCOLS:
            raise ValueError(f"protocol is {' or '.join(PROTOCOLS)}, found {self.protocol!r}")
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
        if self.device not in ("auto", "cpu", "cuda"):
            raise ValueError(f"device is auto, cpu or cuda, found {self.device!r}")

    @property
    def settings(self) -> tuple[str, ...]:
        """The settings that are run."""
        return SETTINGS if self.setting == "all" else (self.setting,)
