"""The radiologist: findings and impressions in varied plain English, told from the specification alone."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from data_prep.phantom import phrases
from data_prep.phantom.spec import Finding, PhantomSpec


@dataclass(frozen=True)
class Report:
    """A report in CT-RATE's four parts.

    Attributes:
        clinical_information: Why the scan was made.
        technique: How.
        findings: What is seen.
        impressions: What it means.
    """

    clinical_information: str
    technique: str
    findings: str
    impressions: str

    @property
    def text(self) -> str:
        """Findings and impressions as one text, as the ingest joins them."""
        return f"{self.findings} {self.impressions}"


class Wording:
    """Choices of words: a stream per topic, so that a new finding leaves other sentences alone."""

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def stream(self, topic: str) -> np.random.Generator:
        """The random stream of a topic."""
        return np.random.default_rng([self.seed, *topic.encode()])

    def pick(self, topic: str, options: tuple[str, ...], **values: object) -> str:
        """One of the options, filled in."""
        chosen = options[int(self.stream(topic).integers(len(options)))]
        text = chosen.format(**values)
        return text[0].upper() + text[1:]


def report_for(spec: PhantomSpec) -> Report:
    """The report of a phantom.

    Args:
        spec: Anatomy, scan and findings; the wording follows ``spec.report_seed``.

    Returns:
        A report whose sides, lobes, numbers and sizes are the specification's.
    """
    words = Wording(spec.report_seed)
    by_label: dict[str, list[Finding]] = {}
    for finding in spec.findings:
        by_label.setdefault(finding.label, []).append(finding)
    if spec.topic:
        return _on_topic(words, spec.topic, by_label)
    abnormal, short = [], []
    for label, group in by_label.items():
        sentence, impression = _tell(words, label, group)
        abnormal.append((phrases.ORGANS[label], sentence))
        short.append((phrases.WEIGHTS[label], impression))
    normal = _normal_statements(words, spec, by_label)
    findings = _arranged(words, abnormal, normal)
    if short:
        short.sort(key=lambda pair: -pair[0])
        impressions = " ".join(text for _, text in short)
    else:
        impressions = words.pick("nothing", phrases.NOTHING)
    enhanced = "with" if spec.anatomy.contrast_hu else "without"
    return Report(
        clinical_information=words.pick("reason", phrases.REASONS),
        technique=words.pick("technique", phrases.TECHNIQUES, contrast=f"{enhanced} contrast"),
        findings=findings,
        impressions=impressions,
    )


def _on_topic(words: Wording, label: str, by_label: dict[str, list[Finding]]) -> Report:
    """One sentence on one label, as people type it who ask for a volume; the rest stays untold."""
    if label in by_label:
        sentence, _ = _tell(words, label, by_label[label])
    else:
        usual = [options for _, _, labels, _, options in phrases.NORMAL if labels[:1] == (label,)]
        options = (*(usual[0] if usual else ()), *phrases.ABSENT)
        sentence = words.pick("no " + label, options, label=label.lower())
    return Report("", "", sentence, "")


def _arranged(words: Wording, abnormal: list[tuple[str, str]], normal: list[tuple[str, str]]) -> str:
    """Sentences organ by organ in one of the usual orders; abnormal ones first within an organ."""
    orders = phrases.ORGAN_ORDERS
    order = orders[int(words.stream("order").integers(len(orders)))]
    sentences = [(order.index(organ), 0, text) for organ, text in abnormal]
    sentences += [(order.index(organ), 1, text) for organ, text in normal]
    return " ".join(text for _, _, text in sorted(sentences, key=lambda s: s[:2]))


def _normal_statements(
    words: Wording, spec: PhantomSpec, by_label: dict[str, list[Finding]]
) -> list[tuple[str, str]]:
    """Negations: always of the common findings, of others by chance."""
    stated: list[tuple[str, str]] = []
    for topic, organ, labels, share, options in phrases.NORMAL:
        if any(label in by_label for label in labels):
            continue
        if words.stream("say " + topic).random() < share:
            stated.append((organ, words.pick("normal " + topic, options)))
    effusions = by_label.get("Pleural effusion", [])
    if len(effusions) == 1:
        other = "left" if effusions[0].side == "right" else "right"
        if words.stream("other side").random() < 0.5:
            stated.append(("pleura", words.pick("other side of", phrases.OTHER_SIDE, side=other)))
    return stated


def effusion_size(volume_ml: float) -> str:
    """The radiologist's word for a volume of pleural fluid."""
    return "small" if volume_ml < 300 else ("moderate" if volume_ml < 700 else "large")


