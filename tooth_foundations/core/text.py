"""Texts for people: numbers with their nouns, and names that may hold anything."""


def counted(number: int, one: str, many: str = "") -> str:
    """Return a number with its noun: `1 text`, `2 texts`."""
    return f"{number} {one if number == 1 else many or one + 's'}"


def printable(text: str) -> str:
    """Return a text whose characters that do not print, except line breaks, are escaped: they may steer a terminal."""
    return "".join(c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode() for c in text)


def without_controls(text: str) -> str:
    """Return a text in which each character that does not print is replaced: it could steer a terminal or a page."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)
