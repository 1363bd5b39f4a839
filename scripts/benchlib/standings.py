"""The figures beside other relays as a table on the terminal, and as a picture."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from benchlib.report import size_name
from benchlib.rounds import CLIENT, COMMAND, OURS, PLAIN, SYNCED

INSIDE = "reaches_a_machine_without_inbound_connections"
GREEN, BLUE, GREY, INK = "#1b7f5a", "#5b7fa6", "#b9c0c7", "#2b2f33"
NOTE = (
    "Time of whole commands, their start included; for our open client, from the request to the "
    "verified file in place.\n"
    "Numbers are medians, whiskers the slowest and the fastest run. "
    "CPU and peak memory are those of the relay's process alone.\n"
    "Where nobody is named, nobody verifies, and nothing is encrypted. "
    "Our own connections take reno on loopback where the system's TCP is bbr."
)


def table(document: dict[str, Any]) -> Table:
    """Return the table, fastest first; a ratio is our rate divided by the peer's."""
    title = f"{size_name(document['options']['size_bytes'])}, from file to file"
    made = Table(title=title, title_justify="left")
    for name in ("", "verifies", "encrypts"):
        made.add_column(name, no_wrap=True)
    for name in (
        "MB/s\n(from-to)",
        "ours / its\nclient, cmd",
        "synced MB/s\n(from-to)",
        "ours / its\nclient, cmd",
        "relay CPU\ns/GiB",
        "relay\npeak MB",
    ):
        made.add_column(name, justify="right", no_wrap=True)
    for row in document["rows"]:
        style = "bold green" if row["name"] in OURS else "" if row[INSIDE] else "dim"
        used, peak = row["relay_cpu_seconds_per_gib"], row["relay_peak_bytes"]
        made.add_row(
            row["name"],
            row["verifies"],
            row["encrypts"],
            *_rate_cells(row[PLAIN]),
            *_rate_cells(row[SYNCED]),
            "" if used is None else f"{used:.2f}",
            "" if peak is None else f"{peak / 1e6:.0f}",
            style=style,
        )
    return made


def _rate_cells(times: dict[str, Any]) -> tuple[str, str]:
    rates = [times[f"megabytes_per_second{end}"] for end in ("", "_slowest", "_fastest")]
    ratios = times["our_rate_divided_by_its"]
    cells = [f"{ratios[name]:.2f}" for name in (CLIENT, COMMAND) if name in ratios]
    return "{:.0f} ({:.0f}-{:.0f})".format(*rates), "  ".join(cells)


def machine_line(document: dict[str, Any]) -> str:
    """Return one line on where and when."""
    facts = document["machine"]
    before, after = (facts[f"load_average_at_{when}"][0] for when in ("start", "end"))
    return (
        f"{facts['cores_usable']} cores, {facts['cpu'] or 'unknown CPU'}, "
        f"{facts['memory_bytes'] / 2**30:.0f} GiB, {facts['file_system'].split()[0]}, "
        f"Linux {facts['kernel'].split('-')[0]}, TCP {facts['congestion_control']}; "
        f"{facts['date'][:10]}; "
        f"load average {before:.1f} before, {after:.1f} after"
    )


