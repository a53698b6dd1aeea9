"""Numbers, intervals and tables of the results pages, as Markdown."""

from __future__ import annotations


def number(value: float | None, digits: int = 2, sign: bool = False) -> str:
    return "–" if value is None else f"{value:{'+' if sign else ''}.{digits}f}"


def interval(pair: list[float | None] | None, digits: int = 2, sign: bool = False) -> str:
    if pair is None or None in pair:
        return ""
    return f" [{number(pair[0], digits, sign)}, {number(pair[1], digits, sign)}]"


def table(header: str, lines: list[str]) -> str:
    return "\n".join([header, "|" + "---|" * (header.count("|") - 1), *lines])