def _tell(words: Wording, label: str, group: list[Finding]) -> tuple[str, str]:
    """(sentence, impression) of the findings of one label."""
    if label == "Pleural effusion":
        return _tell_effusion(words, group)
    if label == "Lung nodule":
        return _tell_nodules(words, group)
    first = group[0]
    sides = [f.side for f in group if f.side]
    values = {
        "size": f"{first.size_mm or 0:.0f}",
        "lobe": _join([f.lobe for f in group if f.lobe]),
        "side": "both" if len(set(sides)) > 1 else (sides[0] if sides else ""),
        "grade": first.kind,
        "sizes": _join([f"{f.size_mm or 0:.0f} mm in the {f.lobe}" for f in group]),
        "ratio": f"{first.ratio or 0:.2f}",
    }
    values["apex"] = "both lung apices" if values["side"] == "both" else f"the {values['side']} lung apex"
    key = label
    for candidate in (f"{label}/{first.kind}", f"{label}/many" if len(group) > 1 else ""):
        if candidate in phrases.ABNORMAL:
            key = candidate
    sentences, impressions = phrases.ABNORMAL[key]
    return words.pick(key, sentences, **values), words.pick("short " + key, impressions, **values)


def _join(parts: list[str]) -> str:
    """``a``, ``a and b``, ``a, b and c``."""
    return parts[0] if len(parts) == 1 else (", ".join(parts[:-1]) + " and " + parts[-1] if parts else "")


def _tell_effusion(words: Wording, group: list[Finding]) -> tuple[str, str]:
    sizes = {f.side: effusion_size(f.volume_ml or 0.0) for f in group}
    volumes = {f.side: f"{50 * round((f.volume_ml or 0.0) / 50):d}" for f in group}
    if len(group) == 1:
        side = group[0].side
        values = {"side": side, "size": sizes[side], "volume": volumes[side]}
        return (
            words.pick("effusion", phrases.EFFUSION, **values),
            words.pick("short effusion", phrases.EFFUSION_SHORT, **values),
        )
    values = {
        "right": sizes["right"],
        "left": sizes["left"],
        "right_volume": volumes["right"],
        "left_volume": volumes["left"],
    }
    return (
        words.pick("effusions", phrases.EFFUSIONS, **values),
        words.pick("short effusions", phrases.EFFUSIONS_SHORT, **values),
    )


_NUMBERS = {2: "two", 3: "three", 4: "four"}


def _tell_nodules(words: Wording, group: list[Finding]) -> tuple[str, str]:
    kind = group[0].kind
    if len(group) == 1:
        values = {"kind": kind, "size": f"{group[0].size_mm:.0f}", "lobe": group[0].lobe}
        return (
            words.pick("nodule", phrases.NODULE, **values),
            words.pick("short nodule", phrases.NODULE_SHORT, **values),
        )
    places = _join([f"{f.size_mm:.0f} mm in the {f.lobe}" for f in group])
    largest = max(group, key=lambda f: f.size_mm or 0.0)
    values = {
        "number": _NUMBERS.get(len(group), str(len(group))),
        "kind": kind,
        "places": places,
        "size": f"{largest.size_mm:.0f}",
        "lobe": largest.lobe,
    }
    return (
        words.pick("nodules", phrases.NODULES, **values),
        words.pick("short nodules", phrases.NODULES_SHORT, **values),
    )
