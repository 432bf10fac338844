"""Captions in the words that the method uses: flawless or damaged, what, and which defect."""

from __future__ import annotations

from pretraining.fields import Rng

OPENINGS = ("a photo of", "a picture of", "a close-up photo of", "an image of", "")
FLAWLESS = ("a flawless", "a perfect", "a good", "an unblemished", "a normal", "a")
DAMAGED = ("a damaged", "a defective", "a flawed", "a broken")
GENERIC = "object"


def article(phrase: str) -> str:
    """`a` or `an` corrected for the word that follows."""
    head, _, rest = phrase.partition(" ")
    if head in ("a", "an"):
        return ("an " if rest[:1] in "aeiou" else "a ") + rest
    return phrase


def pair(rng: Rng, subject: str, defect: str) -> tuple[str, str]:
    """The flawless and the damaged caption of one subject, said in the same way."""
    subject = GENERIC if rng.random() < 0.3 else subject
    opening = OPENINGS[rng.integers(len(OPENINGS))]
    good = article(f"{FLAWLESS[rng.integers(len(FLAWLESS))]} {subject}")
    bad = article(f"{DAMAGED[rng.integers(len(DAMAGED))]} {subject}")
    if rng.random() < 0.5:
        bad = f"{bad}, {defect}" if rng.random() < 0.6 else f"{bad} with {defect}"
    return f"{opening} {good}.".strip(), f"{opening} {bad}.".strip()
