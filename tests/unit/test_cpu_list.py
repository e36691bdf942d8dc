"""Lists of CPUs as the kernel writes them."""

import pytest

from labkit.bpfsys import cpu_list


@pytest.mark.parametrize(
    ("text", "cpus"), [("0\n", [0]), ("0-3\n", [0, 1, 2, 3]), ("0-1,8-9,31\n", [0, 1, 8, 9, 31])]
)
def test_gaps_in_the_numbers_are_no_cpus(text: str, cpus: list[int]) -> None:
    assert cpu_list(text) == cpus
