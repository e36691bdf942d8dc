"""C expressions as Python functions of a frame: the list of a call's local variables."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pycparser import c_ast, c_generator

from labkit.lessons.c_model.declarations import integers, line_of
from labkit.lessons.c_model.errors import NotC, NotRun, Refused
from labkit.lessons.c_model.types import Array, CType, Int, Pointer, Struct, Void, common, converter, promoted

if TYPE_CHECKING:
    from labkit.lessons.c_model.code import Compiler

__all__ = ["Expressions", "Place", "Value", "uninitialised"]

Frame = list[Any]
Get = Callable[[Frame], int]

_I = integers()
_INT, _U32, _U64 = _I["int"], _I["unsigned int"], _I["unsigned long long"]
_CHAR, _ULONG = _I["char"], _I["unsigned long"]
_ESCAPES = {"n": "\n", "t": "\t", "0": "\0", "r": "\r"}


def _divided(left: int, right: int) -> int:
    """As BPF divides: by zero gives zero, and towards zero."""
    if right == 0:
        return 0
    quotient = abs(left) // abs(right)
    return quotient if (left < 0) == (right < 0) else -quotient


def _remainder(left: int, right: int) -> int:
    return left - right * _divided(left, right) if right else left


_ARITHMETIC: dict[str, Callable[[int, int], int]] = {
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
    "/": _divided,
    "%": _remainder,
    "&": operator.and_,
    "|": operator.or_,
    "^": operator.xor,
}
_COMPARISONS: dict[str, Callable[[int, int], bool]] = {
    "==": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}


@dataclass(frozen=True)
class Value:
    """What an expression is: its type, and how to get it in a frame. Of a struct, what is got is its address."""

    ctype: CType
    get: Get


@dataclass(frozen=True)
class Place:
    """What can be assigned to.

    :param address: None for a variable that lives in the frame itself, as nobody asks where it is.
    """

    ctype: CType
    get: Get
    put: Callable[[Frame, int], None]
    address: Get | None = None


class Expressions:
    """Compiles expressions for one function; names are looked up in its scope."""

    def __init__(self, compiler: Compiler) -> None:
        self._compiler = compiler
        self._memory = compiler.machine.memory
        self._types = compiler.declarations
        self.scope: list[dict[str, Place]] = [{}]

    # -- places ----------------------------------------------------------------------------------------------------

    def in_memory(self, ctype: CType, address: Get) -> Place:
        """Something at an address."""
        if isinstance(ctype, (Struct, Array)):
            return Place(ctype, address, self._no_put, address)
        if isinstance(ctype, Void):
            raise NotC(f"a void is used as a value, in line {self._compiler.line}")
        memory, size = self._memory, ctype.size
        signed = isinstance(ctype, Int) and ctype.signed
        fit = converter(ctype)

        def get(frame: Frame) -> int:
            return memory.read(address(frame), size, signed=signed)

        def put(frame: Frame, value: int) -> None:
            memory.write(address(frame), size, fit(value))

        return Place(ctype, get, put, address)

    @staticmethod
    def _no_put(frame: Frame, value: int) -> None:
        raise NotRun("an array cannot be assigned to")

    def place(self, node: Any) -> Place:
        """Compile what stands to the left of an assignment.

        :raises NotC: if nothing can be assigned to it.
        """
        self._compiler.at(node)
        if isinstance(node, c_ast.ID):
            found = self._local(node.name)
            if found is None:
                raise NotC(f"`{node.name}` is not declared, in line {line_of(node)}")
            return found
        if isinstance(node, c_ast.UnaryOp) and node.op == "*":
            inner = self.value(node.expr)
            if not isinstance(inner.ctype, Pointer):
                raise NotC(f"*{self._text(node.expr)} in line {line_of(node)}: it is no pointer")
            return self.in_memory(inner.ctype.to, inner.get)
        if isinstance(node, c_ast.StructRef):
            return self._member(node)
        if isinstance(node, c_ast.ArrayRef):
            total = self._binary_values("+", self.value(node.name), self.value(node.subscript), node)
            if not isinstance(total.ctype, Pointer):
                raise NotC(f"{self._text(node)} in line {line_of(node)}: it is no array")
            return self.in_memory(total.ctype.to, total.get)
        if isinstance(node, c_ast.CompoundLiteral):
            ctype = self._types.type(node.type)
            return self._compiler.temporary(ctype, node.init)
        raise NotC(f"nothing can be assigned to {self._text(node)}, in line {line_of(node)}")

    def _local(self, name: str) -> Place | None:
        for level in reversed(self.scope):
            if name in level:
                return level[name]
        return None

    def _member(self, node: c_ast.StructRef) -> Place:
        name = node.field.name
        if node.type == "->":
            inner = self.value(node.name)
            if not (isinstance(inner.ctype, Pointer) and isinstance(inner.ctype.to, Struct)):
                raise NotC(
                    f"{self._text(node)} in line {line_of(node)}: what is left of -> points to no struct"
                )
            struct, base = inner.ctype.to, inner.get
        else:
            whole = self.place(node.name)
            if not isinstance(whole.ctype, Struct) or whole.address is None:
                raise NotC(
                    f"{self._text(node)} in line {line_of(node)}: what is left of the dot is no struct"
                )
            struct, base = whole.ctype, whole.address
        if name not in struct.members:
            raise NotC(f"{struct} has no member `{name}`, in line {line_of(node)}")
        member = struct.members[name]
        offset = member.offset
        if offset:
            return self.in_memory(member.ctype, lambda frame: base(frame) + offset)
        return self.in_memory(member.ctype, base)

    # -- values ----------------------------------------------------------------------------------------------------

    def value(self, node: Any) -> Value:
        """Compile an expression."""
        self._compiler.at(node)
        method = getattr(self, f"_{type(node).__name__.lower()}", None)
        if method is None:
            raise NotRun(f"{type(node).__name__} in line {line_of(node)} is not known here")
        found: Value = method(node)
        return found

    def _decayed(self, place: Place) -> Value:
        if isinstance(place.ctype, Array):
            assert place.address is not None
            return Value(Pointer(place.ctype.of), place.address)
        return Value(place.ctype, place.get)

    def _id(self, node: c_ast.ID) -> Value:
        found = self._local(node.name)
        if found is not None:
            return self._decayed(found)
        if node.name in self._types.constants:
            number = self._types.constants[node.name]
            return Value(_INT, lambda frame: number)
        raise NotC(f"`{node.name}` is not declared, in line {line_of(node)}")

    def _structref(self, node: c_ast.StructRef) -> Value:
        return self._decayed(self._member(node))

    def _arrayref(self, node: c_ast.ArrayRef) -> Value:
        return self._decayed(self.place(node))

    def _compoundliteral(self, node: c_ast.CompoundLiteral) -> Value:
        return self._decayed(self.place(node))

    def _constant(self, node: c_ast.Constant) -> Value:
        text = node.value
        if node.type == "char":
            inner = text[1:-1]
            number = ord(_ESCAPES.get(inner[1:], inner[1:]) if inner[0] == "\\" else inner)
            return Value(_INT, lambda frame: number)
        if node.type == "string":
            data = text[1:-1].encode() + b"\0"
            address = self._memory.new(len(data), "a text", kernel=True)
            self._memory.set(address, data)
            return Value(Pointer(_CHAR), lambda frame: address)
        match = re.fullmatch(r"(0[xX][0-9a-fA-F]+|0[0-7]*|[1-9]\d*)([uUlL]*)", text)
        if not match:
            raise NotRun(
                f"the number {text} in line {line_of(node)} is not known here: BPF has integers alone"
            )
        octal = match[1].startswith("0") and match[1].isdigit() and len(match[1]) > 1
        number = int(match[1], 8 if octal else 0)
        return Value(self._literal_type(number, match[2].lower(), match[1][:1] != "0"), lambda frame: number)

    @staticmethod
    def _literal_type(number: int, suffix: str, decimal: bool) -> CType:
        names = ["int", "unsigned int", "long long", "unsigned long long"]
        for name in names:
            ctype = _I[name]
            if ("u" in suffix and ctype.signed) or ("l" in suffix and ctype.bytes < 8):
                continue
            if decimal and "u" not in suffix and not ctype.signed and name != names[-1]:
                continue
            if number < 1 << 8 * ctype.bytes - ctype.signed:
                return ctype
        return _U64

    def _cast(self, node: c_ast.Cast) -> Value:
        ctype, inner = self._types.type(node.to_type), self.value(node.expr)
        if isinstance(ctype, Void):
            return Value(ctype, inner.get)
        fit, get = converter(ctype), inner.get
        return Value(ctype, lambda frame: fit(get(frame)))

    def _ternaryop(self, node: c_ast.TernaryOp) -> Value:
        condition, one, other = (self.value(part) for part in (node.cond, node.iftrue, node.iffalse))
        if isinstance(one.ctype, (Struct, Void)) or isinstance(other.ctype, (Struct, Void)):
            ctype: CType = one.ctype
            ask, first, second = condition.get, one.get, other.get
        else:
            ctype = common(one.ctype, other.ctype)
            fit = converter(ctype)
            ask, first, second = condition.get, one.get, other.get
            return Value(ctype, lambda frame: fit(first(frame) if ask(frame) else second(frame)))
        return Value(ctype, lambda frame: first(frame) if ask(frame) else second(frame))

    def _exprlist(self, node: c_ast.ExprList) -> Value:
        values = [self.value(one) for one in node.exprs]

        def get(frame: Frame) -> int:
            for one in values[:-1]:
                one.get(frame)
            return values[-1].get(frame)

        return Value(values[-1].ctype, get)

    def _unaryop(self, node: c_ast.UnaryOp) -> Value:
        op = node.op
        if op == "sizeof":
            return self._sizeof(node.expr)
        if op == "&":
            return self._address(node)
        if op == "*":
            return self._decayed(self.place(node))
        if op in ("++", "--", "p++", "p--"):
            return self._step(node)
        inner = self.value(node.expr)
        get = inner.get
        if op == "!":
            return Value(_INT, lambda frame: 0 if get(frame) else 1)
        ctype = promoted(inner.ctype)
        fit = converter(ctype)
        if op == "-":
            return Value(ctype, lambda frame: fit(-get(frame)))
        if op == "~":
            return Value(ctype, lambda frame: fit(~get(frame)))
        return Value(ctype, get)

    def _sizeof(self, node: Any) -> Value:
        if isinstance(node, c_ast.Typename):
            size = self._types.type(node).size
        else:
            try:
                size = self.place(node).ctype.size
            except NotC:
                size = self.value(node).ctype.size
        return Value(_ULONG, lambda frame: size)

    def _address(self, node: c_ast.UnaryOp) -> Value:
        place = self.place(node.expr)
        if place.address is None:
            raise NotC(f"{self._text(node.expr)} in line {line_of(node)} has no address")
        return Value(Pointer(place.ctype), place.address)

    def _step(self, node: c_ast.UnaryOp) -> Value:
        place = self.place(node.expr)
        width = place.ctype.to.size if isinstance(place.ctype, Pointer) else 1
        by = width if "++" in node.op else -width
        get, put, fit, before = place.get, place.put, converter(place.ctype), node.op.startswith("p")

        def step(frame: Frame) -> int:
            was = get(frame)
            now = fit(was + by)
            put(frame, now)
            return was if before else now

        return Value(place.ctype, step)

    def _assignment(self, node: c_ast.Assignment) -> Value:
        place = self.place(node.lvalue)
        if node.op == "=":
            return self.assigned(place, self.value(node.rvalue), node)
        current = Value(place.ctype, place.get)
        result = self._binary_values(node.op[:-1], current, self.value(node.rvalue), node)
        get, put, fit = result.get, place.put, converter(place.ctype)

        def change(frame: Frame) -> int:
            value = fit(get(frame))
            put(frame, value)
            return value

        return Value(place.ctype, change)

    def assigned(self, place: Place, value: Value, node: Any) -> Value:
        """Put a value into a place, struct or number."""
        if isinstance(place.ctype, Struct) or isinstance(value.ctype, Struct):
            if place.ctype != value.ctype or place.address is None:
                raise NotC(f"{value.ctype} is put into {place.ctype}, in line {line_of(node)}")
            memory, size, to, source = self._memory, place.ctype.size, place.address, value.get

            def copy(frame: Frame) -> int:
                target = to(frame)
                memory.put(target, memory.copied(source(frame), size))
                return target

            return Value(place.ctype, copy)
        if isinstance(value.ctype, Void):
            raise NotC(f"a function without a result is used as a value, in line {line_of(node)}")
        fit, get, put = converter(place.ctype), value.get, place.put

        def change(frame: Frame) -> int:
            number = fit(get(frame))
            put(frame, number)
            return number

        return Value(place.ctype, change)

    def _binaryop(self, node: c_ast.BinaryOp) -> Value:
        left, right = self.value(node.left), self.value(node.right)
        one, other = left.get, right.get
        if node.op == "&&":
            return Value(_INT, lambda frame: 1 if one(frame) and other(frame) else 0)
        if node.op == "||":
            return Value(_INT, lambda frame: 1 if one(frame) or other(frame) else 0)
        return self._binary_values(node.op, left, right, node)

    def _binary_values(self, op: str, left: Value, right: Value, node: Any) -> Value:
        for side in (left, right):
            if isinstance(side.ctype, (Struct, Void)):
                raise NotC(f"{side.ctype} is calculated with, in line {line_of(node)}")
        one, other = left.get, right.get
        if op in ("<<", ">>"):
            ctype = promoted(left.ctype)
            fit, bits = converter(ctype), 8 * ctype.size - 1
            if op == "<<":
                return Value(ctype, lambda frame: fit(one(frame) << (other(frame) & bits)))
            return Value(ctype, lambda frame: fit(fit(one(frame)) >> (other(frame) & bits)))
        if op in _COMPARISONS:
            compare, fit = _COMPARISONS[op], converter(common(left.ctype, right.ctype))
            return Value(_INT, lambda frame: 1 if compare(fit(one(frame)), fit(other(frame))) else 0)
        if op not in _ARITHMETIC:
            raise NotRun(f"the operator {op} in line {line_of(node)} is not known here")
        if isinstance(left.ctype, Pointer) or isinstance(right.ctype, Pointer):
            return self._pointer(op, left, right, node)
        ctype = common(left.ctype, right.ctype)
        fit, calculate = converter(ctype), _ARITHMETIC[op]
        return Value(ctype, lambda frame: fit(calculate(fit(one(frame)), fit(other(frame)))))

    def _pointer(self, op: str, left: Value, right: Value, node: Any) -> Value:
        if isinstance(left.ctype, Pointer) and isinstance(right.ctype, Pointer):
            if op != "-":
                raise NotC(f"two pointers are joined by {op}, in line {line_of(node)}")
            one, other, size = left.get, right.get, left.ctype.to.size
            return Value(_I["long"], lambda frame: (one(frame) - other(frame)) // size)
        if isinstance(right.ctype, Pointer):
            left, right = right, left
        if op not in ("+", "-") or not isinstance(left.ctype, Pointer):
            raise NotC(f"a pointer is calculated with by {op}, in line {line_of(node)}")
        size, one, other = left.ctype.to.size, left.get, right.get
        sign = 1 if op == "+" else -1
        return Value(left.ctype, lambda frame: (one(frame) + sign * size * other(frame)) & 0xFFFFFFFFFFFFFFFF)

    def _funccall(self, node: c_ast.FuncCall) -> Value:
        return self._compiler.call(node, self)

    @staticmethod
    def _text(node: Any) -> str:
        return str(c_generator.CGenerator().visit(node))


def uninitialised(name: str) -> Refused:
    """The error for a variable that is read before anything is put in it."""
    return Refused(f"`{name}` is read before anything was put into it")
