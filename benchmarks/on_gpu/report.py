"""Formats rows as a text table."""

from collections.abc import Sequence
from typing import Any


def table(title: str, rows: Sequence[dict[str, Any]]) -> str:
    """Format rows under the union of their columns, with each note once below."""
    columns = list(dict.fromkeys(key for row in rows for key in row if key != "note"))
    cells = [[_cell(row.get(column)) for column in columns] for row in rows if "note" not in row]
    widths = [max(map(len, column)) for column in zip(columns, *cells, strict=True)]
    lines = [
        "  ".join(text.rjust(width) for text, width in zip(line, widths, strict=True))
        for line in ([columns, *cells] if cells else [])
    ]
    notes = [_note(row) for row in rows if "note" in row]
    return "\n".join([f"== {title}", *lines, *dict.fromkeys(notes)])


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _note(row: dict[str, Any]) -> str:
    what = " ".join(str(value) for key, value in row.items() if key != "note")
    return f"not measured: {what}: {row['note']}"
