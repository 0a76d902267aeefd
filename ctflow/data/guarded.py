"""A file that HDF5 can write to on a disk that is full."""

from __future__ import annotations

import io
import os
from pathlib import Path


class GuardedStream(io.RawIOBase):
    """Keeps the first error of the operating system instead of raising it.

    HDF5 ends the whole process (a segmentation fault) where a write fails under it. Here every write seems to
    succeed, and the writer asks with ``check`` whether all of them did.

    Args:
        path: Made or emptied.

    Raises:
        OSError: It cannot be made.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._path = path
        self._file = path.open("w+b", buffering=0)
        self._position = 0
        self._error: OSError | None = None

    def check(self) -> None:
        """Raise the first error that was kept.

        Raises:
            OSError: A write failed; names the file.
        """
        if self._error is not None:
            raise OSError(self._error.errno, self._error.strerror, str(self._path))

    def sync(self) -> None:
        """Wait until everything is on the disk."""
        if self._error is None:
            try:
                os.fsync(self._file.fileno())
            except OSError as error:
                self._error = error

    def readable(self) -> bool:
        """HDF5 reads back what it wrote."""
        return True

    def writable(self) -> bool:
        """Yes."""
        return True

    def seekable(self) -> bool:
        """Yes."""
        return True

    def tell(self) -> int:
        """The place of the next byte."""
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Go to a place."""
        base = {
            os.SEEK_SET: 0,
            os.SEEK_CUR: self._position,
            os.SEEK_END: os.fstat(self._file.fileno()).st_size,
        }
        self._position = base[whence] + offset
        return self._position

    def readinto(self, buffer: bytearray | memoryview) -> int:  # type: ignore[override]
        """Read; zeros where a failed write left nothing."""
        view = memoryview(buffer).cast("B")
        data = os.pread(self._file.fileno(), len(view), self._position)
        view[: len(data)] = data
        if self._error is not None:
            view[len(data) :] = bytes(len(view) - len(data))
            data = bytes(len(view))
        self._position += len(data)
        return len(data)

    def write(self, data: bytes | memoryview) -> int:  # type: ignore[override]
        """Write all of it, or keep the error."""
        view = memoryview(data).cast("B")
        length, done = len(view), 0
        try:
            while self._error is None and done < length:
                done += os.pwrite(self._file.fileno(), view[done:], self._position + done)
        except OSError as error:
            self._error = error
        self._position += length
        return length

    def truncate(self, size: int | None = None) -> int:
        """Set the length, or keep the error."""
        size = self._position if size is None else size
        try:
            os.ftruncate(self._file.fileno(), size)
        except OSError as error:
            self._error = self._error or error
        return size

    def close(self) -> None:
        """Close the file itself."""
        if not self.closed:
            self._file.close()
        super().close()
