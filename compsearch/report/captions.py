"""What stands over and beside a plot of times: what was timed, and where."""

from __future__ import annotations

import textwrap


def caption(title: str, device: str, *sentences: str, width: int) -> str:
    """`title`, the `device` the times are of and then `sentences`, each on lines of its own of at most `width`."""
    return "\n".join(filter(None, [balanced(text, width) for text in (title, device, *sentences)]))


def balanced(text: str, width: int) -> str:
    """`text` on as few lines of at most `width` as it takes, and no last line of a single word where that can be."""
    lines = textwrap.wrap(text, width)
    while len(narrower := textwrap.wrap(text, width - 1)) == len(lines) and width > 1 and len(lines) > 1:
        lines, width = narrower, width - 1
    return "\n".join(lines)


def counted(number: int, singular: str, plural: str) -> str:
    """``1 trial``, ``2 trials``."""
    return f"{number} {singular if number == 1 else plural}"


def three_figures(number: float) -> str:
    """Three significant figures, ``0.600`` and ``11.3``, but no exponent: ``1234``."""
    return f"{number:.0f}" if abs(number) >= 99.95 else f"{number:#.3g}"


def not_shown(number: int, reason: str) -> str:
    """`` (3 without a time, not shown)``; nothing when there is nothing that is not shown."""
    return f" ({number} {reason}, not shown)" if number else ""
