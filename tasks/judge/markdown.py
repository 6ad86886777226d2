"""Figures and tables of the card in Markdown. Decides nothing and knows no verdict."""

from __future__ import annotations

from collections.abc import Iterable

from tasks.core.reports import Rate


def percent(rate: Rate) -> str:
    """A share with its bounds, in per cent."""
    return f"{100 * rate.value:.1f} % ({100 * rate.low:.1f} – {100 * rate.high:.1f})"


def times(ratio: float) -> str:
    """A ratio, never rounded up.

    >>> times(41.97), times(9.96)
    ('41×', '9.9×')
    """
    return f"{int(ratio)}×" if ratio >= 10 else f"{int(10 * ratio) / 10}×"


def number(value: float | None) -> str:
    """A gate's figure: counts whole, shares with four digits.

    >>> number(25088.0), number(0.97738), number(None)
    ('25,088', '0.9774', 'none')
    """
    if value is None:
        return "none"
    return f"{int(value):,}" if value == int(value) else f"{value:.4g}"


def amount(value: float | None) -> str:
    """A cost: whole if large, three digits if small; one that nobody knows says so.

    >>> amount(6073216), amount(41.86), amount(0.11628), amount(None)
    ('6,073,216', '41.9', '0.116', 'unknown')
    """
    if value is None:
        return "unknown"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    """A table, one line a row."""
    lines = [head, tuple("---" for _ in head), *rows]
    return "\n".join(f"| {' | '.join(cell(text) for text in line)} |" for line in lines)


def cell(text: str) -> str:
    """Text that stays inside its cell, whatever a class or a file is called."""
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")
