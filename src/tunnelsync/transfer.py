"""The states of a transfer, the legal moves between them, and its named outcomes; no I/O.

::

    SENT --ack--> ACCEPTED --init--> FLOWING --last byte--> RELAYED --complete--> ENDED
      |              |  `--result--> ANSWERED --last byte--> ENDED
      `--------------+--- error, client gone, deadline ... --> ENDED

Code, log lines, metrics and receipts use these names and no others.
"""

import logging
from enum import StrEnum

from tunnelsync.errors import (
    Broken,
    Cancelled,
    Conflict,
    ConnectorOffline,
    ConnectorReplaced,
    RouterUnreachable,
    TimedOut,
    TunnelSyncError,
    Unavailable,
)


class State(StrEnum):
    """Where a transfer stands."""

    SENT = "sent"
    """The command is on its way to the connector."""
    ACCEPTED = "accepted"
    """The connector has acknowledged it, and it may wait there for a place."""
    ANSWERED = "answered"
    """A whole result has come, and goes to the client."""
    FLOWING = "flowing"
    """The client has its headers, and bytes follow as they arrive."""
    RELAYED = "relayed"
    """The last byte has gone to the client; the connector's closing word is awaited."""
    ENDED = "ended"
    """Over, with an outcome."""


class Event(StrEnum):
    """What can happen to a transfer."""

    ACK = "ack"
    RESULT = "result"
    INIT = "init"
    CHUNK = "chunk"
    LAST_BYTE = "last byte"
    COMPLETE = "complete"
    END = "end"


class Outcome(StrEnum):
    """How a transfer ended."""

    DELIVERED = "delivered"
    """Every byte of the answer went to the client."""
    REFUSED = "refused"
    """The connector said no before the first byte."""
    BROKEN = "broken"
    """Begun, and not finished: a read error, a changed dataset, a lost connection."""
    CANCELLED = "cancelled"
    """The client left, or asked for the end."""
    OFFLINE = "offline"
    """The connector went away, or was replaced."""
    TIMED_OUT = "timed_out"
    """A deadline passed."""


def outcome_of(error: TunnelSyncError, *, begun: bool) -> Outcome:
    """Return the outcome of a transfer that ended with this error; ``begun`` if an answer came."""
    if isinstance(error, Cancelled):
        return Outcome.CANCELLED
    if isinstance(error, ConnectorOffline | ConnectorReplaced | RouterUnreachable):
        return Outcome.OFFLINE
    if isinstance(error, TimedOut):
        return Outcome.TIMED_OUT
    return Outcome.BROKEN if begun else Outcome.REFUSED


EACH = "each"
"""The ``kind`` of log lines of which none is left out: they are as many as the transfers."""


def level_of(error: TunnelSyncError | None) -> int:
    """Return the level at which a log tells of an end: what could not be done is a warning.

    What was refused, or left by its client, is the asker's matter.
    """
    return logging.WARNING if isinstance(error, Unavailable | TimedOut | Broken) else logging.INFO


_S, _E = State, Event
MOVES: dict[State, dict[Event, State]] = {
    _S.SENT: {
        _E.ACK: _S.ACCEPTED,
        _E.RESULT: _S.ANSWERED,
        _E.INIT: _S.FLOWING,
        _E.END: _S.ENDED,
    },
    _S.ACCEPTED: {
        _E.ACK: _S.ACCEPTED,
        _E.RESULT: _S.ANSWERED,
        _E.INIT: _S.FLOWING,
        _E.END: _S.ENDED,
    },
    _S.ANSWERED: {_E.ACK: _S.ANSWERED, _E.LAST_BYTE: _S.ENDED, _E.END: _S.ENDED},
    _S.FLOWING: {
        _E.ACK: _S.FLOWING,
        _E.CHUNK: _S.FLOWING,
        _E.LAST_BYTE: _S.RELAYED,
        _E.END: _S.ENDED,
    },
    _S.RELAYED: {_E.ACK: _S.RELAYED, _E.COMPLETE: _S.ENDED, _E.END: _S.ENDED},
    _S.ENDED: {_E.ACK: _S.ENDED, _E.END: _S.ENDED},
}
"""Every legal move. What is missing here is out of order, and answered with 409."""


def move(state: State, event: Event) -> State:
    """Return the next state, or raise `Conflict` for a step that is out of order."""
    try:
        return MOVES[state][event]
    except KeyError:
        raise Conflict(f"{event} is out of order: the transfer is {state}") from None
