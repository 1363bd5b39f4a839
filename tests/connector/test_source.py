"""Datasets opened inside the jail: both ways of opening, the same promises."""

import asyncio
import ctypes
import errno
import os
import socket
import stat
import threading
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tunnelsync.connector import jail as module
from tunnelsync.connector.jail import Jail, beneath, stepwise
from tunnelsync.connector.source import Root, Source
from tunnelsync.errors import (
    BadName,
    BadRequest,
    BadSetting,
    ConnectorBusy,
    DatasetChanged,
    DatasetDenied,
    DatasetNotFound,
    NotADataset,
    OutsideRoot,
    ReadFailed,
    TooLarge,
    TunnelSyncError,
)
from tunnelsync.protocol import ListEntry

MIB = 1024 * 1024
SECRET = b"what lies outside"


@pytest.fixture
def executor() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(4, thread_name_prefix="files") as pool:
        yield pool


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The root's folder, beside a neighbour whose name it begins, and which holds a secret."""
    (tmp_path / "data").mkdir()
    (tmp_path / "data-private").mkdir()
    (tmp_path / "data-private" / "secret").write_bytes(SECRET)
    return tmp_path / "data"


@pytest.fixture(params=[beneath, stepwise], ids=["beneath", "stepwise"])
def jail(request: pytest.FixtureRequest) -> Jail:
    chosen: Jail = request.param
    return chosen


@pytest.fixture
async def root(folder: Path, executor: ThreadPoolExecutor, jail: Jail) -> AsyncIterator[Root]:
    opened = Root(folder, executor, list_entries=1000, folder_entries=10_000, jail=jail)
    before = descriptors()
    yield opened
    assert descriptors() == before, "a descriptor leaked"
    opened.close()


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


async def content(root: Root, name: str) -> bytes:
    async with await root.open(name) as source:
        return await source.read(0, source.size)


# --- opening and reading ------------------------------------------------------------------


async def test_a_dataset_is_opened_with_its_version(root: Root, folder: Path) -> None:
    (folder / "sub").mkdir()
    (folder / "sub" / "a").write_bytes(b"0123456789")
    found = (folder / "sub" / "a").stat()
    async with await root.open("sub/a") as source:
        assert (source.name, source.size) == ("sub/a", 10)
        assert (source.mtime_ns, source.ctime_ns) == (found.st_mtime_ns, found.st_ctime_ns)
        assert source.etag == f"a-{found.st_mtime_ns:x}-{found.st_ctime_ns:x}"
        assert os.fstat(source.fileno()).st_ino == found.st_ino
        assert not os.get_inheritable(source.fileno())
        assert [await source.read(7, 3), await source.read(0, 2)] == [b"789", b"01"]
        await source.unchanged()
    with pytest.raises(ValueError, match="closed"):
        source.fileno()
    await source.close()


async def test_B9_an_empty_dataset_is_one(root: Root, folder: Path) -> None:
    (folder / "empty").touch()
    async with await root.open("empty") as source:
        assert source.size == 0
        assert await source.read(0, 0) == b""
        await source.unchanged()


async def test_B9_a_sparse_dataset_is_read_past_4_gib(root: Root, folder: Path) -> None:
    size = 5 * 1024 * MIB + 3
    with (folder / "sparse").open("wb") as file:
        file.truncate(size)
        file.seek(size - 3)
        file.write(b"end")
    async with await root.open("sparse") as source:
        assert source.size == size
        assert await source.read(size - 6, 6) == b"\0\0\0end"


