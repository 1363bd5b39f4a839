"""Places of a connector between clients: one that asks for much leaves the next one to others."""

import select
import signal
import socket
from contextlib import ExitStack, closing
from dataclasses import dataclass

import pytest

import raw_http
from cheating_connector import welcome
from harness import MAC, System, sparse_file, wait_until
from held import HeldGet
from played_connector import PlayedConnector
from raw_http import Answer
from tunnelsync.identity import Grant, Mac, Role, dump_tokens, new_token
from tunnelsync.protocol import Cancel, GetDatasetStream
from tunnelsync.settings import MIB

SECONDS = 30.0
LARGE_BYTES = 64 * MIB  # more than all buffers on the way: who does not read it holds a place
PATH = f"/datasets/{MAC}/large"


@dataclass(frozen=True, slots=True)
class Tokens:
    """The tokens of two clients and a connector, and what the tokens file holds of them."""

    a: str
    b: str
    connector: str
    grants: tuple[Grant, ...]


@pytest.fixture
def tokens(system: System) -> Tokens:
    """A router that asks for tokens."""
    kinds = (Role.CLIENT, None), (Role.CLIENT, None), (Role.CONNECTOR, Mac(MAC))
    made = [new_token(role, mac) for role, mac in kinds]
    grants = tuple(grant for _, grant in made)
    path = system.tmp_path / "tokens.json"
    path.write_bytes(dump_tokens(grants))
    system.router("--tokens", str(path))
    a, b, connector = (token for token, _ in made)
    return Tokens(a, b, connector, grants)


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


def transfers(system: System, token: str) -> int:
    """Return how many transfers the connector has, with those that wait for a place."""
    answer: Answer = raw_http.ask(system.url, "GET", "/connectors", bearer(token))
    return int(answer.json()["connectors"][0]["transfers"])


def answered(*asked: socket.socket) -> list[bool]:
    """Tell of each request whether anything of its answer is here."""
    readable, _, _ = select.select(asked, [], [], 0)
    return [one in readable for one in asked]


def test_l7_a_client_with_many_streams_leaves_the_next_place_to_another(
    system: System, tokens: Tokens
) -> None:
    sparse_file(system.tmp_path / "datasets" / "large", LARGE_BYTES)
    system.connector(places=2, token=tokens.connector)
    with ExitStack() as stack:

        def held() -> HeldGet:
            """A stream of the client A, which has a place and is not read."""
            header = f"Authorization: Bearer {tokens.a}\r\n"
            return stack.enter_context(HeldGet(system.url, PATH, headers=header))

        def in_line(token: str) -> socket.socket:
            """Ask for the dataset, for which there is no place; read nothing."""
            before = transfers(system, tokens.a)
            asked = stack.enter_context(closing(raw_http.connect(system.url)))
            asked.sendall(raw_http.head("GET", PATH, bearer(token)))
            wait_until(lambda: transfers(system, tokens.a) == before + 1, SECONDS, "a transfer")
            return asked

        first, second = held(), held()
        third, fourth = in_line(tokens.a), in_line(tokens.a)
        other = in_line(tokens.b)
        assert answered(third, fourth, other) == [False, False, False]
        first.close()
        wait_until(lambda: answered(other) == [True], SECONDS, "the other client's answer")
        assert answered(third, fourth) == [False, False]
        assert second.status == 200
        other.close()
        wait_until(lambda: answered(third) == [True], SECONDS, "the first in line to follow")
        assert answered(fourth) == [False]
        third.close()
        wait_until(lambda: answered(fourth) == [True], SECONDS, "the last one to follow")


async def test_a_command_tells_whose_it_is_by_a_label_that_gives_nothing_away(
    system: System, tokens: Tokens
) -> None:
    async with welcome(system.url, MAC, token=tokens.connector) as connector:
        labels = []
        for token in (tokens.a, tokens.b, tokens.a):
            with closing(raw_http.connect(system.url)) as asked:
                asked.sendall(raw_http.head("GET", PATH, bearer(token)))
                command = await connector.command()
                assert isinstance(command, GetDatasetStream)
                labels.append(command.client)
            assert isinstance(await connector.command(), Cancel)
        assert labels[0] == labels[2] != labels[1]
        known = [tokens.a, tokens.b, *(grant.id + grant.sha256 for grant in tokens.grants)]
        for label in labels:
            assert len(label) == 16
            assert not [one for one in known if label in one]


async def test_without_tokens_the_label_is_that_of_the_address(system: System) -> None:
    system.router()
    async with PlayedConnector(system.url, MAC) as connector:
        await connector.connect()
        labels = set()
        for _ in range(2):
            with closing(raw_http.connect(system.url)) as asked:
                asked.sendall(raw_http.head("GET", PATH, {}))
                labels.add((await connector.hear())["client"])
            assert (await connector.hear())["command"] == "cancel"
        assert len(labels) == 1
        assert "127.0.0.1" not in labels
        assert len(labels.pop()) == 16


def test_a_crowd_of_new_connections_does_not_hold_up_who_is_there(system: System) -> None:
    router = system.router()
    system.connector()
    sparse_file(system.tmp_path / "datasets/small", 10)
    health = raw_http.head("GET", "/healthz", {})
    stat = raw_http.head("HEAD", f"/datasets/{MAC}/small", {"Connection": "keep-alive"})
    with ExitStack() as stack:
        kept = stack.enter_context(raw_http.connect(router.url))
        kept.sendall(stat)  # also so that the connector keeps a connection, too
        assert b" 200 " in kept.recv(1000)
        router.send(signal.SIGSTOP)
        crowd = [stack.enter_context(raw_http.connect(router.url)) for _ in range(400)]
        for one in crowd:
            one.sendall(health)
        kept.sendall(stat)
        router.send(signal.SIGCONT)
        assert b" 200 " in kept.recv(1000)
        answered, _, _ = select.select(crowd, [], [], 0)
        # A stat takes some turns of the router's loop, each of which takes a few of the crowd.
        assert len(answered) < len(crowd) / 2
        for one in crowd:
            assert b" 200 " in one.recv(1000)
