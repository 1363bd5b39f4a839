"""A large dataset is downloaded while it is uploaded: segment by segment, by a real S3 server."""

import hashlib
import re
import signal
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from changes import edit, grow
from claims import FOREIGN, place
from harness import (
    MAC,
    Completed,
    Process,
    System,
    environ_of,
    make_file,
    sha256,
    wait_until,
)
from played_connector import played, wanting
from proxy import in_a_thread
from s3 import S3Server, s3_server
from store_stage import (
    BUCKET,
    PREFIXES,
    Fetching,
    Shelf,
    altered,
    collected,
    environ,
    offered,
    outside,
    running,
    taken,
    told,
)
from tunnelsync.client.part import SUFFIX
from tunnelsync.segments import Cut, SegmentsAnswer, segment
from tunnelsync.settings import MIB, ClientSettings
from valve import Valve
from watched import bytes_read, files_open

__all__ = ["outside"]

FIRST = 8 * MIB
SIZE = 56 * MIB
HELD_AFTER = 12 * MIB  # the first segment passes, and none of those that follow
LINGER_SECONDS = 0.5
SECONDS = 30.0
NAMES = (f"d{n}" for n in count())


@dataclass(slots=True)
class Line(Fetching):
    """A connector whose way to the store has a valve, and one dataset of it."""

    system: System
    valve: Valve
    shelf: Shelf
    server: S3Server
    store: dict[str, str]
    name: str = ""

    def prepare(self, size: int = SIZE, *, held: bool = False) -> None:
        """Make a new dataset, and with ``held`` let no more than its first segment pass."""
        self.name = next(NAMES)
        make_file(self.source, size, seed=int(self.name[1:]))
        if held:
            self.valve.hold(HELD_AFTER)
        else:
            self.valve.release()

    def start(self, *args: str, target: Path | None = None, **env: Any) -> Process:
        """Start to fetch it."""
        flags = ("--mode", "offload", *args)
        out = str(target or self.target)
        return self.system.start("fetch", *flags, MAC, self.name, "-o", out, **env)

    def fetch(self, *args: str, mode: str = "offload", **env: Any) -> Completed:
        """Fetch it to the end."""
        flags = ("--mode", mode, "--json", "--force", *args)
        environ = environ_of(ClientSettings, env)
        return self.system.cli("fetch", *flags, MAC, self.name, "-o", self.target, env=environ)

    def has_begun(self, target: Path | None = None) -> bool:
        """Tell whether a client has the first segment, byte for byte, in its part file."""
        out = target or self.target
        return begins(out.with_name(out.name + SUFFIX)) == begins(self.source)

    def keys(self, end: str = "") -> list[str]:
        """Return the keys of the dataset's objects that contain this; each test has one alone."""
        found = self.shelf.keys()
        return [key for key in found if end in key]

    @property
    def segments(self) -> list[str]:
        """The keys of the segments that are up."""
        return self.keys("/segments/")

    def came(self) -> None:
        """Assert that the client has the dataset."""
        assert sha256(self.target) == sha256(self.source)


def begins(path: Path) -> str:
    """Return the SHA-256 of the first segment of a file, or nothing if it is not there."""
    if not path.exists():
        return ""
    with path.open("rb") as file:
        return hashlib.sha256(file.read(FIRST)).hexdigest()


@contextmanager
def line_to(folder: Path, server: S3Server, client: Any, **over: Any) -> Iterator[Line]:
    """Run a router, and a connector whose way to the store has a valve."""
    shelf = Shelf(client, next(PREFIXES))
    with in_a_thread(Valve(int(server.endpoint.rpartition(":")[2]))) as valve:
        quick = {"segments_from_bytes": FIRST, "linger_seconds": SECONDS} | over
        store = environ(
            server,
            prefix=shelf.prefix,
            endpoint=valve.url,
            public_endpoint=server.endpoint,
            part_bytes=FIRST,
            **quick,
        )
        with running(folder, store) as system:
            system.router()
            system.connector(auto_offload_bytes=1)
            yield Line(system, valve, shelf, server, store)
            valve.release()


@pytest.fixture
def line(tmp_path: Path, store_server: S3Server, outside: Any) -> Iterator[Line]:
    with line_to(tmp_path, store_server, outside) as made:
        yield made


def test_a_client_has_the_first_bytes_while_the_upload_runs_and_another_joins(line: Line) -> None:
    line.prepare(held=True)
    other = line.target.with_name("other out")
    first, second = line.start(), line.start(target=other)
    wait_until(line.has_begun, SECONDS, "the first segment to be here")
    wait_until(lambda: line.has_begun(other), SECONDS, "the other to have it, too")
    assert len(line.segments) == 1
    assert line.keys("/blocks") == []
    line.valve.release()
    assert (first.wait(SECONDS), second.wait(SECONDS)) == (0, 0), first.log + second.log
    line.came()
    assert sha256(other) == sha256(line.source)
    assert len(line.segments) == SIZE // FIRST
    assert all(line.shelf.put_count(key) == 1 for key in line.segments)
    assert len(line.keys("/blocks")) == 1
    assert line.keys("/data") == []


