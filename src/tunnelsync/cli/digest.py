"""``tunnelsync digest``: the root of a file here, to compare with that of a dataset."""

from collections.abc import Iterator
from typing import BinaryIO

import click

from tunnelsync import frames
from tunnelsync.cli import options, output
from tunnelsync.errors import DatasetDenied, NotADataset, NotFound, ReadFailed
from tunnelsync.protocol import printable


@click.command()
@click.argument("file")
@options.json_flag
def digest(file: str, as_json: bool) -> None:
    """Print the root of FILE (- is standard input): BLAKE3 over digests of 4 MiB blocks."""
    root, size = root_of(file)
    if as_json:
        output.success(root=root, file=printable(file)[1:-1], size=size)
    else:
        output.line(f"{root}  {output.shown_name(file)}")


def root_of(file: str) -> tuple[str, int]:
    """Read a file, or a pipe, and return its root and its size in bytes."""
    hint = "Give the path of a file that you may read, or - for standard input."
    try:
        with open(0 if file == "-" else file, "rb", closefd=file != "-") as opened:
            blocks = _Blocks(opened)
            return frames.root(blocks.digests()), blocks.size
    except FileNotFoundError:
        raise NotFound(f"there is no file {printable(file)}", hint=hint) from None
    except IsADirectoryError:
        raise NotADataset(f"{printable(file)} is a folder", hint=hint) from None
    except PermissionError:
        raise DatasetDenied(f"{printable(file)} may not be read", hint=hint) from None
    except OSError as exc:
        raise ReadFailed(f"cannot read {printable(file)}: {exc.strerror}", hint=hint) from None
    except ValueError:
        raise NotFound(f"{printable(file)} cannot be the name of a file", hint=hint) from None


class _Blocks:
    """The blocks of an open file, which may be a pipe; ``size`` in bytes is what was read."""

    def __init__(self, opened: BinaryIO) -> None:
        self._opened = opened
        self.size = 0

    def digests(self) -> Iterator[bytes]:
        """Read to the end, and yield the digest of each block."""
        while block := self._opened.read(frames.BLOCK_BYTES):
            self.size += len(block)
            yield frames.digest(block)
