"""Mirrored reports."""

from __future__ import annotations

from ctflow.reports import mirrored, parse_report


def test_sides_change_and_nothing_else() -> None:
    text = "Right effusion; LEFT lung, right-sided, rightward. RUL and LLL. Bright left lobe, leftover."
    other = "Left effusion; RIGHT lung, left-sided, leftward. LUL and RLL. Bright right lobe, leftover."
    assert mirrored(text) == other
    assert mirrored(other) == text


def test_a_text_without_sides_stays() -> None:
    text = "The heart is enlarged. No effusion on either side."
    assert mirrored(text) == text


def test_the_parser_reads_the_other_side() -> None:
    text = "There is a large right pleural effusion and a 9 mm nodule in the left upper lobe."
    (effusion, nodule) = parse_report(mirrored(text))
    assert (effusion.side, effusion.grade) == ("left", "large")
    assert (nodule.lobe, nodule.size_mm) == ("right upper lobe", 9.0)
