"""Plain HTTP at a real router: what curl, wget, a browser or a script of ten lines relies on."""

import os
import shutil
import subprocess
import urllib.request
from collections.abc import Iterator
from email.utils import formatdate, parsedate_to_datetime
from pathlib import Path
from urllib.error import HTTPError
from urllib.parse import quote

import orjson
import pytest

import raw_http
from harness import MAC, System, clean_environ, make_file, sha256, wait_until
from raw_http import Answer

SIZE = 300_000
AT = f"/datasets/{MAC}/"


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    """One router and one connector for all tests here that leave them as they are."""
    started = System(tmp_path_factory.mktemp("http"))
    folder = started.tmp_path / "datasets"
    make_file(folder / "a.bin", SIZE)
    (folder / "empty").touch()
    (folder / "sub").mkdir()
    (folder / "sub" / "x y").write_bytes(b"hello")
    try:
        started.router()
        started.connector()
        yield started
    finally:
        started.stop()


@pytest.fixture
def fresh(tmp_path: Path) -> Iterator[System]:
    """Nothing started yet, for one test alone."""
    started = System(tmp_path)
    try:
        yield started
    finally:
        started.stop()


@pytest.fixture(scope="module")
def url(system: System) -> str:
    return system.url


@pytest.fixture(scope="module")
def data(system: System) -> bytes:
    return (system.tmp_path / "datasets" / "a.bin").read_bytes()


def get(url: str, name: str | bytes, **headers: str) -> Answer:
    named = name.encode() if isinstance(name, str) else name
    fields = {key.replace("_", "-"): value for key, value in headers.items()}
    return raw_http.ask(url, "GET", AT.encode() + named, fields)


def head(url: str, name: str, **headers: str) -> Answer:
    fields = {key.replace("_", "-"): value for key, value in headers.items()}
    return raw_http.ask(url, "HEAD", AT + name, fields)


# --- the head of an answer --------------------------------------------------------------------


def test_get_has_every_header_that_a_download_needs(url: str, data: bytes) -> None:
    answer = get(url, "a.bin")
    assert (answer.status, answer.body) == (200, data)
    headers = answer.headers
    assert headers["content-length"] == str(SIZE)
    assert headers["content-type"] == "application/octet-stream"
    assert headers["accept-ranges"] == "bytes"
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["x-accel-buffering"] == "no"
    assert headers["tunnelsync-mode"] == "stream"
    assert headers["content-disposition"].startswith('attachment; filename="a.bin"')
    assert headers["etag"].startswith('"')
    assert "content-encoding" not in headers
    assert "transfer-encoding" not in headers


def test_last_modified_is_the_files_time(system: System, url: str) -> None:
    file = make_file(system.tmp_path / "datasets" / "dated", 1)
    os.utime(file, (1_700_000_000.9, 1_700_000_000.9))
    assert get(url, "dated").headers["last-modified"] == formatdate(1_700_000_000, usegmt=True)


def test_the_request_id_of_an_answer_has_a_receipt(url: str) -> None:
    request_id = get(url, "a.bin").headers["tunnelsync-request-id"]
    receipt = raw_http.ask(url, "GET", f"/transfers/{request_id}?wait=30").json()
    assert receipt["outcome"] == "delivered"
    assert (receipt["dataset"], receipt["bytes"]) == ("a.bin", SIZE)


@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_also_an_answer_that_is_an_error_names_its_transfer(url: str, method: str) -> None:
    answer = raw_http.ask(url, method, AT + "none")
    assert answer.status == 404
    request_id = answer.headers["tunnelsync-request-id"]
    assert answer.headers["tunnelsync-mode"] == "stream"
    receipt = raw_http.ask(url, "GET", f"/transfers/{request_id}").json()
    assert (receipt["outcome"], receipt["error"]["code"]) == ("refused", "dataset_not_found")


def test_head_tells_what_get_would_and_reads_nothing(system: System, url: str) -> None:
    file = system.tmp_path / "datasets" / "a.bin"
    os.utime(file, ns=(1, file.stat().st_mtime_ns))  # a read would renew this time of access
    seen = head(url, "a.bin")
    assert (seen.status, seen.body) == (200, b"")
    assert file.stat().st_atime_ns == 1
    request_id = seen.headers["tunnelsync-request-id"]
    assert raw_http.ask(url, "GET", f"/transfers/{request_id}").json()["mode"] == "stat"
    got = get(url, "a.bin")
    own = ("tunnelsync-request-id", "date")
    assert {k: v for k, v in seen.headers.items() if k not in own} == {
        k: v for k, v in got.headers.items() if k not in own
    }


