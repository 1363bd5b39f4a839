"""``tunnelsync digest``: the root of a file here, to compare with that of a dataset."""

from collections.abc import Iterator
from typing import BinaryIO

import click

from tunnelsync import frames
from tunnelsync.cli import options, output
from tunnelsync.errors import NotFound, ReadFailed
from tunnelsync.protocol import printable


@click.command()
@click.argument("file")
@options.json_flag
def digest(file: str, as_json: bool) -> None:
    """Print the root of FILE: BLAKE3 over the digests of its 4 MiB blocks."""
    hint = "Give the path of a regular file that you may read."
    try:
        with open(file, "rb") as opened:
            root = frames.root(_digests(opened))
            size = opened.tell()
    except FileNotFoundError:
        raise NotFound(f"there is no file {printable(file)}", hint=hint) from None
    except OSError as exc:
        raise ReadFailed(f"cannot read {printable(file)}: {exc.strerror}", hint=hint) from None
    except ValueError:
        raise NotFound(f"{printable(file)} cannot be the name of a file", hint=hint) from None
    if as_json:
        output.success(root=root, file=printable(file)[1:-1], size=size)
    else:
        output.line(f"{root}  {output.shown_name(file)}")


def _digests(opened: BinaryIO) -> Iterator[bytes]:
    while block := opened.read(frames.BLOCK_BYTES):
        yield frames.digest(block)
