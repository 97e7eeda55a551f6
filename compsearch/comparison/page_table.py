"""Tables of the comparison's page: HTML whose headings sort its rows, numbers by value and the rest as people count."""

from __future__ import annotations

import dataclasses
import html
import math
import numbers
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

from compsearch.comparison.text_table import TextTable
from compsearch.report.table import NOT_MEASURED


@dataclass(frozen=True)
class Cell:
    """What one cell shows: a number, a text or nothing (None, NaN), perhaps a link, perhaps marked as out of line.

    `shown` replaces how a number is written; it goes on sorting by `value`.
    """

    value: Any
    shown: str = ""
    href: str = ""
    is_marked: bool = False
    is_bold: bool = False

    @property
    def text(self) -> str:
        return self.shown or text_of(self.value)


@dataclass(frozen=True)
class PageTable:
    """A table of the page: `columns` are headings, `rows` cells of whatever kind; `note` stands below it.

    `facet` is the facet whose section it belongs to; "" for what belongs to all. One that `is_folded` shows its title
    until it is opened.
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    note: str = ""
    facet: str = ""
    is_folded: bool = False

    def __post_init__(self) -> None:
        wrong = [len(row) for row in self.rows if len(row) != len(self.columns)]
        if wrong:
            raise ValueError(f"a row has one cell per column, {len(self.columns)}, but got {wrong} in {self.title!r}")

    @classmethod
    def from_text(cls, table: TextTable, *, facet: str = "", is_folded: bool = False) -> Self:
        """The page's form of a table that is also written as Markdown and LaTeX."""
        rows = tuple(tuple(Cell(cell.text, is_bold=cell.is_bold) for cell in row) for row in table.rows)
        return cls(table.caption, table.headings, rows, " ".join(table.notes), facet, is_folded)

    def to_html(self) -> str:
        """A `<figure>`. All texts are escaped."""
        is_number = [_is_number([row[index] for row in self.rows]) for index in range(len(self.columns))]
        heads = "".join(
            f'<th scope="col" aria-sort="none"{_class(number and "number")}>'
            f'<button type="button">{html.escape(column)}</button></th>'
            for column, number in zip(self.columns, is_number, strict=True)
        )
        body = "".join(
            f"<tr>{''.join(_cell_html(cell, number) for cell, number in zip(row, is_number, strict=True))}</tr>\n"
            for row in self.rows
        )
        note = f'<p class="note">{html.escape(self.note)}</p>' if self.note else ""
        title = html.escape(self.title)
        return (
            f'<figure class="table"><figcaption>{title}</figcaption>'
            f'<div class="scroll" tabindex="0" role="region" aria-label="{title}"><table class="sortable">'
            f"<thead><tr>{heads}</tr></thead>\n<tbody>{body}</tbody></table></div>{note}</figure>"
        )


def text_of(value: Any) -> str:
    """`value` as a cell shows it: four significant digits, thousands apart, a dash for nothing."""
    if value is None or value == "" or (isinstance(value, float) and math.isnan(value)):
        return NOT_MEASURED
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, numbers.Integral):
        return f"{int(value):,}"
    if isinstance(value, numbers.Real):
        number = float(value)
        return f"{number:,.0f}" if abs(number) >= 1e4 else f"{number:.4g}"
    return str(value)


#: Characters from which a text wraps, in a column that is not narrow for it.
_LONG = 60
_NUMBER = r"[-+−]?(?:\d+(?:,\d{3})+|\d+)?(?:\.\d+)?(?:[eE][-+]?\d+)?"
_UNIT = r"(?:%|[kMG]?(?:B|s|ms|mJ)?|min|h|points?|pp|×)"
_CLOCK = re.compile(r"\d+(?::\d\d){1,2}")
#: ``91.2%``, ``91.2 ± 0.3*``, ``12.09 M (0.298)``, ``0.29–0.31``, ``0.5 [0.4, 0.6]``: all by the first of the numbers.
_LEADING = re.compile(
    rf"[<>≈~]?\s?(?P<number>{_NUMBER})\s?(?P<unit>{_UNIT})"
    rf"(?:\s*(?:±|–)\s*(?:{_NUMBER}\s?{_UNIT}|{NOT_MEASURED}))?\s?{_UNIT}"
    r"(?:\s*[\[(][^\[\]()]*[\])])*\*{0,2}"
)
_FACTORS = {"k": 1e3, "M": 1e6, "G": 1e9}


def sort_number(value: Any) -> float | None:
    """The number that a cell sorts by, None for a text and for nothing. "mean ± std" counts by its mean."""
    if isinstance(value, bool):
        return None
    if isinstance(value, numbers.Real):
        number = float(value)
        return number if math.isfinite(number) else None
    if not isinstance(value, str):
        return None
    if _CLOCK.fullmatch(value):
        total = 0.0
        for part in value.split(":"):
            total = 60 * total + float(part)
        return total
    match = _LEADING.fullmatch(value.strip())
    if match is None or not any(map(str.isdigit, match["number"])):
        return None
    return float(match["number"].replace(",", "").replace("−", "-")) * _FACTORS.get(match["unit"][:1], 1.0)


def marked_outliers(cells: Sequence[Cell], weights: Sequence[int] | None = None) -> list[Cell]:
    """`cells` with those marked that differ from what most of them show; none where no value has a majority.

    `weights` are how many runs each cell speaks for, one each by default. Empty cells have no say.
    """
    votes: dict[str, int] = {}
    for cell, weight in zip(cells, weights or [1] * len(cells), strict=True):
        if cell.text != NOT_MEASURED:
            votes[cell.text] = votes.get(cell.text, 0) + weight
    usual = max(votes, key=lambda text: votes[text], default=NOT_MEASURED)
    if 2 * votes.get(usual, 0) <= sum(votes.values()):
        return list(cells)
    return [dataclasses.replace(cell, is_marked=cell.text not in {usual, NOT_MEASURED}) for cell in cells]


def _is_number(cells: Sequence[Cell]) -> bool:
    filled = [cell.value for cell in cells if cell.text != NOT_MEASURED]
    return bool(filled) and all(sort_number(value) is not None for value in filled)


def _cell_html(cell: Cell, is_number: bool) -> str:
    text = html.escape(cell.text)
    if cell.href:
        text = f'<a href="{html.escape(cell.href)}">{text}</a>'
    if cell.is_bold:
        text = f"<b>{text}</b>"
    if cell.is_marked:
        text = f'<mark title="differs from most">{text}</mark>'
    number = sort_number(cell.value)
    key = f' data-sort="{number!r}"' if is_number and number is not None else ""
    names = (is_number and "number", cell.text == NOT_MEASURED and "empty", len(cell.text) > _LONG and "long")
    return f"<td{_class(*names)}{key}>{text}</td>"


def _class(*names: str | bool) -> str:
    joined = " ".join(name for name in names if isinstance(name, str))
    return f' class="{joined}"' if joined else ""
