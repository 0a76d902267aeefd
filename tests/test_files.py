"""Files are whole or absent."""

import errno
import hashlib

import pytest

from ctflow.files import file_sha256, replaced, write_text


def test_a_file_takes_its_name_when_it_is_whole(tmp_path):
    path = tmp_path / "new" / "a.nii.gz"
    with replaced(path) as temporary:
        temporary.write_bytes(b"one")
        assert not path.exists() and temporary.name.endswith(".nii.gz")
    assert path.read_bytes() == b"one" and list(path.parent.iterdir()) == [path]
    assert file_sha256(path) == hashlib.sha256(b"one").hexdigest()


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "a.txt"
    write_text(path, "old ✓")
    with pytest.raises(KeyboardInterrupt), replaced(path) as temporary:
        temporary.write_text("half", encoding="utf-8")
        raise KeyboardInterrupt
    assert path.read_text(encoding="utf-8") == "old ✓" and list(tmp_path.iterdir()) == [path]


def test_a_failed_write_is_told_with_the_name_of_the_file(tmp_path):
    (tmp_path / "folder").mkdir()
    with pytest.raises(IsADirectoryError, match=r"folder'$"):
        write_text(tmp_path / "folder", "x")
    for error, words in (
        (OSError(errno.ENOSPC, "No space left on device"), "No space left on device: '.*/a.bin'$"),
        (OSError("9 requested and 2 written"), "9 requested and 2 written: '.*/a.bin'$"),
    ):
        with pytest.raises(OSError, match=words), replaced(tmp_path / "a.bin"):
            raise error
    with pytest.raises(FileNotFoundError, match="elsewhere"), replaced(tmp_path / "a.bin"):
        raise FileNotFoundError(errno.ENOENT, "No such file", "elsewhere")
