"""Tables: text that prints as it did, and shows as a table in a notebook."""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import Any


class Table(str):
    """The text of a table, with its rows.

    Parameters
    ----------
    text : str
        The table as text.
    columns : sequence of str
        Names of the columns.
    rows : sequence of sequence
        Values, row by row.

    Examples
    --------
    >>> from zennit_attn.tables import Table
    >>> table = Table("a  1", ["name", "number"], [("a", 1)])
    >>> print(table)
    a  1
    >>> table.rows
    [{'name': 'a', 'number': 1}]
    """

    columns: tuple[str, ...]
    rows: list[dict[str, Any]]

    def __new__(cls, text: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> Table:
        """Return the text, with its rows."""
        table = super().__new__(cls, text)
        table.columns = tuple(columns)
        table.rows = [dict(zip(columns, row, strict=True)) for row in rows]
        return table

    def __getnewargs__(self) -> tuple[str, tuple[str, ...], list[tuple[Any, ...]]]:  # type: ignore[override]
        """Return what a copy or a pickle is made of."""
        return str(self), self.columns, [tuple(row.values()) for row in self.rows]

    def to_dataframe(self) -> Any:
        """Return the rows as a :class:`pandas.DataFrame`.

        Raises
        ------
        ModuleNotFoundError
            If pandas is not installed.
        """
        import pandas  # not needed for anything else

        return pandas.DataFrame(self.rows, columns=list(self.columns))

    def _repr_html_(self) -> str:
        head = "".join(f"<th>{html.escape(name)}</th>" for name in self.columns)
        body = "".join(
            f"<tr>{''.join(f'<td>{html.escape(written(value))}</td>' for value in row.values())}</tr>"
            for row in self.rows
        )
        return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def written(value: Any) -> str:
    """Return a value as it stands in a cell: numbers in six digits."""
    return f"{value:+.6g}" if isinstance(value, float) else str(value)
