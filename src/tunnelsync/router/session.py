"""One process of a connector, and the link to it."""

import asyncio
from dataclasses import dataclass, field
from typing import Protocol

from tunnelsync import protocol
from tunnelsync.identity import Mac
from tunnelsync.router.transfer import Transfer
from tunnelsync.transfer import State

WAITING = (State.SENT, State.ACCEPTED)
"""The states in which a transfer needs the connector's channel; past them it lives by its bytes."""


class Link(Protocol):
    """What carries messages to one connector. Neither method waits."""

    @property
    def address(self) -> str:
        """Where the connector calls from."""

    def send(self, message: protocol.FromRouter) -> None:
        """Queue a message; raise `RouterBusy` when the queue is full, `TooLarge` for a long one."""

    def close(self, code: int, reason: str) -> None:
        """Say good-bye, after what is queued."""


@dataclass(slots=True, eq=False)
class Session:
    """One process of a connector, across the breaks of its link."""

    mac: Mac
    hello: protocol.Hello
    since: float
    epoch: int = 0
    link: Link | None = None
    token: str | None = None
    unacked: dict[str, protocol.Command] = field(default_factory=dict)
    transfers: dict[str, Transfer] = field(default_factory=dict)
    grace: asyncio.TimerHandle | None = None
    swaps: list[float] = field(default_factory=list)

    def forget_answered(self) -> None:
        """Count no command as unacknowledged whose answer has come in place of the ack."""
        for request_id, transfer in self.transfers.items():
            if transfer.state not in WAITING:
                self.unacked.pop(request_id, None)
