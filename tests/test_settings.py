"""Settings: which source wins, what is refused, what is never printed."""

from dataclasses import FrozenInstanceError, fields, replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunnelsync.configuration import NOT_SETTINGS, PREFIX, env_name, load
from tunnelsync.errors import BadSetting
from tunnelsync.settings import (
    ROLES,
    ClientSettings,
    ConnectorSettings,
    RouterSettings,
    Secret,
    StoreSettings,
)

CANARY = "the-canary-in-the-coal-mine"
EVERY = [(role, spec) for role in ROLES for spec in fields(role)]
IDS = [f"{role.table}.{spec.name}" for role, spec in EVERY]


@pytest.mark.parametrize("role", ROLES)
def test_nothing_given_gives_the_defaults(role: Any) -> None:
    assert load(role) == role()


def test_flags_win_over_the_environment_over_the_file_over_defaults() -> None:
    toml = {"router": {"port": 1, "host": "file", "tls_cert": "file"}}
    environ = {"TUNNELSYNC_ROUTER_PORT": "2", "TUNNELSYNC_ROUTER_HOST": "environment"}
    loaded = load(RouterSettings, flags={"port": "3", "host": None}, environ=environ, toml=toml)
    assert (loaded.port, loaded.host, loaded.tls_cert) == (3, "environment", "file")
    assert loaded.heartbeat_seconds == RouterSettings().heartbeat_seconds


@pytest.mark.parametrize(("role", "spec"), EVERY, ids=IDS)
def test_every_setting_can_be_set_by_its_variable_and_its_key(role: type[Any], spec: Any) -> None:
    kind = type(spec.default)
    text, in_toml = {
        bool: ("true", True),
        int: ("7", 7),
        float: ("7.5", 7.5),
        str: ("text", "text"),
        Secret: ("text", "text"),
    }[kind]
    expected = replace(role(), **{spec.name: kind(in_toml)})
    by_variable = load(role, environ={env_name(role, spec): text})
    assert by_variable == expected
    assert load(role, toml={role.table: {spec.name: in_toml}}) == expected
    assert type(getattr(by_variable, spec.name)) is kind


@pytest.mark.parametrize(("role", "spec"), EVERY, ids=IDS)
def test_every_setting_has_a_reason_and_a_number_has_a_unit(role: type[Any], spec: Any) -> None:
    assert spec.metadata["why"]
    if type(spec.default) is float:
        assert spec.name.endswith("_seconds")


def test_variables_are_shared_only_where_they_mean_the_same() -> None:
    shared: dict[str, list[tuple[str, object]]] = {}
    for role, spec in EVERY:
        shared.setdefault(env_name(role, spec), []).append((spec.name, spec.default))
    for name, meanings in shared.items():
        assert name.startswith(PREFIX)
        assert len(set(meanings)) == 1, name


@pytest.mark.parametrize(
    "toml",
    [
        {"router": {"prot": 1}},
        {"rooter": {"port": 1}},
        {"port": 1},
        {"router": 3},
        {"store": {"Endpoint": "x"}},
        {"connector": {"mac ": "x"}},
    ],
)
@pytest.mark.parametrize("role", ROLES)
def test_an_unknown_key_anywhere_in_the_file_is_an_error(
    role: type[Any], toml: dict[str, Any]
) -> None:
    with pytest.raises(BadSetting):
        load(role, toml=toml)


@pytest.mark.parametrize(
    "name", ["TUNNELSYNC_ROUTER_PROT", "TUNNELSYNC_", "TUNNELSYNC_MAC", "TUNNELSYNC_STORE"]
)
@pytest.mark.parametrize("role", ROLES)
def test_an_unknown_variable_is_an_error(role: type[Any], name: str) -> None:
    with pytest.raises(BadSetting, match=name):
        load(role, environ={name: "1"})


def test_variables_of_others_and_those_read_elsewhere_are_none_of_ours() -> None:
    environ = {"PATH": "/bin", "AWS_REGION": "x"} | {PREFIX + name: "x" for name in NOT_SETTINGS}
    assert load(ClientSettings, environ=environ) == ClientSettings()


@pytest.mark.parametrize(
    ("role", "name", "value"),
    [
        (RouterSettings, "port", "x"),
        (RouterSettings, "port", "-1"),
        (RouterSettings, "port", "1.5"),
        (RouterSettings, "port", 1.5),
        (RouterSettings, "port", True),
        (RouterSettings, "port", [1]),
        (RouterSettings, "port", str(2**62)),
        (RouterSettings, "host", 3),
        (RouterSettings, "idle_seconds", "nan"),
        (RouterSettings, "idle_seconds", "inf"),
        (RouterSettings, "idle_seconds", "-0.1"),
        (RouterSettings, "chunk_queue", "1"),
        (ClientSettings, "read_bytes", "0"),
        (StoreSettings, "create_bucket", "perhaps"),
        (StoreSettings, "create_bucket", 1),
        (StoreSettings, "access_key", 1),
    ],
)
def test_a_value_of_the_wrong_kind_is_an_error_that_names_its_place(
    role: type[Any], name: str, value: Any
) -> None:
    with pytest.raises(BadSetting, match=name.replace("_", ".")):
        load(role, flags={name: value})
    with pytest.raises(BadSetting, match=name):
        load(role, toml={role.table: {name: value}})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("read_bytes", 0),
        ("read_bytes", -1),
        ("read_bytes", 1.5),
        ("read_bytes", float("nan")),
        ("read_bytes", "many"),
        ("read_bytes", True),
        ("idle_seconds", float("inf")),
        ("idle_seconds", None),
    ],
)
def test_what_a_program_makes_by_itself_is_checked_too(name: str, value: Any) -> None:
    with pytest.raises(BadSetting, match=f"client.{name} must be"):
        ClientSettings(**{name: value})
    with pytest.raises(BadSetting, match=f"client.{name} must be"):
        replace(ClientSettings(), **{name: value})