async def test_a_read_that_returns_short_is_gone_on_with(
    root: Root, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = os.urandom(10_000)
    (folder / "a").write_bytes(whole)
    pread = os.pread
    monkeypatch.setattr(os, "pread", lambda fd, length, at: pread(fd, min(length, 999), at))
    assert await content(root, "a") == whole


async def test_B8_a_disk_that_fails_is_told(
    root: Root, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(fd: int, length: int, at: int) -> bytes:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    (folder / "a").write_bytes(b"0123456789")
    monkeypatch.setattr(os, "pread", broken)
    with pytest.raises(ReadFailed, match=r'"a" at byte 0: Input/output error'):
        await content(root, "a")


async def test_files_are_worked_on_the_given_executor_alone(
    root: Root, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "a").write_bytes(b"0123456789")
    threads: set[str] = set()
    for name in ("pread", "fstat", "scandir", "stat"):
        real = getattr(os, name)

        def noted(*args: object, real: object = real, **kwargs: object) -> object:
            threads.add(threading.current_thread().name)
            return real(*args, **kwargs)  # type: ignore[operator]

        monkeypatch.setattr(os, name, noted)
    async with await root.open("a") as source:
        await source.read(0, 10)
        await source.unchanged()
    await root.list("", after="", limit=10)
    assert threads
    assert all(name.startswith("files") for name in threads)


# --- N: names and the jail ----------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        "",
        "/",
        "/etc/passwd",
        "..",
        "../data-private/secret",
        "a/../../x",
        ".",
        "./a",
        "a/",
        "a//b",
        "a\0b",
        "\0",
        "\udc80",
        "a/\ud800",
        "a/.",
        "x" * 5000,
    ],
)
async def test_N1_names_that_cannot_be_are_refused(root: Root, name: str) -> None:
    with pytest.raises(BadName):
        await root.open(name)
    if name:
        with pytest.raises(BadName):
            await root.list(name, after="", limit=10)


def test_N1_each_jail_holds_by_itself_against_dots_and_absolute_names(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY)
    try:
        for name in ("../data-private/secret", "/etc/passwd", ".."):
            with pytest.raises(OSError, match="cross-device"):
                beneath(fd, name)
    finally:
        os.close(fd)


async def test_N1_a_root_whose_name_begins_its_neighbours_is_safe(root: Root, folder: Path) -> None:
    (folder / "up").symlink_to("../data-private/secret")
    (folder / "folder").symlink_to("../data-private")
    for name in ("up", "folder/secret"):
        with pytest.raises(OutsideRoot):
            await root.open(name)
    with pytest.raises(DatasetNotFound):
        await root.open("-private/secret")


@pytest.mark.parametrize(
    "target",
    [
        "../data-private/secret",
        "/etc/passwd",
        "/proc/self/environ",
        "/proc/self/fd/0",
        "/dev/zero",
        "self",
        "/proc/self/root/etc/passwd",
        "..",
    ],
)
async def test_N2_a_link_that_leads_out_is_refused(root: Root, folder: Path, target: str) -> None:
    (folder / "self").symlink_to(target)
    with pytest.raises(OutsideRoot):
        await root.open("self")


async def test_N2_a_link_that_stays_inside_is_followed_where_that_is_safe(
    root: Root, folder: Path, jail: Jail
) -> None:
    (folder / "sub").mkdir()
    (folder / "a").write_bytes(b"inside")
    (folder / "sub" / "up").symlink_to("../a")
    (folder / "to-sub").symlink_to("sub")
    for name in ("sub/up", "to-sub/up"):
        if jail is beneath:
            assert await content(root, name) == b"inside"
        else:
            with pytest.raises(OutsideRoot):
                await root.open(name)


async def test_N2_symlink_swapped_between_check_and_open(root: Root, folder: Path) -> None:
    """A thread swaps file, folder and links to the outside while datasets are opened."""
    inside, stop = b"inside", threading.Event()
    (folder / "file").write_bytes(inside)
    (folder / "real").mkdir()
    (folder / "real" / "secret").write_bytes(inside)
    names = ("swapped", "folder/secret")

    def swap() -> None:
        new = folder / "new"
        while not stop.is_set():
            os.link(folder / "file", new)
            new.replace(folder / "swapped")
            new.symlink_to("../data-private/secret")
            new.replace(folder / "swapped")
            (folder / "folder").unlink(missing_ok=True)
            (folder / "real").rename(folder / "folder")
            (folder / "folder").rename(folder / "real")
            (folder / "folder").symlink_to("../data-private")

    thread = threading.Thread(target=swap)
    thread.start()
    outcomes: set[tuple[str, str]] = set()
    try:
        for name in names * 4000:
            try:
                assert await content(root, name) == inside
                outcomes.add((name, "inside"))
            except (OutsideRoot, DatasetNotFound, DatasetChanged) as exc:
                outcomes.add((name, exc.code))
    finally:
        stop.set()
        thread.join()
    wanted = {(name, outcome) for name in names for outcome in ("inside", "outside_root")}
    assert outcomes >= wanted


