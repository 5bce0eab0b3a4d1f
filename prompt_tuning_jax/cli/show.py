"""Lines, facts and tables for people: the one way in which the commands print them."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from prompt_tuning_jax.errors import plain

WIDTH = 200  # of a table that no terminal shows


def say(line: str) -> None:
    """Prints a line at once."""
    print(plain(line), flush=True)


def facts(values: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Returns values as lines `name: value`. Nested values have the names above in front."""
    lines = []
    for name, value in values.items():
        if isinstance(value, Mapping):
            lines += facts(value, f"{prefix}{name} ") or [f"{prefix}{name}: none"]
        else:
            lines.append(f"{prefix}{name}: {'none' if value is None else value}")
    return lines


def print_facts(values: Mapping[str, Any]) -> None:
    """Prints values as lines, see `facts`."""
    say("\n".join(facts(values)))


def print_table(rows: Sequence[Mapping[str, str]], texts: Collection[str]) -> None:
    """Prints rows, cells by heading, as a table. Columns that are not `texts` are right-aligned."""
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in rows[0]:
        table.add_column(heading, justify="left" if heading in texts else "right", overflow="fold")
    for row in rows:
        table.add_row(*map(plain, row.values()))
    console = Console(markup=False, highlight=False)
    if not console.is_terminal:
        console.width = WIDTH  # a file has no right edge
    console.print(table)
