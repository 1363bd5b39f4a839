"""The one place that prints: results to stdout, words for people to stderr, errors to exit codes.

What comes from elsewhere (names, messages) is escaped, so that it moves no cursor and forges no
line. With ``--json`` stdout carries exactly one JSON object, also for an error.
"""

import errno
import os
import secrets
import sys
import traceback
from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import Any

import click

from tunnelsync import wire
from tunnelsync.errors import (
    Cancelled,
    Internal,
    ReadFailed,
    TunnelSyncError,
    Usage,
    WriteFailed,
)
from tunnelsync.protocol import error_answer, printable

UNWRITABLE = frozenset({errno.EPIPE, errno.ENOSPC, errno.EIO, errno.EBADF})
"""What click's own printing, of help and version, may raise; ours is caught where it is."""

_as_json = False
_debug = False


class Interrupted(Exception):
    """A signal ended the command; ``code`` is the exit code for it."""

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code


def prepare(*, as_json: bool, debug: bool) -> None:
    """Set up stdout and stderr for a run; called once, before the command."""
    global _as_json, _debug
    _as_json, _debug = as_json, debug
    _occupy_closed()
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def _occupy_closed() -> None:
    """Keep a closed standard descriptor from becoming a socket's, and then being written to."""
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDONLY)  # takes the lowest number, and refuses writes


def escaped(text: str) -> str:
    """Return a text for people, on one line, with what is unprintable escaped."""
    return text if text.isprintable() else printable(text)[1:-1]


def shown_name(name: str) -> str:
    """Return a name as it is, or escaped and in quotes where it holds what is unprintable."""
    return name if name.isprintable() else printable(name)


LEAST_RATE = 5000.0
"""In bytes a second: what is slower would be shown as 0 MB/s."""


def rate(bytes_per_second: float) -> str:
    """Return a rate in MB/s (10**6 bytes) with about three digits."""
    value = bytes_per_second / 1e6
    return f"{value:,.{0 if value >= 99.95 else 1 if value >= 9.995 else 2}f}"


def say(text: str) -> None:
    """Tell a person something, on stderr."""
    _write(escaped(text) + "\n")


def line(text: str) -> None:
    """Print one line of the result."""
    _put(escaped(text) + "\n")


def at_once(text: str) -> None:
    """Print one line of the result now; raise `WriteFailed` if it cannot be."""
    line(text)
    _flush_stdout()


def row(cells: Iterable[str]) -> None:
    """Print one line of the result, its cells separated by tabs."""
    _put("\t".join(map(escaped, cells)) + "\n")


def pairs(values: Mapping[str, object]) -> None:
    """Print what is known as ``name: value`` lines."""
    known = {name: value for name, value in values.items() if value is not None}
    width = max(map(len, known), default=0) + 2
    for name, value in known.items():
        line(f"{name + ':':<{width}}{value}")


def json(values: Mapping[str, Any]) -> None:
    """Print the one JSON object of a command that was asked for ``--json``."""
    _put(wire.dumps(dict(values)).decode() + "\n")


def success(**values: Any) -> None:
    """Print the JSON object of a command that succeeded."""
    json({"status": "success", **values})


def save(path: str, message: object) -> None:
    """Write a message as JSON into a file, which holds all of it or is what it was before.

    A pipe, a device or an open descriptor (``/dev/stderr``) is written to.
    """
    from tunnelsync.client.target import is_special  # here, for most commands write no file

    fresh = os.path.join(os.path.dirname(path), f".tunnelsync-{secrets.token_hex(8)}")
    try:
        special = is_special(path)
        with open(path if special else fresh, "ab" if special else "xb") as file:
            file.write(wire.dumps(message) + b"\n")
        if not special:
            os.replace(fresh, path)
    except (OSError, ValueError) as exc:
        with suppress(OSError, ValueError):
            os.unlink(fresh)
        why = exc.strerror if isinstance(exc, OSError) else "that cannot be the name of a file"
        raise WriteFailed(f"cannot write {printable(path)}: {why}") from None


def plain(message: object) -> dict[str, Any]:
    """Return the members of a message for `success`, without those that are None."""
    return wire.loads(wire.dumps(message))


def failure(error: BaseException) -> int:
    """Print an error, whatever it is, and return the exit code.

    Where it belongs on stdout, and that takes nothing, it is told on stderr.
    """
    known = _known(error)
    if _debug and isinstance(known, Internal):
        _write("".join(traceback.format_exception(error)))
    try:
        if not _as_json:
            _tell(known)
        else:
            json(failed(known))
            _flush_stdout()
    except WriteFailed:
        _silence()
        _tell(known)
    flush()
    return known.exit_code


