"""BTF: a hand-made blob for the reader, the running kernel's in tests/live."""

import struct
from pathlib import Path

import pytest

from labkit.errors import MissingBTF
from labkit.kernel import btf


class Blob:
    """Writes BTF as Documentation/bpf/btf.rst describes it."""

    def __init__(self) -> None:
        self.types, self.strings, self.count = b"", b"\0", 0

    def name(self, text: str) -> int:
        if not text:
            return 0
        at = len(self.strings)
        self.strings += text.encode() + b"\0"
        return at

    def add(self, kind: int, name: str, size: int, tail: bytes = b"", vlen: int = 0) -> int:
        self.types += struct.pack("=III", self.name(name), kind << 24 | vlen, size) + tail
        self.count += 1
        return self.count

    def struct(self, name: str, size: int, members: list[tuple[str, int, int]], kind: int = 4) -> int:
        tail = b"".join(struct.pack("=III", self.name(n), t, bits) for n, t, bits in members)
        return self.add(kind, name, size, tail, len(members))

    def bytes(self) -> bytes:
        header = struct.pack(
            "=HBBIIIII", 0xEB9F, 1, 0, 24, 0, len(self.types), len(self.types), len(self.strings)
        )
        return header + self.types + self.strings


@pytest.fixture(scope="module")
def kernel() -> btf.BTF:
    blob = Blob()
    u32 = blob.add(1, "unsigned int", 4, struct.pack("=I", 32))
    s64 = blob.add(1, "long", 8, struct.pack("=I", 1 << 24 | 64))
    char = blob.add(1, "char", 1, struct.pack("=I", 1 << 24 | 8))
    text = blob.add(3, "", 0, struct.pack("=III", char, u32, 16))
    inner = blob.struct("inner", 16, [("id", u32, 0), ("when", s64, 64)])
    pointer = blob.add(2, "", inner)
    hidden = blob.struct("", 8, [("first", u32, 0), ("second", u32, 32)], kind=5)
    blob.add(8, "pid_t", u32)
    blob.struct(
        "task",
        96,
        [
            ("state", u32, 32),
            ("link", pointer, 64),
            ("comm", text, 128),
            ("in", inner, 256),
            ("", hidden, 384),
        ],
    )
    blob.add(12, "do_it", 0)
    proto = blob.add(13, "", 0, struct.pack("=IIIIII", 0, pointer, 0, u32, 0, u32), 3)
    to_proto = blob.add(2, "", proto)
    blob.add(8, "btf_trace_it_happened", to_proto)
    return btf.BTF(blob.bytes())


def test_offsets_of_members_nested_and_behind_anonymous_unions(kernel: btf.BTF) -> None:
    assert kernel.offset("task", "state") == 4
    assert kernel.offset("task", "in.when") == 32 + 8
    assert kernel.offset("task", "first") == 48
    assert kernel.size("task") == 96


def test_tracepoints_and_functions_are_found_by_name(kernel: btf.BTF) -> None:
    assert kernel.raw_tracepoints() == ["it_happened"]
    assert kernel.tracepoint_args("it_happened") == 2
    assert kernel.tracepoint_args("nothing") is None
    assert kernel.function_id("do_it")
    assert kernel.function_id("do_that") is None


def test_a_missing_member_names_the_nearest(kernel: btf.BTF) -> None:
    with pytest.raises(MissingBTF, match="nearest: state"):
        kernel.offset("task", "stat")
    with pytest.raises(MissingBTF, match="no struct tsk"):
        kernel.size("tsk")


def test_minimal_structs_hold_the_wanted_members_at_their_offsets(kernel: btf.BTF) -> None:
    text = btf.minimal_structs(kernel, ["task.state", "task.link", "task.comm", "inner.id"])
    assert "unsigned int state;" in text
    assert "struct inner * link;" in text
    assert "signed char comm[16];" in text
    assert "__builtin_offsetof(struct task, link) == 8" in text
    assert "sizeof(struct task) == 96" in text


def test_alternatives_and_optional_members(kernel: btf.BTF) -> None:
    text = btf.minimal_structs(kernel, ["task.__state|state", "task.throttled?", "@task.comm", "@gone.x?"])
    assert "#define LK_task___state state" in text
    assert "LK_HAS_task___state" in text
    assert "throttled" not in text
    assert "#define LK_OFFSET_task_comm 16" in text


def test_an_embedded_struct_is_defined_before_its_owner(kernel: btf.BTF) -> None:
    text = btf.minimal_structs(kernel, ["task.in", "inner.id"])
    assert text.index("struct inner {") < text.index("struct task {")


@pytest.mark.parametrize(
    "data", [b"", b"not btf at all, certainly", struct.pack("=HBBIIIII", 0xEB9F, 1, 0, 24, 0, 99, 99, 9)]
)
def test_damaged_btf_is_refused(data: bytes) -> None:
    with pytest.raises(MissingBTF):
        btf.BTF(data)


def test_no_btf_says_what_to_do(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("LABKIT_BTF", str(tmp_path / "vmlinux"))
    with pytest.raises(MissingBTF, match="replay"):
        btf.kernel()


def test_a_kind_of_record_that_is_not_known_is_refused_instead_of_guessed_over() -> None:
    blob = Blob()
    blob.add(20, "newer", 0, struct.pack("=I", 0))
    with pytest.raises(MissingBTF, match="kind 20"):
        btf.BTF(blob.bytes())
