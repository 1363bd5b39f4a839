"""What the handlers of one router share."""

from collections import Counter
from dataclasses import dataclass, field
from functools import partial

from aiohttp import web

from tunnelsync.errors import Draining, RouterBusy
from tunnelsync.protocol import Command, GetDatasetOffload, ListDatasets, StatDataset
from tunnelsync.router.detached import Deliver, Detached
from tunnelsync.router.heartbeat import Heartbeat
from tunnelsync.router.switchboard import Switchboard
from tunnelsync.router.transfer import Transfer
from tunnelsync.settings import RouterSettings

ABOUT = ListDatasets, StatDataset, GetDatasetOffload
"""Commands whose answers hold no dataset."""


@dataclass(slots=True)
class Budget:
    """A bounded sum of bytes held in memory."""

    limit_bytes: int
    held_bytes: int = 0

    def take(self, count: int) -> None:
        """Hold more, or raise `RouterBusy`."""
        if self.held_bytes + count > self.limit_bytes:
            raise RouterBusy(
                f"the router holds {self.held_bytes} bytes of buffered answers, "
                f"of {self.limit_bytes} allowed",
                hint="Try again in a moment, or fetch with --mode stream.",
            )
        self.held_bytes += count

    def release(self, count: int) -> None:
        """Let go."""
        self.held_bytes -= count


@dataclass(slots=True)
class Router:
    """One router: its settings, and what it knows. ``store_origin`` is empty without a store.

    ``buffers`` is for datasets, ``answers`` for what is said about them, which never waits for a
    dataset that comes slowly.
    """

    settings: RouterSettings
    store_origin: str
    switchboard: Switchboard
    buffers: Budget
    answers: Budget
    heartbeat: Heartbeat
    draining: bool = False
    errors: Counter[str] = field(default_factory=Counter)
    """How many requests ended with each code."""
    detached: dict[str, Detached] = field(default_factory=dict)

    def budget(self, command: Command) -> Budget:
        """Return that of the answer to a command."""
        return self.answers if isinstance(command, ABOUT) else self.buffers

    def detach(self, transfer: Transfer, deliver: Deliver) -> None:
        """Keep a transfer whose client will come for the answer."""
        kept = Detached(transfer, deliver, self.settings.detached_seconds)
        self.detached[transfer.request_id] = kept
        transfer.at_end(partial(self.detached.pop, transfer.request_id, None))

    def refuse_when_draining(self) -> None:
        """Raise `Draining` while the router stops."""
        if self.draining:
            raise Draining("the router is shutting down")


ROUTER: web.AppKey[Router] = web.AppKey("router", Router)
