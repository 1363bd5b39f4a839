"""The docs agree with the code: every setting, error and command, row by row."""

import re
from collections.abc import Iterator
from dataclasses import MISSING, Field, fields
from pathlib import Path
from typing import Any

import click
import pytest

from tunnelsync import cli
from tunnelsync.configuration import env_name
from tunnelsync.errors import BY_CODE, TunnelSyncError
from tunnelsync.settings import ROLES, Secret, StoreSettings

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
UNITS = ((1024**3, "GiB"), (1024**2, "MiB"), (1024, "KiB"))
NOT_OURS = {"build", "dist", "__pycache__", "node_modules"}
"""Folders that tools make; those whose names begin with a dot are left out too, but ``.ci``."""


def sections(text: str) -> Iterator[tuple[str, list[list[str]]]]:
    """Each heading of a page, with the rows of the table below it, without the table's head."""
    for section in re.split(r"^##+ ", text, flags=re.MULTILINE)[1:]:
        heading, _, rest = section.partition("\n")
        rows = [line for line in rest.splitlines() if line.startswith("|")]
        yield (
            heading.strip(),
            [[cell.strip() for cell in row.strip("|").split("|")] for row in rows[2:]],
        )


def default_of(spec: Field[Any]) -> str:
    """A default as docs/settings.md writes it: with its unit, and a code span for a text."""
    value = spec.default
    assert value is not MISSING
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, str):
        return f"`{value}`" if value else "none"
    if spec.name.endswith("_bytes"):
        number, unit = next(
            (value // step, unit) for step, unit in UNITS if value >= step and value % step == 0
        )
        return f"{number} {unit}"
    text = (
        f"{value:,g}" if isinstance(value, float) else f"{value:,}" if value > 9999 else str(value)
    )
    return f"{text} s" if spec.name.endswith("_seconds") else text


def flags_of(role: type[Any]) -> dict[str, str]:
    """The flag of each field that has one, in the commands of its role."""
    table = role.table
    prefix = "store-" if role is StoreSettings else ""
    commands = {"router": ["router"], "connector": ["connector"], "client": ["fetch"]}
    context = click.Context(cli.main)
    options: set[str] = set()
    for name in commands.get(table, ["router", "connector"]):
        command = cli.main.get_command(context, name)
        assert command is not None
        options |= {flag for param in command.params for flag in param.opts}
    flags = {spec.name: f"--{prefix}{spec.name}".replace("_", "-") for spec in fields(role)}
    return {name: flag for name, flag in flags.items() if flag in options}


@pytest.mark.parametrize("role", ROLES)
def test_settings_md_has_a_true_row_for_every_setting(role: type[Any]) -> None:
    tables = dict(sections((DOCS / "settings.md").read_text()))
    found = tables[f"`[{role.table}]`"]
    flags = flags_of(role)
    expected = [
        [
            f"`{spec.name}`",
            f"`{env_name(role, spec)}`",
            f"`{flags[spec.name]}`" if spec.name in flags else "",
            "none" if type(spec.default) is Secret else default_of(spec),
            spec.metadata["why"],
        ]
        for spec in fields(role)
    ]
    assert found == expected


def test_settings_md_names_no_table_that_there_is_not() -> None:
    headings = {heading for heading, _ in sections((DOCS / "settings.md").read_text())}
    tables = {heading for heading in headings if heading.startswith("`[")}
    assert tables == {f"`[{role.table}]`" for role in ROLES}


def test_errors_md_has_a_true_row_for_every_error() -> None:
    found = [row for _, rows in sections((DOCS / "errors.md").read_text()) for row in rows]
    codes = [row for row in found if row[0].strip("`") in BY_CODE]
    expected = {kind.code: row_of(kind) for kind in BY_CODE.values()}
    assert {row[0].strip("`"): row for row in codes} == expected
    assert len(codes) == len(expected)


def row_of(kind: type[TunnelSyncError]) -> list[str]:
    """A row of docs/errors.md: code, status, exit code, retry, what happened, what to do."""
    assert kind.__doc__ is not None
    return [
        f"`{kind.code}`",
        str(kind.status),
        str(kind.exit_code),
        "yes" if kind.retry else "no",
        " ".join(kind.__doc__.split("\n\n")[0].split()).replace("``", "`"),
        kind.next_step,
    ]


def test_cli_md_names_every_command_and_every_flag() -> None:
    text = (DOCS / "cli.md").read_text()
    for words, command in commands_of(cli.main, "tunnelsync"):
        assert f"`{words}" in text, words
        for flag in {flag for param in command.params for flag in param.opts if flag[:2] == "--"}:
            assert flag in text, f"{words} {flag}"


def commands_of(group: click.Group, words: str) -> Iterator[tuple[str, click.Command]]:
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        if isinstance(command, click.Group):
            yield from commands_of(command, f"{words} {name}")
        else:
            yield f"{words} {name}", command


PAGES = sorted([*ROOT.glob("*.md"), *DOCS.rglob("*.md")])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_relative_links_lead_somewhere(page: Path) -> None:
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    for target in re.findall(r"\]\(<?([^)\s>]+)", text):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        there = (page.parent / path).resolve() if path else page
        assert there.is_relative_to(ROOT), target
        assert there.exists(), target
        if anchor and there.suffix == ".md":
            assert anchor in anchors(there), target


def anchors(page: Path) -> set[str]:
    headings = re.findall(r"^#+ (.*)$", page.read_text(), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", one.lower()).strip().replace(" ", "-") for one in headings}


def texts() -> Iterator[Path]:
    """Every text file of the tree that is ours."""
    for path in sorted(ROOT.rglob("*")):
        parts = path.relative_to(ROOT).parts
        hidden = any(one.startswith(".") and one != ".ci" for one in parts[:-1])
        ours = not hidden and not NOT_OURS & set(parts) and not path.match("*.egg-info/*")
        if ours and path.is_file() and b"\0" not in path.read_bytes()[:8192]:
            yield path


# Each is written so that it does not find itself.
NOT_FOR_OTHERS = {
    "a path of one machine": r"(?<![\w.$}])/(?:wor[k]|roo[t]|hom[e]/\w+|User[s]/\w+|tmp/[v])/",
    "a host of a registry": (
        r"pyp[i]\.org|pythonhoste[d]\.org|crate[s]\.io|prox[y]\.golang\.org|npmj[s]\.org"
        r"|mave[n]\.org|deb\.debia[n]\.org|maven\.apach[e]\.org"
    ),
    "a number of an issue": (
        r"(?i)\b(?:issu[e]|tas[k]|pull reques[t])s? (?:no\. ?)?#?\d+\b|(?<=[\s(])#\d+\b"
    ),
}


@pytest.mark.parametrize("what", NOT_FOR_OTHERS)
def test_no_file_holds_what_means_nothing_elsewhere(what: str) -> None:
    found = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()[:100]}"
        for path in texts()
        for number, line in enumerate(path.read_text(errors="replace").splitlines(), 1)
        if re.search(NOT_FOR_OTHERS[what], line)
    ]
    assert not found, f"{what}:\n" + "\n".join(found)


@pytest.mark.parametrize("part", ["", "router", "connector", "client"])
def test_architecture_md_has_a_row_for_every_file(part: str) -> None:
    found = dict(sections((DOCS / "architecture.md").read_text()))
    rows = found[f"`{part}/`" if part else "The top: `src/tunnelsync/`"]
    told = {name for row in rows for name in re.findall(r"`(\w+\.py)`", row[0])}
    files = (ROOT / "src" / "tunnelsync" / part).glob("*.py")
    assert told == {path.name for path in files if not path.name.startswith("__")}
