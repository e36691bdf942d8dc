"""C functions as Python functions: statements, local variables, calls."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from pycparser import c_ast
from pycparser.c_parser import CParser, ParseError

from labkit.lessons.c_model.declarations import PRELUDE, Declarations, line_of
from labkit.lessons.c_model.errors import NotC, NotRun, Refused
from labkit.lessons.c_model.expressions import Expressions, Frame, Place, Value, uninitialised
from labkit.lessons.c_model.machine import Machine
from labkit.lessons.c_model.types import Array, CType, Pointer, Struct, Void, converter

__all__ = ["Compiler"]

_GOES_ON, _BREAKS, _CONTINUES, _RETURNS = range(4)
_MOST_STEPS = 500_000  # rounds: the verifier walks two instructions or more in each, and a million at most

Run = Callable[[Frame], int]
Function = Callable[..., int]


class Compiler:
    """A preprocessed program, as functions that run on a machine.

    :raises NotC: if a compiler would refuse it.
    :raises NotRun: if it uses what is not known here.
    """

    def __init__(self, text: str, name: str, machine: Machine) -> None:
        self.machine = machine
        self.line = 0
        self.declarations = Declarations(self._constant)
        self._functions: dict[str, tuple[CType, list[CType], Function]] = {}
        self._slots = 0
        self._addressed: set[str] = set()
        self._result: CType = Void()
        try:
            tree = CParser().parse(f'{PRELUDE}\n# 1 "{name}"\n{text}', name)
        except ParseError as error:
            if "typeof" in text or "({" in text.replace(" ", ""):
                raise NotRun("it uses GNU C that is not known here") from error
            raise NotC(_parse_words(error, name)) from error
        self.declarations.read(tree)
        machine.declare(self.declarations.maps)
        for function in self.declarations.functions:
            self.function(function)

    def at(self, node: Any) -> None:
        """Remember which line is being compiled."""
        self.line = line_of(node) or self.line

    def _constant(self, node: Any) -> int:
        return Expressions(self).value(node).get([])

    # -- functions -------------------------------------------------------------------------------------------------

    def function(self, name: str) -> tuple[CType, list[CType], Function]:
        """A function of the program: what it returns, what it takes, and itself."""
        if name in self._functions:
            return self._functions[name]
        if name not in self.declarations.functions:
            raise KeyError(name)
        node = self.declarations.functions[name]
        result = self.declarations.type(node.decl.type.type)
        parameters = [
            one
            for one in (node.decl.type.args.params if node.decl.type.args else [])
            if not isinstance(self.declarations.type(one.type), Void)
        ]
        types = [_decayed(self.declarations.type(one.type)) for one in parameters]

        def not_yet(*arguments: int) -> int:
            raise Refused(f"{name}() calls itself: BPF programs do not")

        self._functions[name] = (result, types, not_yet)
        outer = (self._slots, self._addressed, self._result)
        self._slots, self._addressed, self._result = 1, _addressed(node.body), result
        body = self._body(node, [one.name for one in parameters], types)
        self._slots, self._addressed, self._result = outer
        self._functions[name] = (result, types, body)
        return self._functions[name]

    def _body(self, node: c_ast.FuncDef, names: list[str], types: list[CType]) -> Function:
        scope = Expressions(self)
        places = [self._variable(name, ctype, scope) for name, ctype in zip(names, types, strict=True)]
        run = self._statement(node.body, scope)
        slots, machine, count = self._slots, self.machine, len(types)
        what = node.decl.name
        returns = not isinstance(self._result, Void)
        memory = machine.memory

        def call(*arguments: int) -> int:
            frame: Frame = [None] * slots
            frame[0] = []  # addresses of this call's variables that have one
            for at in range(count):
                places[at][0](frame)
                places[at][1].put(frame, arguments[at])
            ended = run(frame)
            mine, value = (frame[0], 0) if ended != _RETURNS else (frame[0][0], frame[0][1])
            for address in mine:
                memory.free(address)
            if returns and ended != _RETURNS:
                raise Refused(f"{what}() ends without a `return`")
            return value

        return call

    def _variable(self, name: str, ctype: CType, scope: Expressions) -> tuple[Callable[[Frame], None], Place]:
        """A local variable: what makes it in a new frame, and where it is. One without an address is a slot of it."""
        slot, self._slots = self._slots, self._slots + 1
        memory = self.machine.memory
        if name in self._addressed or isinstance(ctype, (Struct, Array)):
            size = ctype.size
            place = scope.in_memory(ctype, lambda frame: int(frame[slot]))

            def make(frame: Frame) -> None:
                frame[slot] = memory.new(size, f"`{name}`")
                frame[0].append(frame[slot])

            scope.scope[-1][name] = place
            return make, place

        def get(frame: Frame) -> int:
            value = frame[slot]
            if value is None:
                raise uninitialised(name)
            return int(value)

        fit = converter(ctype)

        def put(frame: Frame, value: int) -> None:
            frame[slot] = fit(value)

        def forget(frame: Frame) -> None:
            frame[slot] = None

        place = Place(ctype, get, put)
        scope.scope[-1][name] = place
        return forget, place

    # -- statements ------------------------------------------------------------------------------------------------

    def _statement(self, node: Any, scope: Expressions) -> Run:
        self.at(node)
        if isinstance(node, c_ast.Compound):
            return self._block(node.block_items or [], scope)
        if isinstance(node, c_ast.Decl):
            return self._local(node, scope)
        if isinstance(node, c_ast.DeclList):
            return _sequence([self._local(one, scope) for one in node.decls])
        if isinstance(node, c_ast.If):
            return self._if(node, scope)
        if isinstance(node, (c_ast.For, c_ast.While, c_ast.DoWhile)):
            return self._loop(node, scope)
        if isinstance(node, c_ast.Return):
            return self._return(node, scope)
        if isinstance(node, c_ast.Break):
            return lambda frame: _BREAKS
        if isinstance(node, c_ast.Continue):
            return lambda frame: _CONTINUES
        if isinstance(node, (c_ast.EmptyStatement, c_ast.Pragma, c_ast.StaticAssert)):
            return lambda frame: _GOES_ON
        if isinstance(node, (c_ast.Goto, c_ast.Label, c_ast.Switch, c_ast.Case, c_ast.Default)):
            raise NotRun(f"{type(node).__name__.lower()} in line {line_of(node)} is not known here")
        get, machine, line = scope.value(node).get, self.machine, line_of(node)

        def run(frame: Frame) -> int:
            machine.line = line
            get(frame)
            return _GOES_ON

        return run

    def _block(self, items: list[Any], scope: Expressions) -> Run:
        scope.scope.append({})
        try:
            return _sequence([self._statement(one, scope) for one in items])
        finally:
            scope.scope.pop()

    def _local(self, node: c_ast.Decl, scope: Expressions) -> Run:
        ctype = self.declarations.type(node.type)
        if not node.name:
            return lambda frame: _GOES_ON
        if "static" in (node.storage or []):
            raise NotRun(f"the static variable `{node.name}` in line {line_of(node)} is not known here")
        if isinstance(ctype, Array) and not ctype.count and isinstance(node.init, c_ast.InitList):
            ctype = Array(ctype.of, len(node.init.exprs))
        self.at(node)
        make, place = self._variable(node.name, ctype, scope)
        fill = self._initialiser(place, node.init, scope) if node.init is not None else None
        machine, line = self.machine, line_of(node)

        def run(frame: Frame) -> int:
            machine.line = line
            make(frame)
            if fill is not None:
                fill(frame)
            return _GOES_ON

        return run

    def _initialiser(self, place: Place, node: Any, scope: Expressions) -> Callable[[Frame], object]:
        if not isinstance(node, c_ast.InitList):
            return scope.assigned(place, scope.value(node), node).get
        if not isinstance(place.ctype, (Struct, Array)):
            return self._initialiser(place, node.exprs[0], scope)
        assert place.address is not None
        steps, at = [], 0
        members = list(place.ctype.members.values()) if isinstance(place.ctype, Struct) else []
        for one in node.exprs or ():
            offset, ctype, at = self._part(place.ctype, members, one, at)
            base = place.address
            part = scope.in_memory(ctype, lambda frame, base=base, offset=offset: base(frame) + offset)  # type: ignore[misc]
            expr = one.expr if isinstance(one, c_ast.NamedInitializer) else one
            steps.append(self._initialiser(part, expr, scope))

        def fill(frame: Frame) -> None:
            for step in steps:
                step(frame)

        return fill

    def _part(self, ctype: CType, members: list[Any], one: Any, at: int) -> tuple[int, CType, int]:
        """Which part of a struct or array an initialiser is for: its offset and type, and the number of the next one."""
        named = isinstance(one, c_ast.NamedInitializer)
        if isinstance(ctype, Array):
            at = self._constant(one.name[0]) if named else at
            return at * ctype.of.size, ctype.of, at + 1
        if named:
            names = [member.name for member in members]
            if len(one.name) != 1 or one.name[0].name not in names:
                raise NotC(f"{ctype} has no member `{one.name[0].name}`, in line {line_of(one)}")
            at = names.index(one.name[0].name)
        if at >= len(members):
            raise NotC(f"{ctype} has fewer members than are given, in line {line_of(one)}")
        return members[at].offset, members[at].ctype, at + 1

    def temporary(self, ctype: CType, init: Any) -> Place:
        """A value that is written down in an expression."""
        raise NotRun(f"a literal of {ctype} in line {self.line} is not known here")

    def _if(self, node: c_ast.If, scope: Expressions) -> Run:
        ask = scope.value(node.cond).get
        then = self._statement(node.iftrue, scope)
        other = self._statement(node.iffalse, scope) if node.iffalse is not None else None
        machine, line = self.machine, line_of(node)

        def run(frame: Frame) -> int:
            machine.line = line
            if ask(frame):
                return then(frame)
            return other(frame) if other is not None else _GOES_ON

        return run

    def _loop(self, node: Any, scope: Expressions) -> Run:
        scope.scope.append({})
        try:
            first = None
            if isinstance(node, c_ast.For) and node.init is not None:
                first = self._statement(node.init, scope)
            ask = scope.value(node.cond).get if node.cond is not None else None
            after = (
                scope.value(node.next).get if isinstance(node, c_ast.For) and node.next is not None else None
            )
            body = self._statement(node.stmt, scope)
        finally:
            scope.scope.pop()
        machine, line, begins_within = self.machine, line_of(node), isinstance(node, c_ast.DoWhile)

        def run(frame: Frame) -> int:
            if first is not None:
                first(frame)
            steps, skip = 0, begins_within
            while True:
                machine.line = line
                if not skip and ask is not None and not ask(frame):
                    return _GOES_ON
                skip = False
                ended = body(frame)
                if ended == _BREAKS:
                    return _GOES_ON
                if ended == _RETURNS:
                    return ended
                if after is not None:
                    after(frame)
                steps += 1
                if steps > _MOST_STEPS:
                    raise Refused("a loop goes round half a million times and does not end")

        return run

    def _return(self, node: c_ast.Return, scope: Expressions) -> Run:
        machine, line = self.machine, line_of(node)
        if node.expr is None:
            if not isinstance(self._result, Void):
                raise NotC(f"`return` without a value, in line {line}")
            get = None
        else:
            value = scope.value(node.expr)
            if isinstance(self._result, Void) and not isinstance(value.ctype, Void):
                raise NotC(f"a value is returned where there is none to be, in line {line}")
            get = value.get
        fit = (lambda value: value) if isinstance(self._result, (Void, Struct)) else converter(self._result)

        def run(frame: Frame) -> int:
            machine.line = line
            frame[0] = (frame[0], fit(get(frame)) if get is not None else 0)
            return _RETURNS

        return run

    # -- calls -----------------------------------------------------------------------------------------------------

    def call(self, node: c_ast.FuncCall, scope: Expressions) -> Value:
        """A call: of a map's method, a function of the program, or a helper of the kernel."""
        from labkit.lessons.c_model import calls

        return calls.compiled(node, scope, self)


