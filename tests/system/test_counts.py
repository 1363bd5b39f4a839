"""What a request and a MiB cost each role, in counts: no more than the baselines allow.

A count does not depend on how busy the machine is, or only by its tolerance. What grew must have
grown in two measurements.
"""

import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest

import counts
import strace
from counting import Roles, each_mib, python_calls, system_calls

Measure = Callable[[Path], dict[str, float]]
VERSIONS = counts.versions_here()
FROM_FILE = re.compile(r"connector, .* for each (MiB|byte)$")

# Twice each, where something grew.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


def tells_what_is_cached(folder: Path) -> bool:
    """Tell whether files here can be read without waiting, where they are in the cache."""
    with (folder / "probe").open("w+b", buffering=0) as file:
        file.write(b"x")
        try:
            return os.preadv(file.fileno(), [bytearray(1)], 0, os.RWF_NOWAIT) == 1
        except OSError:
            return False


@pytest.fixture
def judge(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[[Measure], None]:
    """How to judge what is measured: fail for what grew, print what shrank."""
    baselines = counts.Baselines.read()
    if not baselines.knows(VERSIONS):
        pytest.skip(counts.UNKNOWN.format(VERSIONS))

    def take(measure: Measure, number: int) -> dict[str, float]:
        (folder := tmp_path / str(number)).mkdir()
        found = measure(folder)
        if not tells_what_is_cached(folder):
            # There the connector reads and copies what elsewhere its kernel sends by itself.
            with capsys.disabled():
                print("\nnot compared: what a MiB costs the connector; this file system copies")
            return {name: one for name, one in found.items() if not FROM_FILE.match(name)}
        return found

    def judged(measure: Measure) -> None:
        measured = take(measure, 0)
        if not baselines.knows(VERSIONS, measured):
            pytest.skip(counts.UNKNOWN.format(VERSIONS))
        if counts.verdict(baselines.compare(VERSIONS, measured)):
            again = take(measure, 1)
            measured = {name: min(count, again[name]) for name, count in measured.items()}
        compared = baselines.compare(VERSIONS, measured)
        if news := counts.good_news(compared):
            with capsys.disabled():
                print(f"\n{news}")
        if grown := counts.verdict(compared):
            pytest.fail(grown, pytrace=False)

    return judged


def test_no_role_calls_more_functions_or_leaves_more_memory(
    judge: Callable[[Measure], None],
) -> None:
    judge(python_calls)


def test_no_role_makes_more_system_calls_or_copies_more(judge: Callable[[Measure], None]) -> None:
    if refused := strace.refusal():
        pytest.skip(refused)
    judge(system_calls)


def test_a_router_that_copies_is_seen(tmp_path: Path) -> None:
    baselines = counts.Baselines.read()
    refused = strace.refusal()
    if refused or not baselines.knows(VERSIONS):
        pytest.skip(refused or counts.UNKNOWN.format(VERSIONS))
    environ = {"TUNNELSYNC_ROUTER_ZERO_COPY": "false"}
    with Roles(tmp_path, plain=True, environ=environ) as roles:
        measured = each_mib(roles.system_calls, rounds=1)
    grown = [one.name for one in baselines.compare(VERSIONS, measured) if one.grew]
    assert "router, bytes copied for each byte" in grown
