"""compose.yaml and the images: every command line is one that the CLI takes, and no secret is in
them. No engine is needed: the files are read, and the arguments parsed without running them."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest
import yaml

from tunnelsync import cli
from tunnelsync.address import is_loopback
from tunnelsync.configuration import load
from tunnelsync.settings import ConnectorSettings, RouterSettings, StoreSettings

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "compose.yaml").read_text()
COMPOSE: dict[str, Any] = yaml.safe_load(TEXT)
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
OURS = [name for name, service in SERVICES.items() if service["image"] == "tunnelsync:local"]
IMAGES = {"tunnelsync:local": ROOT / "Dockerfile"} | {
    "tunnelsync-minio:local": ROOT / "deploy" / "minio.Dockerfile"
}
SECRET = re.compile(r"(?i)token$|password|secret|access_key|_key$|root_user")


def with_defaults(text: str) -> str:
    """A value as it is when no variable is set."""
    return re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", text)


def parsed(arguments: list[str], command: click.Command = cli.main) -> click.Context:
    """Parse a command line down to its last command, and run nothing."""
    context = command.make_context("tunnelsync", list(arguments))
    if not isinstance(command, click.Group):
        return context
    rest = [*context._protected_args, *context.args]
    name, found, arguments = command.resolve_command(context, rest)
    assert found is not None, name
    return parsed(arguments, found)


def environment(name: str) -> dict[str, str]:
    given = SERVICES[name].get("environment", {})
    return {key: with_defaults(str(value)) for key, value in given.items()}


def test_there_are_a_router_a_connector_and_a_store() -> None:
    assert set(SERVICES) == {"router", "connector", "minio"}
    assert set(OURS) == {"router", "connector"}


@pytest.mark.parametrize("name", OURS)
def test_a_command_line_is_one_that_the_cli_takes(name: str) -> None:
    arguments = SERVICES[name]["command"]
    assert arguments[0] == name
    assert parsed(arguments).info_name == "tunnelsync"
    with pytest.raises(click.NoSuchOption):
        parsed([*arguments, "--no-such-flag"])


@pytest.mark.parametrize("name", OURS)
def test_the_environment_is_one_that_the_settings_take(name: str) -> None:
    environ = environment(name)
    load(RouterSettings, environ=environ)
    load(ConnectorSettings, environ=environ)
    store = load(StoreSettings, environ=environ)
    assert store.endpoint == "http://minio:9000"
    assert store.public == "http://127.0.0.1:9000"


def test_router_and_connector_name_the_same_store() -> None:
    of_router, of_connector = (
        load(StoreSettings, environ=environment(name)) for name in ("router", "connector")
    )
    assert of_router.public == of_connector.public
    assert of_router.bucket == of_connector.bucket


def commands_in_the_head() -> Iterator[list[str]]:
    """The command lines of ours in the comment that opens the file."""
    head = TEXT.partition("\n\n")[0].replace("\\\n#", " ")
    token = re.search(r'token="(.*)"', head)
    assert token is not None
    for line in head.splitlines():
        text = line.lstrip("# ")
        if made := re.search(r"\$token (.*?)(?:\)|$)", text):
            yield shlex.split(f"{token[1].partition(' router ')[2]} {made[1]}")
        elif found := re.search(r"^(?:\w+=\S+ )*tunnelsync (.*)", text):
            yield shlex.split(found[1])


def test_the_commands_that_the_head_tells_are_those_of_the_cli() -> None:
    found = list(commands_in_the_head())
    assert [words[0] for words in found] == ["token", "token", "fetch"]
    for words in found:
        parsed(words)
    assert len(TEXT.partition("\n\n")[0].splitlines()) <= 15


@pytest.mark.parametrize("name", SERVICES)
def test_no_secret_is_in_the_file(name: str) -> None:
    assert not [key for key in environment(name) if SECRET.search(key)]
    assert not [word for word in SERVICES[name]["command"] if SECRET.search(str(word))]


def test_secrets_come_from_files_that_are_not_kept() -> None:
    assert SERVICES["connector"]["env_file"] == ["deploy/connector.env"]
    assert SERVICES["minio"]["env_file"] == ["deploy/minio.env"]
    assert "*.env" in (ROOT / ".gitignore").read_text().splitlines()
    assert (ROOT / ".dockerignore").read_text().splitlines()[1] == "*"


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_is_checked_restarted_and_not_root(name: str) -> None:
    service = SERVICES[name]
    assert service["healthcheck"]["test"][0] == "CMD"
    assert service["restart"] == "unless-stopped"
    assert int(service["user"].partition(":")[0]) > 0
    assert service["cap_drop"] == ["ALL"]
    assert service["read_only"] is True


@pytest.mark.parametrize("name", OURS)
def test_a_health_check_in_python_compiles(name: str) -> None:
    program, flag, code = SERVICES[name]["healthcheck"]["test"][1:]
    assert (program, flag) == ("python", "-c")
    compile(code, name, "exec")


@pytest.mark.parametrize("name", SERVICES)
def test_a_port_is_reachable_from_this_host_alone(name: str) -> None:
    for port in SERVICES[name].get("ports", []):
        host, outer, inner = port.split(":")
        assert is_loopback(host)
        assert outer == inner


def test_the_router_listens_where_its_port_leads_and_has_a_tokens_file() -> None:
    context = parsed(SERVICES["router"]["command"])
    assert SERVICES["router"]["ports"] == [f"127.0.0.1:{context.params['port']}:8080"]
    tokens = load(RouterSettings, environ=environment("router")).tokens
    folders = [volume.split(":")[1] for volume in SERVICES["router"]["volumes"]]
    assert str(Path(tokens).parent) in folders
    grace = int(SERVICES["router"]["stop_grace_period"].removesuffix("s"))
    assert grace > RouterSettings().drain_seconds


def test_the_connector_reads_its_datasets_and_cannot_write_them() -> None:
    context = parsed(SERVICES["connector"]["command"])
    assert SERVICES["connector"]["volumes"] == [
        f"${{DATASETS:-./data}}:{context.params['root']}:ro"
    ]


def test_volumes_are_declared() -> None:
    used = {
        volume.partition(":")[0]
        for service in SERVICES.values()
        for volume in service.get("volumes", [])
        if volume[0] not in "./$"
    }
    assert used == set(COMPOSE["volumes"])


def last_stage(dockerfile: Path) -> list[list[str]]:
    lines = re.sub(r"\\\n", " ", dockerfile.read_text()).splitlines()
    instructions = [line.split(maxsplit=1) for line in lines if line and line[0] not in "# "]
    starts = [index for index, words in enumerate(instructions) if words[0] == "FROM"]
    return instructions[starts[-1] :]


@pytest.mark.parametrize(("image", "dockerfile"), IMAGES.items())
def test_an_image_runs_as_a_user_with_a_number_that_is_not_root(
    image: str, dockerfile: Path
) -> None:
    users = [words[1] for words in last_stage(dockerfile) if words[0] == "USER"]
    assert int(users[-1].partition(":")[0]) > 0
    assert users[-1] in [one["user"] for one in SERVICES.values() if one["image"] == image]


def test_an_image_is_the_command() -> None:
    entry = [words[1] for words in last_stage(ROOT / "Dockerfile") if words[0] == "ENTRYPOINT"]
    assert entry == ['["tunnelsync"]']


def test_the_minio_of_the_image_is_that_of_the_tests() -> None:
    pinned = re.compile(r"v0\.0\.0-\d{14}-[0-9a-f]{12}")
    files = [ROOT / "deploy" / "minio.Dockerfile", ROOT / "scripts" / "build-minio.sh"]
    versions = {one for file in files for one in pinned.findall(file.read_text())}
    assert len(versions) == 1
