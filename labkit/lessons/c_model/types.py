"""C types as the model needs them: sizes, places of members, conversion of integers, and bcc's descriptions of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from labkit.lessons.c_model.errors import NotC

__all__ = ["Array", "CType", "Int", "Member", "Pointer", "Struct", "Void", "common", "converter", "promoted"]


@dataclass(frozen=True)
class CType:
    """Any type."""

    @property
    def size(self) -> int:
        """In bytes."""
        raise NotC(f"{self} has no size")

    @property
    def align(self) -> int:
        """In bytes."""
        return self.size

    def describe(self) -> Any:
        """As bcc describes it in JSON; see :mod:`labkit.layout`."""
        raise NotC(f"{self} cannot be in a map")


@dataclass(frozen=True)
class Void(CType):
    """No value; what is behind a ``void *``."""

    @property
    def size(self) -> int:
        """As GNU C has it, for arithmetic with ``void *``."""
        return 1

    def __str__(self) -> str:
        return "void"


@dataclass(frozen=True)
class Int(CType):
    """An integer; ``_Bool`` is one that holds 0 or 1."""

    name: str
    bytes: int
    signed: bool
    truth: bool = False

    @property
    def size(self) -> int:
        """In bytes."""
        return self.bytes

    def describe(self) -> str:
        """The name that C gives it."""
        return self.name

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True)
class Pointer(CType):
    """An address."""

    to: CType

    @property
    def size(self) -> int:
        """On 64-bit machines."""
        return 8

    def describe(self) -> str:
        """Whatever it points to: a column of addresses."""
        return "void *"

    def __str__(self) -> str:
        return f"{self.to} *"


@dataclass(frozen=True)
class Array(CType):
    """So many of one type."""

    of: CType
    count: int

    @property
    def size(self) -> int:
        """Of all of them."""
        return self.of.size * self.count

    @property
    def align(self) -> int:
        """That of one."""
        return self.of.align

    def __str__(self) -> str:
        return f"{self.of}[{self.count}]"


@dataclass(frozen=True)
class Member:
    """A member of a struct, and where it is."""

    name: str
    ctype: CType
    offset: int


@dataclass(eq=False)
class _Body:
    members: dict[str, Member] = field(default_factory=dict)
    size: int = 0
    align: int = 1
    complete: bool = False


@dataclass(frozen=True)
class Struct(CType):
    """A struct or union; two are the same if they have the same tag."""

    tag: str
    union: bool = False
    body: _Body = field(default_factory=_Body, compare=False, repr=False)

    def define(self, members: list[tuple[str, CType]]) -> None:
        """Lay the members out, as compilers on 64-bit machines do."""
        position, body = 0, self.body
        for name, ctype in members:
            start = 0 if self.union else -(-position // ctype.align) * ctype.align
            inner = ctype.body.members.values() if not name and isinstance(ctype, Struct) else ()
            for one in inner:  # of an anonymous struct, the members are ours
                body.members[one.name] = Member(one.name, one.ctype, start + one.offset)
            if name in body.members:
                raise NotC(f"struct {self.tag} has two members {name}")
            if name:
                body.members[name] = Member(name, ctype, start)
            position = max(position, start + ctype.size)
            body.align = max(body.align, ctype.align)
        body.size = -(-position // body.align) * body.align
        body.complete = True

    @property
    def members(self) -> dict[str, Member]:
        """By name, in order."""
        if not self.body.complete:
            raise NotC(f"nothing is known of what is in {self}")
        return self.body.members

    @property
    def size(self) -> int:
        """With padding."""
        if not self.body.complete:
            raise NotC(f"nothing is known of what is in {self}")
        return self.body.size

    @property
    def align(self) -> int:
        """That of the widest member."""
        return self.body.align

    def describe(self) -> list[Any]:
        """Members in order."""
        rows: list[Any] = []
        for one in self.members.values():
            ctype, dims = one.ctype, []
            while isinstance(ctype, Array):
                dims.append(ctype.count)
                ctype = ctype.of
            rows.append([one.name, ctype.describe(), dims] if dims else [one.name, ctype.describe()])
        return [self.tag, rows, "union" if self.union else "struct"]

    def __str__(self) -> str:
        return f"{'union' if self.union else 'struct'} {self.tag}"


_INT, _UINT = Int("int", 4, True), Int("unsigned int", 4, False)


def promoted(ctype: CType) -> CType:
    """What arithmetic makes of a small integer: an int."""
    return _INT if isinstance(ctype, Int) and ctype.bytes < 4 else ctype


def common(left: CType, right: CType) -> CType:
    """The type in which two operands are calculated (C11 6.3.1.8); a pointer stays one."""
    if isinstance(left, Pointer) or isinstance(right, Pointer):
        return left if isinstance(left, Pointer) else right
    left, right = promoted(left), promoted(right)
    if not (isinstance(left, Int) and isinstance(right, Int)):
        raise NotC(f"{left} and {right} cannot be calculated with")
    if left.bytes != right.bytes:
        return left if left.bytes > right.bytes else right
    return left if not left.signed else right


def converter(ctype: CType) -> Callable[[int], int]:
    """What makes any integer one of this type."""
    if isinstance(ctype, Int):
        if ctype.truth:
            return lambda value: 1 if value else 0
        mask = (1 << 8 * ctype.bytes) - 1
        if not ctype.signed:
            return lambda value: value & mask
        half = 1 << 8 * ctype.bytes - 1
        return lambda value: ((value + half) & mask) - half
    if isinstance(ctype, Pointer):
        return lambda value: value & 0xFFFFFFFFFFFFFFFF
    raise NotC(f"{ctype} is not a number")