def draw(document: dict[str, Any], folder: Path) -> list[Path]:
    """Draw the picture as PNG and SVG; raise ``ImportError`` where there is no matplotlib."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    style = dict.fromkeys(
        ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), INK
    )
    # A salt and no date: the same figures give the same file.
    fixed = {"svg.hashsalt": "peers", "font.size": 9, "hatch.color": INK}
    rules: dict[Any, Any] = {**style, **fixed}
    with mpl.rc_context(rules):
        figure = _figure(document, plt)
        paths = [folder / f"peers.{kind}" for kind in ("png", "svg")]
        figure.savefig(paths[0], dpi=160, facecolor="white")
        figure.savefig(paths[1], facecolor="white", metadata={"Date": None})
        plt.close(figure)
    return paths


def _figure(document: dict[str, Any], plt: Any) -> Any:
    rows = document["rows"][::-1]
    figure, (rate, cpu, peak) = plt.subplots(
        ncols=3,
        sharey=True,
        figsize=(12, 2.4 + 0.5 * len(rows)),
        width_ratios=(5, 2, 2),
        layout="constrained",
    )
    places = range(len(rows))
    colours = [GREEN if row["name"] in OURS else BLUE if row[INSIDE] else GREY for row in rows]
    _rates(rate, rows, colours)
    rate.set_yticks(places, [_about(row) for row in rows])
    for label, row in zip(rate.get_yticklabels(), rows, strict=True):
        label.set_fontweight("bold" if row["name"] in OURS else "normal")
    for axes, key, scale, form, title in (
        (
            cpu,
            "relay_cpu_seconds_per_gib",
            1,
            "{:.2f}",
            "CPU of the relay, s/GiB\n(less is better)",
        ),
        (peak, "relay_peak_bytes", 1e6, "{:.0f}", "peak memory of the relay, MB\n(less is better)"),
    ):
        values = [None if row[key] is None else row[key] / scale for row in rows]
        axes.barh(places, [value or 0 for value in values], height=0.5, color=colours)
        _labels(axes, values, form)
        axes.set_title(title, fontsize=9, loc="left")
    size = size_name(document["options"]["size_bytes"])
    figure.suptitle(
        f"{size} from file to file through a relay, on the loopback of one machine",
        fontsize=13,
        fontweight="bold",
        ha="left",
        x=0.01,
    )
    count = rows[0][PLAIN]["runs"]
    runs = f"medians of {count} runs in turns" if count > 1 else "one run each"
    figure.supxlabel(f"{machine_line(document)}; {runs}.\n{NOTE}", fontsize=8, ha="left", x=0.01)
    for axes in (rate, cpu, peak):
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(axis="y", length=0)
    return figure


def _about(row: dict[str, Any]) -> str:
    lines = [row["name"]]
    if row["verifies"] != "nobody":
        lines.append(f"verifies: {row['verifies']}")
    if row["encrypts"] != "nothing":
        lines.append(f"encrypts: {row['encrypts']}")
    return "\n".join(lines)


def _rates(axes: Any, rows: Sequence[dict[str, Any]], colours: Sequence[str]) -> None:
    from matplotlib.patches import Patch

    for how, shift, hatch, alpha in ((PLAIN, 0.2, "", 1.0), (SYNCED, -0.2, "////", 0.45)):
        rates = [row[how]["megabytes_per_second"] for row in rows]
        low = [row[how]["megabytes_per_second_slowest"] for row in rows]
        high = [row[how]["megabytes_per_second_fastest"] for row in rows]
        spread = (
            [rate - one for rate, one in zip(rates, low, strict=True)],
            [one - rate for rate, one in zip(rates, high, strict=True)],
        )
        places = [place + shift for place in range(len(rows))]
        axes.barh(places, rates, height=0.38, color=colours, hatch=hatch, alpha=alpha)
        axes.errorbar(rates, places, xerr=spread, fmt="none", ecolor=INK, elinewidth=1, capsize=2)
        for place, rate, end in zip(places, rates, high, strict=True):
            axes.annotate(
                f"{rate:.0f}",
                (end, place),
                (4, 0),
                textcoords="offset points",
                va="center",
                fontsize=8,
            )
    axes.margins(x=0.12, y=0.02)
    axes.set_title("MB/s (more is better)", fontsize=9, loc="left")
    legend = [
        Patch(color=GREEN, label="tunnelsync"),
        Patch(color=BLUE, label="other relays to a machine without inbound connections"),
        Patch(color=GREY, label="for comparison: cannot reach such a machine"),
        Patch(facecolor="white", edgecolor=INK, label="written"),
        Patch(
            facecolor="white", edgecolor=INK, hatch="////", label="written and synced to the disk"
        ),
    ]
    axes.legend(handles=legend, loc="lower right", fontsize=8, framealpha=1)


def _labels(axes: Any, values: Sequence[float | None], form: str) -> None:
    for place, value in enumerate(values):
        text = "no relay" if value is None else form.format(value)
        axes.annotate(
            text, (value or 0, place), (4, 0), textcoords="offset points", va="center", fontsize=8
        )
    axes.margins(x=0.25)
