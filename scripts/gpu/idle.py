"""Idle time of a card in a trace that Nsight Systems exported to SQLite."""
import sqlite3

ACTIVITIES = ("CUPTI_ACTIVITY_KIND_KERNEL", "CUPTI_ACTIVITY_KIND_MEMCPY", "CUPTI_ACTIVITY_KIND_MEMSET")


def idle_share(path, seconds):
    """Share of the last `seconds` before the end of the last kernel in which neither kernel nor copy nor fill runs."""
    with sqlite3.connect(path) as database:
        tables = {name for name, in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
        busy = [row for table in ACTIVITIES if table in tables
                for row in database.execute(f"SELECT start, end FROM {table}")]
    if not busy:
        raise ValueError("the trace holds no activity of a card")
    last = max(end for _, end in busy)
    first = max(min(start for start, _ in busy), last - int(seconds * 1e9))
    covered, at = 0, first
    for start, end in sorted(busy):
        if end > at:
            covered += end - max(start, at)
            at = end
    return 1 - covered / (last - first)