def test_head_ignores_a_range_as_the_rfc_says(url: str) -> None:
    answer = head(url, "a.bin", Range="bytes=0-9")
    assert (answer.status, answer.headers["content-length"]) == (200, str(SIZE))


def test_head_of_what_is_missing_says_why_in_a_header(url: str) -> None:
    answer = head(url, "none")
    assert (answer.status, answer.body) == (404, b"")
    assert "dataset_not_found" in answer.headers["tunnelsync-error"]


def test_the_reason_of_a_head_fits_in_a_header_whatever_the_name(system: System, url: str) -> None:
    name = "/".join(["\U0001f600" * 60] * 16)
    answer = head(url, quote(name))
    assert answer.status == 404
    assert len(answer.headers["tunnelsync-error"]) < 8190
    done = system.cli("stat", MAC, name)
    assert done.code == 3, done.err


def test_an_empty_dataset(url: str) -> None:
    for answer in (get(url, "empty"), head(url, "empty")):
        assert (answer.status, answer.body) == (200, b"")
        assert answer.headers["content-length"] == "0"
    past = get(url, "empty", Range="bytes=0-")
    assert (past.status, past.headers["content-range"]) == (416, "bytes */0")


# --- ranges and conditions --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("asked", "first", "last"),
    [
        ("bytes=0-99", 0, 99),
        ("bytes=100-", 100, SIZE - 1),
        ("bytes=-100", SIZE - 100, SIZE - 1),
        (f"bytes={SIZE - 1}-", SIZE - 1, SIZE - 1),
        ("bytes=5-99999999999999999999", 5, SIZE - 1),
        (f"bytes=-{SIZE + 1}", 0, SIZE - 1),
    ],
)
def test_b5_a_range_is_206(url: str, data: bytes, asked: str, first: int, last: int) -> None:
    answer = get(url, "a.bin", Range=asked)
    assert (answer.status, answer.body) == (206, data[first : last + 1])
    assert answer.headers["content-range"] == f"bytes {first}-{last}/{SIZE}"
    assert answer.headers["content-length"] == str(last + 1 - first)


@pytest.mark.parametrize("asked", [f"bytes={SIZE}-", f"bytes={SIZE + 7}-{SIZE + 9}", "bytes=-0"])
def test_b5_a_range_past_the_end_is_416_with_the_size(url: str, asked: str) -> None:
    answer = get(url, "a.bin", Range=asked)
    assert (answer.status, answer.code) == (416, "range_not_satisfiable")
    assert answer.headers["content-range"] == f"bytes */{SIZE}"


@pytest.mark.parametrize("asked", ["bytes=0-9,20-29", "bytes=9-0", "lines=0-9", "bytes=a-b", ""])
def test_several_ranges_and_nonsense_get_everything(url: str, data: bytes, asked: str) -> None:
    answer = get(url, "a.bin", Range=asked)
    assert (answer.status, answer.body) == (200, data)


def test_the_etag_is_for_conditions(url: str, data: bytes) -> None:
    etag = get(url, "a.bin").headers["etag"]
    for ask in (get, head):
        assert ask(url, "a.bin", If_Match=etag).status == 200
        assert ask(url, "a.bin", If_Match=f'"x", {etag}').status == 200
        failed = ask(url, "a.bin", If_Match='"other"')
        assert (failed.status, failed.headers["etag"]) == (412, etag)
        assert failed.headers["tunnelsync-mode"] == "stream"
        assert failed.headers["tunnelsync-request-id"]
        same = ask(url, "a.bin", If_None_Match=f"W/{etag}")
        assert (same.status, same.body, same.headers["etag"]) == (304, b"", etag)
        assert ask(url, "a.bin", If_None_Match='"other"').status == 200
    assert get(url, "a.bin", If_None_Match='"other"', Range="bytes=0-3").body == data[:4]


def test_dates_are_for_conditions_too(url: str) -> None:
    modified = get(url, "a.bin").headers["last-modified"]
    before = formatdate(parsedate_to_datetime(modified).timestamp() - 60, usegmt=True)
    for ask in (get, head):
        assert ask(url, "a.bin", If_Modified_Since=modified).status == 304
        assert ask(url, "a.bin", If_Modified_Since=before).status == 200
        assert ask(url, "a.bin", If_Unmodified_Since=modified).status == 200
        assert ask(url, "a.bin", If_Unmodified_Since=before).status == 412


