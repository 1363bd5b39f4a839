"""Works commands: each once, a bounded number at a time, the others in line.

A job belongs to the worker, not to the socket that brought its command, so it survives the loss
of that socket. Whatever goes wrong in it becomes an answer.
"""

import asyncio
import logging
from collections import OrderedDict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, nullcontext
from dataclasses import dataclass
from functools import partial

from tunnelsync import wire
from tunnelsync.connector import auto, conditions, stream
from tunnelsync.connector.buffer import Buffer
from tunnelsync.connector.offload import Offload
from tunnelsync.connector.outbox import Outbox
from tunnelsync.connector.places import Places
from tunnelsync.connector.source import AT_ONCE_BYTES, Root, Source
from tunnelsync.connector.upload import Upload, told
from tunnelsync.errors import ConnectorBusy, QueueTimedOut
from tunnelsync.protocol import (
    Cancel,
    Command,
    DatasetCommand,
    GetDataset,
    GetDatasetAuto,
    GetDatasetOffload,
    GetDatasetStream,
    ListDatasets,
    Progress,
    StatAnswer,
    StatDataset,
    printable,
)
from tunnelsync.settings import ConnectorSettings
from tunnelsync.transfer import EACH, level_of

log = logging.getLogger("tunnelsync.connector")


@dataclass(frozen=True, slots=True)
class Modes:
    """What commands are answered from and with."""

    root: Root
    upload: Upload
    buffer: Buffer
    offload: Offload


class Job:
    """A command in work: what it does now, and with how many bytes so far.

    ``turn`` is set when a place falls to it.
    """

    __slots__ = ("beat", "done", "request_id", "state", "task", "turn")

    task: asyncio.Task[None]
    beat: asyncio.TimerHandle

    def __init__(self, request_id: str) -> None:
        self.request_id = request_id
        self.state = "reading"
        self.done = 0
        self.turn = asyncio.Event()

    def report(self, state: str, done: int) -> None:
        """Note how far it is; the next sign of life tells it."""
        self.state, self.done = state, done


