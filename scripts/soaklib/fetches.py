"""The clients of the soak: what each fetches, run after run, and whether it is what it must be."""

import asyncio
import json
import os
import random
import signal
import subprocess
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from soaklib.contents import PIECE_BYTES, Contents, Dataset, Hasher, contents_of
from soaklib.stage import COMMAND, Stage, ended
from soaklib.tally import Tally, Wrong
from tunnelsync.client import journal
from tunnelsync.frames import BLOCK_BYTES, block_count
from tunnelsync.settings import MIB

RUN_SECONDS = 120.0
"""A run that takes longer hangs: its own deadlines and tries end far before."""
PAUSE_SECONDS = 0.3
BUFFER_BYTES = 12 * MIB
GOOD_CODES = {0, 3, 5, 6, 7}
"""Well, or for a reason that faults give: 3 is a router just restarted, no connector there yet."""
NOT_UP = "Python runtime state: core initialized"
"""What Python itself says when Ctrl-C comes before it has begun with us."""
SLOW_BYTES = 8 * MIB
TARGET = "target"

CLIENT: Mapping[str, object] = {
    "CONNECT_SECONDS": 5,
    "ANSWER_SECONDS": 60,
    "IDLE_SECONDS": 15,
    "RETRY_FOR_SECONDS": 20,
    "BACKOFF_CAP_SECONDS": 2,
    "JOURNAL_SECONDS": 0.3,
    "PARALLEL_LEAST_BYTES": 8 * MIB,
}


@dataclass(frozen=True, slots=True)
class Job:
    """One fetch: the same command, until it ends well.

    ``reader`` is None for a fetch into a file, else what reads standard output: at once, slowly,
    or only a part of it.
    """

    way: str
    mode: str
    dataset: Dataset
    parallel: int
    reader: str | None
    flags: tuple[str, ...]


@dataclass
class Run:
    """One run of a job's command."""

    process: "subprocess.Popen[bytes]"
    job: Job
    began: float = field(default_factory=time.monotonic)
    signals: set[signal.Signals] = field(default_factory=set)
    out: Hasher = field(default_factory=Hasher)
    left: bool = False
    """Whether its reader has gone."""


