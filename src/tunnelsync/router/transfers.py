"""What runs, and what has ended: every transfer by its request id, both bounded."""

import logging
import time
from collections import Counter, OrderedDict, defaultdict
from dataclasses import dataclass, field

from tunnelsync.errors import Forbidden, RouterBusy, TransferUnknown
from tunnelsync.identity import Mac
from tunnelsync.protocol import printable
from tunnelsync.router.transfer import Transfer
from tunnelsync.settings import RouterSettings
from tunnelsync.transfer import EACH, level_of

log = logging.getLogger("tunnelsync.router")


@dataclass(slots=True)
class Tally:
    """Sums over the transfers that ended, for the metrics."""

    ended: Counter[tuple[str, str]] = field(default_factory=Counter)
    seconds: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))
    relayed_bytes: int = 0

    def add(self, transfer: Transfer) -> None:
        """Count a transfer that has ended."""
        mode = transfer.mode_used or transfer.mode
        self.ended[mode, str(transfer.outcome)] += 1
        self.seconds[mode] += transfer.seconds
        self.relayed_bytes += transfer.written


@dataclass(slots=True)
class Transfers:
    """The transfers that run, and for their receipts those that ended."""

    settings: RouterSettings
    running: dict[str, Transfer] = field(default_factory=dict)
    past: OrderedDict[str, tuple[float, Transfer]] = field(default_factory=OrderedDict)
    tally: Tally = field(default_factory=Tally)

    def add(self, transfer: Transfer, of_connector: int) -> None:
        """Take in a new transfer, of whose connector so many run; or raise `RouterBusy`."""
        if of_connector >= self.settings.connector_transfers:
            raise RouterBusy(f"{of_connector} transfers of connector {transfer.mac} are under way")
        if len(self.running) >= self.settings.transfers:
            raise RouterBusy(f"{len(self.running)} transfers are under way")
        self.running[transfer.request_id] = transfer

    def retire(self, transfer: Transfer) -> None:
        """Log a transfer that has ended, and keep its receipt; drop the oldest of them."""
        self.running.pop(transfer.request_id, None)
        self.tally.add(transfer)
        _log(transfer)
        transfer.whom = ""  # no receipt tells it
        now = time.monotonic()
        self.past[transfer.request_id] = (now, transfer)
        while self.past:
            since, _ = next(iter(self.past.values()))
            young = now - since < self.settings.receipt_seconds
            if young and len(self.past) <= self.settings.receipts:
                break
            self.past.popitem(last=False)

    def find(self, request_id: str) -> Transfer:
        """Return a transfer by its id, running or past, or raise `TransferUnknown`."""
        if request_id in self.running:
            return self.running[request_id]
        since, transfer = self.past.get(request_id, (0.0, None))
        if transfer is None or time.monotonic() - since >= self.settings.receipt_seconds:
            raise TransferUnknown(f"no transfer has the request id {request_id[:64]!r}")
        return transfer

    def claim(self, request_id: str, mac: Mac | None) -> Transfer:
        """Return the transfer that this connector was given, or raise `Forbidden`."""
        transfer = self.find(request_id)
        if mac != transfer.mac:
            raise Forbidden(f"request {request_id} was not sent to {mac or 'an unnamed connector'}")
        return transfer


def _log(transfer: Transfer) -> None:
    error = transfer.error
    about = {
        "transfer": transfer.request_id,
        "mode": transfer.mode_used or transfer.mode,
        "dataset": transfer.dataset,
        "mac": transfer.mac,
        "whom": transfer.whom,
        "outcome": transfer.outcome,
        "bytes": transfer.written,
        "seconds": transfer.seconds,
        "code": error and error.code,
    }
    log.log(
        level_of(error),
        "transfer %s: %s of %s from %s to %s: %s, %d bytes in %.3f s%s",
        transfer.request_id,
        about["mode"],
        printable(transfer.dataset),
        transfer.mac,
        transfer.whom,
        transfer.outcome,
        transfer.written,
        transfer.seconds,
        f" ({error.code}: {error.message})" if error else "",
        extra={"kind": EACH, "about": about},
    )
