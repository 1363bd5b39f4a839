"""What is drawn on a terminal: tables on stdout, bars on stderr; and what a terminal can show."""

import shutil
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import IO, TYPE_CHECKING, Any, cast

from tunnelsync.cli.output import escaped, row

if TYPE_CHECKING:
    from rich.console import Console


def table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print a table: drawn on a terminal, tab-separated lines in a pipe.

    The first and last columns are texts, those between are numbers.
    """
    if sys.stdout is None or not sys.stdout.isatty():
        for cells in rows:
            row(cells)
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    drawn = Table(box=None, pad_edge=False, header_style="bold")
    for index, column in enumerate(columns):
        number = 0 < index < len(columns) - 1
        drawn.add_column(column, justify="right" if number else "left", overflow="fold")
    for cells in rows:
        drawn.add_row(*(Text(escaped(cell)) for cell in cells))
    Console().print(drawn)


class _Stderr:
    """stderr as `rich` writes to it: a terminal that has gone ends no work."""

    def write(self, text: str) -> int:
        with suppress(OSError):
            sys.stderr.write(text)
        return len(text)

    def flush(self) -> None:
        with suppress(OSError):
            sys.stderr.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(sys.stderr, name)


def watched() -> bool:
    """Tell whether stderr is a terminal; it may be closed."""
    return sys.stderr is not None and sys.stderr.isatty()


def console() -> "Console":
    """Return what draws on stderr."""
    from rich.console import Console

    return Console(file=cast(IO[str], _Stderr()))


@contextmanager
def spinner(*, quiet: bool = False) -> Iterator[Callable[[str], None]]:
    """Show on a terminal what is being done, as it is told; nothing in a pipe."""
    if quiet or not watched():
        yield lambda text: None
        return
    with console().status("", spinner="line") as status:
        yield lambda text: status.update(escaped(text).replace("[", "\\["))


def width() -> int:
    """Return the columns of the terminal; 80 where there is none, unless COLUMNS says otherwise."""
    return shutil.get_terminal_size((80, 24)).columns


def can_draw() -> bool:
    """Tell whether stdout takes block characters."""
    try:
        "█▏".encode(getattr(sys.stdout, "encoding", None) or "ascii")
    except (UnicodeEncodeError, LookupError):
        return False
    return True
