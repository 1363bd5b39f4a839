"""``tunnelsync verify``: whether a file is still what a fetch brought."""

import click

from tunnelsync import wire
from tunnelsync.cli import options, output
from tunnelsync.cli.digest import root_of
from tunnelsync.client import FetchReceipt
from tunnelsync.errors import BadRequest, NotFound, Usage, VerificationFailed
from tunnelsync.protocol import printable

RECEIPT_BYTES = 16 * 1024 * 1024
"""More than any receipt has: it lists a bounded number of transfers."""


@click.command()
@click.argument("file")
@click.argument("receipt")
@options.json_flag
def verify(file: str, receipt: str, as_json: bool) -> None:
    """Check FILE against RECEIPT, which `fetch --receipt` wrote; exit 7 if they differ."""
    said = _read(receipt)
    if said.root is None:
        raise Usage(
            f"the receipt {printable(receipt)} is of a fetch that ended {said.outcome}",
            hint="Only the receipt of a fetch that brought its dataset can be checked against.",
        )
    root, size = root_of(file)
    dataset = printable(said.dataset)
    if size != said.size:
        why = f"{printable(file)} has {size:,} bytes, and {dataset} had {said.size:,}"
        raise VerificationFailed(why, hint=HINT)
    if root != said.root:
        why = f"{printable(file)} has the root {root}, and {dataset} had {said.root}"
        raise VerificationFailed(why, hint=HINT)
    if as_json:
        output.success(file=printable(file)[1:-1], size=size, root=root, dataset=said.dataset)
    else:
        output.line(f"{output.shown_name(file)}: is {dataset} of {said.mac} as fetched, {root}")


HINT = "The file was changed since it was fetched, or is another one; fetch it again."


def _read(path: str) -> FetchReceipt:
    hint = "Give a file that `tunnelsync fetch --receipt FILE` wrote."
    try:
        with open(path, "rb") as file:
            data = file.read(RECEIPT_BYTES)
    except (OSError, ValueError) as exc:
        why = exc.strerror if isinstance(exc, OSError) else "no such name"
        raise NotFound(f"cannot read the receipt {printable(path)}: {why}", hint=hint) from None
    try:
        return wire.decode(FetchReceipt, wire.loads(data))
    except BadRequest:
        raise Usage(f"{printable(path)} is no receipt of a fetch", hint=hint) from None
