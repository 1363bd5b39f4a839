"""The measuring of ``tunnelsync bench``: within a time and a number of bytes, by the Python API.

The shares of time and bytes below are what each part may take at most; what it leaves goes to
those that follow.
"""

import asyncio
import math
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from tunnelsync.cli.bench_choice import chosen, named
from tunnelsync.cli.bench_figures import Figures, Latency, Runs, duration, shown, size
from tunnelsync.cli.bench_plan import Dataset, Piece, pieces, side_by_side, whole_ones
from tunnelsync.client import TunnelSync
from tunnelsync.errors import TimedOut, TooLarge
from tunnelsync.frames import BLOCK_BYTES
from tunnelsync.protocol import Mode

SAMPLES = 100
"""Of each latency; from so many on there is a percentile of 99."""
LATENCY_SHARE = 0.1
"""Of the time, for each kind of round trip."""
SIZES_SHARE = 0.55
"""Of a mode's time and bytes; the rest is for several streams."""
SMALLEST_SHARE = 0.15
"""Of a mode's time and bytes, for the first byte of the smallest piece."""
PIECE_PART = 16
"""No piece is more than this part of all the bytes, so that there are several runs of each; but
a block, if all are at least four."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What a bench may take: time, bytes, and runs of each piece."""

    seconds: float
    max_bytes: int
    repeats: int


