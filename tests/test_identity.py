"""MAC addresses in every notation, and tokens of any bytes."""

import hashlib
import json
import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunnelsync.errors import BadMac, BadSetting, Forbidden
from tunnelsync.identity import (
    Grant,
    Mac,
    Role,
    dump_tokens,
    is_stable,
    mac_address,
    new_token,
    parse_tokens,
    token_hash,
)

MAC = Mac("cc-28-aa-00-11-22")
macs = st.binary(min_size=6, max_size=6).map(lambda raw: Mac(raw.hex("-")))


@pytest.mark.parametrize(
    "text",
    [
        "cc-28-aa-00-11-22",
        "CC-28-AA-00-11-22",
        "CC:28:AA:00:11:22",
        "cc:28:aa:00:11:22",
        "cc28.aa00.1122",
        "CC28.AA00.1122",
        "cc28aa001122",
        "Cc28aA001122",
    ],
)
def test_a4_every_notation_is_one_identity(text: str) -> None:
    assert mac_address(text) == MAC


@given(macs)
def test_a4_notations_of_any_mac_are_one_identity(mac: Mac) -> None:
    digits = mac.replace("-", "")
    dotted = ".".join(digits[i : i + 4] for i in (0, 4, 8))
    for text in (mac, mac.replace("-", ":"), digits, dotted):
        assert mac_address(text) == mac
        assert mac_address(text.upper()) == mac


@pytest.mark.parametrize(
    "text",
    [
        "",
        "cc-28-aa-00-11",
        "cc-28-aa-00-11-22-33",
        "cc-28-aa-00-11-2g",
        " cc-28-aa-00-11-22",
        "cc-28-aa-00-11-22\n",
        "cc--28-aa-00-11-22",
        "cc28.aa.00.11.22",
        "c-28-aa-00-11-222",
        "../../etc/passwd",
        "-".join(["\N{ARABIC-INDIC DIGIT ZERO}" * 2] * 6),  # digits, though not ours
    ],
)
def test_what_is_no_mac_is_refused(text: str) -> None:
    with pytest.raises(BadMac):
        mac_address(text)


@given(st.text())
def test_m2_any_text_is_a_mac_or_a_bad_mac(text: str) -> None:
    try:
        mac = mac_address(text)
    except BadMac:
        return
    assert mac_address(mac) == mac


@pytest.mark.parametrize(
    ("mac", "stable"),
    [
        ("cc-28-aa-00-11-22", True),
        ("00-00-00-00-00-00", False),
        ("02-42-ac-11-00-02", False),  # made up by a container engine
        ("01-00-5e-00-00-01", False),  # multicast
        ("00-1b-21-00-00-01", True),
    ],
)
def test_a_mac_that_was_made_up_is_not_stable(mac: str, stable: bool) -> None:
    assert is_stable(Mac(mac)) is stable


@given(st.text(alphabet=st.characters(), max_size=200))
def test_a5_any_token_has_a_hash(token: str) -> None:
    try:
        expected = hashlib.sha256(token.encode("utf-8", "surrogateescape")).hexdigest()
    except UnicodeEncodeError:  # surrogates that no byte of a header becomes
        return
    assert token_hash(token) == expected


@given(st.binary(max_size=200))
def test_a5_any_bytes_of_a_header_have_a_hash(raw: bytes) -> None:
    assert token_hash(raw.decode("utf-8", "surrogateescape")) == hashlib.sha256(raw).hexdigest()


def test_a_token_is_long_and_printable_and_not_in_its_grant() -> None:
    token, grant = new_token(Role.CLIENT)
    assert len(token) > 43
    assert set(token) <= set(string.ascii_letters + string.digits + "-_")
    assert token not in dump_tokens([grant]).decode()
    assert grant.sha256 == token_hash(token)
    assert new_token(Role.CLIENT)[0] != token


def test_a_connectors_token_is_bound_to_a_mac_and_a_clients_is_not() -> None:
    assert new_token(Role.CONNECTOR, MAC)[1].mac == MAC
    assert new_token(Role.CLIENT)[1].mac is None
    with pytest.raises(BadSetting):
        new_token(Role.CONNECTOR)
    with pytest.raises(BadSetting):
        new_token(Role.CLIENT, MAC)


def test_a3_a_grant_holds_for_its_role_and_its_mac_alone() -> None:
    connector, client = new_token(Role.CONNECTOR, MAC)[1], new_token(Role.CLIENT)[1]
    connector.require(Role.CONNECTOR, MAC)
    connector.require(Role.CONNECTOR)
    client.require(Role.CLIENT)
    for grant, role, mac in (
        (connector, Role.CONNECTOR, Mac("cc-28-aa-00-11-23")),
        (connector, Role.CLIENT, None),
        (client, Role.CONNECTOR, MAC),
    ):
        with pytest.raises(Forbidden):
            grant.require(role, mac)


@given(st.lists(macs, max_size=5))
def test_a_tokens_file_is_whole_after_it_is_written(bound: list[Mac]) -> None:
    grants = [new_token(Role.CONNECTOR, mac)[1] for mac in bound] + [new_token(Role.CLIENT)[1]]
    assert parse_tokens(dump_tokens(grants)) == {grant.sha256: grant for grant in grants}


@pytest.mark.parametrize(
    "grant",
    [
        {"id": "1", "role": "king", "sha256": "x"},
        {"id": "1", "role": "connector", "sha256": "x"},
        {"id": "1", "role": "client", "sha256": "x", "mac": MAC},
        {"id": "1", "role": "connector", "sha256": "x", "mac": "CC:28:AA:00:11:22"},
        {"id": "1", "role": "connector", "sha256": "x", "mac": "nobody"},
        {"id": 1, "role": "client", "sha256": "x"},
        {"role": "client", "sha256": "x"},
    ],
)
def test_a_wrong_tokens_file_is_a_bad_setting(grant: dict[str, object]) -> None:
    with pytest.raises(BadSetting, match="tokens file"):
        parse_tokens(json.dumps({"tokens": [grant]}).encode())


@given(st.binary() | st.text().map(str.encode))
def test_m2_any_bytes_are_a_tokens_file_or_a_bad_setting(data: bytes) -> None:
    try:
        parse_tokens(data)
    except BadSetting:
        return
    raise AssertionError("random bytes were taken for a tokens file")


def test_a_grant_is_equal_by_what_it_says() -> None:
    assert Grant("1", "client", "x") == Grant("1", "client", "x")