class Slot:
    """One client after the other, each in this slot's folder."""

    def __init__(self, number: int, stage: Stage, tally: Tally, chance: random.Random) -> None:
        self.name = f"client {number}"
        self.run: Run | None = None
        self.target = stage.folder / self.name.replace(" ", "-") / TARGET
        self.target.parent.mkdir()
        self._stage = stage
        self._tally = tally
        self._chance = chance
        self._receipt = stage.folder / f"{self.name}.receipt"
        self._before: Contents | None = None
        self._kept: journal.Kept | None = None
        self._environ = {"TUNNELSYNC_ROUTER": stage.url} | {
            f"TUNNELSYNC_CLIENT_{name}": str(value) for name, value in CLIENT.items()
        }

    async def work(self, until: float) -> None:
        """Fetch whatever chance chooses until a moment; what was begun then is ended well."""
        while time.monotonic() < until:
            await self.bring(self.any_job())

    @property
    def in_flight(self) -> bool:
        """Whether a run is so far that a signal finds it at work."""
        run = self.run
        if run is None:
            return False
        return run.out.size > 0 if run.job.reader else self._journal.exists()

    @property
    def _journal(self) -> Path:
        return self.target.with_name(f"{TARGET}.tunnelsync.journal")

    def any_job(self) -> Job:
        """Return a fetch by chance."""
        chance = self._chance
        mode = chance.choice(("stream", "stream", "auto", "offload", "buffer"))
        if self._stage.store is None or self._stage.store_full:
            mode = "stream" if mode == "offload" else mode
        fit = [one for one in self._stage.datasets if mode != "buffer" or one.size <= BUFFER_BYTES]
        large = [one for one in fit if one.size > BUFFER_BYTES]
        dataset = chance.choice(large if large and chance.random() < 0.6 else fit)
        reader = chance.choice((*(None,) * 7, "at once", "slowly", "a part"))
        parallel = chance.choice((0, 0, 2, 4)) if mode != "buffer" and not reader else 0
        flags = ("--force", *(["--no-sync"] if chance.random() < 0.5 else []))
        return job(mode, dataset, parallel=parallel, reader=reader, flags=flags)

    async def bring(self, job: Job, *, tries: int = 0) -> None:
        """Run a job's command until it ends well, or so many times, as long as that takes."""
        self._kept = None
        if not job.reader:
            if self._chance.random() < 0.5:
                self.target.unlink(missing_ok=True)
            self._before = await asyncio.to_thread(contents_of, self.target)
        number = 1
        while not await self._once(job):
            if number == tries:
                self._tally.problem(Wrong.NEVER, f"{job.way} of {job.dataset.name}")
                return
            number += 1
            await asyncio.sleep(PAUSE_SECONDS)

    async def _once(self, job: Job) -> bool:
        """Run a job's command once; True if it has ended well, and needs no other run."""
        first = job.dataset.present
        self._receipt.unlink(missing_ok=True)
        to = "-" if job.reader else str(self.target)
        command = [*COMMAND, "fetch", "--mode", job.mode, "--receipt", str(self._receipt)]
        command += ["--parallel", str(job.parallel), *job.flags]
        command += ["-o", to, job.dataset.mac, job.dataset.name]
        stdout = subprocess.PIPE if job.reader else None
        child = self._stage.children.start(self.name, command, self._environ, stdout=stdout)
        self.run = run = Run(child.process, job)
        reading = asyncio.create_task(self._read(run))
        code = await ended(child.process, RUN_SECONDS)
        await reading
        self.run = None
        if code is None:
            self._tally.problem(Wrong.NEVER, f"{job.way} hangs: {child.log.read_text()}")
        self._stage.children.end(child)
        said = child.log.read_text(errors="backslashreplace")
        early = signal.SIGINT in run.signals and NOT_UP in said
        if not early:
            self._stage.judge_log(child)
        self._count(run, child.process.returncode, early=early)
        self._tally.told(
            f"{self.name}: {job.way} of {job.dataset.mac[-2:]} {job.dataset.name}:"
            f" {child.process.returncode}, {said.strip()[-160:]!r}"
        )
        why = f"{' '.join(command[3:])}\n{said}"
        await self._judge(run, child.process.returncode, first, why)
        return child.process.returncode == 0 or job.reader == "a part"

    async def _read(self, run: Run) -> None:
        """Read standard output, in the manner of the job's reader."""
        pipe = run.process.stdout
        if pipe is None:
            return
        most = self._chance.randrange(run.job.dataset.size + 1)
        with pipe:
            while data := await asyncio.to_thread(os.read, pipe.fileno(), PIECE_BYTES):
                run.out.feed(data)
                if run.job.reader == "slowly":
                    await asyncio.sleep(len(data) / SLOW_BYTES)
                if run.job.reader == "a part" and run.out.size > most:
                    run.left = True
                    break
        if run.job.reader in ("slowly", "a part"):
            self._tally.faults["a reader that leaves" if run.left else "a reader that is slow"] += (
                run.left or run.job.reader == "slowly"
            )

    def _count(self, run: Run, code: int, *, early: bool) -> None:
        figures = self._tally.of(run.job.way)
        figures.transfers += 1
        sent = signal.SIGKILL in run.signals and code == -signal.SIGKILL
        figures.codes["killed" if sent else str(code)] += 1
        # By the signal itself while Python is not up yet, or already on its way out.
        ended = {130, -signal.SIGINT} if signal.SIGINT in run.signals else set()
        good = GOOD_CODES | ended | ({1} if early else set())
        if not sent and code not in good:
            text = (self._stage.folder / f"{self.name}.log").read_text(errors="backslashreplace")
            self._tally.problem(Wrong.CODE, f"{run.job.way}: {code}\n{text}")

    async def _judge(self, run: Run, code: int, first: int, why: str) -> None:
        """Compare what a run has left with what it may leave."""
        job, tally = run.job, self._tally
        receipt = self._receipt_of(job)
        tally.checked += 1
        if job.reader:
            found = run.out.contents()
            if code == 0 and not run.left:
                self._judge_whole(found, job.dataset, first, why)
            elif not any(state.begins_with(found) for state in job.dataset.states):
                tally.problem(Wrong.BYTES, f"{found.size} bytes went out\n{why}")
            return
        there = await asyncio.to_thread(contents_of, self.target)
        if code == 0:
            self._judge_whole(there, job.dataset, first, why)
            if rest := sorted(set(os.listdir(self.target.parent)) - {TARGET}):
                tally.problem(Wrong.LEFT, f"{rest}\n{why}")
        elif there is None:
            if self._before is not None:
                tally.problem(Wrong.TARGET, f"it was there\n{why}")
        elif there != self._before and there not in job.dataset.states:
            tally.problem(Wrong.BYTES, f"{there.size} bytes in the target\n{why}")
        self._judge_resumed(receipt, why)
        self._kept = await asyncio.to_thread(self._kept_now)

    def _judge_whole(self, found: Contents | None, dataset: Dataset, first: int, why: str) -> None:
        """See that it is a state that the dataset was in since the run began."""
        if found in dataset.states[first:]:
            return
        if found in dataset.states:
            self._tally.problem(Wrong.STALE, why)
        elif found is None or any(state.begins_with(found) for state in dataset.states):
            size = found.size if found else 0
            self._tally.problem(Wrong.END, f"{size} bytes of {dataset.size}\n{why}")
        else:
            self._tally.problem(Wrong.BYTES, f"{found.size} bytes of {dataset.size}\n{why}")

    def _judge_resumed(self, receipt: Mapping[str, Any], why: str) -> None:
        """See that a run went on from all that the one before had kept, if that was of use."""
        kept = self._kept
        if kept is None or receipt.get("etag") != kept.version.etag:
            return
        # The last block of all is fetched again, so that somebody says that the version stands.
        sizes = [min(BLOCK_BYTES, kept.version.size - at * BLOCK_BYTES) for at in kept.blocks]
        whole = len(sizes) == block_count(kept.version.size)
        if receipt["resumed_bytes"] < sum(sizes) - (BLOCK_BYTES if whole else 0):
            self._tally.problem(
                Wrong.KEPT, f"{receipt['resumed_bytes']} of {sum(sizes)} bytes\n{why}"
            )

    def _kept_now(self) -> journal.Kept | None:
        part = self.target.with_name(f"{TARGET}.tunnelsync.part")
        if not part.exists() or part.stat().st_nlink > 1:
            return None  # it was killed when the target had its name, and the journal still its own
        try:
            return journal.decode(self._journal.read_bytes())
        except FileNotFoundError:
            return None

    def _receipt_of(self, job: Job) -> Mapping[str, Any]:
        """Return the receipt of the last run, with its figures counted; a killed one left none."""
        try:
            receipt: dict[str, Any] = json.loads(self._receipt.read_bytes())
        except (FileNotFoundError, ValueError):
            return {}
        figures = self._tally.of(job.way)
        figures.received_bytes += receipt["received_bytes"]
        figures.resumed_bytes += receipt["resumed_bytes"]
        figures.retries += receipt["retries"]
        figures.repaired += receipt["repaired_blocks"]
        return receipt

    async def inspect(self) -> None:
        """Look at the target, whatever goes on: if it is there, it is whole."""
        found = await asyncio.to_thread(contents_of, self.target)
        if found is None:
            return
        self._tally.checked += 1
        if not any(found in dataset.states for dataset in self._stage.datasets):
            self._tally.problem(Wrong.BYTES, f"{self.name}: a target of {found.size} bytes")


def job(
    mode: str,
    dataset: Dataset,
    *,
    parallel: int = 0,
    reader: str | None = None,
    flags: tuple[str, ...] = ("--force",),
) -> Job:
    """Return a job; its way is what the table calls it."""
    way = mode + (" -o -" if reader else f" x{parallel}" if parallel else "")
    return Job(way, mode, dataset, parallel, reader, flags)
