"""Every default, limit and timeout of the three roles, each with its unit and its reason.

A number that a setting cannot have is refused with `BadSetting` when the settings are made.
"""

from dataclasses import Field, dataclass, field, fields
from typing import Any, ClassVar

from tunnelsync.errors import BadSetting

KIB = 1024
MIB = 1024 * KIB
GIB = 1024 * MIB


class Secret(str):
    """A string that prints as stars; ``reveal()`` gives what it holds."""

    __slots__ = ()

    def reveal(self) -> str:
        """Return the secret itself."""
        return str.__str__(self)

    def __repr__(self) -> str:
        return "'***'"

    def __str__(self) -> str:
        return "***"

    def __format__(self, spec: str) -> str:
        return "***"


def _setting(default: Any, why: str, *, env: str | None = None, least: int = 0) -> Any:
    """A field: the reason for its default, its environment name if special, its least number."""
    return field(default=default, metadata={"why": why, "env": env, "least": least})


def check(spec: Field[Any], value: Any, where: str) -> None:
    """Raise `BadSetting` for a number that a setting cannot have."""
    if isinstance(spec.default, bool) or not isinstance(spec.default, int | float):
        return
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise BadSetting(f"{where} must be a number, not {value!r}")
    if isinstance(spec.default, int) and not (isinstance(value, int) or value.is_integer()):
        raise BadSetting(f"{where} must be a whole number")
    if not (least := spec.metadata["least"]) <= value < 2**62:
        raise BadSetting(f"{where} must be {least} or more, and not beyond all measure")


class _Checked:
    __slots__ = ()
    table: ClassVar[str]

    def __post_init__(self) -> None:
        for spec in fields(self):  # type: ignore[arg-type]
            check(spec, getattr(self, spec.name), f"{self.table}.{spec.name}")


@dataclass(frozen=True, slots=True)
class StoreSettings(_Checked):
    """The S3 store, the same for every role. Absent while ``endpoint`` is empty."""

    table: ClassVar[str] = "store"

    endpoint: str = _setting("", "where the connector uploads; empty means no store")
    public_endpoint: str = _setting("", "what clients reach; empty means the endpoint")
    region: str = _setting(
        "us-east-1", "region of the store; this is what stores without one expect"
    )
    bucket: str = _setting("tunnelsync", "bucket; one of its own keeps permissions simple")
    prefix: str = _setting("datasets", "what every key begins with, so that a policy can name it")
    create_bucket: bool = _setting(
        False, "create the bucket if it is missing; else that is somebody's decision"
    )
    url_lifetime_seconds: int = _setting(
        3600, "how long an address holds: enough to begin a download, short if leaked"
    )
    object_lifetime_seconds: int = _setting(
        7 * 24 * 3600, "then `store gc` removes it; its first half is when it is used again"
    )
    access_key: Secret = _setting(Secret(""), "empty means the AWS chain; never in argv")
    secret_key: Secret = _setting(Secret(""), "empty means the AWS chain; never in argv")
    part_bytes: int = _setting(16 * MIB, "measured best with four at once; grows past 140 GiB")
    segments_from_bytes: int = _setting(
        16 * MIB, "a larger dataset can be downloaded while it is uploaded; a smaller is soon there"
    )
    answer_segments: int = _setting(64, "segments told in one answer; the client asks for the rest")
    answer_digests_bytes: int = _setting(MIB, "their digests in one answer, which takes 4 MiB")
    linger_seconds: float = _setting(
        120.0, "an upload for nobody goes on so long: its client may be on its way back"
    )
    lingering: int = _setting(50, "such uploads at once; the oldest of more is ended")
    parts_at_once: int = _setting(4, "fills a fast line without holding many windows")
    bodies_at_once: int = _setting(16, "in the whole connector, at 2 to 3 MiB of memory each")
    connections: int = _setting(100, "more than bodies, so that an abort never waits behind them")
    connect_seconds: float = _setting(10.0, "a store that does not answer by then is down")
    read_seconds: float = _setting(60.0, "completing a large multipart upload can take that long")
    abort_seconds: float = _setting(10.0, "how long the way out waits for a silent store")
    tidy_seconds: float = _setting(
        300.0, "a connector's search, at its start, for uploads that it left open before"
    )
    attempts: int = _setting(3, "rides out one restart of a store's node")
    settle_seconds: float = _setting(2.0, "an edit may hide so long; of fine times, in an eighth")

    @property
    def public(self) -> str:
        """The endpoint that clients reach."""
        return self.public_endpoint or self.endpoint


