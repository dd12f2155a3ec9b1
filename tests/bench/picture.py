"""The picture for the README: slim's rate divided by the others', a panel for each server."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt  # noqa: E402

JOBS = "put, new id", "put, replacing", "put_many", "get", "find 20", "scan"
STYLES = {
    "floor": ("#444444", "D", "hand-written SQL, bytes prepared"),
    "2009": ("#999999", "s", "the way of 2009"),
    "Document Store": ("#d55e00", "o", "MySQL Document Store"),
    "SQLAlchemy": ("#0072b2", "o", "SQLAlchemy, JSON column"),
    "dataset": ("#cc79a7", "o", "dataset, a column for each key"),
}
SERVERS = {"mysql": "MySQL", "mariadb": "MariaDB"}
TICKS = {0.125: "⅛", 0.25: "¼", 0.5: "½", 1: "1", 2: "2", 4: "4", 8: "8"}
STEP = 0.14  # between the contestants of a job


def draw(results: Mapping[str, Mapping[str, Mapping[str, Any]]], path: Path) -> None:
    """A point is the median of the rounds, a line their middle half; the scale is logarithmic, and right of 1 slim is faster."""
    plt.rcParams.update(
        {
            "svg.fonttype": "none",
            "svg.hashsalt": "slim",
            "font.family": "sans-serif",
            "font.size": 9,
        }
    )
    figure, panels = plt.subplots(
        1, len(results), figsize=(1 + 3.6 * len(results), 4.1), sharey=True, squeeze=False
    )
    for panel, (kind, found) in zip(panels[0], results.items()):
        for row in range(0, len(JOBS), 2):
            panel.axhspan(row - 0.5, row + 0.5, color="#f4f4f4", linewidth=0, zorder=-1)
        for place, (name, (color, marker, label)) in enumerate(STYLES.items()):
            drawn = [
                (row + (place - (len(STYLES) - 1) / 2) * STEP, found[job][name])
                for row, job in enumerate(JOBS)
                if name in found.get(job, ())
            ]
            if drawn:
                rows, ratios = zip(*drawn)
                panel.hlines(
                    rows,
                    [each.low for each in ratios],
                    [each.high for each in ratios],
                    color=color,
                    linewidth=1.2,
                )
                panel.plot(
                    [each.middle for each in ratios],
                    rows,
                    marker,
                    color=color,
                    markersize=4.5,
                    label=label,
                )
        panel.axvline(1, color="#009e73", linewidth=1.2, zorder=0)
        panel.set(
            title=SERVERS.get(kind, kind),
            xscale="log",
            xticks=list(TICKS),
            xticklabels=TICKS.values(),
            xlim=(0.11, 14),
            ylim=(len(JOBS) - 0.5, -0.5),
            yticks=range(len(JOBS)),
            yticklabels=JOBS,
        )
        panel.set_xlabel(
            "slim's rate divided by the other's\n← slim is slower        slim is faster →"
        )
        panel.minorticks_off()
        panel.tick_params(axis="y", length=0)
        panel.spines[["top", "right", "left"]].set_visible(False)
    handles = {
        label: handle
        for panel in panels[0]
        for handle, label in zip(*panel.get_legend_handles_labels())
    }
    figure.legend(handles.values(), handles.keys(), loc="lower center", ncols=3, frameon=False)
    figure.tight_layout(rect=(0, 0.12, 1, 1))
    figure.savefig(
        path, metadata={"Date": None, "Creator": None} if path.suffix == ".svg" else None
    )
    plt.close(figure)
