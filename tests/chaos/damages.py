"""Ways to harm the bytes of a file."""

import random
from pathlib import Path


def flipped(content: bytes, dice: random.Random) -> bytes:
    """Flip one bit."""
    new = bytearray(content)
    new[dice.randrange(len(new))] ^= 1 << dice.randrange(8)
    return bytes(new)


def overwritten(content: bytes, dice: random.Random, by: bytes | None = None) -> bytes:
    """Overwrite up to 64 bytes, with random ones or those of `by`."""
    at, length = dice.randrange(len(content)), dice.randint(1, 64)
    new = dice.randbytes(length) if by is None else by * length
    return content[:at] + new[: len(content) - at] + content[at + length :]


WAYS = {
    "a bit flipped": flipped,
    "bytes overwritten": overwritten,
    "zeros within": lambda content, dice: overwritten(content, dice, b"\0"),
    "cut": lambda content, dice: content[: dice.randrange(len(content))],
    "emptied": lambda content, dice: b"",
    "a tail of NUL": lambda content, dice: (
        content[: (at := dice.randrange(len(content)))] + bytes(len(content) - at)
    ),
    "twice": lambda content, dice: content * 2,
    "all NUL": lambda content, dice: bytes(len(content)),
}
"""What a disk, a copy or a kill makes of a file."""


def damaged(content: bytes, dice: random.Random, ways: tuple[str, ...] = tuple(WAYS)) -> tuple:
    """Return (other bytes, how they came about); a bit is flipped as often as all the rest."""
    while True:
        way = "a bit flipped" if content and dice.random() < 0.4 else dice.choice(ways)
        new = WAYS[way](content, dice) if content else dice.randbytes(8)
        if new != content:
            return new, way


def damage(file: Path, dice: random.Random) -> str:
    """Harm a file, or remove it; return how."""
    if dice.random() < 0.05:
        file.unlink()
        return f"{file.name} removed"
    new, way = damaged(file.read_bytes(), dice)
    file.write_bytes(new)
    return f"{file.name}: {way}"
