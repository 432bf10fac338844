"""Batches side by side on a processor: order, parts, who works, and what fails."""

from __future__ import annotations

import threading

import pytest
import torch

from mrad.encoder.device import side_by_side


@pytest.fixture
def cores():
    """Sets PyTorch's cores for a test."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def test_parts_of_a_batch_run_at_once_and_come_in_order(cores) -> None:
    cores(2)
    both, seen = threading.Barrier(2, timeout=20), []

    def work(part: list[int]) -> list[int]:
        seen.append((tuple(part), torch.get_num_threads()))
        both.wait()  # neither passes alone
        return [10 * item for item in part]

    found = list(side_by_side(torch.device("cpu"), work, range(7), 4))
    assert found == [10 * item for item in range(7)]
    assert sorted(seen) == [((0, 1), 1), ((2, 3), 1), ((4, 5), 1), ((6,), 1)]
    assert torch.get_num_threads() == 2


def test_one_image_has_all_cores_in_the_callers_thread(cores) -> None:
    cores(2)
    seen = []

    def work(part: list[int]) -> list[int]:
        seen.append((threading.current_thread(), torch.get_num_threads()))
        return part

    assert list(side_by_side(torch.device("cpu"), work, range(3), 1)) == [0, 1, 2]
    assert seen == 3 * [(threading.current_thread(), 2)]


def test_a_gpu_takes_whole_batches(cores) -> None:
    cores(2)
    parts = []
    list(side_by_side(torch.device("cuda"), lambda part: parts.append(part) or part, range(5), 4))
    assert parts == [[0, 1, 2, 3], [4]]


def test_what_fails_in_a_lane_reaches_the_caller(cores) -> None:
    cores(2)

    def work(part: list[int]) -> list[int]:
        if 3 in part:
            raise ValueError("three")
        return part

    with pytest.raises(ValueError, match="three"):
        list(side_by_side(torch.device("cpu"), work, range(8), 4))
