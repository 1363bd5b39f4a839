"""What a dataset is in the store: its keys, its parts, its age, its addresses; and what a refusal
of the store means. Pure: the router reads addresses with it, and has no S3 library.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

from blake3 import blake3
from yarl import URL

from tunnelsync import frames
from tunnelsync.errors import BadSetting, StoreRefused, StoreUnavailable
from tunnelsync.frames import BLOCK_BYTES

DATA, BLOCKS = "/data", "/blocks"
LEAST_PART_BYTES = 2 * BLOCK_BYTES  # S3 takes no part below 5 MiB but the last
MOST_PARTS = 9000  # S3 takes 10,000
FULL = frozenset({"InsufficientStorage", "XMinioStorageFull", "QuotaExceeded"})
VERSION = "(?:[0-9a-f]{2}-){5}[0-9a-f]{2}/[0-9a-f]{64}"
SET = re.compile("[0-9a-f]{16}")
SECOND_NS = 10**9
FINE = 8  # so many times sooner a file tells an edit whose times are finer than a second
OURS = re.compile(f"({VERSION})(?:/data|/blocks)|({VERSION}/segments/{SET.pattern})/{SET.pattern}")
KEYS_HINT = (
    "Check TUNNELSYNC_STORE_ACCESS_KEY and TUNNELSYNC_STORE_SECRET_KEY (or the AWS credentials) "
    "and what they may do in the bucket, or fetch with --mode stream."
)


@dataclass(frozen=True, slots=True)
class Stored:
    """A dataset in the store; sizes in bytes. The addresses are signed, so they are secrets."""

    download_url: str = field(repr=False)
    blocks_url: str = field(repr=False)
    size: int
    etag: str
    root: str
    count: int
    expires_seconds: int
    reused: bool


def unsettled_seconds(mtime_ns: int, ctime_ns: int, now_ns: int, most_seconds: float) -> float:
    """Return how long it is until a file's times tell every further edit of it; 0 or less if they
    do.

    Where they are whole seconds, or every other one (FAT), that is at most so many seconds after
    the last one. Finer ones lag by some milliseconds, and by how far two clocks are apart where a
    server keeps the file.
    """
    settles_seconds = most_seconds / FINE if ctime_ns % SECOND_NS else most_seconds
    return settles_seconds - (now_ns - max(mtime_ns, ctime_ns)) / SECOND_NS


@dataclass(frozen=True, slots=True)
class Kept:
    """One version of a dataset in the store: ``PREFIX/MAC/HASH``, and the keys there are of it.

    Each set of segments is one by itself, ``PREFIX/MAC/HASH/segments/SET``. Of its keys together
    the size is in bytes; ``at`` is when the youngest of them was written.
    """

    version: str
    keys: tuple[str, ...]
    size: int
    at: datetime


@dataclass(frozen=True, slots=True)
class OpenUpload:
    """A multipart upload of ours that is neither complete nor aborted."""

    key: str
    id: str
    at: datetime


def object_key(prefix: str, mac: str, name: str, etag: str) -> str:
    """Return ``prefix/MAC/HASH``, below which lie the objects of one version of a dataset."""
    version = blake3(f"{name}\0{etag}".encode()).hexdigest()
    return f"{beneath(prefix, mac)}{version}"


def segment_key(key: str, set_id: str, offset: int) -> str:
    """Return the key of one segment of a version; each upload makes a set of its own."""
    return f"{key}/segments/{set_id}/{offset:016x}"


def beneath(prefix: str, mac: str = "") -> str:
    """Return what the keys of one connector begin with, or without a MAC those of all."""
    return "".join(f"{part}/" for part in [*prefix.split("/"), mac] if part)


def kept(
    rows: Iterable[Mapping[str, Any]], prefix: str, last: Kept | None
) -> tuple[list[Kept], Kept | None]:
    """Gather the rows of a listing, which are in order, into objects; others' keys are left out.

    ``last`` is the last object so far, to which the first row may belong. Returns the objects
    that are whole, and the last one of these rows.
    """
    whole: list[Kept] = []
    for row in rows:
        version = version_of(row["Key"], prefix)
        if version is None:
            continue
        one = Kept(version, (row["Key"],), row["Size"], row["LastModified"])
        if last and last.version == version:
            keys, at = (*last.keys, *one.keys), max(last.at, one.at)
            last = replace(last, keys=keys, size=last.size + one.size, at=at)
            continue
        if last:
            whole.append(last)
        last = one
    return whole, last


def open_uploads(rows: Iterable[Mapping[str, Any]], prefix: str, mac: str = "") -> list[OpenUpload]:
    """Return the uploads of a listing that are of one connector, or of any; no others."""
    start = beneath(prefix, mac)
    return [
        OpenUpload(row["Key"], row["UploadId"], row["Initiated"])
        for row in rows
        if row["Key"].startswith(start) and version_of(row["Key"], prefix)
    ]


def version_of(key: str, prefix: str) -> str | None:
    """Return ``PREFIX/MAC/HASH`` of a key that we write, and None of any other.

    Of a segment it is that of its set: no set is ever written to again.
    """
    start = beneath(prefix)
    found = OURS.fullmatch(key.removeprefix(start)) if key.startswith(start) else None
    return found and start + (found[1] or found[2])


def age_seconds(answer: Mapping[str, Any], at: datetime) -> float:
    """Return how long ago something was when the store gave this answer, by its own clock.

    That clock tells whole seconds, so this may be 1 s too few, and is 0 for what is younger.
    """
    said = answer.get("ResponseMetadata", {}).get("HTTPHeaders", {}).get("date", "")
    try:
        now = parsedate_to_datetime(said).replace(tzinfo=UTC)
    except ValueError:
        now = datetime.now(UTC)
    return max(0.0, (now - at).total_seconds())


def part_size(size_bytes: int, least_bytes: int, most_parts: int = MOST_PARTS) -> int:
    """Return the bytes of one part: whole blocks, and few enough parts, by default for S3."""
    least = max(LEAST_PART_BYTES, least_bytes, -(-size_bytes // most_parts))
    return frames.block_count(least) * BLOCK_BYTES


def origin(url: str) -> str:
    """Return ``scheme://host[:port]`` of an http(s) address, in the one way to write it.

    Raises `BadSetting`, which does not repeat the address: its query may be a secret.
    """
    try:
        if not url.isascii() or not url.isprintable() or " " in url or "\\" in url:
            raise ValueError
        found = URL(url)
        if found.scheme not in ("http", "https") or not found.port or "@" in found.raw_authority:
            raise ValueError
        return str(found.origin())
    except ValueError:
        raise BadSetting("the address of a store must be http(s)://HOST[:PORT]") from None


def no_bucket(where: str) -> StoreRefused:
    """Return the error of a store without the bucket; ``where`` names both."""
    return StoreRefused(
        f"{where} has no such bucket",
        hint="Create the bucket, set TUNNELSYNC_STORE_BUCKET to one that exists, or set "
        "TUNNELSYNC_STORE_CREATE_BUCKET=true on the connector; or fetch with --mode stream.",
    )


def no_keys(where: str, what: str) -> StoreRefused:
    """Return the error of a store that is not to be used with these keys, or without."""
    return StoreRefused(f"{where} {what}", hint=KEYS_HINT)


def answered(response: Mapping[str, Any]) -> tuple[int, str]:
    """Return HTTP status and S3 code of an error, as the S3 library took it apart.

    Of the code only ASCII letters and digits are believed, and 64 of them at most.
    """
    status = int(response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
    code = str(response.get("Error", {}).get("Code", ""))
    return status, "".join(c for c in code if c.isascii() and c.isalnum())[:64] or "no code"


def refusal(where: str, status: int, code: str) -> StoreRefused | StoreUnavailable:
    """Return our error for an HTTP status and a code of S3."""
    if code == "NoSuchBucket":
        return no_bucket(where)
    if status == 507 or code in FULL:
        return StoreRefused(
            f"{where} has no space left ({code})",
            hint="Free space in the store or raise its quota, or fetch with --mode stream.",
        )
    if code == "RequestTimeTooSkewed":
        return StoreRefused(
            f"{where} has another time than this machine",
            hint="Set the connector's clock (NTP): signatures hold for 15 minutes.",
        )
    if status in (401, 403):
        return no_keys(where, f"refused the keys ({code})")
    if status >= 500 or status in (408, 429):
        return StoreUnavailable(f"{where} answered {status} ({code})")
    return StoreRefused(f"{where} refused with {status} ({code})")
