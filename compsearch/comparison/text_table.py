"""A table for people, in Markdown and LaTeX. CSV is for machines: plain numbers, straight from the data frame."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from compsearch import atomic


@dataclass(frozen=True)
class TextCell:
    """`text` as people read it, ``77.23 ± 0.41``; `is_bold` marks the best of its kind."""

    text: str
    is_bold: bool = False


@dataclass(frozen=True)
class TextTable:
    """`rows` of one cell per heading. The first `num_labels` columns are labels, to the left; the rest are numbers.

    `caption` stands above, `notes` below, a sentence each.
    """

    caption: str
    headings: tuple[str, ...]
    rows: tuple[tuple[TextCell, ...], ...]
    num_labels: int = 1
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        wrong = [len(row) for row in self.rows if len(row) != len(self.headings)]
        assert not wrong, f"a row has one cell per heading, {len(self.headings)}, but {wrong} in {self.caption!r}"


def to_markdown(table: TextTable) -> str:
    """A table as GitHub renders it, the caption in bold above it."""

    def line(cells: Sequence[str]) -> str:
        return f"| {' | '.join(cells)} |"

    rules = ["---" if index < table.num_labels else "---:" for index in range(len(table.headings))]
    lines = [f"**{escape_markdown(table.caption)}**", "", line([escape_markdown(text) for text in table.headings])]
    lines.append(line(rules))
    for row in table.rows:
        texts = [escape_markdown(cell.text) for cell in row]
        lines.append(line([f"**{text}**" if cell.is_bold else text for text, cell in zip(texts, row, strict=True)]))
    lines.extend(line for note in table.notes for line in ("", escape_markdown(note)))
    return "\n".join(lines) + "\n"


def to_latex(table: TextTable) -> str:
    r"""A ``table`` float with booktabs' rules; it wants ``\usepackage{booktabs}``."""

    def line(cells: Sequence[str]) -> str:
        return f"{' & '.join(cells)} \\\\"

    body = []
    for row in table.rows:
        texts = [escape_latex(cell.text) for cell in row]
        body.append(
            line([rf"\textbf{{{text}}}" if cell.is_bold else text for text, cell in zip(texts, row, strict=True)])
        )
    notes = [rf"\par\smallskip\footnotesize {escape_latex(note)}" for note in table.notes]
    return "\n".join(
        [
            "% needs \\usepackage{booktabs}",
            r"\begin{table}",
            r"\centering",
            rf"\caption{{{escape_latex(table.caption)}}}",
            rf"\begin{{tabular}}{{{'l' * table.num_labels}{'r' * (len(table.headings) - table.num_labels)}}}",
            r"\toprule",
            line([escape_latex(text) for text in table.headings]),
            r"\midrule",
            *body,
            r"\bottomrule",
            r"\end{tabular}",
            *notes,
            r"\end{table}",
            "",
        ]
    )


def write_csv(path: Path, frame: pd.DataFrame) -> None:
    """Replaces the file at `path` with `frame`: full precision, nothing where a number is missing, no index."""
    atomic.write_text(path, frame.to_csv(index=False))


def write_texts(path: Path, tables: Sequence[TextTable]) -> list[Path]:
    """Writes `tables`, one below the other, to `path` with the suffixes .md and .tex; returns the two paths."""
    markdown, latex = path.with_suffix(".md"), path.with_suffix(".tex")
    atomic.write_text(markdown, "\n".join(map(to_markdown, tables)))
    atomic.write_text(latex, "\n".join(map(to_latex, tables)))
    return [markdown, latex]


def escape_markdown(text: str) -> str:
    """`text` as itself inside a cell: no bars, markup or tags."""
    text = re.sub(r"([\\`*|<])", r"\\\1", text.replace("\n", " "))
    # Between letters, as in global_magnitude, an underscore is one already.
    return re.sub(r"(?<![^\W_])_|_(?![^\W_])", r"\\_", text)


_LATEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    **{char: f"\\{char}" for char in "_%&#${}"},
    **{"<": r"\textless{}", ">": r"\textgreater{}"},
    **{"±": r"$\pm$", "×": r"$\times$", "−": r"$-$", "≤": r"$\leq$", "≥": r"$\geq$", "²": r"$^2$", "·": r"$\cdot$"},
    **{"–": "--", "…": r"\ldots{}", "√": r"$\surd$"},
    **{"α": r"$\alpha$", "β": r"$\beta$", "κ": r"$\kappa$", "λ": r"$\lambda$", "τ": r"$\tau$", "\n": " "},
}


def escape_latex(text: str) -> str:
    r"""`text` as itself in LaTeX: ``_``, ``%``, ``&``, ``#`` and the like escaped, ``±`` as ``$\pm$``."""
    return "".join(_LATEX.get(char, char) for char in text)
