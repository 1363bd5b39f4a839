"""``tunnelsync store``: what to do in the S3 store besides uploading; for now, removing."""

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from typing import Any

import click

from tunnelsync.cli import options, output, running
from tunnelsync.errors import StoreNotConfigured
from tunnelsync.leftovers import Leftovers
from tunnelsync.settings import StoreSettings


@dataclass(slots=True)
class Tally:
    """What was removed, or would be."""

    objects: int = 0
    bytes: int = 0
    uploads: int = 0


@click.group()
def store() -> None:
    """Look after the S3 store that connectors upload to."""


@store.command()
@click.option(
    "--older-than",
    "older_than_seconds",
    metavar="SECONDS",
    type=click.IntRange(min=0),
    help="the age from which on it goes; default: the setting object_lifetime_seconds. Less can "
    "break downloads and uploads that are under way",
)
@click.option("--dry-run", is_flag=True, help="remove nothing, and tell what would be")
@options.json_flag
@options.store_flags
@options.config_flag
def gc(older_than_seconds: int | None, dry_run: bool, as_json: bool, **flags: Any) -> None:
    """Remove what connectors put under the prefix and is older than its life.

    That is versions of datasets, and uploads that were begun and never ended. Anything else in the
    bucket is left alone.
    """
    settings = _settings(flags)
    if older_than_seconds is None:
        older_than_seconds = settings.object_lifetime_seconds
    tally = running.run(_collect(settings, older_than_seconds, keeps=dry_run))
    if as_json:
        output.success(dry_run=dry_run, older_than_seconds=older_than_seconds, **asdict(tally))
        return
    removed, aborted = ("would remove", "abort") if dry_run else ("removed", "aborted")
    output.line(
        f"{removed} {_counted(tally.objects, 'object')} of {_counted(tally.bytes, 'byte')}, and "
        f"{aborted} {_counted(tally.uploads, 'upload')}, {older_than_seconds} s old or older"
    )


def _counted(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def _settings(flags: Mapping[str, Any]) -> StoreSettings:
    settings = options.load_store(flags)
    if not settings.endpoint:
        raise StoreNotConfigured(
            "there is no store to look after",
            hint="Set TUNNELSYNC_STORE_ENDPOINT, bucket, prefix and keys as for the connectors.",
        )
    return replace(settings, create_bucket=False)


async def _collect(settings: StoreSettings, older_than_seconds: int, *, keeps: bool) -> Tally:
    from tunnelsync.store import Store

    tally = Tally()
    with ThreadPoolExecutor(1) as executor:
        async with Store(settings, executor) as there:
            await _go_through(await there.leftovers(), older_than_seconds, tally, keeps=keeps)
    return tally


async def _go_through(
    leftovers: Leftovers, older_than_seconds: int, tally: Tally, *, keeps: bool
) -> None:
    def age() -> float:
        return older_than_seconds

    async for kept in leftovers.objects(age):
        gone = kept if keeps else await leftovers.remove(kept, age)
        tally.objects += len(gone)
        tally.bytes += sum(one.size for one in gone)
    async for uploads in leftovers.uploads(age):
        if not keeps:
            await leftovers.abort(uploads)
        tally.uploads += len(uploads)
