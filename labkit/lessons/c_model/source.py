"""From the lab's dialect of C to plain C: a small preprocessor, and the macros of bcc that declare maps.

Line numbers stay: what follows says in which line of the learner's text something is.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from labkit.lessons.c_model.errors import NotC, NotRun

__all__ = ["MAP_TAG", "preprocess"]

#: A map is handed to the C parser as a variable of a struct whose tag begins so; its kind follows.
MAP_TAG = "lk_model_map_"

_TOKEN = re.compile(
    r'"(?:\\.|[^"\\])*"|\'(?:\\.|[^\'\\])*\'|[A-Za-z_]\w*|\.?\d(?:[eEpP][+-]|[\w.])*|##|<<=|>>=|'
    r"->|\+\+|--|<<|>>|<=|>=|==|!=|&&|\|\||\s+|."
)
_NAME = re.compile(r"[A-Za-z_]\w*\Z")
_DIRECTIVE = re.compile(r"\s*#\s*(\w+)\s*(.*)")
#: bcc's macros, as the shape (kind, key, value, name, entries) of their arguments; numbers are positions.
_DECLARATIONS: dict[str, Callable[[list[str]], tuple[str, str, str, str, str]]] = {
    "BPF_HASH": lambda a: ("hash", _at(a, 1, "u64"), _at(a, 2, "u64"), a[0], _at(a, 3, "10240")),
    "BPF_LRU_HASH": lambda a: ("hash", _at(a, 1, "u64"), _at(a, 2, "u64"), a[0], _at(a, 3, "10240")),
    "BPF_PERCPU_HASH": lambda a: (
        "percpu_hash",
        _at(a, 1, "u64"),
        _at(a, 2, "u64"),
        a[0],
        _at(a, 3, "10240"),
    ),
    "BPF_ARRAY": lambda a: ("array", "int", _at(a, 1, "u64"), a[0], _at(a, 2, "10240")),
    "BPF_PERCPU_ARRAY": lambda a: ("percpu_array", "int", _at(a, 1, "u64"), a[0], _at(a, 2, "10240")),
    "BPF_HISTOGRAM": lambda a: ("array", _at(a, 1, "int"), "u64", a[0], _at(a, 2, "64")),
    "BPF_QUEUE": lambda a: ("queue", "u32", a[1], a[0], a[2]),
    "BPF_RINGBUF_OUTPUT": lambda a: ("ringbuf", "u32", "u32", a[0], f"({a[1]})*4096"),
    "BPF_TABLE": lambda a: (_kind(a[0]), a[1], a[2], a[3], a[4]),
    "BPF_F_TABLE": lambda a: (_kind(a[0]), a[1], a[2], a[3], a[4]),
}
_KINDS = {
    "hash": "hash",
    "lru_hash": "hash",
    "percpu_hash": "percpu_hash",
    "array": "array",
    "percpu_array": "percpu_array",
}
_ALWAYS = {
    "NULL": "((void *)0)",
    "true": "1",
    "false": "0",
    "__always_inline": "inline",
    "inline": "inline",
    "noinline": "",
    "__builtin_offsetof": "offsetof",
    "__maybe_unused": "",
    "volatile": "",
    "__volatile__": "",
    "__inline": "inline",
}
_MOST_DEPTH = 40


def _at(arguments: list[str], place: int, default: str) -> str:
    return arguments[place] if len(arguments) > place else default


def _kind(text: str) -> str:
    try:
        return _KINDS[text.strip().strip('"')]
    except KeyError:
        raise NotRun(f"maps of kind {text} are not known here") from None


@dataclass(frozen=True)
class _Macro:
    body: str
    parameters: tuple[str, ...] | None = None


class _Preprocessor:
    def __init__(self, includes: Mapping[str, str]) -> None:
        self.macros = {name: _Macro(body) for name, body in _ALWAYS.items()}
        self._includes = includes
        self._seen: set[str] = set()

    def run(self, text: str, name: str) -> str:
        """The text with its directives carried out, each line where it was."""
        lines = _without_comments(text, name).split("\n")
        out: list[str] = []
        # Each open #if: is its branch taken now, was one of its branches taken, is what surrounds it taken.
        stack: list[tuple[bool, bool, bool]] = []
        at = 0
        while at < len(lines):
            line, first = lines[at], at
            while line.endswith("\\") and at + 1 < len(lines):
                at += 1
                line = line[:-1] + " " + lines[at]
            at += 1
            directive = _DIRECTIVE.match(line)
            taken = all(one[0] for one in stack)
            if directive:
                out.append(self._directive(directive[1], directive[2].strip(), stack, taken, name, first + 1))
            elif taken:
                while _open_parentheses(line) > 0 and at < len(lines) and not _DIRECTIVE.match(lines[at]):
                    line += " " + lines[at]
                    at += 1
                out.append(_declaration(self.expand(line)))
            else:
                out.append("")
            # An included file says where it is over itself; anything else takes as many lines as it had.
            out.extend([""] * (at - first - 1))
        if stack:
            raise NotC("an #if has no #endif")
        return "\n".join(out)

    def _directive(
        self, word: str, rest: str, stack: list[tuple[bool, bool, bool]], taken: bool, name: str, line: int
    ) -> str:
        if word in ("if", "ifdef", "ifndef"):
            value = taken and self._condition(word, rest)
            stack.append((value, value, taken))
        elif word in ("elif", "else", "endif"):
            if not stack:
                raise NotC(f"#{word} without #if, in line {line}")
            _, was, around = stack.pop()
            if word != "endif":
                value = around and not was and (word == "else" or self._condition("if", rest))
                stack.append((value, was or value, around))
        elif not taken:
            pass
        elif word == "define":
            self._define(rest)
        elif word == "undef":
            self.macros.pop(rest, None)
        elif word == "include":
            return self._include(rest, name, line)
        elif word == "error":
            raise NotC(f"#error {rest}, in line {line}")
        return ""

    def _include(self, rest: str, name: str, line: int) -> str:
        wanted = rest.strip().strip('"<>')
        if wanted not in self._includes:
            raise NotRun(f"the header {wanted} is not known here")
        if wanted in self._seen:
            return ""
        self._seen.add(wanted)
        return f'# 1 "{wanted}"\n{self.run(self._includes[wanted], wanted)}\n# {line + 1} "{name}"'

    def _define(self, rest: str) -> None:
        match = re.match(r"(\w+)(\(([^)]*)\))?\s*(.*)", rest, re.S)
        if not match:
            raise NotC(f"#define {rest}")
        parameters = None
        if match[2] is not None:
            parameters = tuple(one.strip() for one in match[3].split(",") if one.strip())
            if any(one.endswith("...") for one in parameters):
                raise NotRun("macros with any number of arguments are not known here")
        self.macros[match[1]] = _Macro(match[4].strip(), parameters)

    def _condition(self, word: str, rest: str) -> bool:
        if word != "if":
            return (rest.split()[0] in self.macros) is (word == "ifdef")
        text = re.sub(
            r"defined\s*(?:\(\s*(\w+)\s*\)|(\w+))",
            lambda m: "1" if (m[1] or m[2]) in self.macros else "0",
            rest,
        )
        return bool(_constant(self.expand(text)))

    def expand(self, text: str, hidden: frozenset[str] = frozenset()) -> str:
        """A text with its macros replaced."""
        if len(hidden) > _MOST_DEPTH:
            raise NotRun("macros are nested too deeply")
        tokens = _TOKEN.findall(text)
        out: list[str] = []
        at = 0
        while at < len(tokens):
            token = tokens[at]
            at += 1
            macro = self.macros.get(token) if token not in hidden else None
            if macro is None:
                out.append(token)
            elif macro.parameters is None:
                out.append(self.expand(macro.body, hidden | {token}))
            else:
                arguments, end = _arguments(tokens, at)
                if arguments is None:
                    out.append(token)
                    continue
                at = end
                out.append(self._call(token, macro, arguments, hidden))
        return "".join(out)

    def _call(self, name: str, macro: _Macro, arguments: list[str], hidden: frozenset[str]) -> str:
        parameters = macro.parameters or ()
        if len(arguments) != len(parameters) and not (not parameters and arguments == [""]):
            raise NotC(f"the macro {name} takes {len(parameters)} arguments, not {len(arguments)}")
        plain = dict(zip(parameters, arguments, strict=False))
        full = {key: self.expand(value, hidden) for key, value in plain.items()}
        body = re.sub(
            r"(\w+)\s*##\s*(\w+)", lambda m: plain.get(m[1], m[1]) + plain.get(m[2], m[2]), macro.body
        )
        tokens = [full.get(token, token) for token in _TOKEN.findall(body)]
        return self.expand("".join(tokens), hidden | {name})


def _arguments(tokens: list[str], at: int) -> tuple[list[str] | None, int]:
    while at < len(tokens) and tokens[at].isspace():
        at += 1
    if at >= len(tokens) or tokens[at] != "(":
        return None, at
    depth, current = 0, ""
    found: list[str] = []
    for place in range(at, len(tokens)):
        token = tokens[place]
        depth += (token in "([{") - (token in ")]}")
        if depth == 0:
            return [*found, current.strip()], place + 1
        if token == "," and depth == 1:
            found.append(current.strip())
            current = ""
        elif not (token == "(" and depth == 1 and place == at):
            current += token
    raise NotC("a parenthesis is not closed")


def _open_parentheses(line: str) -> int:
    plain = re.sub(r'"(?:\\.|[^"\\])*"|\'(?:\\.|[^\'\\])*\'', "", line)
    return plain.count("(") - plain.count(")")


def _without_comments(text: str, name: str) -> str:
    def blank(match: re.Match[str]) -> str:
        found = match.group()
        return found if found[0] in "\"'" else " " + "\n" * found.count("\n")

    done = re.sub(r'"(?:\\.|[^"\\\n])*"|\'(?:\\.|[^\'\\\n])*\'|/\*.*?\*/|//[^\n]*', blank, text, flags=re.S)
    if "/*" in done:
        raise NotC(f"a comment in {name} is not closed")
    return done


def _declaration(line: str) -> str:
    """A line in which bcc's macros declare maps, as plain C; and what compilers alone care for, left out."""
    line = re.sub(r"__attribute__\s*\(\(.*?\)\)", "", line)
    line = re.sub(r'\b(?:asm|__asm__)\s*\(\s*""[^;]*\)\s*;', ";", line)
    if re.search(r"\b(?:asm|__asm__)\b", line):
        raise NotRun("assembler is not known here")
    match = re.match(r"\s*(BPF_\w+)\s*\(", line)
    if not match:
        return line
    if match[1] not in _DECLARATIONS:
        raise NotRun(f"{match[1]} is not known here")
    arguments, _ = _arguments(_TOKEN.findall(line[match.end() - 1 :]), 0)
    try:
        kind, key, value, name, entries = _DECLARATIONS[match[1]](arguments or [])
    except IndexError:
        raise NotC(f"{match[1]} needs more arguments") from None
    return f"extern struct {MAP_TAG}{kind}__{name} {{ {key} key; {value} value; char entries[{entries}]; }} {name};"