@pytest.mark.parametrize(
    ("text", "value"),
    [("1", True), ("TRUE", True), ("yes", True), ("0", False), ("no", False), ("", False)],
)
def test_a_switch_is_told_in_words(text: str, value: bool) -> None:
    environ = {"TUNNELSYNC_STORE_CREATE_BUCKET": text}
    assert load(StoreSettings, environ=environ).create_bucket is value


@given(st.text() | st.integers() | st.floats() | st.none() | st.lists(st.integers()))
def test_m2_any_value_is_taken_or_is_a_bad_setting(value: Any) -> None:
    role: Any
    for role, spec in EVERY:
        try:
            loaded = load(role, toml={role.table: {spec.name: value}})
        except BadSetting:
            continue
        assert type(getattr(loaded, spec.name)) is type(spec.default)


def test_a6_a_secret_prints_as_stars() -> None:
    secret = Secret(CANARY)
    shown = [repr(secret), str(secret), f"{secret}", f"{secret:>9}", f"{secret!r}", f"{secret!s}"]
    shown += ["%s %r" % (secret, secret), "{}".format(secret), repr([secret]), repr({1: secret})]  # noqa: UP031, UP032
    assert CANARY not in " ".join(shown)
    assert secret.reveal() == CANARY
    assert type(secret.reveal()) is str


def test_a6_no_secret_is_in_the_repr_of_settings() -> None:
    environ = {
        "TUNNELSYNC_TOKEN": CANARY,
        "TUNNELSYNC_STORE_ACCESS_KEY": CANARY,
        "TUNNELSYNC_STORE_SECRET_KEY": CANARY,
    }
    role: Any
    for role in ROLES:
        loaded = load(role, environ=environ)
        assert CANARY not in f"{loaded} {loaded!r}"
    assert load(ConnectorSettings, environ=environ).token.reveal() == CANARY


def test_a6_no_error_shows_a_secret() -> None:
    with pytest.raises(BadSetting) as caught:
        load(StoreSettings, toml={"store": {"secret_key": [CANARY]}})
    assert CANARY not in caught.value.message


def test_settings_do_not_change() -> None:
    with pytest.raises(FrozenInstanceError):
        RouterSettings().port = 1  # type: ignore[misc]


def test_the_public_endpoint_is_the_endpoint_unless_told() -> None:
    assert StoreSettings(endpoint="http://a").public == "http://a"
    assert StoreSettings(endpoint="http://a", public_endpoint="http://b").public == "http://b"


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("CONNECTOR_TOKEN", "TUNNELSYNC_TOKEN"),
        ("ROOT", "TUNNELSYNC_CONNECTOR_ROOT"),
        ("PORT", "TUNNELSYNC_ROUTER_PORT"),
        ("CONNECTOR_PORT", "TUNNELSYNC_ROUTER_PORT"),
        ("CONNECTOR_ROUTER", "TUNNELSYNC_ROUTER"),
        ("ROUTER_PROT", "TUNNELSYNC_ROUTER_PORT"),
        ("CLIENT_IDLE_SECOND", "TUNNELSYNC_CLIENT_IDLE_SECONDS"),
        ("TOKN", "TUNNELSYNC_TOKEN"),
        ("HOME", None),
        ("STORE", None),
        ("STORE_TEST", None),
        ("", None),
    ],
)
def test_an_unknown_variable_is_answered_with_what_was_meant(name: str, meant: str | None) -> None:
    with pytest.raises(BadSetting) as raised:
        load(RouterSettings, environ={f"TUNNELSYNC_{name}": "1"})
    hint = str(raised.value.hint)
    assert hint.startswith(f"Did you mean {meant}?") if meant else "mean" not in hint


@pytest.mark.parametrize(("key", "meant"), [("prot", "port"), ("hots", "host"), ("home", None)])
def test_an_unknown_key_is_answered_with_what_was_meant(key: str, meant: str | None) -> None:
    with pytest.raises(BadSetting) as raised:
        load(RouterSettings, toml={"router": {key: 1}})
    hint = str(raised.value.hint)
    assert hint.startswith(f"Did you mean {meant}?") if meant else "mean" not in hint