def _decayed(ctype: CType) -> CType:
    return Pointer(ctype.of) if isinstance(ctype, Array) else ctype


def _sequence(runs: list[Run]) -> Run:
    if len(runs) == 1:
        return runs[0]

    def run(frame: Frame) -> int:
        for one in runs:
            ended = one(frame)
            if ended:
                return ended
        return _GOES_ON

    return run


def _addressed(node: Any) -> set[str]:
    """Names of variables whose address is asked for somewhere in a function."""
    found = set()

    def walk(one: Any) -> None:
        if isinstance(one, c_ast.UnaryOp) and one.op == "&":
            inner = one.expr
            while isinstance(inner, (c_ast.StructRef, c_ast.ArrayRef)):
                inner = inner.name
            if isinstance(inner, c_ast.ID):
                found.add(inner.name)
        if isinstance(one, c_ast.FuncCall) and isinstance(one.name, c_ast.StructRef):
            # bcc's increment() takes the key itself, and its address
            found.update(
                arg.name for arg in (one.args.exprs if one.args else []) if isinstance(arg, c_ast.ID)
            )
        for _, child in one.children():
            walk(child)

    walk(node)
    return found


def _parse_words(error: Exception, name: str) -> str:
    said = str(error)
    found = re.match(rf"{re.escape(name)}:(\d+):\d+: (?:before: (.*)|(.*))", said)
    if found is None:
        return said.removeprefix(f"{name}: ").lower()
    what = f"something is missing or too much before `{found[2]}`" if found[2] else found[3].lower()
    return f"{what}, in line {found[1]}"
