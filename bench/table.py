"""Tables as aligned Markdown, which can be read as it is and put into a document."""

from collections.abc import Sequence

__all__ = ["render_table"]


def render_table(head: Sequence[str], body: Sequence[Sequence[str]], right: Sequence[bool]) -> str:
    """The table; `right` says which columns stand to the right, as numbers do."""
    widths = [max(map(len, column)) for column in zip(head, *body, strict=True)]
    rule = [
        "-" * (width - 1) + ":" if each else "-" * width
        for width, each in zip(widths, right, strict=True)
    ]
    return "\n".join(_line(line, widths, right) for line in (head, rule, *body))


def _line(cells: Sequence[str], widths: Sequence[int], right: Sequence[bool]) -> str:
    padded = (
        cell.rjust(width) if each else cell.ljust(width)
        for cell, width, each in zip(cells, widths, right, strict=True)
    )
    return "| " + " | ".join(padded) + " |"
