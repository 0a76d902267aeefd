"""Texts made from texts: parts of reports, reports of other patients, and pairs that differ in one thing."""

from __future__ import annotations

import random
import re

from ctflow.reports import mirrored, parse_report, parse_sentence, sentences

LOBES = ("right upper lobe", "right middle lobe", "right lower lobe", "left upper lobe", "left lower lobe")
SIZES = ("small", "moderate", "large")
_LOBE = re.compile(r"\b(?:right|left) (?:upper|middle|lower) lobe\b", re.IGNORECASE)
_SIZE = re.compile(r"\b(?:small|moderate|large)\b", re.IGNORECASE)
_SEVERITY = re.compile(r"\b(?:mild|severe)\b", re.IGNORECASE)
_NUMBER = re.compile(r"\b\d+(?= ?(?:mm|ml)\b)")
_MOST_SENTENCES = 3
_MOST_COMPILED, _MOST_SIDED = 12, 4


def shortened(text: str, rng: random.Random) -> str:
    """One to three sentences of a report, in their order: what users type."""
    parts = sentences(text)
    count = min(rng.randint(1, _MOST_SENTENCES), len(parts))
    return " ".join(parts[i] for i in sorted(rng.sample(range(len(parts)), count)))


def compiled(texts: list[str], rng: random.Random, sided: bool = False) -> str:
    """A report of sentences from many: no two of them have been read together before.

    With ``sided`` a short one, of sentences that name sides, each mirrored or not: what is where must be read
    finding by finding.
    """
    parts = [part for text in texts for part in sentences(text)]
    if not sided:
        return " ".join(rng.sample(parts, min(rng.randint(4, _MOST_COMPILED), len(parts))))
    parts = [part for part in parts if mirrored(part) != part] or parts
    parts = rng.sample(parts, min(rng.randint(2, _MOST_SIDED), len(parts)))
    return " ".join(mirrored(part) if rng.random() < 0.5 else part for part in parts)


def reworded(text: str, rng: random.Random) -> str:
    """The report of another patient: sides, lobes, words of size and numbers exchanged, each now and then.

    Equal words become equal words, so that findings and impression go on agreeing.
    """
    if rng.random() < 0.5:
        text = mirrored(text)
    if rng.random() < 0.3:
        text = _exchanged(text, _LOBE, dict(zip(LOBES, rng.sample(LOBES, len(LOBES)), strict=True)))
    if rng.random() < 0.3:
        text = _exchanged(text, _SIZE, dict(zip(SIZES, rng.sample(SIZES, len(SIZES)), strict=True)))
    if rng.random() < 0.3:
        factor = 2.0 ** rng.uniform(-1.0, 1.0)
        text = _NUMBER.sub(lambda m: str(_rounded(int(m.group()) * factor)), text)
    return text


def resized(text: str) -> str:
    """The text with small and large exchanged, and mild and severe; capitals stay."""
    text = _exchanged(text, _SIZE, {"small": "large", "large": "small", "moderate": "moderate"})
    return _exchanged(text, _SEVERITY, {"mild": "severe", "severe": "mild"})


def contrast(text: str, rng: random.Random) -> str:
    """A text that differs in one thing: one finding on the other side, all sides, or (one of four) sizes."""
    other = mirrored(text)
    if other == text or rng.random() < 0.25:
        larger = resized(text)
        return larger if larger != text else other
    return mirrored_finding(text, rng) if rng.random() < 0.6 else other


def mirrored_finding(text: str, rng: random.Random) -> str:
    """The text with the sentences of one finding mirrored, the others as they are."""
    labels = sorted({f.label for f in parse_report(text) if f.side in ("right", "left")})
    if not labels:
        return mirrored(text)
    label = rng.choice(labels)
    parts = sentences(text)
    return " ".join(mirrored(p) if any(f.label == label for f in parse_sentence(p)) else p for p in parts)


def _exchanged(text: str, pattern: re.Pattern[str], words: dict[str, str]) -> str:
    def swap(match: re.Match[str]) -> str:
        word = match.group()
        other = words.get(word.lower(), word.lower())
        return other.capitalize() if word[0].isupper() else other

    return pattern.sub(swap, text)


def _rounded(number: float) -> int:
    """Whole millimetres; millilitres in fifties, as reports give them."""
    return max(1, round(number)) if number < 100 else 50 * round(number / 50)
