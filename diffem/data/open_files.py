"""Files that stay open between reads, the few that were used last."""

import weakref
from collections import OrderedDict
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import NamedTuple

from diffem.data.reader import Content, Whole
from diffem.data.recent import RecentArrays

OPEN = 8  # files that are open at once


class _Open(NamedTuple):
    stamp: tuple[int, ...]
    scope: ExitStack
    content: Content


class OpenFiles:
    """Keeps files open from which several measurements are taken, up to 8.

    To find the pages of a large file again takes longer than to read some. A file that was changed
    is opened anew. Arrays that are read as a whole are kept in memory, those read last.
    """

    def __init__(self) -> None:
        self._open: OrderedDict[Path, _Open] = OrderedDict()
        self._arrays = RecentArrays()
        weakref.finalize(self, _close, self._open)

    def content(self, file: Path, opening: AbstractContextManager[Content]) -> Content:
        """Returns what a file holds, which stays open.

        Arguments:
            file: The file.
            opening: What opens it, if it is not open.

        Raises:
            OSError: If there is no such file.
            Exception: Of any type, if it cannot be opened.
        """
        state = file.stat()
        stamp = (state.st_mtime_ns, state.st_size, state.st_ino)
        if file in self._open and self._open[file].stamp == stamp:
            self._open.move_to_end(file)
        else:
            if file in self._open:
                self._open.pop(file).scope.close()
            self._arrays.forget(file)
            scope = ExitStack()
            self._open[file] = _Open(stamp, scope, scope.enter_context(opening))
            while len(self._open) > OPEN:
                self._open.popitem(last=False)[1].scope.close()
        content = self._open[file].content
        if isinstance(content.array, Whole):
            content = content._replace(array=self._arrays.get(file, content.array.load))
        return content


def _close(opened: OrderedDict[Path, _Open]) -> None:
    while opened:
        opened.popitem()[1].scope.close()