class Worker:
    """Takes commands and answers them; ``outbox`` hears which are in work, and which are done."""

    def __init__(self, settings: ConnectorSettings, modes: Modes, outbox: Outbox) -> None:
        self._settings = settings
        self._modes = modes
        self._outbox = outbox
        self._places = Places(settings.places, most_waiting=settings.waiting)
        self._seen: OrderedDict[str, None] = OrderedDict()
        self._jobs: dict[str, Job] = {}

    def take(self, command: Command) -> None:
        """Begin a command, unless it was seen before; a cancel ends the one that it names.

        Raises `ConnectorBusy` for one too many: its answer, too, would be work.
        """
        request_id = command.request_id
        if isinstance(command, Cancel):
            self._remember(request_id)
            if job := self._jobs.get(request_id):
                log.info("transfer %s: cancelled by the router", request_id)
                job.task.cancel()
        elif request_id in self._seen or request_id in self._jobs:
            self._remember(request_id)
        elif len(self._jobs) >= self._settings.commands:
            raise ConnectorBusy(f"{len(self._jobs)} commands are in hand already")
        else:
            self._remember(request_id)
            self._jobs[request_id] = job = Job(request_id)
            self._beat_later(job)
            job.task = asyncio.create_task(self._run(command, job))
            # Not by the task itself: one that is cancelled at once never begins.
            job.task.add_done_callback(partial(self._ended, job))

    async def close(self) -> None:
        """Cancel all jobs, and wait until they have let go of what they hold."""
        tasks = [job.task for job in self._jobs.values()]
        if tasks:
            log.warning("stopping: %d commands are broken off", len(tasks))
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _remember(self, request_id: str) -> None:
        self._seen[request_id] = None
        self._seen.move_to_end(request_id)
        while len(self._seen) > self._settings.seen:
            self._seen.popitem(last=False)

    async def _run(self, command: Command, job: Job) -> None:
        """Answer a command, with its error if it comes to that; it needs no ack then."""
        try:
            await self._answer(command, job)
        except Exception as exc:
            error = told(exc, job.request_id)
            log.log(
                level_of(error),
                "transfer %s: %s of %s: %s: %s",
                job.request_id,
                command.command,
                printable(_name(command)),
                error.code,
                error.message,
                extra={"kind": EACH, "about": {"transfer": job.request_id, "code": error.code}},
            )
            await self._modes.upload.fail(job.request_id, error)
        self._outbox.settle(job.request_id)

    def _ended(self, job: Job, _: asyncio.Task[None]) -> None:
        job.beat.cancel()
        del self._jobs[job.request_id]

    async def _answer(self, command: Command, job: Job) -> None:
        match command:
            case ListDatasets():
                await self._list(command)
            case StatDataset():
                await self._stat(command)
            case GetDataset() | GetDatasetStream() | GetDatasetOffload() | GetDatasetAuto():
                name, at_once = command.dataset_name, self._at_once_bytes(command)
                stores = isinstance(command, GetDatasetOffload | GetDatasetAuto)
                with self._modes.offload.flights.expected(name) if stores else nullcontext():
                    async with (
                        self._place(job, command.client),
                        await self._modes.root.open(name, at_once_bytes=at_once) as source,
                    ):
                        await self._send(command, source, job)

    def _at_once_bytes(self, command: DatasetCommand) -> int:
        """Return up to which size a dataset is read as it is opened; an upload opens its own."""
        if isinstance(command, GetDatasetOffload):
            return 0
        return min(AT_ONCE_BYTES, self._settings.dataset_buffer_bytes)

    async def _send(self, command: DatasetCommand, source: Source, job: Job) -> None:
        """Send a dataset in the mode of its command."""
        modes = self._modes
        match command:
            case GetDataset():
                await modes.buffer.send(command, source, job.report)
            case GetDatasetStream():
                await stream.send(modes.upload, command, source, job.report)
            case GetDatasetOffload():
                await modes.offload.send(command, source, job.report)
            case GetDatasetAuto():
                await auto.send(modes.upload, modes.offload, command, source, job.report)

    async def _stat(self, command: StatDataset) -> None:
        async with await self._modes.root.open(command.dataset_name) as source:
            chosen = conditions.select(
                command.conditions, size=source.size, etag=source.etag, mtime_ns=source.mtime_ns
            )
            answer = StatAnswer(
                status=chosen.status,
                size=source.size,
                etag=source.etag,
                modified_ns=source.mtime_ns,
                offset=chosen.offset,
                length=chosen.length,
            )
        await self._modes.upload.answer(command.request_id, wire.dumps(answer))

    async def _list(self, command: ListDatasets) -> None:
        page = await self._modes.root.list(command.folder, after=command.after, limit=command.limit)
        await self._modes.upload.answer(command.request_id, wire.dumps(page))

    @asynccontextmanager
    async def _place(self, job: Job, client: str) -> AsyncIterator[None]:
        """Wait in line for a place, and hold it. Raises `ConnectorBusy` or `QueueTimedOut`."""
        if self._places.enter(job.request_id, client):
            job.turn.set()
        try:
            await self._turn(job)
            yield
        finally:
            # Also one that was cancelled in the moment in which its turn came: it has a place.
            following = self._places.leave(job.request_id)
            if following is not None:
                self._jobs[following].turn.set()

    async def _turn(self, job: Job) -> None:
        limits = self._settings
        if job.turn.is_set():
            return
        try:
            async with asyncio.timeout(limits.queue_wait_seconds):
                await job.turn.wait()
        except TimeoutError:
            raise QueueTimedOut(
                f"all {limits.places} places stayed taken for {limits.queue_wait_seconds:g} s"
            ) from None

    def _beat_later(self, job: Job) -> None:
        loop = asyncio.get_running_loop()
        job.beat = loop.call_later(self._settings.progress_seconds, self._beat, job)

    def _beat(self, job: Job) -> None:
        """Give a sign of life of a job."""
        if place := self._places.position(job.request_id):
            self._outbox.offer(Progress(job.request_id, "queued", place))
        else:
            self._outbox.offer(Progress(job.request_id, job.state, job.done))
        self._beat_later(job)


def _name(command: Command) -> str:
    match command:
        case Cancel():
            return ""
        case ListDatasets():
            return command.folder
    return command.dataset_name
