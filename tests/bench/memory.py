"""Puts and scans so many entities, and prints its own peak of memory: after a tenth of them, and after all.

python memory.py "{'host': …}" COUNT        by a process of its own, which has loaded nothing else
"""

from __future__ import annotations

import resource
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE.parent.parent)]

import documents  # noqa: E402

import slim  # noqa: E402


def peak() -> int:
    """MB. Not ru_maxrss where there is better: it would be what the parent had, if that is more."""
    try:
        status = Path("/proc/self/status").read_text()
        return int(status.partition("VmHWM:")[2].split()[0]) >> 10
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> (
            20 if sys.platform == "darwin" else 10
        )


def main(connect: str, count: int) -> None:
    with slim.Datastore(**eval(connect), indexes=[slim.Index("index_user_id", "user_id")]) as store:
        print("start", 0, peak(), sep=",")
        for part in count // 10, count - count // 10:
            store.put_many(documents.stream(part))
            print("put_many", len(store), peak(), sep=",")
        for number, _ in enumerate(store.scan(), 1):
            if number in (count // 10, count):
                print("scan", number, peak(), sep=",")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