def test_if_range_never_joins_two_versions(system: System, url: str) -> None:
    first = make_file(system.tmp_path / "datasets" / "edited", SIZE).read_bytes()
    old = get(url, "edited").headers["etag"]
    part = get(url, "edited", Range="bytes=100-", If_Range=old)
    assert (part.status, part.body) == (206, first[100:])
    changed = make_file(system.tmp_path / "datasets" / "edited", SIZE, seed=1).read_bytes()
    for stale in (old, '"other"', f"W/{old}", formatdate(0, usegmt=True)):
        whole = get(url, "edited", Range="bytes=100-", If_Range=stale)
        assert (whole.status, whole.body) == (200, changed)
        assert "content-range" not in whole.headers


def test_a_head_that_is_refused_says_why_in_a_header(url: str) -> None:
    for headers, code in (
        ({"If_Match": '"other"'}, "precondition_failed"),
        ({"If_Unmodified_Since": formatdate(0, usegmt=True)}, "precondition_failed"),
    ):
        refused = head(url, "a.bin", **headers)
        assert (refused.status, refused.body) == (412, b"")
        assert orjson.loads(refused.headers["tunnelsync-error"])["code"] == code


def test_more_headers_than_anybody_sends_are_refused(url: str) -> None:
    many = {f"X_{number}": "x" for number in range(80)}
    assert get(url, "a.bin", **many).status == 400
    assert get(url, "a.bin").status == 200


def test_condition_headers_have_a_bound(url: str) -> None:
    many = get(url, "a.bin", If_Match='"x", ' * 1000, If_None_Match='"x", ' * 1000)
    assert (many.status, many.code) == (400, "bad_request")
    assert get(url, "a.bin").status == 200


# --- real clients -----------------------------------------------------------------------------


def tool(name: str) -> str:
    found = shutil.which(name)
    if found is None:
        pytest.skip(f"{name} is not installed here, so nothing shows that it works")
    return found


def run(*command: str, cwd: Path) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        command, cwd=cwd, env=clean_environ(), capture_output=True, timeout=60, check=False
    )


@pytest.fixture
def out(tmp_path: Path) -> Path:
    (tmp_path / "out").mkdir()
    return tmp_path / "out"


@pytest.mark.parametrize(
    ("asked", "part"),
    [("0-99", slice(0, 100)), ("-100", slice(-100, None)), ("100-", slice(100, None))],
)
def test_curl_takes_a_range(url: str, data: bytes, out: Path, asked: str, part: slice) -> None:
    done = run(tool("curl"), "-sSf", "-r", asked, url + AT + "a.bin", cwd=out)
    assert (done.returncode, done.stdout) == (0, data[part]), done.stderr


def test_curl_shows_the_head_and_takes_the_files_own_name(url: str, data: bytes, out: Path) -> None:
    done = run(tool("curl"), "-sSfI", url + AT + "a.bin", cwd=out)
    assert b"content-length: 300000" in done.stdout.lower()
    done = run(tool("curl"), "-sSfOJ", url + AT + "sub%2Fx%20y", cwd=out)
    assert done.returncode == 0, done.stderr
    assert (out / "x y").read_bytes() == b"hello"


