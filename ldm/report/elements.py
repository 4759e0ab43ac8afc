"""HTML in small pieces: elements, tables, numbers."""

import math
from collections.abc import Iterable, Sequence
from html import escape

NONE = "\u2013"


def element(name: str, content: str = "", **attributes) -> str:
    """An HTML element. `content` is HTML; attribute values are escaped, None leaves one out, True sets it bare; a name
    ending in `_` stands for the word before it, `data_key` for `data-key`."""
    words = [name]
    for key, value in attributes.items():
        if value is not None and value is not False:
            key = key.rstrip("_").replace("_", "-")
            words.append(key if value is True else f'{key}="{escape(str(value))}"')
    head = f"<{' '.join(words)}>"
    return head if name in ("img", "input") else f"{head}{content}</{name}>"


def table(head: Sequence[str], rows: Iterable[str], caption: str) -> str:
    """`head` are cells, `rows` finished rows; the caption is for those who do not see the page."""
    title = element("caption", escape(caption), class_="aside")
    body = element("thead", element("tr", "".join(head))) + element("tbody", "\n".join(rows))
    return element(
        "div", element("table", title + body), class_="scroll", tabindex="0", role="region", aria_label=caption
    )


def column(text: str, **attributes) -> str:
    return element("th", escape(text), scope="col", **attributes)


def digits_for(values: Iterable[float | None]) -> int:
    """Decimals for all values of a metric: four significant digits of the greatest, from two decimals to six."""
    largest = max((abs(value) for value in values if value is not None), default=0.0)
    if not largest:
        return 4
    return min(6, max(2, 3 - math.floor(math.log10(largest))))


def number(value: float | None, digits: int, *, signed: bool = False) -> str:
    return NONE if value is None else f"{value:{'+' if signed else ''}.{digits}f}".replace("-", "\u2212")