async def test_N2_a_folder_swapped_for_a_link_at_the_last_moment_is_refused(
    folder: Path, executor: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "sub").mkdir()
    judge = module._refuse_link

    def swap_after(found: os.stat_result) -> None:
        judge(found)
        if (folder / "sub").is_dir() and not (folder / "sub").is_symlink():
            (folder / "sub").rmdir()
            (folder / "sub").symlink_to("../data-private")

    monkeypatch.setattr(module, "_refuse_link", swap_after)
    root = Root(folder, executor, list_entries=1, folder_entries=1, jail=stepwise)
    with pytest.raises((OutsideRoot, DatasetNotFound)):
        await root.open("sub/secret")
    assert (folder / "sub").is_symlink()
    root.close()


async def test_N2_a_fifo_is_refused_without_blocking(root: Root, folder: Path) -> None:
    os.mkfifo(folder / "fifo")
    async with asyncio.timeout(5):
        with pytest.raises(NotADataset, match="a FIFO"):
            await root.open("fifo")


async def test_N2_a_fifo_swapped_in_at_the_last_moment_does_not_block(
    root: Root, folder: Path, jail: Jail, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The worst moment: the name becomes a FIFO when its kind was just seen to be regular."""
    (folder / "a").write_bytes(b"inside")
    os.mkfifo(folder / "fifo")
    judge = module.refuse_special

    def swap_after(found: os.stat_result, name: str) -> None:
        judge(found, name)
        if (folder / "fifo").exists():
            (folder / "fifo").replace(folder / "a")

    monkeypatch.setattr(module, "refuse_special", swap_after)
    async with asyncio.timeout(5):
        if jail is beneath:
            assert await content(root, "a") == b"inside"
        else:
            with pytest.raises(NotADataset, match="a FIFO"):
                await root.open("a")


async def test_N2_a_socket_is_refused(
    root: Root, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)  # the path of a socket has at most 108 bytes
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind("socket")
        with pytest.raises(NotADataset, match="a socket"):
            await root.open("socket")


async def test_N2_a_device_is_refused(executor: ThreadPoolExecutor, jail: Jail) -> None:
    root = Root("/dev", executor, list_entries=10, folder_entries=10_000, jail=jail)
    async with asyncio.timeout(5):
        for name in ("zero", "null", "tty"):
            with pytest.raises(NotADataset, match="a device"):
                await root.open(name)
    root.close()


async def test_N2_proc_is_refused_even_when_it_is_under_the_root(
    executor: ThreadPoolExecutor, jail: Jail
) -> None:
    root = Root("/", executor, list_entries=1000, folder_entries=10_000, jail=jail)
    async with asyncio.timeout(5):
        for name in ("proc/version", "proc/kmsg", "proc/self/environ", "proc/self/mem", "proc"):
            with pytest.raises((NotADataset, OutsideRoot)):
                await root.open(name)
        with pytest.raises(OutsideRoot):
            await root.open("proc/self/root/etc/passwd")
        listing = await root.list("", after="", limit=1000)
    assert "proc" not in [entry.name for entry in listing.entries]
    root.close()


async def test_a_folder_is_no_dataset_and_says_so(root: Root, folder: Path) -> None:
    (folder / "sub").mkdir()
    with pytest.raises(NotADataset, match='"sub" is a folder'):
        await root.open("sub")


@pytest.mark.parametrize("name", ["none", "none/a", "file/a", "x" * 300])
async def test_what_is_not_there_is_not_found(root: Root, folder: Path, name: str) -> None:
    (folder / "file").touch()
    with pytest.raises(DatasetNotFound):
        await root.open(name)
    with pytest.raises(DatasetNotFound):
        await root.list(name, after="", limit=10)


NAMES = ["a b", "100%", "#x", "?q", "'\"", "new\nline", "\x1b[31m", "\u202egnp.exe", "日本", "\\"]


@pytest.mark.parametrize("name", NAMES)
async def test_N3_odd_names_are_served_and_listed(root: Root, folder: Path, name: str) -> None:
    (folder / name).write_bytes(b"odd")
    assert await content(root, name) == b"odd"
    listing = await root.list("", after="", limit=10)
    assert [entry.name for entry in listing.entries] == [name]


async def test_N3_messages_show_names_escaped(root: Root, folder: Path) -> None:
    for name in ("\x1b[31m\n\u202e", "\x1b[31m\n\udc80"):
        with pytest.raises(TunnelSyncError) as caught:
            await root.open(name)
        assert caught.value.message.isprintable()
        assert r"\x1b[31m\n" in caught.value.message


async def test_B8_what_may_not_be_read_is_denied(root: Root, folder: Path) -> None:
    (folder / "a").write_bytes(b"0")
    (folder / "a").chmod(0)
    (folder / "sub").mkdir(0)
    euid = os.geteuid()
    os.seteuid(euid or 65534)  # root may read everything, so the test becomes nobody
    try:
        for name in ("a", "sub/b"):
            with pytest.raises(DatasetDenied):
                await root.open(name)
        with pytest.raises(DatasetDenied):
            await root.list("sub", after="", limit=1)
    finally:
        os.seteuid(euid)


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (errno.EACCES, DatasetDenied),
        (errno.ENXIO, NotADataset),
        (errno.EMFILE, ConnectorBusy),
        (errno.ENFILE, ConnectorBusy),
        (errno.EAGAIN, DatasetChanged),
        (errno.EIO, ReadFailed),
    ],
)
async def test_an_error_of_open_is_told_as_one_of_ours(
    folder: Path, executor: ThreadPoolExecutor, code: int, kind: type[TunnelSyncError]
) -> None:
    def refuse(root_fd: int, name: str) -> int:
        raise OSError(code, os.strerror(code))

    root = Root(folder, executor, list_entries=10, folder_entries=10, jail=refuse)
    with pytest.raises(kind, match='"a"'):
        await root.open("a")
    root.close()


@pytest.mark.parametrize("moves", [2, 10_000])
async def test_a_folder_that_moves_under_an_open_is_tried_again_and_not_for_ever(
    folder: Path, executor: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch, moves: int
) -> None:
    (folder / "a").write_bytes(b"0123456789")
    system, left = module._libc().syscall, moves

    def moved(*args: object) -> int:
        nonlocal left
        if left:
            left -= 1
            ctypes.set_errno(errno.EAGAIN)
            return -1
        return int(system(*args))

    monkeypatch.setattr(module._libc(), "syscall", moved)
    root = Root(folder, executor, list_entries=10, folder_entries=10, jail=beneath)
    if moves == 2:
        assert await content(root, "a") == b"0123456789"
    else:
        with pytest.raises(DatasetChanged):
            await root.open("a")
    root.close()


# --- B2: changes --------------------------------------------------------------------------


def change_dataset(path: Path, change: str) -> None:
    """Change a dataset as the words say, after the clock that stamps files has moved on."""
    before = path.stat()
    other = path.with_name("other")
    other.write_bytes(b"9876543210")
    while other.stat().st_ctime_ns == before.st_ctime_ns:
        other.touch()
    match change:
        case "shrank":
            os.truncate(path, 5)
        case "grew":
            with path.open("ab") as file:
                file.write(b"more")
        case "was edited":
            path.write_bytes(b"9876543210")
        case "mtime put back":
            path.write_bytes(b"9876543210")
            os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
            assert path.stat().st_mtime_ns == before.st_mtime_ns
        case "was replaced":
            other.replace(path)
        case "or deleted":
            path.unlink()


@pytest.mark.parametrize(
    "change", ["shrank", "grew", "was edited", "mtime put back", "was replaced", "or deleted"]
)
async def test_B2_a_change_while_it_is_read_is_told(root: Root, folder: Path, change: str) -> None:
    (folder / "a").write_bytes(b"0123456789")
    async with await root.open("a") as source:
        await source.read(0, 5)
        change_dataset(folder / "a", change)
        with pytest.raises(DatasetChanged, match=change):
            await source.unchanged()


async def test_B2_a_read_past_a_cut_tells_of_the_change(root: Root, folder: Path) -> None:
    (folder / "a").write_bytes(bytes(MIB))
    async with await root.open("a") as source:
        os.truncate(folder / "a", 1000)
        with pytest.raises(DatasetChanged, match=f"byte 1000 of {MIB}"):
            await source.read(0, MIB)
        with pytest.raises(DatasetChanged):
            await source.read(MIB - 1, 1)


# --- cancelling ---------------------------------------------------------------------------


async def test_a_cancelled_open_leaks_no_descriptor(folder: Path, jail: Jail) -> None:
    (folder / "a").write_bytes(b"0123456789")
    opening, go_on = threading.Semaphore(0), threading.Semaphore(0)

    def held(root_fd: int, name: str) -> int:
        fd = jail(root_fd, name)
        opening.release()
        go_on.acquire()
        return fd

    with ThreadPoolExecutor(2) as executor:
        root = Root(folder, executor, list_entries=10, folder_entries=10, jail=held)
        before = descriptors()
        tasks = [asyncio.create_task(root.open("a")) for _ in range(20)]
        for _ in range(2):  # two are being opened, the others wait for a thread
            await asyncio.to_thread(opening.acquire)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert all(task.cancelled() for task in tasks)
        assert descriptors() == before + 2
        go_on.release(20)
    assert descriptors() == before
    root.close()


async def test_opens_cancelled_at_any_moment_leak_no_descriptor(folder: Path, jail: Jail) -> None:
    (folder / "a").write_bytes(b"0123456789")
    with ThreadPoolExecutor(2) as executor:
        root = Root(folder, executor, list_entries=10, folder_entries=10, jail=jail)
        before = descriptors()

        async def one(turn: int) -> None:
            task = asyncio.create_task(root.open("a"))
            for _ in range(turn % 23):
                await asyncio.sleep(0)
            task.cancel()
            try:
                await (await task).close()
            except asyncio.CancelledError:
                assert task.cancelled()

        for turn in range(1000):
            await one(turn)
    assert descriptors() == before
    root.close()


async def test_closing_waits_for_a_read_whose_caller_was_cancelled(
    root: Root, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "a").write_bytes(b"0123456789")
    reading, go_on, open_after = threading.Event(), threading.Event(), []

    def slow(fd: int, length: int, at: int) -> bytes:
        reading.set()
        go_on.wait()
        open_after.append(stat.S_ISREG(os.fstat(fd).st_mode))
        return bytes(length)

    monkeypatch.setattr(os, "pread", slow)
    source = await root.open("a")
    task = asyncio.create_task(source.read(0, 10))
    await asyncio.to_thread(reading.wait)
    task.cancel()
    closing = asyncio.create_task(source.close())
    await asyncio.sleep(0)
    closing.cancel()
    go_on.set()
    await asyncio.gather(task, closing, return_exceptions=True)
    await source.close()
    assert task.cancelled()
    assert open_after == [True]


async def test_behind_a_read_that_hangs_others_are_opened_all_the_same(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "a").write_bytes(b"0123456789")
    reading, go_on, pread = threading.Event(), threading.Event(), os.pread

    def hanging(fd: int, length: int, at: int) -> bytes:
        reading.set()
        go_on.wait()
        return pread(fd, length, at)

    monkeypatch.setattr(os, "pread", hanging)
    with ThreadPoolExecutor(2) as executor, ThreadPoolExecutor(1) as opener:
        root = Root(folder, executor, opener, list_entries=1, folder_entries=1)
        source = await root.open("a")
        task = asyncio.create_task(source.read(0, 10))
        await asyncio.to_thread(reading.wait)
        task.cancel()
        closing = asyncio.create_task(source.close())
        await asyncio.sleep(0)
        try:
            await (await asyncio.wait_for(root.open("a"), 10)).close()
        finally:
            go_on.set()
            await asyncio.gather(closing, task, return_exceptions=True)
            root.close()


async def test_a_cancelled_close_closes_all_the_same(folder: Path) -> None:
    (folder / "a").touch()
    go_on = threading.Event()
    with ThreadPoolExecutor(1) as executor:
        root = Root(folder, executor, list_entries=1, folder_entries=1)
        source = await root.open("a")
        executor.submit(go_on.wait)  # the only thread is busy: the close has to wait for it
        closing = asyncio.create_task(source.close())
        await asyncio.sleep(0)
        closing.cancel()
        await asyncio.gather(closing, return_exceptions=True)
        assert closing.cancelled()
        go_on.set()
    with pytest.raises(ValueError, match="closed"):
        source.fileno()
    root.close()


# --- listing ------------------------------------------------------------------------------


async def test_a_folder_is_listed_in_order_with_what_can_be_served(
    root: Root, folder: Path, jail: Jail
) -> None:
    for name in ("b", "a", "Z", "é"):
        (folder / name).write_bytes(name.encode())
    (folder / "c").mkdir()
    (folder / "c" / "inner").touch()
    os.mkfifo(folder / "fifo")
    (folder / "out").symlink_to("/etc/passwd")
    (folder / "dangling").symlink_to("nowhere")
    (folder / "in").symlink_to("c/inner")
    (folder / "in-folder").symlink_to("c")
    (folder / os.fsdecode(b"\xff")).touch()
    listing = await root.list("", after="", limit=100)
    linked = ["in", "in-folder"] if jail is beneath else []
    assert [entry.name for entry in listing.entries] == ["Z", "a", "b", "c", *linked, "é"]
    assert listing.unlisted == (4 if jail is beneath else 6)
    assert listing.next is None
    by_name = {entry.name: entry for entry in listing.entries}
    async with await root.open("b") as b:
        assert by_name["b"] == ListEntry("b", "dataset", 1, b.etag, b.mtime_ns)
    assert by_name["c"] == ListEntry("c", "folder")
    if jail is beneath:
        async with await root.open("in") as inner:
            assert by_name["in"] == ListEntry("in", "dataset", 0, inner.etag, inner.mtime_ns)
        assert by_name["in-folder"].kind == "folder"
        assert [e.name for e in (await root.list("in-folder", after="", limit=9)).entries] == [
            "inner"
        ]


async def test_pages_join_to_the_whole_folder(root: Root, folder: Path) -> None:
    (folder / "sub").mkdir()
    names = sorted(f"{i:x}" for i in range(100))
    for name in names:
        (folder / "sub" / name).touch()
    got: list[str] = []
    after: str | None = ""
    while after is not None:
        page = await root.list("sub", after=after, limit=7)
        assert 1 <= len(page.entries) <= 7
        got += [entry.name for entry in page.entries]
        after = page.next
    assert got == names
    assert (await root.list("sub", after=names[-1], limit=7)).entries == ()


async def test_a_limit_is_kept_between_one_and_the_setting(
    folder: Path, executor: ThreadPoolExecutor
) -> None:
    root = Root(folder, executor, list_entries=3, folder_entries=5)
    for name in "abcde":
        (folder / name).touch()
    page = await root.list("", after="", limit=1000)
    assert ([entry.name for entry in page.entries], page.next) == (["a", "b", "c"], "c")
    with pytest.raises(BadRequest):
        await root.list("", after="", limit=0)
    (folder / "f").touch()
    with pytest.raises(TooLarge, match="more than 5 entries") as caught:
        await root.list("", after="", limit=1)
    assert "folder_entries" in caught.value.hint
    root.close()


async def test_a_dataset_or_a_way_out_is_no_folder_to_list(root: Root, folder: Path) -> None:
    (folder / "a").touch()
    (folder / "out").symlink_to("../data-private")
    with pytest.raises(NotADataset, match="not a folder"):
        await root.list("a", after="", limit=1)
    with pytest.raises(OutsideRoot):
        await root.list("out", after="", limit=1)


# --- the root -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["none", "file", "a\0b", "fifo"])
def test_a_root_that_is_no_folder_is_a_bad_setting(
    tmp_path: Path, executor: ThreadPoolExecutor, name: str
) -> None:
    (tmp_path / "file").touch()
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(BadSetting, match="root"):
        Root(tmp_path / name, executor, list_entries=1, folder_entries=1)


async def test_a_closed_root_opens_nothing(folder: Path, executor: ThreadPoolExecutor) -> None:
    (folder / "a").touch()
    root = Root(folder, executor, list_entries=1, folder_entries=1)
    async with await root.open("a") as source:
        assert isinstance(source, Source)
    root.close()
    root.close()
    with pytest.raises(ReadFailed):
        await root.open("a")


def test_linux_takes_openat2_and_falls_back_where_it_is_forbidden(
    folder: Path, executor: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = Root(folder, executor, list_entries=1, folder_entries=1)
    assert root._jail is beneath
    root.close()

    def forbidden(root_fd: int, name: str) -> int:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(module, "beneath", forbidden)
    root = Root(folder, executor, list_entries=1, folder_entries=1)
    assert root._jail is stepwise
    root.close()