def test_a_version_that_is_there_is_not_read_again(line: Line) -> None:
    """Not for a client that takes segments, and not for one that takes one object alone."""
    line.prepare()
    assert line.fetch().code == 0
    _, connector = line.system.processes[:2]
    assert connector.stop() == 0
    connector = line.system.connector(auto_offload_bytes=1)
    line.target.unlink()
    before = bytes_read(connector.pid)
    assert line.fetch().code == 0
    line.came()
    answers = [offered(line.system, line.name) for _ in range(2)]
    assert bytes_read(connector.pid) - before < SIZE / 2
    assert all(line.shelf.put_count(key) == 1 for key in line.segments)
    assert line.shelf.uploads() == []
    for answer in answers:
        assert answer["reused"]
        with urllib.request.urlopen(answer["download_url"]) as response:
            assert hashlib.file_digest(response, "sha256").hexdigest() == sha256(line.source)
    assert [line.shelf.put_count(end) for end in ("/data", "/blocks")] == [1, 2]


def test_a_request_for_one_object_waits_for_the_segments_that_are_under_way(line: Line) -> None:
    line.prepare(held=True)
    client = line.start()
    wait_until(line.has_begun, SECONDS, "the first segment to be here")
    with ThreadPoolExecutor(1) as asking:
        plain = asking.submit(offered, line.system, line.name)
        wait_until(lambda: taken(line.system) == 2, SECONDS, "the request to be there")
        line.valve.release()
        answer = plain.result()
    assert client.wait(SECONDS) == 0
    with urllib.request.urlopen(answer["download_url"]) as response:
        assert hashlib.file_digest(response, "sha256").hexdigest() == sha256(line.source)
    assert all(line.shelf.put_count(key) == 1 for key in line.segments)


def test_the_last_client_leaves_and_nothing_stays(
    tmp_path: Path, store_server: S3Server, outside: Any
) -> None:
    with line_to(tmp_path, store_server, outside, linger_seconds=LINGER_SECONDS) as line:
        line.prepare(held=True)
        client = line.start()
        wait_until(line.has_begun, SECONDS, "the first segment to be here")
        client.send(signal.SIGINT)
        assert client.wait() == 130
        connector = line.system.processes[1]
        wait_until(lambda: taken(line.system) == 0, SECONDS, "the transfer to be over")
        wait_until(lambda: line.keys() == [], SECONDS, "the store to be empty")
        wait_until(lambda: files_open(connector) == [], SECONDS, "the dataset to be closed")
        line.valve.release()
        assert line.fetch("--parallel", "4").code == 0
        line.came()


def test_of_the_uploads_for_nobody_the_oldest_is_ended_when_they_are_too_many(
    tmp_path: Path, store_server: S3Server, outside: Any
) -> None:
    with line_to(tmp_path, store_server, outside, lingering=1) as line:
        left: list[str] = []
        for _ in range(2):
            line.prepare(held=True)
            client = line.start()
            wait_until(line.has_begun, SECONDS, "the first segment to be here")
            left += [key for key in line.segments if key not in left]
            client.send(signal.SIGINT)
            assert client.wait() == 130
        wait_until(lambda: line.segments == left[1:], SECONDS, "the first to be removed")


@pytest.mark.parametrize("change", [grow, edit])
def test_b2_a_dataset_that_changes_in_mid_upload(
    line: Line, change: Callable[[Path], None]
) -> None:
    line.prepare(held=True)
    client = line.start()
    wait_until(line.has_begun, SECONDS, "the first segment to be here")
    change(line.source)
    line.valve.release()
    assert client.wait(SECONDS) == 7, client.log
    assert re.search("changed|while it was read", client.log)
    assert not line.target.exists()
    wait_until(lambda: line.keys() == [], SECONDS, "the store to be empty")


def test_a_connector_that_is_killed_in_mid_upload(line: Line) -> None:
    """The fetch goes on with the next process, and what the first one left is found."""
    line.prepare(held=True)
    client = line.start(retry_for_seconds=30)
    wait_until(line.has_begun, SECONDS, "the first segment to be here")
    connector = line.system.processes[1]
    connector.kill()
    line.valve.release()
    connector = line.system.connector(auto_offload_bytes=1)
    assert client.wait(SECONDS) == 0, client.log
    line.came()
    assert len({key.rpartition("/")[0] for key in line.segments}) == 2
    done = collected(line.server, line.shelf.prefix, "--older-than", "0", "--json")
    assert (done.code, done.json()["objects"]) == (0, 3)
    assert line.keys() == []


