"""The shape of the source: who may import whom, and what only some files may touch."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness import clean_environ

ROOT = Path(__file__).parents[1]
SRC = ROOT / "src" / "tunnelsync"
FILES = sorted(SRC.rglob("*.py"))
ROLES = ("router", "connector", "client")
PURE = (
    "address",
    "backoff",
    "batch",
    "cli/bench_figures",
    "cli/bench_plan",
    "cli/bench_report",
    "configuration",
    "errors",
    "frames",
    "headers",
    "identity",
    "meant",
    "objects",
    "protocol",
    "segments",
    "settings",
    "transfer",
    "wire",
)
LINES = 320
TABLES = {"errors.py": 440, "protocol.py": 490}
"""Lists that are read in one piece: each error, each message."""
PROCESS_WIDE = {
    "os": {"environ", "environb", "getenv", "putenv", "_exit", "abort"},
    "sys": {"argv", "exit", "stdin", "stdout", "stderr"},
}


def name_of(path: Path) -> str:
    return path.relative_to(SRC).as_posix()


def part_of(path: Path) -> str:
    """The role that a file belongs to, ``cli``, or ``""`` for the files at the top."""
    folder = path.relative_to(SRC).parts[0]
    if folder == "__main__.py":
        return "cli"  # its door
    return folder if (SRC / folder).is_dir() else ""


def imports(path: Path) -> Iterator[str]:
    """Every module that a file imports, anywhere in it, with the names taken from it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name_of(path)}: relative import"
            yield node.module or ""
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def parts_imported(path: Path) -> set[str]:
    """The roles, and ``cli``, that a file imports."""
    found = {name.split(".")[1] for name in imports(path) if name.startswith("tunnelsync.")}
    return found & {*ROLES, "cli"}


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_arrows_go_from_cli_to_a_role_to_the_top(path: Path) -> None:
    part = part_of(path)
    if part == "cli":
        return
    allowed = {part} if part else set()
    if name_of(path) == "__main__.py":
        allowed = {"cli"}
    assert parts_imported(path) <= allowed


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_only_the_store_imports_an_s3_library(path: Path) -> None:
    libraries = {name.split(".")[0] for name in imports(path)}
    used = libraries & {"aioboto3", "aiobotocore", "boto3", "botocore", "s3transfer"}
    assert not used or name_of(path) == "s3.py"


def test_the_s3_library_is_not_loaded_before_a_store_is_used() -> None:
    modules = ["tunnelsync.store", *(f"tunnelsync.{role}" for role in ROLES)]
    modules += [
        f"tunnelsync.{name_of(path)[:-3].replace('/', '.')}"
        for path in FILES
        if part_of(path) in (*ROLES, "cli") and path.stem != "__init__"
    ]
    code = (
        f"import sys, importlib\nfor name in {modules!r}: importlib.import_module(name)\n"
        "print([name for name in sys.modules if 'boto' in name])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=clean_environ()
    )
    assert (done.stdout, done.stderr) == ("[]\n", "")


def process_wide(path: Path) -> Iterator[str]:
    """Each use of arguments, environment, standard streams, printing or exiting."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            if node.attr in PROCESS_WIDE.get(node.value.id, ()):
                yield f"line {node.lineno}: {node.value.id}.{node.attr}"
        elif isinstance(node, ast.ImportFrom) and node.module in PROCESS_WIDE:
            taken = {alias.name for alias in node.names} & PROCESS_WIDE[node.module]
            yield from (f"line {node.lineno}: from {node.module} import {one}" for one in taken)
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            if node.func.id in {"print", "input", "exit", "quit"}:
                yield f"line {node.lineno}: {node.func.id}()"
        elif isinstance(node, ast.Name) and node.id == "SystemExit":
            yield f"line {node.lineno}: SystemExit"


@pytest.mark.parametrize("path", [p for p in FILES if part_of(p) != "cli"], ids=name_of)
def test_only_the_command_line_reads_the_environment_prints_or_exits(path: Path) -> None:
    assert not list(process_wide(path))


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_a_file_is_short_enough_to_be_read(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= TABLES.get(name_of(path), LINES)


@pytest.mark.parametrize("name", PURE)
def test_a_pure_file_does_no_io(name: str) -> None:
    io = {"asyncio", "aiohttp", "aiofiles", "os", "socket", "pathlib", "threading", "subprocess"}
    path = SRC / f"{name}.py"
    assert not {module.split(".")[0] for module in imports(path)} & io
    calls = [n for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Call)]
    assert not [n for n in calls if isinstance(n.func, ast.Name) and n.func.id == "open"]


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_a_module_opens_with_what_it_is_for(path: Path) -> None:
    assert ast.get_docstring(ast.parse(path.read_text()))


def test_a_mode_has_the_same_file_in_each_role() -> None:
    for role in ROLES:
        names = {path.stem for path in (SRC / role).glob("*.py")}
        assert {"buffer", "stream", "offload", "auto"} <= names, role