@pytest.mark.parametrize("have", [0, 1, SIZE // 2, SIZE - 1])
def test_curl_goes_on_with_a_part(url: str, data: bytes, out: Path, have: int) -> None:
    (out / "a.bin").write_bytes(data[:have])
    done = run(tool("curl"), "-sSf", "-C", "-", "-O", url + AT + "a.bin", cwd=out)
    assert done.returncode == 0, done.stderr
    assert (out / "a.bin").read_bytes() == data


def test_curl_leaves_a_whole_file_as_it_is(url: str, data: bytes, out: Path) -> None:
    (out / "a.bin").write_bytes(data)
    done = run(tool("curl"), "-sS", "-C", "-", "-O", url + AT + "a.bin", cwd=out)
    # Since 7.85 curl takes a 416 whose Content-Range says that it has everything for success.
    assert done.returncode in (0, 22, 33), done.stderr
    assert (out / "a.bin").read_bytes() == data


@pytest.mark.parametrize("have", [0, SIZE // 2, SIZE])
def test_wget_goes_on_with_a_part(url: str, data: bytes, out: Path, have: int) -> None:
    (out / "a.bin").write_bytes(data[:have])
    done = run(tool("wget"), "-nv", "-c", url + AT + "a.bin", cwd=out)
    assert done.returncode == 0, done.stderr
    assert (out / "a.bin").read_bytes() == data


def test_a_program_of_three_lines(url: str, data: bytes) -> None:
    with urllib.request.urlopen(url + AT + "a.bin", timeout=30) as answer:
        assert answer.read() == data
    with pytest.raises(HTTPError) as refused:
        urllib.request.urlopen(url + AT + "none", timeout=30)
    assert b"dataset_not_found" in refused.value.read()


# --- the four requests ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("part", "status", "cut"),
    [
        ({}, 200, slice(None)),
        ({"offset": 5, "length": 10}, 206, slice(5, 15)),
        ({"offset": 100}, 206, slice(100, None)),
        ({"length": 7}, 206, slice(0, 7)),
        ({"offset": SIZE - 1, "length": 99}, 206, slice(SIZE - 1, None)),
    ],
)
def test_request_stream_without_a_coding_is_plain_bytes(
    url: str, data: bytes, part: dict[str, int], status: int, cut: slice
) -> None:
    answer = raw_http.post(
        url, "/datasets/request-stream", {"mac": MAC, "dataset": "a.bin", **part}
    )
    assert (answer.status, answer.body) == (status, data[cut])


def test_request_stream_past_the_end_is_416(url: str) -> None:
    asked = {"mac": MAC, "dataset": "a.bin", "offset": SIZE}
    answer = raw_http.post(url, "/datasets/request-stream", asked)
    assert (answer.status, answer.headers["content-range"]) == (416, f"bytes */{SIZE}")


def test_request_stream_of_another_version_is_412(url: str, data: bytes) -> None:
    etag = get(url, "a.bin").headers["etag"].strip('"')
    asked = {"mac": MAC, "dataset": "a.bin"}
    path = "/datasets/request-stream"
    assert raw_http.post(url, path, {**asked, "if_match": etag}).body == data
    assert raw_http.post(url, path, {**asked, "if_match": "other"}).status == 412


def test_request_sync_is_one_json(url: str) -> None:
    answer = raw_http.post(url, "/datasets/request-sync", {"mac": MAC, "dataset": "sub/x y"})
    value = answer.json()
    assert (answer.status, value["status"]) == (200, "success")
    assert (value["dataset"], value["data"], value["size"]) == ("sub/x y", "hello", 5)
    assert answer.headers["tunnelsync-mode"] == "buffer"
    assert answer.headers["tunnelsync-request-id"]
    assert answer.headers["content-length"] == str(len(answer.body))


def test_request_auto_without_a_store_is_a_stream(url: str, data: bytes) -> None:
    asked = {"mac": MAC, "dataset": "a.bin", "accept": ["offload", "stream", "stream"]}
    answer = raw_http.post(url, "/datasets/request-auto", asked)
    assert (answer.body, answer.headers["tunnelsync-mode"]) == (data, "stream")
    alone = raw_http.post(url, "/datasets/request-auto", {**asked, "accept": ["offload"]})
    assert (alone.status, alone.code) == (400, "bad_request")


def test_request_offload_without_a_store_says_what_to_do(system: System, url: str) -> None:
    asked = {"mac": MAC, "dataset": "a.bin"}
    answer = raw_http.post(url, "/datasets/request-offload", asked)
    assert (answer.status, answer.code) == (501, "store_not_configured")
    assert "--mode stream" in answer.json()["error"]["hint"]
    done = system.cli("fetch", "--mode", "offload", MAC, "a.bin")
    assert done.code == 4
    assert "TUNNELSYNC_STORE_ENDPOINT" in done.err


# --- listings ---------------------------------------------------------------------------------


def names(answer: Answer) -> list[str]:
    return [entry["name"] for entry in answer.json()["entries"]]


def test_a_listing_is_sorted_and_tells_what_each_thing_is(system: System, url: str) -> None:
    listed = system.tmp_path / "datasets" / "listed"
    found = make_file(listed / "b", 7).stat()
    (listed / "c").mkdir()
    (listed / "a").touch()
    os.mkfifo(listed / "pipe")
    answer = get(url, "listed/")
    assert names(answer) == names(get(url, "listed%2F")) == ["a", "b", "c"]
    assert answer.json()["unlisted"] == 1
    _, dataset, folder = answer.json()["entries"]
    assert (dataset["kind"], folder["kind"]) == ("dataset", "folder")
    assert (dataset["size"], dataset["modified_ns"]) == (7, found.st_mtime_ns)
    assert f'"{dataset["etag"]}"' == get(url, "listed/b").headers["etag"]
    assert {"a.bin", "empty", "sub"} <= set(names(get(url, "")))


def test_a_listing_comes_in_pages(system: System, url: str) -> None:
    folder = system.tmp_path / "datasets" / "many"
    folder.mkdir()
    wanted = sorted(f"{i:03} & ñ" for i in range(25))
    for name in wanted:
        (folder / name).touch()
    seen: list[str] = []
    after = ""
    for _ in range(9):
        page = get(url, f"many/?limit=3&after={quote(after)}")
        assert len(names(page)) <= 3
        seen += names(page)
        after = page.json().get("next", "")
        if not after:
            break
    assert seen == wanted
    assert [
        line.split("\t")[0] for line in system.cli("ls", MAC, "many").out.splitlines()
    ] == wanted


def test_a_router_that_gives_few_names_at_once_is_listed_whole(fresh: System) -> None:
    fresh.router(list_entries=3)
    fresh.connector()
    wanted = [f"{number:02d}" for number in range(10)]
    for name in wanted:
        (fresh.tmp_path / "datasets" / name).touch()
    done = fresh.cli("ls", MAC)
    assert (done.code, [line.split("\t")[0] for line in done.out.splitlines()]) == (0, wanted)


@pytest.mark.parametrize("limit", ["0", "-1", "x", "1001", "9" * 30, "1.0", "%C2%B2"])
def test_a_limit_that_is_none(url: str, limit: str) -> None:
    assert get(url, f"?limit={limit}").code == "bad_request"


@pytest.mark.parametrize("after", ["%FF", "%4", "a%00", "a" * 5000, "a%2F"])
def test_an_after_that_is_no_name(url: str, after: str) -> None:
    assert get(url, f"?after={after}").code == "bad_name"
    assert get(url, f"?limit=2&after={after}").code == "bad_name"


@pytest.mark.parametrize("coding", ["raw", "blocks"])
def test_a_length_of_nothing(url: str, coding: str) -> None:
    wanted = {"mac": MAC, "dataset": "a.bin", "coding": coding, "length": 0}
    answer = raw_http.ask(url, "POST", "/datasets/request-stream", body=orjson.dumps(wanted))
    assert (answer.status, answer.code) == (400, "bad_request")


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("sub", "not_a_dataset"),
        ("a.bin/", "not_a_dataset"),
        ("none", "dataset_not_found"),
        ("none/", "dataset_not_found"),
        ("none/a", "dataset_not_found"),
        ("a.bin/a", "dataset_not_found"),
        ("x" * 300, "dataset_not_found"),
    ],
)
def test_what_is_not_there_is_404(url: str, name: str, code: str) -> None:
    answer = get(url, name)
    assert (answer.status, answer.code) == (404, code)


def test_a_folder_has_no_head(url: str) -> None:
    assert head(url, "sub/").status == 404


# --- addresses and methods --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "target", "status", "allow"),
    [
        ("GET", "/", 404, None),
        ("GET", "/nowhere", 404, None),
        ("HEAD", "/nowhere", 404, None),
        ("POST", f"{AT}a.bin", 405, "GET, HEAD"),
        ("DELETE", f"{AT}a.bin", 405, "GET, HEAD"),
        ("PUT", f"{AT}", 405, "GET, HEAD"),
        ("POST", "/connectors", 405, "GET"),
        ("HEAD", "/metrics", 405, "GET"),
        ("GET", "/datasets/request-sync", 405, "POST"),
        ("HEAD", "/datasets/request-auto", 405, "POST"),
        ("GET", "/datasets/result", 405, "POST"),
        ("GET", "/datasets/stream/init", 405, "POST"),
        ("POST", "/datasets/stream/offset", 405, "GET"),
        ("POST", "/transfers/x", 405, "DELETE, GET"),
    ],
)
def test_a_wrong_address_or_method_is_told_in_json(
    url: str, method: str, target: str, status: int, allow: str | None
) -> None:
    answer = raw_http.ask(url, method, target)
    assert answer.status == status
    assert answer.headers.get("allow") == allow
    if method == "HEAD":
        assert answer.headers["tunnelsync-error"]
    else:
        assert answer.code


