"""Mode auto: the connector chooses between stream and offload, with no further round trip."""

import logging

from tunnelsync.connector import stream
from tunnelsync.connector.offload import Offload
from tunnelsync.connector.source import Source
from tunnelsync.connector.stream import Report
from tunnelsync.connector.upload import Upload
from tunnelsync.errors import StoreRefused, StoreUnavailable, Unsupported
from tunnelsync.protocol import GetDatasetAuto, Mode

log = logging.getLogger("tunnelsync.connector")


def chosen(command: GetDatasetAuto, size: int, offload: Offload, from_bytes: int) -> Mode:
    """Return stream or offload: the store is worth its detour for large datasets and large parts.

    Raises `Unsupported` if the other side takes neither.
    """
    streams = Mode.STREAM in command.accept
    asked = size - command.offset if command.length is None else command.length
    worth_it = command.conditions.range is None and asked >= from_bytes
    if Mode.OFFLOAD in command.accept and offload.configured and (worth_it or not streams):
        return Mode.OFFLOAD
    if not streams:
        raise Unsupported("neither stream nor offload is possible between these two")
    return Mode.STREAM


async def send(
    upload: Upload, offload: Offload, command: GetDatasetAuto, source: Source, report: Report
) -> None:
    """Send the dataset in the mode chosen; when the store fails, stream it if that is accepted.

    Raises what `stream.send` and `Offload.send` raise.
    """
    mode = chosen(command, source.size, offload, upload.settings.auto_offload_bytes)
    if mode is Mode.OFFLOAD:
        try:
            await offload.send(command, source, report)
            return
        except (StoreUnavailable, StoreRefused) as exc:
            if Mode.STREAM not in command.accept:
                raise
            log.warning("transfer %s: streamed instead: %s", command.request_id, exc.message)
    await stream.send(upload, command, source, report)