class Bench:
    """One bench, which fills ``figures`` as it goes; ``tell`` hears what is being measured."""

    def __init__(
        self,
        ts: TunnelSync,
        mac: str,
        limits: Limits,
        figures: Figures,
        tell: Callable[[str], None],
    ) -> None:
        self._ts = ts
        self._mac = mac
        self._limits = limits
        self._figures = figures
        self._tell = tell
        least_bytes = min(BLOCK_BYTES, limits.max_bytes // 4)
        self._most_bytes = max(least_bytes, limits.max_bytes // PIECE_PART)
        self._end = time.perf_counter() + limits.seconds
        self._rates: dict[Mode, float] = {}
        """Bytes per second after the first byte, the best of a mode by one stream."""

    async def run(self, names: Sequence[str], modes: Sequence[Mode]) -> None:
        """Measure it all, or as much as the limits allow.

        Raises the first error, also of a transfer: nothing is tried again. `TimedOut` if there was
        no time for a single figure.
        """
        began = time.perf_counter()
        try:
            async with asyncio.timeout(self._limits.seconds) as deadline:
                await self._measure(names, modes)
        except TimeoutError:
            if not deadline.expired():
                raise
            self._note(f"It was cut short after {self._limits.seconds:g} s; raise --time.")
        finally:
            self._figures.seconds = time.perf_counter() - began
        if not self._figures.measured().latencies:
            raise TimedOut(
                f"nothing could be measured within {self._limits.seconds:g} s",
                hint="Give it more: `--time 120`.",
            )

    async def _measure(self, names: Sequence[str], modes: Sequence[Mode]) -> None:
        self._say("choosing datasets")
        if names:
            datasets = await named(self._ts, self._mac, names)
        else:
            datasets = await chosen(self._ts, self._mac, self._most_bytes, self._note)
        share = LATENCY_SHARE * self._left_seconds
        await self._latency("router", share, self._ts.connectors)
        await self._latency("stat", share, lambda: self._ts.stat(self._mac, datasets[0].name))
        for number, mode in enumerate(modes):
            await self._measure_mode(mode, datasets, 1 / (len(modes) - number))

    async def _latency(
        self, what: str, seconds: float, request: Callable[[], Awaitable[object]]
    ) -> None:
        self._say(f"round trips: {what}")
        row = Latency(what)
        self._figures.latencies.append(row)
        until = time.perf_counter() + seconds
        while len(row.samples_seconds) < SAMPLES and time.perf_counter() < until:
            began = time.perf_counter()
            await request()
            row.samples_seconds.append(time.perf_counter() - began)

    async def _measure_mode(self, mode: Mode, datasets: Sequence[Dataset], share: float) -> None:
        """Measure by size and by streams, in a share of the time and bytes that are left."""
        until = time.perf_counter() + share * self._left_seconds
        bytes_until = self._figures.received_bytes + int(share * self._left_bytes)
        wanted = _pieces(mode, datasets, self._most_bytes)
        if left_out := [one for one in datasets if all(one != each.dataset for each in wanted)]:
            names = ", ".join(shown(one) for one in left_out)
            enough = size(PIECE_PART * min(one.size_bytes for one in left_out))
            why = f"a run may bring {size(self._most_bytes)}; --max-bytes {enough} allows more"
            self._note(f"Mode {mode.value} left out {names}: {why}.")
        if not wanted:
            return
        await self._by_size(mode, wanted, until, bytes_until)
        if mode is not Mode.BUFFER:
            await self._by_streams(mode, wanted[-1].dataset, until, bytes_until)

    async def _by_size(
        self, mode: Mode, wanted: Sequence[Piece], until: float, bytes_until: int
    ) -> None:
        first = Latency("first_byte", mode)
        self._figures.latencies.append(first)
        now, received = time.perf_counter(), self._figures.received_bytes
        last = now + SIZES_SHARE * (until - now)
        last_bytes = received + SIZES_SHARE * (bytes_until - received)
        for number, piece in enumerate(wanted):
            row = Runs(mode, piece)
            self._figures.by_size.append(row)
            part = 1 / (len(wanted) - number) if number else SMALLEST_SHARE
            now, received = time.perf_counter(), self._figures.received_bytes
            slice_until = now + part * (last - now)
            slice_bytes = received + part * (last_bytes - received)
            most = self._limits.repeats + 1 if number else max(SAMPLES, self._limits.repeats)
            self._say(f"mode {mode.value}, {size(row.size_bytes)}")
            for run in range(most):
                if run and not self._fits(row, slice_until, slice_bytes):
                    break
                if not run and not self._fits(row, last, last_bytes):
                    self._note_no_room(row, last_bytes)
                    return
                try:
                    await self._once(row, first if not number else None)
                except TooLarge as error:
                    self._note(f"Mode {mode.value} ends here: {error.message}.")
                    self._figures.by_size.remove(row)
                    return

    async def _by_streams(
        self, mode: Mode, dataset: Dataset, until: float, bytes_until: int
    ) -> None:
        """Compare numbers of streams in turns, so that what changes meanwhile meets them all."""
        seconds = until - time.perf_counter()
        left_bytes = bytes_until - self._figures.received_bytes
        speed = self._rates.get(mode, math.inf)
        counts, blocks = side_by_side(dataset.size_bytes, min(speed, 1e15), seconds, left_bytes)
        if not counts:
            if dataset.size_bytes < 2 * BLOCK_BYTES:
                why = f"{size(2 * BLOCK_BYTES)} are needed, and what was measured is smaller"
            else:
                why = "there was no time or not enough bytes; raise --time or --max-bytes"
            self._note(f"Mode {mode.value} was not measured by several streams: {why}.")
            return
        piece = Piece(dataset, blocks)
        rows = [Runs(mode, piece, count, warm=True) for count in counts]
        self._figures.by_streams += rows
        for _ in range(self._limits.repeats):
            for row in rows:
                if not self._fits(row, until, bytes_until):
                    return
                self._say(f"mode {mode.value}, {size(row.size_bytes)}, streams: {row.streams}")
                await self._once(row)

    async def _once(self, row: Runs, first: Latency | None = None) -> None:
        fetched = await self._ts.probe(
            self._mac,
            row.piece.dataset.name,
            mode=row.mode,
            blocks=row.piece.blocks,
            streams=row.streams,
        )
        if fetched.repaired_blocks:
            again = f"{fetched.repaired_blocks} blocks came wrong and were fetched again"
            self._note(f"Of {shown(row.piece.dataset)} {again}: something alters bytes on the way.")
        self._figures.received_bytes += fetched.bytes
        row.samples_seconds.append(fetched.seconds)
        waited = fetched.first_byte_seconds or 0.0
        if first is not None:
            first.samples_seconds.append(waited)
        if row.streams == 1:
            rate = fetched.bytes / max(1e-6, fetched.seconds - waited)
            self._rates[row.mode] = max(rate, self._rates.get(row.mode, 0.0))

    def _fits(self, row: Runs, until: float, bytes_until: float) -> bool:
        """Tell whether another run would end in time, and within the bytes."""
        in_time = time.perf_counter() + self._expected_seconds(row) <= until
        return in_time and self._figures.received_bytes + row.size_bytes <= bytes_until

    def _expected_seconds(self, row: Runs) -> float:
        if row.samples_seconds:
            return row.samples_seconds[-1]
        return row.size_bytes / self._rates.get(row.mode, math.inf)

    def _note_no_room(self, row: Runs, bytes_until: float) -> None:
        if self._figures.received_bytes + row.size_bytes > bytes_until:
            why = "so many bytes were not left; raise --max-bytes"
        else:
            expected = duration(self._expected_seconds(row))
            why = f"a run may take {expected}, and there was less time; raise --time"
        what = f"{size(row.size_bytes)} and more"
        self._note(f"Mode {row.mode.value} was not measured with {what}: {why}.")

    def _say(self, text: str) -> None:
        gone = self._limits.seconds - self._left_seconds
        self._tell(f"{text} ({gone:.0f} s of at most {self._limits.seconds:g} s)")

    def _note(self, text: str) -> None:
        self._figures.notes.append(text)

    @property
    def _left_seconds(self) -> float:
        return max(0.0, self._end - time.perf_counter())

    @property
    def _left_bytes(self) -> int:
        return max(0, self._limits.max_bytes - self._figures.received_bytes)


def _pieces(mode: Mode, datasets: Sequence[Dataset], most_bytes: int) -> list[Piece]:
    """Return what a mode brings; only stream has a beginning without the cost of the whole."""
    if mode is Mode.STREAM:
        return pieces(datasets, most_bytes)
    whole = whole_ones(datasets, most_bytes)
    if mode is Mode.BUFFER or not whole:
        return [Piece(one) for one in whole]
    return pieces(whole, most_bytes)