def test_a_whole_address_as_a_proxy_sends_it(url: str) -> None:
    for host in ("127.0.0.1", "localhost:1", "[::1]"):
        target = f"http://{host}{AT}sub/x%20y?x=http://datasets/datasets/"
        assert raw_http.ask(url, "GET", target).body == b"hello"


def test_what_is_not_http_is_one_line_in_the_log(system: System, url: str) -> None:
    router = system.processes[0]
    before = router.log.count("Error handling request")
    for target in (AT.encode() + b"\xff", AT + "ñ", AT + "x" * 40_000):
        assert raw_http.ask(url, "GET", target).status == 400
    with raw_http.connect(url) as sock:
        sock.sendall(b"\x16\x03\x01 a handshake of TLS\r\n\r\n")
        raw_http.read_all(sock)
    assert get(url, "a.bin").status == 200
    assert router.log.count("Error handling request") == before + 3


# --- bodies of requests -----------------------------------------------------------------------


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'"a"',
        b"\xff",
        b'{"mac":NaN}',
        b'{"mac":' + b"[" * 2000 + b"]" * 2000 + b"}",
        b'{"mac":"%s"}' % MAC.encode(),
        b'{"mac":1,"dataset":"a.bin"}',
        b'{"mac":"%s","dataset":["a.bin"]}' % MAC.encode(),
        b'{"mac":"%s","dataset":"a.bin","offset":-1}' % MAC.encode(),
        b'{"mac":"%s","dataset":"a.bin","offset":true}' % MAC.encode(),
        b'{"mac":"%s","dataset":"a.bin","offset":1.5}' % MAC.encode(),
        b'{"mac":"%s","dataset":"a.bin","offset":9999999999999999999}' % MAC.encode(),
        b'{"mac":"%s","dataset":"a.bin","length":0}' % MAC.encode(),
        b'{"mac":"%s","dataset":"a.bin","if_match":"a\\nb"}' % MAC.encode(),
        b'{"mac":"%s","dataset":"a.bin","coding":"zip"}' % MAC.encode(),
        b'{"mac":"%s","dataset":"a.bin","accept":"stream"}' % MAC.encode(),
        b'{"mac":"%s","dataset":"\\ud800"}' % MAC.encode(),
    ],
)
def test_m1_a_body_that_is_wrong_is_400(url: str, body: bytes) -> None:
    answer = raw_http.post(url, "/datasets/request-stream", body)
    assert (answer.status, answer.code) == (400, "bad_request")


