"""What slim is to reach, as ratios of one run, and what of it a run has missed."""

from __future__ import annotations

from typing import Any

from race import Ratio, table

RATES = {  # slim's rate divided by another's, at the least
    "put, new id": {"floor": 0.85, "2009": 3, "Document Store": 1, "SQLAlchemy": 1.5},
    "put, replacing": {"floor": 0.85, "2009": 2},
    "put_many": {"floor": 0.8, "Document Store": 6, "SQLAlchemy": 1.4, "peewee KeyValue": 1.1},
    "get": {"floor": 0.9, "Document Store": 2, "SQLAlchemy": 2},
    "find 20": {"floor": 0.8, "2009": 8, "Document Store": 5, "SQLAlchemy": 5},
    "scan": {"floor": 0.8},
    "put, 16 threads": {"floor": 0.85},
    "get, 16 threads": {"floor": 0.85},
    "populate, all right": {"floor": 0.5},  # of a scan by hand
    "populate, a new index": {"floor": 0.5},
}
missed: list[list[str]] = []


def check(
    server: str, what: str, measured: Any, goal: float, at_least: bool = True, best: Any = ""
) -> None:
    """Remembers a goal that is missed. best: what the floor reaches, where that is known."""
    value = measured.middle if isinstance(measured, Ratio) else measured
    if value < goal if at_least else value > goal:
        missed.append(
            [
                server,
                what,
                f"{'at least' if at_least else 'at most'} {goal:g}",
                f"{measured}",
                f"{best}",
            ]
        )


def check_rates(server: str, title: str, rates: dict[str, dict[str, Any]]) -> None:
    """rates: {job: {contestant: slim's rate divided by its}}. The floor's rate divided by another's bounds slim's."""
    for job, found in rates.items():
        for other, goal in RATES.get(job, {}).items():
            if other in found:
                best = (
                    f"{found[other].middle / found['floor'].middle:.2f}"
                    if other != "floor"
                    else "1"
                )
                check(server, f"{title}: {job} against {other}", found[other], goal, best=best)


def show() -> None:
    print("\n## Goals missed\n")
    print(
        table(["server", "what", "goal", "measured", "the floor's"], missed) if missed else "none"
    )
