"""Files of rows as one array in memory, of which no file stays open.

Maps are several times as fast as reads of single rows, but where a file was cut the kernel
answers with SIGBUS, which ends the process. So before rows are taken, the kernel is asked to copy
the last bytes of their files from the map: that it answers with an error. A file's descriptor is
closed once it is mapped, which Python's own maps do not allow before 3.13 (`trackfd`).
"""

import ctypes
import math
import os
import weakref
from collections.abc import Sequence

import numpy as np

PAGE = os.sysconf("SC_PAGESIZE")
PROT_NONE, PROT_READ = 0, 1
MAP_SHARED, MAP_PRIVATE, MAP_FIXED, MAP_ANONYMOUS = 1, 2, 0x10, 0x20  # of Linux
MADV_DONTNEED = 4
MOST_FILES = 2**14  # a process has 65,530 maps (vm.max_map_count)
MOST_COPIED = 1024  # that the kernel copies in one call (IOV_MAX)
RESIDENT = 2**30  # bytes of pages that are kept; they count as memory of the process
FAULT = 2**16  # bytes of pages that the kernel maps around the one that is used
TAIL = 8  # bytes at the end of a file


class CannotMapError(Exception):
    """The system does not have what a map needs, or does not allow it."""


class MappedRows:
    """Rows of files of the same layout, the last of which may be shorter, as one array.

    Arguments:
        files: The number of files; each is then given to `add`.
        header_bytes: What precedes the rows in each file, at least 8.
        shape: The shape of a file but the last: rows of float32 numbers, (rows, *shape).

    Raises:
        CannotMapError: If the system does not allow it.
    """

    def __init__(self, files: int, *, header_bytes: int, shape: Sequence[int]) -> None:
        if files > MOST_FILES:
            raise CannotMapError(f"{files} files are too many to map")
        self.libc = _libc()
        self.rows, row_bytes = shape[0], 4 * math.prod(shape[1:])
        self.pitch = -(-(header_bytes + self.rows * row_bytes) // PAGE) * PAGE
        self.length = files * self.pitch
        self.start = self._map(None, self.length, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1)
        weakref.finalize(self, self.libc.munmap, self.start, self.length)
        memory = memoryview((ctypes.c_ubyte * self.length).from_address(self.start))
        strides = (self.pitch, row_bytes, *np.empty((1, *shape[1:]), np.float32).strides[1:])
        self.array = np.ndarray((files, *shape), np.float32, memory, header_bytes, strides)
        self.array.flags.writeable = False
        # A map goes to the end of its last page, which may be cut: the bytes are compared, too.
        self.tails = np.full((files, 2), TAIL)  # where the last bytes of each file are: an iovec
        self.known = np.zeros(files, np.int64)  # what they are
        self.used_bytes, self.touched = max(row_bytes, FAULT), 0

    def add(self, number: int, file: int) -> None:
        """Maps an open file, which may be closed afterwards.

        Arguments:
            number: Which of the files it is.
            file: Its descriptor.

        Raises:
            CannotMapError: If the system does not allow it.
        """
        place, size = self.start + number * self.pitch, os.fstat(file).st_size
        self._map(place, size, PROT_READ, MAP_SHARED | MAP_FIXED, file)
        self.tails[number, 0] = place + size - TAIL
        tail = os.pread(file, TAIL, size - TAIL)
        self.known[number] = np.frombuffer(tail, np.int64)[0]

    def take(self, index: np.ndarray) -> np.ndarray | None:
        """Returns a copy of rows, (n, *shape); None if a file of theirs was cut.

        Arguments:
            index: The numbers of the rows, (n,), int64, each in [0, N).
        """
        files = index // self.rows
        wanted = np.flatnonzero(np.bincount(files))
        last = np.empty(len(wanted), np.int64)
        for start in range(0, len(wanted), MOST_COPIED):
            part = slice(start, start + MOST_COPIED)
            if not _copy(self.libc, self.tails[wanted[part]], last[part]):
                return None
        if not np.array_equal(last, self.known[wanted]):
            return None
        self.touched += len(index) * self.used_bytes
        if self.touched > RESIDENT:
            self.touched = 0
            if self.length > RESIDENT:  # the system keeps the pages, but not as this process's
                self.libc.madvise(self.start, self.length, MADV_DONTNEED)
        return self.array[files, index - files * self.rows]

    def _map(self, start: int | None, length: int, allowed: int, flags: int, file: int) -> int:
        """Maps a file, or reserves memory, and returns where it is."""
        place = self.libc.mmap(start, length, allowed, flags, file, 0)
        if place in (None, ctypes.c_void_p(-1).value):
            raise CannotMapError(os.strerror(ctypes.get_errno()))
        return place


def _copy(libc: ctypes.CDLL, source: np.ndarray, to: np.ndarray) -> bool:
    """Copies from each of at most 1,024 places, one after the other.

    Arguments:
        libc: The C library.
        source: The address and the number of bytes of each place, (n, 2), int64.
        to: An array of the size of all of them.

    Returns:
        Whether all of them can be read.
    """
    target = np.array([to.ctypes.data, to.nbytes])
    copied = libc.process_vm_readv(
        os.getpid(), target.ctypes.data, 1, source.ctypes.data, len(source), 0
    )
    return copied == to.nbytes


def _libc() -> ctypes.CDLL:
    """Returns the C library, with the types of what is used of it.

    Raises:
        CannotMapError: If it lacks a part, or a part is not allowed (by seccomp, in a container).
    """
    libc = ctypes.CDLL(None, use_errno=True)
    word, place, size = ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t
    try:
        libc.mmap.argtypes = [place, size, word, word, word, ctypes.c_long]
        libc.mmap.restype = place
        libc.munmap.argtypes = [place, size]
        libc.madvise.argtypes = [place, size, word]
        libc.process_vm_readv.argtypes = [word, place, size, place, size, size]
        libc.process_vm_readv.restype = ctypes.c_ssize_t
    except AttributeError as error:
        raise CannotMapError(str(error)) from error
    own = np.array([1], np.int64)
    if not _copy(libc, np.array([[own.ctypes.data, own.nbytes]]), np.empty_like(own)):
        raise CannotMapError(os.strerror(ctypes.get_errno()))
    return libc