@dataclass(frozen=True, slots=True)
class RouterSettings(_Checked):
    """What a router allows, and how long it waits."""

    table: ClassVar[str] = "router"

    host: str = _setting("127.0.0.1", "address to listen on; loopback alone without a tokens file")
    port: int = _setting(8080, "port to listen on, a usual one behind a proxy; 0: any free one")
    tokens: str = _setting("", "tokens file; without it only loopback is served")
    tls_cert: str = _setting("", "path of a PEM chain; empty serves plain http")
    tls_key: str = _setting("", "path of the PEM key that goes with it")
    heartbeat_seconds: float = _setting(25.0, "proxies such as nginx cut an idle socket at 60 s")
    return_grace_seconds: float = _setting(10.0, "a socket that blinks costs no request")
    command_queue: int = _setting(1000, "commands for one connector that it has not acknowledged")
    connectors: int = _setting(20_000, "at 20 KB each, 400 MB")
    returns_per_second: int = _setting(
        500, "what connectors are asked to after a restart: each costs 0.5 ms; 0 asks for nothing"
    )
    transfers: int = _setting(10_000, "requests that wait or flow at once")
    connector_transfers: int = _setting(3000, "of one connector, so that none takes up all")
    ack_seconds: float = _setting(15.0, "a healthy connector acknowledges in milliseconds")
    answer_seconds: float = _setting(60.0, "silence between two signs of life before the answer")
    idle_seconds: float = _setting(60.0, "no byte from, or to, a peer for so long: broken off")
    keepalive_seconds: float = _setting(75.0, "a connection without a whole request's head: closed")
    resume_seconds: float = _setting(20.0, "a connector that lost its data connection comes back")
    complete_seconds: float = _setting(30.0, "the closing word follows the last byte")
    chunk_queue: int = _setting(2, "the chunk being relayed, and the one after it", least=2)
    read_bytes: int = _setting(MIB, "measured: 64 KiB cost two thirds of the speed", least=1)
    zero_copy: bool = _setting(
        True, "Linux moves a stream's bytes inside the kernel; false copies them"
    )
    message_bytes: int = _setting(64 * KIB, "one message on a connector's socket, or one request")
    result_bytes: int = _setting(4 * MIB, "a listing of 1000 long names")
    batch_bytes: int = _setting(256 * KIB, "small answers in one body; 0 takes each by itself")
    inline_result_bytes: int = _setting(MIB, "a result whose request_id is inside its body")
    buffer_json_bytes: int = _setting(96 * MIB, "64 MiB as base64, with room for the rest")
    buffers_bytes: int = _setting(256 * MIB, "the sum of all buffered datasets at once")
    answers_bytes: int = _setting(64 * MIB, "of listings, heads and addresses: apart, for quick")
    list_entries: int = _setting(1000, "entries of one page of a listing")
    receipts: int = _setting(10_000, "about 2 KB each")
    receipt_seconds: float = _setting(3600.0, "long enough to ask what became of a transfer")
    receipt_wait_seconds: float = _setting(50.0, "the longest ?wait=; proxies cut silence at 60 s")
    async_wait_seconds: float = _setting(30.0, "then 202 to who prefers it; below a proxy's 60 s")
    detached_seconds: float = _setting(60.0, "nobody asks for a transfer answered 202: cancelled")
    drain_seconds: float = _setting(30.0, "what running transfers get when the router stops")
    retry_after_seconds: int = _setting(2, "said with each 503")
    tokens_poll_seconds: float = _setting(1.0, "revoked tokens and new certificates are seen")
    clash_swaps: int = _setting(3, "so many swaps of one MAC in the window are a clash")
    clash_window_seconds: float = _setting(60.0, "the window in which swaps of one MAC count")