def failed(error: TunnelSyncError, *, exit_code: int | None = None) -> dict[str, Any]:
    """Return the one JSON object of a command that ended with an error."""
    code = error.exit_code if exit_code is None else exit_code
    about: dict[str, Any] = {"exit_code": code, "retry": error.retry}
    if error.request_id:
        about["request_id"] = error.request_id
    return error_answer(_encodable(error)) | about


def _tell(error: TunnelSyncError) -> None:
    say(f"error: {error.message}")
    if error.hint:
        say(f"  hint: {error.hint}")
    if error.request_id:
        say(f"  transfer: {error.request_id}, by which the router's log names it")


def usage_error(error: click.ClickException) -> int:
    """Print what is wrong with the arguments, and return exit code 2."""
    if _as_json:
        return failure(Usage(error.format_message(), hint=_usage_hint(error)))
    if isinstance(error, click.exceptions.NoArgsIsHelpError):
        _write(error.format_message() + "\n")
        return 2
    if isinstance(error, click.UsageError) and error.ctx is not None:
        _write(error.ctx.get_usage() + "\n")
    say(f"error: {' '.join(error.format_message().split())}")
    say(f"  hint: {_usage_hint(error)}")
    return 2


def _usage_hint(error: click.ClickException) -> str:
    ctx = getattr(error, "ctx", None)
    hint = f"`{ctx.command_path} --help` shows what is possible." if ctx else "Add --help."
    if isinstance(error, click.MissingParameter) and error.param and error.param.name == "mac":
        return f"`tunnelsync connectors` lists the MACs; {hint}"
    if isinstance(error, click.NoSuchOption) and not error.option_name.startswith("--"):
        return f"A name that begins with a dash comes after `--`; {hint}"
    return hint


def interrupted(code: int) -> int:
    """Tell that a signal ended the command, unless that is its normal end (0)."""
    if code:
        failure(Cancelled("interrupted", hint=""))
    flush()
    return code


def flush() -> int:
    """Flush stderr and stdout; return the exit code for a reader of stdout that has gone, or 0."""
    try:
        if sys.stderr is not None:
            sys.stderr.flush()
    except OSError:
        _silence(2)
    try:
        _flush_stdout()
    except WriteFailed as error:
        _tell(error)
        return error.exit_code
    return 0


def _flush_stdout() -> None:
    """Raise `WriteFailed` if stdout does not take what was printed; nothing more is tried then."""
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError as exc:
        _silence()
        raise _unwritable(exc) from None


def _known(error: BaseException) -> TunnelSyncError:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    if isinstance(error, TunnelSyncError):
        return error
    if isinstance(error, OSError) and error.errno in UNWRITABLE:
        _silence()  # what is left in its buffer would fail once more
        return _unwritable(error)
    if isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE):
        hint = "Raise its limit (`ulimit -n`), or fetch with a smaller --parallel."
        return ReadFailed("this process has no descriptor left to open a file", hint=hint)
    return Internal(f"internal error: {type(error).__name__}: {error}"[:1000])


def _encodable(error: TunnelSyncError) -> TunnelSyncError:
    """Return the error with what JSON cannot hold (bytes of arguments) escaped."""
    message = error.message.encode("utf-8", "backslashreplace").decode()
    return type(error)(message, hint=error.hint)


def _put(text: str) -> None:
    """Write some of the result; raise `WriteFailed` where standard output does not take it."""
    if sys.stdout is None:  # it was closed when we began
        raise WriteFailed("cannot write to standard output: it is closed", hint="")
    try:
        sys.stdout.write(text)
    except OSError as exc:
        raise _unwritable(exc) from None


def _write(text: str) -> None:
    """Write to stderr: what is told beside the result costs no result."""
    if sys.stderr is not None:
        with suppress(OSError):
            sys.stderr.write(text)


def _unwritable(error: OSError) -> WriteFailed:
    why = "its reader has closed it" if isinstance(error, BrokenPipeError) else error.strerror
    return WriteFailed(f"cannot write to standard output: {why}", hint="")


def _silence(number: int = 1) -> None:
    """Keep the interpreter from complaining at exit about what it cannot flush."""
    try:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, number)
        os.close(null)
    except (OSError, ValueError):
        pass
