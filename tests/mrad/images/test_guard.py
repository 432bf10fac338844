"""What sets a picture apart from a memory's: how small it is, and its shape."""

from __future__ import annotations

from mrad import Detector, MemoryBank, Sample
from mrad.images.guard import InputProfile, code_of


def test_a_picture_of_a_few_pixels_or_of_another_shape_is_warned_of(tiny_encoder, make_image):
    samples = [Sample(make_image(seed, (120, 90))[0], False) for seed in range(3)]
    detector = Detector(tiny_encoder, MemoryBank.from_samples(tiny_encoder, samples))

    def told(size: tuple[int, int]) -> set[str]:
        (found,) = detector.predict([make_image(9, size)[0]])
        return {code_of(text) for text in found.warnings}

    assert told((120, 90)) == set()
    assert told((100, 110)) == set()
    assert "too_small" in told((3, 3))
    assert "too_small" in told((300, 20))
    assert "other_shape" in told((300, 60))
    assert "other_shape" in told((60, 120))


def test_a_memory_of_small_pictures_takes_small_ones(tiny_encoder, make_image):
    samples = [Sample(make_image(seed, (20, 16))[0], False) for seed in range(3)]
    bank = MemoryBank.from_samples(tiny_encoder, samples)
    assert InputProfile.of(bank.metadata["input"]).side == 16
    (found,) = Detector(tiny_encoder, bank).predict([make_image(9, (20, 16))[0]])
    assert "too_small" not in {code_of(text) for text in found.warnings}


def test_shapes_are_joined_widened_and_kept():
    one = InputProfile(1, side=90, aspect=(1.0, 1.2))
    other = InputProfile(1, side=40, aspect=(0.5, 1.1))
    both = one.joined(other)
    assert (both.side, both.aspect) == (40, (0.5, 1.2))
    assert InputProfile.of(both.as_json()) == both
    assert one.widened((9.0, 9.0), (200, 50)).aspect == (1.0, 4.0)
    older = {name: v for name, v in one.as_json().items() if name not in ("side", "aspect")}
    assert not InputProfile.of(older).widened((9.0, 9.0), (200, 50)).side, "nothing is known"
