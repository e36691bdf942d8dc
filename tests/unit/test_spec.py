"""Header comments of programs."""

import pytest

from labkit import spec
from labkit.errors import ParameterError, SpecError, UnknownProgram
from labkit.paths import bpf_dir

HEADER = """/*
 * purpose: Try things.
 * hooks:
 *   enter: ["kprobe:{sys}execve", "raw_tracepoint:sys_enter"]
 * params:
 *   tgid: {type: u32, default: 7, help: "one process"}
 *   loud: {type: bool, default: 0}
 */
int x;
"""


def test_every_program_has_a_header_that_can_be_read() -> None:
    names = sorted(p.stem for p in bpf_dir().glob("*.c"))
    assert {"hello", "syscall_counts", "runq_latency"} <= set(names)
    for name in names:
        found = spec.read(name)
        assert found.purpose
        assert found.hooks
        assert found.ledger is not None, f"{name} keeps no ledger"
        assert "ledger" in found.maps
        assert "license: GPL-2.0-only" in found.source


def test_hooks_are_read_in_order_of_preference() -> None:
    kinds = [hook.kind for hook in spec.parse(HEADER, name="t").hooks["enter"]]
    assert kinds == ["kprobe", "raw_tracepoint"]


def test_the_syscall_prefix_is_that_of_the_architecture(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.machine", lambda: "aarch64")
    assert str(spec.parse(HEADER, name="t").hooks["enter"][0]) == "kprobe:__arm64_sys_execve"


def test_parameters_are_checked_and_defaults_filled_in() -> None:
    found = spec.parse(HEADER, name="t")
    assert found.constants({}) == {"tgid": 7, "loud": 0}
    assert found.constants({"loud": True, "tgid": 1}) == {"tgid": 1, "loud": 1}


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"tgidd": 1}, "nearest: tgid"),
        ({"tgid": -1}, "not in 0"),
        ({"tgid": 2**32}, "not in 0"),
        ({"tgid": "1"}, "is str"),
        ({"tgid": True}, "is bool"),
        ({"loud": 1}, "is int"),
    ],
)
def test_wrong_parameters_are_refused_with_the_reason(given: dict[str, object], said: str) -> None:
    with pytest.raises(ParameterError, match=said):
        spec.parse(HEADER, name="t").constants(given)


@pytest.mark.parametrize(
    "text",
    [
        "int x;",
        "/* just words */ int x;",
        "/* purpose: [ */",
        '/*\n * purpose: x\n * hooks:\n *   a: ["telepathy:x"]\n */',
        "/*\n * purpose: x\n */",
        "/*\n * purpose: x\n * hooks: {}\n * surprise: 1\n */",
    ],
)
def test_a_header_that_is_not_as_it_should_be_is_refused(text: str) -> None:
    with pytest.raises(SpecError):
        spec.parse(text, name="t")


def test_an_unknown_program_names_the_nearest() -> None:
    with pytest.raises(UnknownProgram, match="runq_latency"):
        spec.read("runq_latencey")


@pytest.mark.parametrize("name", ["../etc/passwd", "hello.c", ""])
def test_a_name_that_is_a_path_is_not_a_program(name: str) -> None:
    with pytest.raises(UnknownProgram):
        spec.read(name)
