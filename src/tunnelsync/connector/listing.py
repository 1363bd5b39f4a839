"""One folder under the root, listed in pages; runs on the executor of ``source.py``."""

import os
import stat
from collections.abc import Callable, Sequence

from tunnelsync.connector.jail import is_special
from tunnelsync.errors import NotADataset, NotFound, ReadFailed, Refused, TooLarge
from tunnelsync.protocol import ListAnswer, ListEntry, printable

Open = Callable[[str], tuple[int, os.stat_result]]
"""Opens a name inside the jail: a descriptor of a regular file or a folder, and what it is."""


def etag_of(found: os.stat_result) -> str:
    """Return the version of a dataset: its size, and when it and its inode changed."""
    return f"{found.st_size:x}-{found.st_mtime_ns:x}-{found.st_ctime_ns:x}"


class Folders:
    """Lists folders that are opened through the jail, of at most ``most`` entries each."""

    def __init__(self, opener: Open, most: int) -> None:
        self._open = opener
        self._most = most

    def page(self, folder: str, after: str, limit: int) -> ListAnswer:
        """Return the names after ``after``, in order; raises what `Root.list` raises."""
        fd, found = self._open(folder or ".")
        try:
            if not stat.S_ISDIR(found.st_mode):
                raise NotADataset(f"{printable(folder)} is a dataset, not a folder")
            names, unlisted = self._names(fd, folder)
            wanted = sorted(name for name in names if name > after)
            looked = [self._look(fd, folder, name) for name in wanted[:limit]]
        except OSError as exc:
            raise ReadFailed(f"folder {printable(folder)}: {exc.strerror}") from exc
        finally:
            os.close(fd)
        entries = tuple(entry for entry in looked if entry is not None)
        following = wanted[limit - 1] if len(wanted) > limit else None
        return ListAnswer(entries, following, unlisted + looked.count(None))

    def _names(self, fd: int, folder: str) -> tuple[Sequence[str], int]:
        """Return the names in a folder that can be served, and how many cannot."""
        names, unlisted = [], 0
        with os.scandir(fd) as found:
            for count, one in enumerate(found, 1):
                if count > self._most:
                    raise _crowded(folder, self._most)
                try:
                    name = os.fsencode(one.name).decode()
                except UnicodeDecodeError:
                    unlisted += 1
                    continue
                plain = one.is_file(follow_symlinks=False)
                if plain or self._look(fd, folder, name) is not None:
                    names.append(name)
                else:
                    unlisted += 1
        return names, unlisted

    def _look(self, fd: int, folder: str, name: str) -> ListEntry | None:
        """Return the entry of a name in an open folder, or None if it cannot be served."""
        try:
            found = os.stat(name.encode(), dir_fd=fd, follow_symlinks=False)
            if stat.S_ISLNK(found.st_mode):
                target, found = self._open(f"{folder}/{name}" if folder else name)
                os.close(target)
        except (OSError, NotFound, Refused, ReadFailed):
            return None
        if is_special(found):
            return None
        if stat.S_ISDIR(found.st_mode):
            return ListEntry(name, "folder")
        return ListEntry(name, "dataset", found.st_size, etag_of(found), found.st_mtime_ns)


def _crowded(folder: str, limit: int) -> TooLarge:
    where = f"folder {printable(folder)}" if folder else "the root"
    return TooLarge(
        f"{where} has more than {limit} entries, which is the most that a listing sorts",
        hint="Name its datasets directly, spread them over folders, or raise the connector's "
        "setting folder_entries.",
    )
