"""Mode stream: what a command asks for, as an init and a body, which `Sending` brings away."""

from dataclasses import replace

from tunnelsync.batch import Item
from tunnelsync.connector import conditions
from tunnelsync.connector.body import Body
from tunnelsync.connector.sending import Report, Sending
from tunnelsync.connector.source import Source
from tunnelsync.connector.upload import Upload
from tunnelsync.errors import PreconditionFailed, RangeNotSatisfiable, Unsupported
from tunnelsync.protocol import (
    Coding,
    Conditions,
    GetDatasetAuto,
    GetDatasetStream,
    Init,
    printable,
)

__all__ = ["Report", "plan", "require_match", "send"]

StreamCommand = GetDatasetStream | GetDatasetAuto


async def send(upload: Upload, command: StreamCommand, source: Source, report: Report) -> None:
    """Send what the command asks for. Whatever it raises, nothing was sent before.

    Raises `PreconditionFailed`, `RangeNotSatisfiable`, `DatasetChanged` or `ReadFailed`.
    """
    init, body = plan(command, source, from_file=upload.from_file)
    try:
        await body.prepare()
        whole, complete = await body.whole(), body.closing(command.request_id)
        if whole is not None and complete is not None:
            item = Item(command.request_id, init, complete)
            if await upload.give(item, len(whole), whole):
                return
        await Sending(upload, init, body, report).run()
    finally:
        await body.close()


def require_match(wanted: Conditions, source: Source) -> None:
    """Raise `PreconditionFailed` unless ``If-Match``, if there is one, names this version."""
    only = Conditions(if_match=wanted.if_match)
    if conditions.select(only, size=source.size, etag=source.etag, mtime_ns=0).status == 412:
        raise PreconditionFailed(f"{printable(source.name)} has the etag {source.etag} now")


def plan(command: StreamCommand, source: Source, *, from_file: bool = False) -> tuple[Init, Body]:
    """Decide on status, part and body; no I/O."""
    if command.coding == Coding.BLOCKS:
        require_match(command.conditions, source)
        offset, length = conditions.block_range(command.offset, command.length, source.size)
        status = 200 if length == source.size else 206
        body = Body(source, offset, length, Coding.BLOCKS, from_file=from_file)
    elif command.coding == Coding.RAW:
        chosen = conditions.select(
            _ranged(command), size=source.size, etag=source.etag, mtime_ns=source.mtime_ns
        )
        status, offset = chosen.status, chosen.offset
        body = Body(source, offset, chosen.length, Coding.RAW)
    else:
        raise Unsupported(f"this connector does not know the coding {command.coding[:64]!r}")
    init = Init(
        command.request_id,
        status,
        source.size,
        source.etag,
        body.length,
        source.mtime_ns,
        offset,
    )
    return init, body


def _ranged(command: StreamCommand) -> Conditions:
    """Return the conditions, with offset and length as the range that they mean."""
    if command.offset == 0 and command.length is None:
        return command.conditions
    if command.offset < 0 or (command.length is not None and command.length < 1):
        raise RangeNotSatisfiable("a part begins within the dataset and has at least one byte")
    last = "" if command.length is None else command.offset + command.length - 1
    return replace(command.conditions, range=f"bytes={command.offset}-{last}")
