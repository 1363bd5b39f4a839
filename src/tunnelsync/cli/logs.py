"""The log of a role, on stderr: a line for each event, and not more than somebody can read."""

import json
import logging
import sys
import time
from dataclasses import dataclass

from tunnelsync.cli.output import escaped
from tunnelsync.transfer import EACH

BURST_LINES = 50
"""Of one kind of warning, so many at once; then one for each `EVERY_SECONDS`."""
EVERY_SECONDS = 5.0
MOST_KINDS = 64
"""Kinds are texts of ours and of libraries, some with an address: whoever has many makes many.
All that are beyond are of one kind."""
BEYOND = "beyond"
LINE = "%(asctime)s.%(msecs)03dZ %(levelname)s %(name)s: %(message)s"


def start(level: str, form: str) -> None:
    """Send the log to stderr: ISO time in UTC, level, logger, message; as a text or as JSON."""
    handler = logging.StreamHandler(sys.stderr)
    formatter = _Json() if form == "json" else _Escaping(LINE)
    formatter.datefmt = "%Y-%m-%dT%H:%M:%S"
    formatter.converter = time.gmtime
    handler.setFormatter(formatter)
    handler.addFilter(Readable())
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    # What no line of ours shows is not looked up for each ("Optimization", Python's logging HOWTO).
    logging._srcfile = None
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    for chatty in ("aioboto3", "aiobotocore", "boto3", "botocore"):
        # At debug they log signed headers, which are secrets.
        logging.getLogger(chatty).setLevel(max(logging.INFO, logging.root.level))


@dataclass(slots=True)
class _Kind:
    """How many lines of one kind there may be still, since when, and how many there were not."""

    lines: float
    at: float
    left_out: int = 0


class Readable(logging.Filter):
    """Keeps warnings of one kind, which one peer can cause at will, from filling the disk.

    The next one that is let through says how many were not. A kind is the text before its
    arguments are in it, or the ``kind`` that the caller gave as an ``extra``; of `EACH` none is
    left out.
    """

    def __init__(self) -> None:
        super().__init__()
        self._kinds: dict[str, _Kind] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """Tell whether a record is written."""
        name = getattr(record, "kind", record.msg)
        if record.levelno < logging.WARNING or name == EACH:
            return True
        if len(self._kinds) >= MOST_KINDS and name not in self._kinds:
            self._forget_quiet(record.created)
            if len(self._kinds) >= MOST_KINDS:
                name = BEYOND
        kind = self._kinds.setdefault(name, _Kind(BURST_LINES, record.created))
        kind.lines = min(BURST_LINES, kind.lines + (record.created - kind.at) / EVERY_SECONDS)
        kind.at = record.created
        if kind.lines < 1:
            kind.left_out += 1
            return False
        kind.lines -= 1
        if kind.left_out:
            record.msg = f"{record.getMessage()} ({kind.left_out} more of these were left out)"
            record.args = None
            kind.left_out = 0
        return True

    def _forget_quiet(self, now: float) -> None:
        """Forget the kinds of which as many lines may be written as at first."""
        quiet_seconds = BURST_LINES * EVERY_SECONDS
        self._kinds = {
            name: kind for name, kind in self._kinds.items() if now - kind.at < quiet_seconds
        }


class _Escaping(logging.Formatter):
    """A formatter whose lines are lines: names in messages cannot forge another."""

    def format(self, record: logging.LogRecord) -> str:
        return "\n".join(escaped(one) for one in super().format(record).split("\n"))

    def formatMessage(self, record: logging.LogRecord) -> str:
        record.message = escaped(record.message)
        return super().formatMessage(record)


class _Json(logging.Formatter):
    """One object a line: what a text line has, and by name what its ``about`` tells."""

    def format(self, record: logging.LogRecord) -> str:
        value = {
            "time": f"{self.formatTime(record, self.datefmt)}.{record.msecs:03.0f}Z",
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
            **getattr(record, "about", {}),
        }
        if record.exc_info:
            value["traceback"] = self.formatException(record.exc_info)
        # What no JSON can hold is escaped: the bytes of names.
        return json.dumps(value)