@pytest.mark.parametrize("name", ["", ".", "..", "../a.bin", "/a.bin", "a\\u0000b", "a//b", "a/"])
def test_n1_a_name_in_a_body_that_is_none(url: str, name: str) -> None:
    body = f'{{"mac":"{MAC}","dataset":"{name}"}}'.encode()
    for mode in ("sync", "stream", "auto"):
        answer = raw_http.post(url, f"/datasets/request-{mode}", body)
        assert (answer.status, answer.code) == (400, "bad_name")


def test_a_body_over_the_limit_is_413(url: str) -> None:
    for body in (b"x" * 65_537, b'{"mac":"' + b"x" * 1_000_000):
        answer = raw_http.post(url, "/datasets/request-stream", body)
        assert (answer.status, answer.code) == (413, "too_large")
    announced = raw_http.ask(url, "POST", "/datasets/request-sync", announced=10**15)
    assert announced.status == 413


def test_a_chunked_body_over_the_limit_is_413_too(url: str) -> None:
    chunk = b"4000\r\n" + b"x" * 0x4000 + b"\r\n"
    with raw_http.connect(url) as sock:
        sock.sendall(
            raw_http.head("POST", "/datasets/request-sync", {"Transfer-Encoding": "chunked"})
            + chunk * 5
        )
        answer = raw_http.parsed(raw_http.read_all(sock))
    assert (answer.status, answer.code) == (413, "too_large")


@pytest.mark.parametrize(
    "members",
    [
        '"dataset":"a.bin","if_match":"' + "x" * 65_400 + '"',
        '"dataset":"a.bin","if_match":"' + "\\u0001" * 10_800 + '"',
        '"dataset":"a.bin","accept":["stream"' + ',"stream"' * 7_240 + "]",
        '"dataset":"' + "\\u0001" * 4_096 + '"',
        '"dataset":"' + "\\u0001" * 4_096 + '","if_match":"' + "\\\\" * 8_000 + '"',
    ],
)
def test_no_request_makes_a_message_too_long_for_the_connector(
    system: System, url: str, members: str
) -> None:
    connector = system.processes[1]
    body = f'{{"mac":"{MAC}",{members}}}'.encode()
    assert len(body) <= 65_536
    answer = raw_http.post(url, "/datasets/request-auto", body)
    assert answer.status in (200, 400, 404, 412), answer
    assert get(url, "a.bin").status == 200
    assert "is away" not in connector.log


