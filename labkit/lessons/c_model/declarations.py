"""Declarations of a parsed program: its types, its functions, its maps, its constants."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from pycparser import c_ast

from labkit.lessons.c_model.errors import NotC, NotRun
from labkit.lessons.c_model.source import MAP_TAG
from labkit.lessons.c_model.types import Array, CType, Int, Pointer, Struct, Void

__all__ = ["Declarations", "MapDeclaration", "line_of"]

#: Names of the integer types, in the order in which C allows them to be said.
_INTEGERS = {
    "char": Int("char", 1, True),
    "signed char": Int("signed char", 1, True),
    "unsigned char": Int("unsigned char", 1, False),
    "short": Int("short", 2, True),
    "unsigned short": Int("unsigned short", 2, False),
    "int": Int("int", 4, True),
    "unsigned int": Int("unsigned int", 4, False),
    "long": Int("long", 8, True),
    "unsigned long": Int("unsigned long", 8, False),
    "long long": Int("long long", 8, True),
    "unsigned long long": Int("unsigned long long", 8, False),
    "_Bool": Int("_Bool", 1, False, True),
}
#: What the kernel's own headers call them.
PRELUDE = "\n".join(
    f"typedef {c} {name};"
    for name, c in {
        **{f"{p}{s}{n}": f"{'unsigned' if s == 'u' else 'signed'} {t}" for p in ("", "__") for s in "us" for n, t in
           {8: "char", 16: "short", 32: "int", 64: "long long"}.items()},
        "bool": "_Bool",
        "size_t": "unsigned long",
        "pid_t": "int",
        "uint8_t": "unsigned char",
        "uint16_t": "unsigned short",
        "uint32_t": "unsigned int",
        "uint64_t": "unsigned long long",
        "int32_t": "int",
        "int64_t": "long long",
    }.items()
)  # fmt: skip


def line_of(node: Any) -> int:
    """The line of the learner's text that a piece of it is in; 0 if that is not known."""
    return int(getattr(getattr(node, "coord", None), "line", 0) or 0)


@dataclass(frozen=True)
class MapDeclaration:
    """A map as it was declared; ``kind`` as in :mod:`labkit.lessons.c_model.source`."""

    name: str
    kind: str
    key: CType
    value: CType
    entries: int


class Declarations:
    """What a file declares.

    :param constant: evaluates a constant expression (of :mod:`labkit.lessons.c_model.code`, which needs the types).
    """

    def __init__(self, constant: Callable[[Any], int]) -> None:
        self._constant = constant
        self.structs: dict[str, Struct] = {}
        self.typedefs: dict[str, CType] = {}
        self.constants: dict[str, int] = {}
        self.functions: dict[str, c_ast.FuncDef] = {}
        self.maps: dict[str, MapDeclaration] = {}
        self._anonymous = 0
        self._defined_by: dict[str, Any] = {}

    def read(self, tree: c_ast.FileAST) -> None:
        """Take in a whole file."""
        for node in tree.ext:
            if isinstance(node, c_ast.FuncDef):
                if node.decl.name in self.functions:
                    raise NotC(f"{node.decl.name}() is there twice, in line {line_of(node)}")
                self.functions[node.decl.name] = node
            elif isinstance(node, c_ast.Typedef):
                self.typedefs[node.name] = self.type(node.type)
            elif isinstance(node, c_ast.Decl):
                self._declaration(node)
            elif not isinstance(node, (c_ast.Pragma, c_ast.StaticAssert)):
                raise NotRun(f"{type(node).__name__} in line {line_of(node)} is not known here")

    def _declaration(self, node: c_ast.Decl) -> None:
        if isinstance(node.type, c_ast.FuncDecl):
            return  # a prototype
        if isinstance(node.type, c_ast.TypeDecl) and isinstance(node.type.type, c_ast.Struct):
            tag = node.type.type.name or ""
            if tag.startswith(MAP_TAG):
                self._map(node.name, tag.removeprefix(MAP_TAG).split("__")[0], node.type.type)
                return
        self.type(node.type)
        if node.name:
            raise NotRun(f"the global variable `{node.name}` in line {line_of(node)} is not known here")

    def _map(self, name: str, kind: str, body: c_ast.Struct) -> None:
        key, value, entries = (self.type(one.type) for one in body.decls)
        if not isinstance(entries, Array):
            raise NotC(f"the size of the map {name} is missing")
        self.maps[name] = MapDeclaration(name, kind, key, value, entries.count)

    def type(self, node: Any) -> CType:
        """The type that a piece of a declaration says."""
        if isinstance(node, (c_ast.TypeDecl, c_ast.Typename, c_ast.Decl)):
            return self.type(node.type)
        if isinstance(node, c_ast.PtrDecl):
            return Pointer(Void() if isinstance(node.type, c_ast.FuncDecl) else self.type(node.type))
        if isinstance(node, c_ast.ArrayDecl):
            of = self.type(node.type)
            return Array(of, self._constant(node.dim) if node.dim is not None else 0)
        if isinstance(node, (c_ast.Struct, c_ast.Union)):
            return self._struct(node)
        if isinstance(node, c_ast.Enum):
            return self._enum(node)
        if isinstance(node, c_ast.IdentifierType):
            return self._named(node)
        raise NotRun(f"the type in line {line_of(node)} is not known here")

    def _named(self, node: c_ast.IdentifierType) -> CType:
        words = [word for word in node.names if word != "const"]
        if len(words) == 1 and words[0] in self.typedefs:
            return self.typedefs[words[0]]
        if words == ["void"]:
            return Void()
        unsigned, longs = "unsigned" in words, words.count("long")
        base = next((word for word in words if word in ("char", "short", "_Bool")), "")
        name = base or ("long long" if longs > 1 else "long" if longs else "int")
        sign = "unsigned " if unsigned else "signed " if base == "char" and "signed" in words else ""
        if set(words) - {"unsigned", "signed", "long", "int", "char", "short", "_Bool"}:
            raise NotC(f"{' '.join(words)} in line {line_of(node)} is no type")
        return _INTEGERS[sign + name]

    def _struct(self, node: c_ast.Struct | c_ast.Union) -> Struct:
        union = isinstance(node, c_ast.Union)
        tag = node.name
        if tag is None:
            self._anonymous += 1
            tag = f"lk_anonymous_{self._anonymous}"
        found = self.structs.setdefault(tag, Struct(tag, union))
        if node.decls is not None:
            if found.body.complete and self._defined_by.get(tag) is not node.decls:
                raise NotC(f"struct {tag} is defined twice, in line {line_of(node)}")
            if found.body.complete:
                return found  # `struct x {...} one, other;`: the parser says it for each
            self._defined_by[tag] = node.decls
            if any(getattr(one, "bitsize", None) is not None for one in node.decls):
                raise NotRun(f"bit fields, in line {line_of(node)}, are not known here")
            found.define([(one.name or "", self.type(one.type)) for one in node.decls])
        return found

    def _enum(self, node: c_ast.Enum) -> CType:
        value = 0
        for one in node.values.enumerators if node.values else ():
            value = self._constant(one.value) if one.value is not None else value
            self.constants[one.name] = value
            value += 1
        return _INTEGERS["unsigned int"]


def integers() -> Mapping[str, Int]:
    """The integer types by name."""
    return _INTEGERS
