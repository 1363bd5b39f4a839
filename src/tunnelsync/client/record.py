"""What one fetch did: its transfers, its troubles and its times; and the receipt made of that.

The router keeps a receipt of each transfer. This one is the client's, of the fetch as a whole: it
lists the transfers, and `verify` needs nothing but it and the file.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tunnelsync.client.incoming import Incoming, Part
from tunnelsync.client.journal import Version
from tunnelsync.errors import TunnelSyncError
from tunnelsync.frames import Claimed
from tunnelsync.identity import Mac
from tunnelsync.protocol import Mode, Problem
from tunnelsync.transfer import Outcome, outcome_of

FORMAT = 1
TRANSFERS = 1000
"""So many transfers are listed at most; of more, the last ones."""


@dataclass(frozen=True, slots=True)
class Asked:
    """What a fetch is for."""

    router: str
    mac: Mac
    dataset: str
    mode: Mode


@dataclass(frozen=True, slots=True)
class Fetched:
    """What `TunnelSync.fetch` brought: every byte of it is verified.

    ``mode`` is the one asked for, ``mode_used`` the one that brought it; ``path`` is None where
    it went to a descriptor. ``bytes`` is the dataset's size, of which ``resumed_bytes`` were there
    from an earlier run. Times in seconds from the call; ``first_byte_seconds`` is None for an
    empty dataset whose bytes never came. ``request_id`` is that of the last transfer.
    """

    request_id: str
    mac: Mac
    dataset: str
    mode: Mode
    mode_used: Mode
    path: Path | None
    bytes: int
    resumed_bytes: int
    repaired_blocks: int
    retries: int
    seconds: float
    first_byte_seconds: float | None
    root: str
    etag: str

    @property
    def megabytes_per_second(self) -> float:
        """The rate from the call to the end of what this run brought, in 10**6 bytes per second."""
        came = self.bytes - self.resumed_bytes
        return came / 1e6 / self.seconds if self.seconds > 0 else 0.0


@dataclass(slots=True)
class Transfer:
    """One request of a fetch. Times in seconds from the beginning of the fetch.

    ``first_block`` and ``blocks`` are what came, ``bytes`` of it; ``outcome`` is one of those of
    the router's receipts, and None while it runs.
    """

    first_block: int
    began_seconds: float
    request_id: str = ""
    mode: str = ""
    blocks: int = 0
    bytes: int = 0
    outcome: str | None = None
    error: Problem | None = None
    answered_seconds: float | None = None
    first_byte_seconds: float | None = None
    ended_seconds: float | None = None

    def count(self, claim: Claimed) -> None:
        """Count a block that came."""
        self.blocks += 1
        self.bytes += sum(map(len, claim.parts))


@dataclass(frozen=True, slots=True, kw_only=True)
class FetchReceipt:
    """What one fetch did, as ``--receipt`` writes it. Sizes in bytes, times in seconds.

    ``resumed_bytes`` were there from an earlier run, ``received_bytes`` came in this one, blocks
    that were wrong or came twice among them; ``received_seconds`` is when the last block was
    proven, ``seconds`` when all was done.
    """

    format: int
    router: str
    mac: str
    dataset: str
    mode: str
    mode_used: str | None = None
    outcome: str
    error: Problem | None = None
    size: int | None = None
    etag: str | None = None
    modified_ns: int | None = None
    root: str | None = None
    resumed_bytes: int
    received_bytes: int
    repaired_blocks: int
    retries: int
    notes: tuple[str, ...]
    started_unix: float
    first_byte_seconds: float | None = None
    received_seconds: float | None = None
    seconds: float
    transfers: tuple[Transfer, ...]


class Record:
    """Gathers what a fetch does; ``notice`` is told each time something is out of the ordinary."""

    def __init__(self, notice: Callable[[str], None] | None = None) -> None:
        self.resumed_bytes = 0
        self.repaired = 0
        self.retries = 0
        self.root: str | None = None
        self.notes: list[str] = []
        self.transfers: list[Transfer] = []
        self._unlisted_bytes = 0
        self._notice = notice
        self._began_at = time.perf_counter()
        self._started_unix = time.time()
        self._received_seconds: float | None = None
        self.asked: Asked | None = None
        self.version: Version | None = None

    def ask(self, asked: Asked) -> None:
        """Note what the fetch is for; the first thing that is noted."""
        self.asked = asked

    def note(self, text: str) -> None:
        """Tell what happened, to who listens now and to the receipt."""
        self.notes = [*self.notes[1 - TRANSFERS :], text]
        if self._notice:
            self._notice(text)

    @contextmanager
    def transfer(self, part: Part) -> Iterator[Transfer]:
        """Follow one transfer to its outcome."""
        one = Transfer(part.first, self._now())
        self._unlisted_bytes += sum(old.bytes for old in self.transfers[: 1 - TRANSFERS])
        self.transfers = [*self.transfers[1 - TRANSFERS :], one]
        try:
            yield one
        except TunnelSyncError as error:
            one.outcome = outcome_of(error, begun=one.blocks > 0)
            one.error = Problem.of(error)
            one.request_id = one.request_id or error.request_id
            raise
        except BaseException:
            one.outcome = Outcome.CANCELLED
            raise
        else:
            one.outcome = Outcome.DELIVERED
        finally:
            one.ended_seconds = self._now()

    def answered(self, one: Transfer, incoming: Incoming) -> None:
        """Note that an answer has begun, and which version comes."""
        one.request_id, one.mode = incoming.request_id, incoming.mode
        one.answered_seconds = self._now()
        self.version = incoming.version

    def first_byte(self, one: Transfer, at: float | None) -> None:
        """Note when a transfer's first byte came, by ``time.perf_counter``."""
        one.first_byte_seconds = None if at is None else self._now(at)

    def received(self, root: str) -> None:
        """Note that all of it is here."""
        self.root, self._received_seconds = root, self._now()

    @property
    def last(self) -> Transfer | None:
        """The last transfer that brought something, or at least was answered."""
        answered = [one for one in self.transfers if one.answered_seconds is not None]
        return next((one for one in reversed(answered) if one.blocks), next(iter(answered), None))

    @property
    def first_byte_seconds(self) -> float | None:
        """When the first byte of all came."""
        times = [one.first_byte_seconds for one in self.transfers]
        return min((one for one in times if one is not None), default=None)

    def fetched(self, path: Path | None) -> Fetched:
        """Return what a fetch that succeeded has brought."""
        assert self.asked is not None
        assert self.version is not None
        assert self.last is not None
        assert self.root is not None
        return Fetched(
            request_id=self.last.request_id,
            mac=self.asked.mac,
            dataset=self.asked.dataset,
            mode=self.asked.mode,
            mode_used=Mode(self.last.mode),
            path=path,
            bytes=self.version.size,
            resumed_bytes=self.resumed_bytes,
            repaired_blocks=self.repaired,
            retries=self.retries,
            seconds=self._now(),
            first_byte_seconds=self.first_byte_seconds,
            root=self.root,
            etag=self.version.etag,
        )

    def receipt(self, error: BaseException | None = None) -> FetchReceipt:
        """Return the receipt of the fetch, which ended with this error, or well."""
        assert self.asked is not None
        last, version = self.last, self.version
        outcome = Outcome.CANCELLED if error else Outcome.DELIVERED
        problem = None
        if isinstance(error, TunnelSyncError):
            outcome = outcome_of(error, begun=version is not None)
            problem = Problem.of(error)
        return FetchReceipt(
            format=FORMAT,
            router=self.asked.router,
            mac=self.asked.mac,
            dataset=self.asked.dataset,
            mode=self.asked.mode,
            mode_used=last.mode if last else None,
            outcome=outcome,
            error=problem,
            size=version.size if version else None,
            etag=version.etag if version else None,
            modified_ns=version.modified_ns if version else None,
            root=self.root,
            resumed_bytes=self.resumed_bytes,
            received_bytes=self._unlisted_bytes + sum(one.bytes for one in self.transfers),
            repaired_blocks=self.repaired,
            retries=self.retries,
            notes=tuple(self.notes),
            started_unix=self._started_unix,
            first_byte_seconds=self.first_byte_seconds,
            received_seconds=self._received_seconds,
            seconds=self._now(),
            transfers=tuple(self.transfers),
        )

    def _now(self, at: float | None = None) -> float:
        return round((time.perf_counter() if at is None else at) - self._began_at, 6)
