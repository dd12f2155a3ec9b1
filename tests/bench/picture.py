"""The picture for the README: slim's rate against the others', a panel for each server."""
from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt  # noqa: E402

JOBS = "put, new id", "put, replacing", "put_many", "get", "find 20"
COLORS = {"floor": "#555555", "2009": "#b0b0b0", "Document Store": "#e69f00", "SQLAlchemy": "#0072b2", "dataset": "#cc79a7"}


def draw(results: Mapping[str, Mapping[str, Mapping[str, Any]]], path: Path) -> None:
    """Rates relative to slim's, which are the line at 1; the scale is logarithmic."""
    plt.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "slim", "font.family": "sans-serif", "font.size": 9})
    figure, panels = plt.subplots(1, len(results), figsize=(4.2 * len(results), 3.6), sharey=True, squeeze=False)
    for panel, (kind, found) in zip(panels[0], results.items()):
        names = [name for name in COLORS if any(name in found[job] for job in JOBS)]
        for place, name in enumerate(names):
            drawn = [(row + (place - len(names) / 2 + .5) * .15, found[job][name]) for row, job in enumerate(JOBS)
                     if name in found[job]]
            panel.barh([row for row, _ in drawn], [1 / ratio.middle - 1 for _, ratio in drawn], .14, left=1,
                       color=COLORS[name], label=name)
        panel.axvline(1, color="#009e73", linewidth=2, label="slim")
        panel.set(title=kind, xscale="log", yticks=range(len(JOBS)), yticklabels=JOBS, ylim=(len(JOBS) - .5, -.5),
                  xlabel="rate, where slim's is 1", xticks=[.05, .1, .2, .5, 1, 2],
                  xticklabels=["1/20", "1/10", "1/5", "1/2", "1", "2"])
        panel.minorticks_off()
        panel.spines[["top", "right"]].set_visible(False)
    handles = {label: handle for panel in panels[0] for handle, label in zip(*panel.get_legend_handles_labels())}
    figure.legend(handles.values(), handles.keys(), loc="lower center", ncols=len(handles), frameon=False)
    figure.tight_layout(rect=(0, .07, 1, 1))
    figure.savefig(path, metadata={"Date": None, "Creator": None})
    plt.close(figure)
