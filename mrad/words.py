"""Numbers with their nouns, for messages."""


def counted(number: int, one: str, many: str = "") -> str:
    """`1 image`, `2,000 images`. `many`: where it is not `one` with an s."""
    return f"{number:,} {one if number == 1 else many or one + 's'}"