@dataclass(frozen=True, slots=True)
class ConnectorSettings(_Checked):
    """What a connector works at once, and how it comes back."""

    table: ClassVar[str] = "connector"

    router: str = _setting("http://127.0.0.1:8080", "the router's address", env="ROUTER")
    mac: str = _setting("", "this connector's MAC; empty takes that of the interface to the router")
    root: str = _setting(".", "the folder whose regular files are the datasets")
    token: Secret = _setting(Secret(""), "never in argv", env="TOKEN")
    token_file: str = _setting("", "a file that holds the token alone", env="TOKEN_FILE")
    allow_plaintext: bool = _setting(
        False, "use http:// to another host than this one; it can be read on the way"
    )
    places: int = _setting(50, "dataset commands worked at once; the others wait in line")
    waiting: int = _setting(1000, "dataset commands in line for a place")
    commands: int = _setting(2000, "in hand at once, of every kind; at 13 KB each, 26 MB")
    queue_wait_seconds: float = _setting(600.0, "then 503, so that nobody waits for ever")
    pool: int = _setting(100, "connections to the router: its socket, and some two for each place")
    threads: int = _setting(8, "for reading files; a disk gains little from more")
    open_threads: int = _setting(8, "for opening them, which does not wait for others' blocks")
    heartbeat_seconds: float = _setting(25.0, "proxies such as nginx cut an idle socket at 60 s")
    connect_seconds: float = _setting(10.0, "a router that does not answer by then is down")
    stall_seconds: float = _setting(
        30.0, "no byte accepted by the router for so long: broken off; well below its own 60 s"
    )
    answer_seconds: float = _setting(30.0, "the router's answer to a small request")
    zero_copy: bool = _setting(
        True, "Linux sends a stream's frames to http:// out of its file cache; false copies them"
    )
    backoff_first_seconds: float = _setting(0.5, "the first pause is anything up to this")
    backoff_cap_seconds: float = _setting(20.0, "10,000 connectors are back within 30 s")
    backoff_refused_seconds: float = _setting(300.0, "a refused token is not hammered with")
    progress_seconds: float = _setting(10.0, "a sign of life for each command in work")
    outbox: int = _setting(1000, "small messages that wait for the socket")
    ack_delay_seconds: float = _setting(0.05, "what is answered by then needs no acknowledgement")
    seen: int = _setting(10_000, "request ids remembered, so that none is worked twice")
    message_bytes: int = _setting(64 * KIB, "one message on the socket")
    dataset_buffer_bytes: int = _setting(64 * MIB, "mode buffer: the largest dataset")
    buffers_bytes: int = _setting(256 * MIB, "mode buffer: the sum of all answers being built")
    auto_offload_bytes: int = _setting(GIB, "mode auto: offload from this size on, given a store")
    list_entries: int = _setting(1000, "entries of one page of a listing")
    folder_entries: int = _setting(100_000, "entries of one folder that are sorted at most")
    probe_seconds: float = _setting(1.0, "then the router is asked if a proxy holds an upload back")
    probe_bytes: int = _setting(8 * MIB, "sent before that; a smaller upload is soon through")
    held_chunk_bytes: int = _setting(4 * MIB, "a chunk, where a proxy takes uploads whole")
    proxy_memory_seconds: float = _setting(3600.0, "so long a proxy's limits are not tried again")
    resume_attempts: int = _setting(5, "data connections lost in one transfer before it fails")


@dataclass(frozen=True, slots=True)
class ClientSettings(_Checked):
    """How a client reaches a router, and how long it waits."""

    table: ClassVar[str] = "client"

    router: str = _setting("http://127.0.0.1:8080", "the router's address", env="ROUTER")
    token: Secret = _setting(Secret(""), "never in argv", env="TOKEN")
    token_file: str = _setting("", "a file that holds the token alone", env="TOKEN_FILE")
    allow_plaintext: bool = _setting(
        False, "use http:// to another host than this one; it can be read on the way"
    )
    store_origin: str = _setting("", "pins the store; empty trusts those the router announces")
    connect_seconds: float = _setting(10.0, "a router that does not answer by then is down")
    answer_seconds: float = _setting(7200.0, "the first byte: queue, then upload in mode offload")
    idle_seconds: float = _setting(90.0, "no byte for so long: broken off; above the router's")
    read_bytes: int = _setting(MIB, "measured: 64 KiB cost two thirds of the speed", least=1)
    blocks_in_hand: int = _setting(3, "blocks of 4 MiB between network and disk")
    json_bytes: int = _setting(96 * MIB, "mode buffer: the largest answer")
    message_bytes: int = _setting(4 * MIB, "any other answer")
    digests_bytes: int = _setting(64 * MIB, "digests of one dataset: enough for 8 TiB")
    connections: int = _setting(100, "HTTP connections of one client")
    retry_for_seconds: float = _setting(
        120.0, "rides out a router's restart; counted from the last block that came"
    )
    backoff_first_seconds: float = _setting(0.5, "the first pause is anything up to this")
    backoff_cap_seconds: float = _setting(10.0, "a line that is back is noticed by then")
    idle_threads: int = _setting(64, "kept for the next file: one costs more than a small file")
    repairs: int = _setting(3, "a block that came wrong is fetched again so often")
    journal_seconds: float = _setting(2.0, "what a kill can cost")
    journal_bytes: int = _setting(128 * MIB, "the longest journal read: a dataset of 12 TiB")
    parallel: int = _setting(0, "streams of one dataset; 0 chooses by its size and the line")
    parallel_most: int = _setting(8, "one client is not to fill a connector's places")
    parallel_on_long_lines: int = _setting(4, "what is chosen when a line is long")
    parallel_from_bytes: int = _setting(256 * MIB, "below, one stream is soon done")
    parallel_round_trip_seconds: float = _setting(
        0.02, "from there on, one connection's window can be short of the line"
    )
    parallel_least_bytes: int = _setting(16 * MIB, "a stream of its own for less does not pay")


ROLES = (StoreSettings, RouterSettings, ConnectorSettings, ClientSettings)