# --- names ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        "..",
        "../a.bin",
        "%2e%2e",
        "%2E%2e/a.bin",
        "..%2fa.bin",
        "sub/../a.bin",
        "sub%2f..%2Fa.bin",
        "sub/..",
        "../",
        "sub/../",
        "/etc/passwd",
        "%2fetc%2fpasswd",
        "a%00b",
        "%00",
        "a.bin%00.txt",
        "sub//x%20y",
        "sub/%2fx%20y",
        ".",
        "./a.bin",
        "sub/./x%20y",
        "sub/%2e/x%20y",
        "%2e/",
        "//",
        "%FF",
        "%c0%ae%c0%ae/a.bin",
        "%ED%A0%80",
        "a%ZZ",
        "a%",
        "%" + "2",
        "a" * 4097,
    ],
)
def test_n1_a_raw_path_that_is_no_name_is_refused(url: str, name: str) -> None:
    for method in ("GET", "HEAD"):
        answer = raw_http.ask(url, method, AT + name)
        assert answer.status == 400
        if method == "GET":
            assert answer.code == "bad_name"


def test_n1_what_looks_like_a_way_out_but_is_a_name(system: System, url: str) -> None:
    root = system.tmp_path / "datasets"
    for name in ("...", "..a", "a..", "\\..\\a", "%2e%2e", "~", "-rf", "..;"):
        (root / name).write_bytes(name.encode())
        assert get(url, quote(name)).body == name.encode()


def test_n1_a_neighbour_of_the_root_stays_outside(system: System, url: str) -> None:
    neighbour = system.tmp_path / "datasets-secret"
    neighbour.mkdir()
    (neighbour / "a").write_text("secret")
    (system.tmp_path / "datasets" / "link").symlink_to(neighbour / "a")
    for name in ("..%2fdatasets-secret%2fa", "%2e%2e/datasets-secret/a"):
        assert get(url, name).status == 400
    linked = get(url, "link")
    assert (linked.status, linked.code) == (403, "outside_root")


HARD_NAMES = [
    "a b",
    "100%",
    "%41",
    "a#b",
    "a?b=c",
    'say "x"',
    "it's",
    "a;b",
    "a+b",
    "back\\slash",
    "a\nb",
    "tab\there",
    "\x1b[31mred",
    "\x7f",
    "\u202egnp.exe",
    "\u2066iso\u2069",
    "\u200b",
    "ñandú",
    "n\u0303",
    "日本語",
    "\U0001f600",
    "<script>",
    "$(id)",
    "*",
]


@pytest.fixture(scope="module")
def hard(system: System) -> Path:
    """A folder of datasets with hard names."""
    folder = system.tmp_path / "datasets" / "hard"
    folder.mkdir()
    for name in HARD_NAMES:
        (folder / name).write_bytes(name.encode())
    return folder


@pytest.mark.usefixtures("hard")
def test_n3_hard_names_come_by_http(url: str) -> None:
    for name in HARD_NAMES:
        answer = get(url, "hard/" + quote(name, safe=""))
        assert (answer.status, answer.body) == (200, name.encode())
        disposition = answer.headers["content-disposition"]
        assert disposition.isascii()
        assert disposition.isprintable()
        assert f"filename*=UTF-8''{quote(name, safe='!#$&+-.^_`|~')}" in disposition
        again = head(url, "hard/" + quote(name, safe=""))
        assert again.headers["content-disposition"] == disposition
    assert names(get(url, "hard/")) == sorted(HARD_NAMES)


@pytest.mark.usefixtures("hard")
def test_n3_hard_names_come_by_the_command_line_and_are_shown_escaped(
    system: System, out: Path
) -> None:
    listed = system.cli("ls", MAC, "hard/")
    assert listed.code == 0
    assert len(listed.out.splitlines()) == len(HARD_NAMES)
    for name in ("%41", "a#b", "a\nb", "\x1b[31mred", "\u202egnp.exe"):
        shown = system.cli("stat", MAC, f"hard/{name}")
        fetched = system.cli("fetch", "-o", out, MAC, f"hard/{name}")
        missing = system.cli("fetch", "-o", out, MAC, f"hard/{name}none")
        assert (shown.code, fetched.code, missing.code) == (0, 0, 3), (name, fetched.err)
        assert (out / name).read_bytes() == name.encode()
        for text in (listed.out, shown.out, fetched.err, missing.err):
            assert all(char.isprintable() for char in text.replace("\n", "").replace("\t", ""))
    router, connector = system.processes[:2]
    for log in (router.log, connector.log):
        assert all(char.isprintable() or char == "\n" for char in log)


