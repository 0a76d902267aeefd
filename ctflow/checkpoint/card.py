"""Model cards as the Hugging Face hub reads them: YAML metadata, then Markdown."""

from __future__ import annotations

from ctflow.config.system import SystemConfig

TAGS = ["text-to-ct", "ct", "chest", "radiology", "medical", "flow-matching", "synthetic-data"]
METRICS = ["fid_rand2d", "kid_rand2d", "fvd_rand3d_f16", "clip_phantom"]
"""Metrics that ``ctflow.eval`` reports without trained backbones."""
_DATA = {
    "CT-RATE": ("ibrahimhamamci/CT-RATE", "cc-by-nc-sa-4.0"),
    "phantom": ("ctflow-phantoms", "apache-2.0"),
}
"""Word of a provenance: data set, and the licence that weights trained on it have."""


def with_metadata(card: str, config: SystemConfig) -> str:
    """A card that begins with metadata; one that has its own stays as it is.

    Licence and data sets follow from what the provenance says of the training; where it names none that is
    known here, the licence is ``other``.

    Args:
        card: Markdown; empty: a short description is written.
        config: Of the system, with its provenance.
    """
    if card.lstrip().startswith("---"):
        return card
    from huggingface_hub import ModelCardData  # takes a second

    known = [entry for word, entry in _DATA.items() if word.lower() in str(config.provenance).lower()]
    data = ModelCardData(
        language="en",
        license=known[0][1] if known else "other",
        library_name="ctflow",
        pipeline_tag="text-to-3d",
        tags=TAGS,
        datasets=[name for name, _ in known] or None,
        metrics=METRICS,
    )
    return f"---\n{data.to_yaml()}\n---\n\n{card.strip() or _description(config)}\n"


def _description(config: SystemConfig) -> str:
    size, z = config.image_size, config.z_spacing_mm
    return f"""# A ctflow checkpoint

A radiology report becomes a chest CT in Hounsfield units: {size}×{size} pixels of
{config.pixel_spacing_mm:g} mm, slices {z:g} mm apart. Parts: `avae/` (slice-wise autoencoder), `fmvt/`
(flow-matching transformer), `clip/` (text encoder); all weights are safetensors.

```python
import ctflow

model = ctflow.CTFlow.from_pretrained("this/repository")
volume = model.generate("Small right pleural effusion.", seed=1)
```

Generated volumes are synthetic, show no patient, and are not for clinical use.
"""
