"""Which signals end a role or a command."""

import signal

ENDING = signal.SIGINT, signal.SIGTERM, signal.SIGHUP


def heeded() -> tuple[signal.Signals, ...]:
    """Return those to listen to: SIGHUP, which a terminal that is closed sends, only unless it is
    ignored, as ``nohup`` has it."""
    ignored = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    return tuple(one for one in ENDING if one is not signal.SIGHUP or not ignored)
