"""What becomes of an upload that is held, when its dataset changes or its clients leave."""

import asyncio
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from changes import edit, grow, swap
from harness import MAC, sha256, wait_until
from held_upload import Held, held, holding, shrink
from played_connector import wanting
from s3 import S3Server, age_seconds
from store_stage import BUCKET, SECONDS, Shelf, outside, shelf, taken

__all__ = ["held", "outside", "shelf"]


@pytest.mark.parametrize(
    ("change", "parts"), [(grow, 2), (shrink, 2), (edit, 2), (swap, 2), (edit, 1), (shrink, 1)]
)
def test_b2_a_dataset_that_changes_while_it_is_uploaded(
    held: Held, change: Callable[[Path], None], parts: int
) -> None:
    """By parts, or in one PUT."""
    process = held.begin(f"{change.__name__} {parts}", parts)
    change(held.source)
    held.way.open()
    assert process.wait(SECONDS) == 7, process.log
    assert "while it was read" in process.log
    assert not held.target.exists()
    wait_until(lambda: not held.shelf.uploads(), SECONDS, "the upload to be aborted")
    assert held.puts == 0


@pytest.mark.parametrize("parts", [2, 1])
def test_p2_a_client_that_leaves_in_mid_upload_leaves_nothing_in_the_store(
    held: Held, parts: int
) -> None:
    process = held.begin(f"left {parts}", parts)
    process.send(signal.SIGINT)
    assert process.wait() == 130
    wait_until(lambda: not held.shelf.uploads(), SECONDS, "the upload to be aborted")
    wait_until(lambda: taken(held.system) == 0, SECONDS, "the transfer to be over")
    assert held.puts == 0
    assert not held.target.exists()
    held.way.open()
    assert held.start(held.target).wait(SECONDS) == 0
    assert sha256(held.target) == sha256(held.source)
    assert held.puts == 1
    assert held.shelf.uploads() == []


def test_p3_one_of_two_that_wait_for_an_upload_leaves_and_the_other_gets_it(held: Held) -> None:
    first = held.begin("shared", 2)
    other = held.target.with_name("other out")
    second = held.start(other)
    wait_until(lambda: taken(held.system) == 2, SECONDS, "the second to wait for it, too")
    first.send(signal.SIGINT)
    assert first.wait() == 130
    wait_until(lambda: taken(held.system) == 1, SECONDS, "the first to be gone")
    held.way.open()
    assert second.wait(SECONDS) == 0, second.log
    assert sha256(other) == sha256(held.source)
    assert not held.target.exists()
    assert held.puts == 1
    other.unlink()


def test_p2_the_last_of_two_that_leaves_ends_the_upload(held: Held) -> None:
    first = held.begin("both left", 2)
    second = held.start(held.target.with_name("other out"))
    wait_until(lambda: taken(held.system) == 2, SECONDS, "the second to wait for it, too")
    for process, left in ((first, 1), (second, 0)):
        assert len(held.shelf.uploads()) == 1
        process.send(signal.SIGINT)
        assert process.wait() == 130
        wait_until(lambda left=left: taken(held.system) == left, SECONDS, "one less")  # type: ignore[misc]
    wait_until(lambda: not held.shelf.uploads(), SECONDS, "the upload to be aborted")
    assert held.puts == 0


async def test_s5_five_at_once_are_one_upload(held: Held) -> None:
    held.prepare("five", 2)
    asked = [wanting(held.system.url, MAC, "offload", dataset="five") for _ in range(5)]
    try:
        async with asyncio.timeout(SECONDS):
            while await asyncio.to_thread(taken, held.system) < 5 or held.way.held < 2:
                pass
        assert len(held.shelf.uploads()) == 1
    finally:
        held.way.open()
    answers = [(await one).json() for one in asked]
    assert {one["root"] for one in answers} == {answers[0]["root"]}
    assert {one["download_url"].partition("?")[0] for one in answers} == {
        answers[0]["download_url"].partition("?")[0]
    }
    assert held.puts == 1


def test_s3_what_a_killed_connector_left_open_is_aborted_when_it_starts_again(
    tmp_path: Path, store_server: S3Server, shelf: Shelf
) -> None:
    """By kill -9 in mid-upload; and uploads of another connector stay."""
    others = f"{shelf.prefix}/cc-28-aa-04-ff-ff/{0:064x}/data"
    with holding(tmp_path, store_server, shelf) as held:
        client = held.begin("killed", 2)
        (left,) = shelf.uploads()
        by_others = {"Bucket": BUCKET, "Key": others}
        by_others["UploadId"] = shelf.client.create_multipart_upload(**by_others)["UploadId"]
        _, connector, *_ = held.system.processes
        connector.kill()
        assert client.wait(SECONDS) == 5, client.log
        assert left in shelf.uploads()
        wait_until(
            lambda: age_seconds(shelf.client, BUCKET, left) >= 3,
            SECONDS,
            "the upload to be older than the next process, also by whole seconds",
        )
        held.way.open()
        held.system.connector().wait_for_line("1 uploads that were left open are aborted")
        assert shelf.uploads() == [others]
        assert held.start(held.target).wait(SECONDS) == 0
        assert sha256(held.target) == sha256(held.source)
        assert held.puts == 1
        assert shelf.uploads() == [others]
    shelf.client.abort_multipart_upload(**by_others)
