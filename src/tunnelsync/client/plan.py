"""Which blocks of a dataset are held, which are missing, and which stream brings which; no I/O.

Every way back from trouble is a question to this table: what is still missing? A resume begins
with blocks held by an earlier run, a retry asks again after a break, a repair is a missing block
between held ones, and parallel streams are several spans of missing blocks.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from tunnelsync import frames
from tunnelsync.frames import DIGEST_BYTES


@dataclass(slots=True, eq=False)
class Span:
    """A run of blocks that one stream brings: from ``start`` up to ``end``, which is not in it.

    ``next`` is the block that comes next; those from ``start`` to there have come, and are
    not proven yet. ``end`` is None while the dataset's size is unknown.
    """

    start: int
    next: int
    end: int | None


class Plan:
    """The blocks of one version of a dataset. ``least_blocks`` is the least a span is cut to."""

    def __init__(self, least_blocks: int) -> None:
        self._least = max(1, least_blocks)
        self.forget()

    def forget(self) -> None:
        """Begin anew: nothing is held, and the size is not known."""
        self.count: int | None = None
        self.missing = 0
        self._held = bytearray()
        self._digests = bytearray()
        self._spans: list[Span] = []
        self._flaws: dict[int, int] = {}
        self._ended = False

    def of(self, count: int) -> None:
        """Say how many blocks there are."""
        self.count = self.missing = count
        self._held = bytearray(count)
        self._digests = bytearray(count * DIGEST_BYTES)
        for span in self._spans:
            span.end = count if span.end is None else min(span.end, count)

    def hold(self, index: int, digest: bytes) -> None:
        """Note that a block is proven and in its place."""
        self.missing -= not self._held[index]
        self._held[index] = 1
        self._digests[index * DIGEST_BYTES : (index + 1) * DIGEST_BYTES] = digest

    def holds(self, index: int) -> bool:
        """Tell whether a block is held."""
        return 0 <= index < len(self._held) and self._held[index] == 1

    def drop(self, index: int) -> None:
        """Note that a block is missing after all."""
        if self.holds(index):
            self.missing += 1
            self._held[index] = 0

    @property
    def busy(self) -> bool:
        """Whether any stream brings a span."""
        return bool(self._spans)

    def end(self) -> None:
        """Note that a stream came to its end, which is all that an empty dataset is missing."""
        self._ended = True

    def held(self) -> Iterable[tuple[int, bytes]]:
        """Return the blocks that are held, with their digests, in order."""
        for index, there in enumerate(self._held):
            if there:
                at = index * DIGEST_BYTES
                yield index, bytes(self._digests[at : at + DIGEST_BYTES])

    def flaw(self, index: int) -> int:
        """Note that a block came, or should have come, and was wrong; return how often it was."""
        self._flaws[index] = times = self._flaws.get(index, 0) + 1
        return times

    @property
    def repaired(self) -> int:
        """How many blocks were wrong at first and are held now."""
        return sum(1 for index in self._flaws if self.holds(index))

    def root(self) -> str:
        """Return the root over all the digests; only once nothing is missing."""
        assert self.count is not None
        assert not self.missing
        return frames.root([bytes(self._digests)])

    def take(self) -> Span | None:
        """Return the next span to fetch: a run of missing blocks, else half of the longest span.

        None if nothing is left that would be worth a stream of its own.
        """
        if not self.count and not self._ended and not self._spans:
            span: Span | None = Span(0, 0, self.count)
        else:
            span = self._free()
        if span is None:
            span = self._half()
        if span is not None:
            self._spans.append(span)
        return span

    def release(self, span: Span) -> None:
        """Give a span back; what it did not bring is missing, and free for another."""
        self._spans.remove(span)

    def _free(self) -> Span | None:
        """Return the first run of missing blocks that no span covers."""
        at = 0
        while (at := self._held.find(0, at)) >= 0:
            covering = [one for one in self._spans if one.start <= at < (one.end or 0)]
            if covering:
                at = max(one.end or 0 for one in covering)
                continue
            end = self._held.find(1, at)
            ends = [one.start for one in self._spans if one.start > at]
            return Span(at, at, min([*ends, len(self._held) if end < 0 else end]))
        return None

    def _half(self) -> Span | None:
        """Cut the span with most before it in two, and return the second half."""
        if self.count is None or not self._spans:
            return None
        longest = max(self._spans, key=_ahead)
        if _ahead(longest) < 2 * self._least:
            return None
        assert longest.end is not None
        middle = longest.end - _ahead(longest) // 2
        half = Span(middle, middle, longest.end)
        longest.end = middle
        return half


def _ahead(span: Span) -> int:
    return (span.end or 0) - span.next