def test_b1_a_client_that_is_killed_resumes_by_several_streams(line: Line) -> None:
    line.prepare(held=True)
    client = line.start()
    wait_until(line.has_begun, SECONDS, "the first segment to be here")
    wait_until(lambda: journal_bytes(line) > 0, SECONDS, "the journal to tell of it")
    client.kill()
    line.valve.release()
    done = line.fetch("--parallel", "4", parallel_least_bytes=FIRST)
    assert done.code == 0, done.err
    assert done.json()["resumed_bytes"] >= FIRST // 2
    line.came()


def journal_bytes(line: Line) -> int:
    """Return how long the client's journal is."""
    found = [
        one for one in line.target.parent.glob(f"{line.target.name}*") if "journal" in one.name
    ]
    return sum(one.stat().st_size for one in found)


def lose(shelf: Shelf, key: str) -> None:
    shelf.client.delete_object(Bucket=BUCKET, Key=key)


def shorten(shelf: Shelf, key: str) -> None:
    shelf.put(key, shelf.get(key)[:-1])


@pytest.mark.parametrize("mode", ["offload", "auto"])
@pytest.mark.parametrize("spoil", [lose, shorten])
def test_s4_a_segment_that_is_gone_or_short_is_put_there_again(
    line: Line, spoil: Callable[[Shelf, str], None], mode: str
) -> None:
    line.prepare()
    assert line.fetch().code == 0
    spoil(line.shelf, line.segments[4])
    line.target.unlink()
    done = line.fetch(mode=mode)
    assert (done.code, done.json()["mode_used"]) == (0, "offload"), done.err
    line.came()


@pytest.mark.parametrize("spoil", [lose, shorten])
def test_s4_one_object_is_never_made_of_segments_that_are_not_whole(
    line: Line, spoil: Callable[[Shelf, str], None]
) -> None:
    line.prepare()
    assert line.fetch().code == 0
    spoil(line.shelf, line.segments[-1])
    answer = offered(line.system, line.name)
    with urllib.request.urlopen(answer["download_url"]) as response:
        assert hashlib.file_digest(response, "sha256").hexdigest() == sha256(line.source)


def test_s4_a_segment_that_was_altered_is_found_and_auto_goes_on_without_it(line: Line) -> None:
    line.prepare()
    assert line.fetch().code == 0
    key = line.segments[4]
    line.shelf.put(key, altered(line.shelf.get(key)))
    line.target.write_bytes(b"what was there before")
    done = line.fetch()
    assert done.code == 7, done.out
    assert "block 9 came wrong 4 times" in told(done)
    assert line.target.read_bytes() == b"what was there before"
    done = line.fetch(mode="auto")
    assert (done.code, done.json()["repaired_blocks"]) == (0, 1), done.err
    line.came()


async def test_s1_a_segment_of_another_place_is_never_passed_on(system: System) -> None:
    async with place() as other, place() as store:
        origin = f"http://127.0.0.1:{store.port}"
        system.environ = {"TUNNELSYNC_STORE_ENDPOINT": origin}
        router = system.router()
        right = segment(Cut(0, FIRST), bytes(64), f"{origin}/x")
        told = SegmentsAnswer((right,), "d", SIZE, "v1", 1, 60)
        async with played(router.url, MAC) as connector:
            for text in FOREIGN:
                url = text.replace("OTHER", str(other.port)).replace("STORE", str(store.port))
                wrong = replace(right, offset=FIRST, download_url=url)
                for mode in ("offload", "auto"):
                    client = wanting(router.url, MAC, mode, segments_from=0)
                    request_id = (command := await connector.hear())["request_id"]
                    assert command["segments_from"] == 0
                    await connector.result(request_id, replace(told, segments=(right, wrong)))
                    refused = await client
                    assert (refused.status, refused.code) == (502, "store_untrusted"), url
            client = wanting(router.url, MAC, "offload", segments_from=0)
            request_id = (await connector.hear())["request_id"]
            await connector.result(request_id, told)
            answer = (await client).json()
            assert answer["segments"] == [asdict(right)]
            assert answer["store_origins"] == [origin]
            refused = await wanting(router.url, MAC, "offload", segments_from=-1)
            assert (refused.status, refused.code) == (400, "bad_request")
        assert (other.visits, store.visits) == (0, 0)


@pytest.mark.store
def test_s3_a_store_that_fails_in_mid_upload_leaves_auto_to_the_stream(tmp_path: Path) -> None:
    with s3_server() as own:
        client = own.client()
        client.create_bucket(Bucket=BUCKET)
        with line_to(tmp_path, own, client, attempts=1, connect_seconds=1.0) as line:
            line.prepare(held=True)
            flags = ("--mode", "auto", "--json")
            out = str(line.target)
            fetching = line.system.start(
                "fetch", *flags, MAC, line.name, "-o", out, retry_for_seconds=30
            )
            wait_until(line.has_begun, SECONDS, "the first segment to be here")
            own.stop()
            line.valve.release()
            assert fetching.wait(SECONDS) == 0, fetching.log
            assert '"mode_used":"stream"' in fetching.log
            line.came()