def _constant(text: str) -> int:
    """The value of an #if: numbers and operators, and a name that is not defined is 0."""
    plain = re.sub(r"\b(0[xX][0-9a-fA-F]+|\d+)[uUlL]*\b", r"\1", text)
    plain = re.sub(r"\b(?!0[xX])[A-Za-z_]\w*", "0", plain)
    plain = plain.replace("&&", " and ").replace("||", " or ")
    plain = re.sub(r"!(?!=)", " not ", plain).strip()
    if not re.fullmatch(r"(?:0[xX][0-9a-fA-F]+|\d+|and|or|not|[\s()<>=!+*/%&|^~-])+", plain):
        raise NotRun(f"#if {text.strip()} is not understood here")
    try:
        return int(
            eval(plain.replace("/", "//"), {"__builtins__": {}})
        )  # digits and operators alone, as matched above
    except (SyntaxError, ArithmeticError, TypeError) as error:
        raise NotC(f"#if {text.strip()}: {error}") from None


def preprocess(text: str, name: str, includes: Mapping[str, str]) -> str:
    """The text of a program, ready for a parser of plain C.

    :param includes: what ``#include`` finds, by name.
    :raises NotC, NotRun: if it cannot be read, or uses what is not known here.
    """
    return _Preprocessor(includes).run(text, name)
