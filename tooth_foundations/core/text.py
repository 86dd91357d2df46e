"""Texts for people: numbers with their nouns, and names that may hold anything."""


def counted(number: int, one: str, many: str = "") -> str:
    """`1 text`, `2 texts`."""
    return f"{number} {one if number == 1 else many or one + 's'}"


def printable(text: str) -> str:
    """A text with escapes for what a terminal cannot show or would obey: a name may be no text, or steer it."""
    return "".join(c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode() for c in text)


def without_controls(text: str) -> str:
    """A label's value without what would steer a terminal: class names come from files that anyone may have written."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)
