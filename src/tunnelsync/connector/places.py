"""Who works and who waits: a bounded number of places, shared fairly between clients; no I/O.

While another client waits, none is given a place that would make it hold more than half of them.
One client alone may use all: nothing is taken back from it, but what falls free goes to others.
"""

from collections import Counter

from tunnelsync.errors import ConnectorBusy


class Places:
    """The places of a connector, and the line before them; jobs and clients go by their names.

    There is a line only while every place is taken, so a job that comes passes nobody.
    """

    def __init__(self, count: int, *, most_waiting: int) -> None:
        self._count = count
        self._most_waiting = most_waiting
        self._holders: dict[str, str] = {}  # job to client
        self._line: dict[str, str] = {}  # the same, in the order in which they came
        self._held: Counter[str] = Counter()  # by client

    def enter(self, job: str, client: str) -> bool:
        """Give a job a place, or put it in line; tell whether it has one.

        Raises `ConnectorBusy` where the line is full.
        """
        if len(self._holders) < self._count:
            self._grant(job, client)
            return True
        if len(self._line) >= self._most_waiting:
            raise ConnectorBusy(f"{len(self._line)} commands wait for a place already")
        self._line[job] = client
        return False

    def leave(self, job: str) -> str | None:
        """Let go of a job, whether it holds a place or waits; return whose turn it is then."""
        self._line.pop(job, None)
        client = self._holders.pop(job, None)
        if client is None:
            return None
        self._held[client] -= 1
        if not self._held[client]:
            del self._held[client]
        following = self._following()
        if following is not None:
            self._grant(following, self._line.pop(following))
        return following

    def position(self, job: str) -> int:
        """Return which one in line a job is, from 1 on; 0 for one that does not wait."""
        return next((at for at, one in enumerate(self._line, 1) if one == job), 0)

    def _following(self) -> str | None:
        """Return the first in line whose client would hold half at most, else the first."""
        fair = (job for job, client in self._line.items() if self._may_have_more(client))
        return next(fair, next(iter(self._line), None))

    def _may_have_more(self, client: str) -> bool:
        return 2 * (self._held[client] + 1) <= self._count

    def _grant(self, job: str, client: str) -> None:
        self._holders[job] = client
        self._held[client] += 1