def test_n3_a_name_that_is_not_utf_8_is_refused_clearly(system: System, url: str) -> None:
    (system.tmp_path / "datasets" / "sub" / os.fsdecode(b"caf\xe9")).touch()
    page = get(url, "sub/").json()
    assert (len(page["entries"]), page["unlisted"]) == (1, 1)
    assert get(url, "sub/caf%E9").code == "bad_name"
    listed = system.cli("ls", MAC, "sub")
    assert listed.code == 0
    assert "1 names in it cannot be datasets" in listed.err
    for command in ("fetch", "stat"):
        done = system.cli(command, MAC, os.fsdecode(b"sub/caf\xe9"))
        assert done.code == 2, done.err
        assert "not valid UTF-8" in done.err


# --- connectors -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "mac",
    [
        "CC-28-AA-00-11-22",
        "cc:28:aa:00:11:22",
        "Cc:28:aA:00:11:22",
        "cc%3A28%3Aaa:00:11:22",
        "cc28.aa00.1122",
        "CC28AA001122",
    ],
)
def test_a4_every_notation_of_a_mac_is_one_identity(url: str, data: bytes, mac: str) -> None:
    assert raw_http.ask(url, "GET", f"/datasets/{mac}/a.bin").body == data
    if "%" not in mac:
        asked = {"mac": mac, "dataset": "a.bin"}
        answer = raw_http.post(url, "/datasets/request-stream", asked)
        assert answer.body == data
        request_id = answer.headers["tunnelsync-request-id"]
        assert raw_http.ask(url, "GET", f"/transfers/{request_id}").json()["mac"] == MAC


def test_a4_a_connector_may_write_its_mac_as_it_likes(fresh: System) -> None:
    source = make_file(fresh.tmp_path / "datasets" / "a", 1000)
    fresh.router()
    fresh.connector(mac="CC28.AA00.1122")
    assert get(fresh.url, "a").body == source.read_bytes()
    known = raw_http.ask(fresh.url, "GET", "/connectors").json()["connectors"]
    assert [one["mac"] for one in known] == [MAC]


@pytest.mark.parametrize(
    "mac", ["zz", "cc-28-aa-00-11", "cc-28-aa-00-11-2g", "cc28:aa00:11-2", "..", "%00", "%FF"]
)
def test_what_is_no_mac_is_400(url: str, mac: str) -> None:
    answer = raw_http.ask(url, "GET", f"/datasets/{mac}/a.bin")
    assert answer.status == 400
    assert answer.code in ("bad_mac", "bad_name")


def test_a_connector_that_was_never_here_is_404(system: System, url: str) -> None:
    answer = raw_http.ask(url, "GET", "/datasets/cc-28-aa-00-11-23/a.bin")
    assert (answer.status, answer.code) == (404, "connector_unknown")
    assert system.cli("fetch", "cc-28-aa-00-11-23", "a.bin").code == 3


def test_a_connector_that_left_is_503_and_when_to_ask_again(fresh: System) -> None:
    fresh.router(return_grace_seconds=0)
    fresh.connector().stop()
    log = fresh.processes[0]
    wait_until(lambda: "is offline" in log.log, 15, "the router to notice")
    for method in ("GET", "HEAD"):
        answer = raw_http.ask(fresh.url, method, AT + "a.bin")
        assert answer.status == 503
        assert int(answer.headers["retry-after"]) > 0
    assert get(fresh.url, "a.bin").code == "connector_offline"
    done = fresh.cli("fetch", MAC, "a.bin")
    assert done.code == 5
    assert "offline" in done.err


def test_fetch_brings_what_curl_brings(system: System, url: str, data: bytes, out: Path) -> None:
    assert system.cli("fetch", "-o", out / "by fetch", MAC, "a.bin").code == 0
    run(tool("curl"), "-sSf", "-o", "by curl", url + AT + "a.bin", cwd=out)
    source = system.tmp_path / "datasets" / "a.bin"
    assert sha256(out / "by fetch") == sha256(out / "by curl") == sha256(source)
