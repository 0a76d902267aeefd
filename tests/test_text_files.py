"""Text as editors and spreadsheets write it."""

from __future__ import annotations

import pytest

from ctflow.errors import CTFlowError
from ctflow.text_files import read_table, read_text

TEXT = "Müller: 5 mm nodule – stable"


ENCODINGS = ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "cp1252"]


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_encodings(tmp_path, encoding, caplog):
    path = tmp_path / "a.txt"
    path.write_bytes(TEXT.encode(encoding))
    assert read_text(path) == TEXT
    assert ("Windows-1252" in caplog.text) == (encoding == "cp1252")


def test_what_is_no_text(tmp_path):
    path = tmp_path / "a.txt"
    for data in (b"\x81\x8d\x8f\x90", b"abc\0\0\0def", b"\xff\xfea"):
        path.write_bytes(data)
        with pytest.raises(CTFlowError, match="no known encoding"):
            read_text(path)
    with pytest.raises(CTFlowError, match="cannot be read"):
        read_text(tmp_path / "missing.txt")


@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_separators_line_ends_and_blank_rows(tmp_path, separator, end):
    rows = [
        ["VolumeName", " Findings_EN ", "n"],
        ["a.nii", '"One; two, three\nfour"', "1"],
        ["", "", ""],
        ["b", "x"],
        [],
    ]
    path = tmp_path / "a.csv"
    path.write_bytes(end.join(separator.join(row) for row in [*rows, ["", ""], []]).encode("utf-16"))
    table = read_table(path)
    assert table.columns == ("VolumeName", "Findings_EN", "n")
    assert [row for _, row in table.rows] == [
        {"VolumeName": "a.nii", "Findings_EN": "One; two, three\nfour", "n": "1"},
        {"VolumeName": "b", "Findings_EN": "x", "n": ""},
    ]
    assert [number for number, _ in table.rows] == [2, 4]


def test_excels_own_first_line(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("sep=;\na;b\n1;2,5\n", encoding="utf-8")
    assert read_table(path).rows == ((3, {"a": "1", "b": "2,5"}),)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "is empty"),
        (",,\n", "is empty"),
        ('a,b\n"open,1\n2,3\n', "cannot be read as CSV"),
        ("a,b\nx.nii,one, two\n", "row 2 of .* has 3 cells, its header 2"),
        ("a,b,a\n1,2,3\n", "'a' twice"),
    ],
)
def test_what_is_no_table_is_told(tmp_path, text, words):
    path = tmp_path / "a.csv"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(CTFlowError, match=words):
        read_table(path)
