"""Load a program, attach it to the first hook that this kernel has, read its maps, free everything.

>>> with load("hello") as prog:                        # doctest: +SKIP
...     subprocess.run(["true"])
...     prog.frame("hello")
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import platform
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from labkit import bpfsys
from labkit.attach import HookRefused, attach, check_labels, choose_hook, map_error, no_privilege
from labkit.bpfsys import MapType
from labkit.closing import Closing
from labkit.compiler import Artifact, MapDef, compile_program
from labkit.errors import MapError, SpecError, UnsupportedKernel
from labkit.kernel.privilege import privilege
from labkit.layout import layout_of
from labkit.ledger import Ledger
from labkit.loader import load_function
from labkit.maps import Map
from labkit.paths import bpf_dir
from labkit.ring import EventType, Ring
from labkit.spec import Hook, LedgerSpec, ProgramSpec, parse, read

__all__ = ["Program", "load", "program_hash", "stale_programs"]

_LEDGER_TRIES = 100


def program_hash(spec: ProgramSpec) -> str:
    """Identity of a program: SHA-256 over its source and the shared header, 16 hex digits."""
    shared = (bpf_dir() / "lk.h").read_text()
    return hashlib.sha256(f"{spec.source}\0{shared}".encode()).hexdigest()[:16]


@dataclass
class _Attached:
    hook: Hook
    prog_fd: int
    link_fd: int
    passed_over: list[str] = field(default_factory=list)


class Program(Closing):
    """A program in the kernel. Made by :func:`load`; a context manager that frees everything.

    :ivar spec: what its header comment says.
    :ivar params: its parameters, defaults included.
    :ivar cached: True if no compiler ran.
    """

    def __init__(self, spec: ProgramSpec, params: Mapping[str, int], *, label: str = "") -> None:
        self.spec = spec
        self.params = dict(params)
        self.label = label or spec.name
        self.cached = False
        self.maps: dict[str, Map] = {}
        self._definitions: dict[str, MapDef] = {}
        self._rings: dict[str, Ring] = {}
        self._attached: dict[str, _Attached] = {}
        self._stats_fd = -1
        self._stats_error = ""
        self._runs_counted = 0

    def __del__(self) -> None:
        with contextlib.suppress(Exception):
            self.close()

    def close(self) -> None:
        """Detach, unload, free the maps. May be called twice."""
        self.stop()
        for attached in self._attached.values():
            with contextlib.suppress(OSError):
                os.close(attached.prog_fd)
        self._attached.clear()
        for ring in self._rings.values():
            ring.close()
        self._rings.clear()
        for table in self.maps.values():
            table.close()
        if self._stats_fd >= 0:
            os.close(self._stats_fd)
            self._stats_fd = -1

    def stop(self) -> None:
        """Detach, so that nothing is counted any more; maps, ledger and cost stay readable."""
        for label in self._attached:
            self.detach(label)

    def attach(self, label: str) -> bool:
        """Attach a hook that is loaded but waits to be asked for (``on_demand``); False if this kernel does not need it.

        :raises HookNotFound: if the program has no such hook.
        """
        check_labels(self.spec, {label: ""})
        attached = self._attached.get(label)
        if attached is None:
            return False
        if attached.link_fd < 0:
            attached.link_fd = attach(label, attached.hook, attached.prog_fd)
        return True

    def detach(self, label: str) -> None:
        """Detach one hook; it can be attached again."""
        attached = self._attached.get(label)
        if attached is not None and attached.link_fd >= 0:
            os.close(attached.link_fd)
            attached.link_fd = -1

    @property
    def hooks(self) -> pd.DataFrame:
        """What was attached.

        :returns: columns ``label``, ``hook`` (the chosen one), ``passed_over`` (better ones, and why not), all str.
        """
        rows = [(label, str(a.hook), "; ".join(a.passed_over)) for label, a in self._attached.items()]
        frame = pd.DataFrame(rows, columns=["label", "hook", "passed_over"])
        return frame.astype("str")

    def frame(self, name: str, *, per_cpu: bool = False, explode: str | None = None) -> pd.DataFrame:
        """A map as a DataFrame; see :meth:`labkit.maps.Map.frame`. Of a map that swaps, what came since the last swap.

        :raises MapError: if the program has no such map, or it is closed.
        """
        if name not in self.maps:
            known = [key for key, table in self.maps.items() if not table.spec.internal]
            raise MapError(f"program {self.spec.name} has no map {name!r}", why=f"it has: {', '.join(known)}")
        table = self._pair(name)[self._turn(name)] if self.maps[name].spec.swaps else self.maps[name]
        return table.frame(per_cpu=per_cpu, explode=explode)

    def swap(self, name: str, *, per_cpu: bool = False, explode: str | None = None) -> pd.DataFrame:
        """What a map holds, which is empty from then on: each update is in exactly one such snapshot.

        The program writes to one of two maps. It is told to write to the other, programs that still run are waited for
        (some 10 ms), and then the first one, which nobody writes to any more, is read and emptied.

        :returns: as :meth:`frame`.
        :raises MapError: if the program does not keep the map twice (``swaps: true`` in its header comment).
        """
        if name not in self.maps or not self.maps[name].spec.swaps:
            pairs = [key for key, table in self.spec.maps.items() if table.swaps]
            raise MapError(
                f"map {name} of {self.spec.name} cannot be swapped",
                why=f"maps kept twice: {', '.join(pairs) or 'none'}",
            )
        turn = self._turn(name)
        other = np.array([1 - turn], np.uint32)
        bpfsys.map_update(self.maps[f"{name}_turn"].fd, np.zeros(1, np.uint32), other)
        bpfsys.wait_for_programs()
        quiet = self._pair(name)[turn]
        found = quiet.frame(per_cpu=per_cpu, explode=explode)
        quiet.clear()
        return found

    def _pair(self, name: str) -> tuple[Map, Map]:
        return self.maps[name], self.maps[f"{name}_twin"]

    def _turn(self, name: str) -> int:
        """Which of the two is written to."""
        turn = np.zeros(1, np.uint32)
        bpfsys.map_lookup(self.maps[f"{name}_turn"].fd, np.zeros(1, np.uint32), turn)
        return int(turn[0])

    def ring(self, name: str) -> Ring:
        """A ring buffer for reading (:class:`labkit.ring.Ring`). One per ring buffer: its consumer position is shared.

        :raises MapError: if there is no such map, or it is not a ring buffer.
        """
        if name not in self._rings:
            table = self.maps.get(name)
            if table is None or table.definition.kind != MapType.RINGBUF or not table.spec.ring:
                rings = [n for n, t in self.maps.items() if t.spec.ring]
                raise MapError(
                    f"program {self.spec.name} has no ring buffer {name!r}",
                    why=f"it has: {', '.join(rings) or 'none'}",
                )
            self._rings[name] = self._open_ring(table)
        return self._rings[name]

    def _open_ring(self, table: Map) -> Ring:
        kinds = []
        for kind, tag in table.spec.ring["types"].items():
            described = self._definitions[kind]
            layout = layout_of(described.value_desc, size=described.value_size, name=kind)
            kinds.append(EventType(kind, layout, tag))
        tag = None
        if len(kinds) > 1:
            member = next(c for c in kinds[0].layout.columns if c.name == table.spec.ring["tag"])
            tag = (member.offset, member.dtype)
        return Ring(table.fd, table.definition.max_entries, kinds, tag)

    @property
    def ledger(self) -> Ledger:
        """The loss ledger as it stands now.

        While the program is attached, a CPU may be between counting an event as seen and as delivered; the ledger is read
        again until it balances, a hundred times at most. After :meth:`stop` it stands still.

        :raises MapError: if the program keeps none.
        """
        if self.spec.ledger is None:
            raise MapError(
                f"program {self.spec.name} keeps no ledger", remedy="add `ledger:` to its header comment"
            )
        for _ in range(_LEDGER_TRIES):
            book = self._read_ledger(self.spec.ledger)
            if book.balanced:
                break
        return book

    def counters(self) -> dict[str, int]:
        """Every member of the ``ledger`` map, summed over CPUs: those that the ledger has no name for, too.

        :raises MapError: if the program keeps none, or is closed.
        """
        if "ledger" not in self.maps:
            raise MapError(f"program {self.spec.name} keeps no ledger")
        table = self.maps["ledger"]
        _, values = table.raw()
        columns = table.layouts[1].arrays(values)
        return {name: int(column.sum(dtype=np.uint64)) for name, column in columns.items()}

    def _read_ledger(self, spec: LedgerSpec) -> Ledger:
        total = self.counters()
        missed = sum(bpfsys.prog_info(a.prog_fd).recursion_misses for a in self._attached.values())
        unseen = missed + total[spec.unseen] if spec.unseen else missed or None
        return Ledger(
            capture=self.label,
            mode="live",
            seen=total["seen"],
            delivered=total["delivered"],
            losses={cause: total[cause] for cause in spec.losses},
            unseen=unseen,
            event=spec.event,
            counted={words: total[member] for member, words in spec.notes.items()},
        )

    def cost(self) -> pd.DataFrame:
        """What the program itself costs, from the kernel's statistics since it was loaded.

        :returns: columns ``program`` (str), ``run_count`` (uint64), ``run_time_ns`` (uint64), ``ns_per_run`` (float64, NaN
            where nothing ran). Where statistics are not permitted the frame has no rows and
            ``frame.attrs["not_permitted"]`` says why; :attr:`cost_note` says it in words.
        """
        infos = [] if self._stats_fd < 0 else [bpfsys.prog_info(a.prog_fd) for a in self._attached.values()]
        frame = pd.DataFrame(
            {
                "program": pd.Series([i.name for i in infos], dtype="str"),
                "run_count": pd.Series([i.run_count for i in infos], dtype="uint64"),
                "run_time_ns": pd.Series([i.run_time_ns for i in infos], dtype="uint64"),
            }
        )
        frame["ns_per_run"] = frame["run_time_ns"] / frame["run_count"].where(frame["run_count"] > 0)
        if self._stats_error:
            frame.attrs["not_permitted"] = self._stats_error
        return frame

    def uncounted(self) -> None:
        """Stop counting what the program costs: the counting is a cost of its own, paid at each run (chapter 11).

        The kernel counts on while anybody else on the machine asks it to.
        """
        if self._stats_fd >= 0:
            os.close(self._stats_fd)
            self._stats_fd = -1
            self._stats_error = "counting was switched off"
            self._runs_counted = self._run_count()

    @property
    def counted_by_others(self) -> bool:
        """True if runs were counted after :meth:`uncounted`: somebody else on the machine asked for it.

        It is one switch for all programs, and whoever makes a program run pays.
        """
        return self._run_count() > self._runs_counted

    def _run_count(self) -> int:
        return sum(bpfsys.prog_info(a.prog_fd).run_count for a in self._attached.values())

    @property
    def run_time_ns(self) -> int | None:
        """Run time of all its functions together since it was loaded; None where counting is not permitted."""
        if self._stats_fd < 0:
            return None
        return int(sum(bpfsys.prog_info(a.prog_fd).run_time_ns for a in self._attached.values()))

    @property
    def cost_note(self) -> str:
        """Empty if the cost is measured, else why not."""
        return self._stats_error

    def describe(self) -> str:
        """What was attached and why, a line per hook."""
        lines = [f"{self.spec.name}: {self.spec.purpose}"]
        for label, attached in self._attached.items():
            lines.append(f"  {label} -> {attached.hook}")
            lines += [f"    not {reason}" for reason in attached.passed_over]
        return "\n".join(lines)

    # -- loading -----------------------------------------------------------------------------------------------

    def _start(self, preferred: Mapping[str, str]) -> None:
        if privilege().can_count_cost:
            with contextlib.suppress(OSError):
                self._stats_fd = bpfsys.enable_stats()
        if self._stats_fd < 0:
            self._stats_error = (
                "counting the cost of BPF programs needs CAP_SYS_ADMIN, which this process lacks"
            )
        passed_over: dict[str, list[str]] = {label: [] for label in self.spec.hooks}
        refused: set[Hook] = set()
        while True:
            chosen = {
                label: choose_hook(
                    self.spec, label, candidates, preferred.get(label), refused, passed_over[label]
                )
                for label, candidates in self.spec.hooks.items()
            }
            artifact = compile_program(self.spec, chosen, self.params)
            try:
                self._load_all(artifact, chosen, passed_over)
            except HookRefused as error:
                self._release()
                refused.add(error.hook)
                passed_over[error.label].append(f"{error.hook}: {error.reason}")
                continue
            self.cached = artifact.cached
            return

    def _release(self) -> None:
        stats, self._stats_fd = self._stats_fd, -1
        self.close()
        self._stats_fd = stats
        self.maps.clear()

    def _load_all(
        self, artifact: Artifact, chosen: Mapping[str, Hook], passed_over: Mapping[str, list[str]]
    ) -> None:
        self._definitions = {definition.name: definition for definition in artifact.maps}
        for definition in artifact.maps:
            if definition.name in self.spec.event_types:
                continue
            table = Map(definition, self.spec.map_spec(definition.name))
            try:
                table.create()
                table.fill()
            except OSError as error:
                raise map_error(definition.name, error) from error
            self.maps[definition.name] = table
        fds: dict[str, int] = {}
        try:
            functions = {function.name: function for function in artifact.functions}
            for label, hook in chosen.items():
                function = functions.get(f"lk_{label}")
                if function is None and label in self.spec.on_demand:
                    continue  # not needed on this kernel
                if function is None:
                    raise SpecError(f"{self.spec.name} has no function lk_{label} for its hook {label}")
                fds[label] = load_function(
                    function,
                    hook,
                    self.spec,
                    {name: table.fd for name, table in self.maps.items()},
                    chosen,
                    self.params,
                )
            # All are loaded before the first attaches, so that events start to count at one moment.
            for label in list(fds):
                hook = chosen[label]
                link = -1 if label in self.spec.on_demand else attach(label, hook, fds[label])
                self._attached[label] = _Attached(hook, fds.pop(label), link, passed_over[label])
        finally:
            for fd in fds.values():
                os.close(fd)


def load(
    program: str | ProgramSpec,
    /,
    *,
    hooks: Mapping[str, str] | None = None,
    label: str = "",
    source: str | None = None,
    **params: Any,
) -> Program:
    """Compile (or take from the cache), load and attach a program.

    :param program: its name (``bpf/NAME.c``) or a spec.
    :param hooks: label -> kind or full hook, to insist on one: ``{"exec": "raw_tracepoint"}``.
    :param label: what the capture is called in its ledger; the program's name if empty.
    :param source: C source to use instead of the file, header comment included.
    :param params: the program's own typed parameters; they become constants.
    :raises UnknownProgram, SpecError, ParameterError: if the request is wrong.
    :raises MissingPrivilege, MissingBcc, MissingHeaders, MissingBTF, UnsupportedKernel: if the machine cannot do it.
    :raises CompileError, VerifierRejected: with the log and the line.
    :raises HookNotFound: if none of a label's hooks exists, or there is no such label, with the nearest names.
    """
    if isinstance(program, str):
        spec = read(program) if source is None else parse(source, name=program, path=None)
    else:
        spec = program
    constants = spec.constants(params)
    check_labels(spec, hooks or {})
    if platform.system() != "Linux":
        raise UnsupportedKernel(
            "eBPF is part of the Linux kernel",
            why=f"this is {platform.system()}",
            remedy="go on in replay (--mode replay)",
        )
    if not privilege().can_trace:
        raise no_privilege(f"load {spec.name}")
    loaded = Program(spec, constants, label=label)
    try:
        loaded._start(hooks or {})
    except BaseException:
        loaded.close()
        raise
    return loaded


def stale_programs() -> list[bpfsys.ProgInfo]:
    """Programs named ``lk_*`` in the kernel, whoever loaded them. Needs CAP_SYS_ADMIN."""
    return [info for info in bpfsys.loaded_programs() if info.name.startswith("lk_")]
