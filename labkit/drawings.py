"""Drawings that explain: boxes and arrows, with what this kernel really does written into them.

Like :mod:`labkit.plots` they return the Axes they drew on, and use the same colours.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise

import matplotlib.pyplot as plt
from matplotlib.axes import Axes

from labkit import text
from labkit.plots import BLUE, GREEN, GREY, ORANGE, VERMILION
from labkit.shapes import INK, Box, area, arrow, canvas, chain, draw

__all__ = [
    "cgroup_of_a_task",
    "hooks_of_execve",
    "ring_buffer",
    "route_of_a_metric",
    "route_of_a_program",
    "task_states",
]


def route_of_a_program(*, source: str, hook: str, map_name: str) -> Axes:
    """From a C file to a DataFrame: what happens once, when a program is loaded, and what happens at each event.

    :param source: name of the C file.
    :param hook: what was attached to, such as ``"tracepoint:syscalls:sys_enter_execve"``.
    :param map_name: the map that is read.
    """
    kind, _, target = hook.partition(":")
    ax = canvas(12.6, 4.7, "The way of a program: above, once, when it is loaded; below, at each event")
    at = [1.3, 4.4, 7.75, 11.05]
    area(ax, (6.2, 0.1), 6.35, 4.5, "in the kernel")
    ax.add_patch(plt.Rectangle((3.1, 0.1), 3.1, 1.75, facecolor="#f3f3f3", edgecolor="none", zorder=0))
    jit = Box(at[3], 3.45, "JIT", "to machine code", ORANGE)
    event = Box(at[3], 0.95, kind.replace("_", " "), target, ORANGE, width=2.75)
    chain(
        ax,
        [
            Box(at[0], 3.45, source, "C"),
            Box(at[1], 3.45, "clang (bcc)", "C to BPF instructions"),
            Box(at[2], 3.45, "verifier", "proves it is harmless", ORANGE),
            jit,
        ],
    )
    chain(
        ax,
        [
            event,
            Box(at[2], 0.95, "the program", "runs, and returns", ORANGE),
            Box(at[1], 0.95, f"map {map_name}", "read from both sides", GREEN),
            Box(at[0], 0.95, "DataFrame", "in this notebook"),
        ],
    )
    arrow(ax, (at[3], 2.95), (at[3], 1.45), colour=GREY)
    ax.text(at[3] + 0.12, 2.2, "attached", fontsize=8, color=GREY, va="center")
    return ax


def route_of_a_metric(*, map_name: str, metric: str, every: str, query: str) -> Axes:
    """From a map in the kernel to a graph: who keeps what, and who asks whom.

    :param map_name: the map that the program adds up in.
    :param metric: what the exporter calls it.
    :param every: how often Prometheus asks, in words.
    :param query: what the graph asks Prometheus.
    """
    ax = canvas(12.6, 2.05, "The way of a number: what it is at each station, and who asks")
    at = [1.25, 4.6, 7.95, 11.3]
    area(ax, (0.05, 0.25), 2.4, 1.75, "in the kernel")
    boxes = [
        Box(at[0], 1.05, f"map {map_name}", "ns, only grows", ORANGE, width=2),
        Box(at[1], 1.05, "exporter", "now, in seconds", GREEN, width=2),
        Box(at[2], 1.05, "Prometheus", "over time", BLUE, width=2),
        Box(at[3], 1.05, "graph", "how steep it is", VERMILION, width=2),
    ]
    for box in boxes:
        draw(ax, box)
    for (one, other), (above, below) in zip(
        pairwise(boxes), [("reads", ""), ("GET /metrics", every), ("PromQL", "")], strict=True
    ):
        # Whoever is further on asks, and the number comes back: two arrows.
        left, right = one.x + one.width / 2, other.x - other.width / 2
        arrow(ax, (right, one.y + 0.2), (left, one.y + 0.2), colour=GREY)
        arrow(ax, (left, one.y - 0.2), (right, one.y - 0.2))
        for words, y, side in ((above, one.y + 0.3, "bottom"), (below, one.y - 0.3, "top")):
            ax.text((left + right) / 2, y, words, ha="center", va=side, fontsize=7, color=GREY)
    ax.text(at[1], 0.17, metric, ha="center", va="center", fontsize=7.5, color=INK, family="monospace")
    ax.text(at[3], 0.17, query, ha="center", va="center", fontsize=7.5, color=INK, family="monospace")
    return ax


def hooks_of_execve(usable: Mapping[str, bool]) -> Axes:
    """Where on the way of one ``execve`` call the four kinds of hooks sit.

    :param usable: hook kind (``raw_tracepoint``, ``tracepoint``, ``kprobe``, ``fentry``) -> whether this kernel has it.
    """
    ax = canvas(12.6, 4.2, "One execve call on its way, and who may look on (dashed: not on this kernel)")
    area(ax, (2.3, 0.1), 7.95, 4.0, "in the kernel")
    chain(
        ax,
        [
            Box(1.05, 0.95, "a process", "calls execve()", BLUE, width=1.9),
            Box(4.25, 0.95, "entry", "of every system call", GREY),
            Box(8.2, 0.95, "..._sys_execve()", "a C function", GREY),
            Box(11.5, 0.95, "a new program", "under the same pid", BLUE, width=2.0),
        ],
    )
    for x, kind, small, to in (
        (3.3, "raw_tracepoint", "sys_enter", 3.9),
        (5.25, "tracepoint", "sys_enter_execve", 4.7),
        (7.2, "kprobe", "any instruction", 7.85),
        (9.15, "fentry", "entry of a function", 8.6),
    ):
        there = usable.get(kind, False)
        colour = GREEN if there else GREY
        draw(
            ax, Box(x, 2.85, kind.replace("_", " "), small, colour, width=1.82, height=0.95, dashed=not there)
        )
        arrow(ax, (x, 2.37), (to, 1.45), colour=colour)
    return ax


def task_states() -> Axes:
    """One task over time: sleeping, waiting, running, and the tracepoint at each change."""
    ax = canvas(10, 2.6, "One task, seen from the run queue")
    ends = (1.2, 2.9, 5.0, 6.9, 8.8, 10.0)
    states = ("sleeps", "waits", "runs", "waits", "runs", "sleeps")
    colours = {"sleeps": GREY, "waits": VERMILION, "runs": GREEN}
    events = (
        "sched_wakeup",
        "sched_switch\nas next",
        "sched_switch\nas prev, runnable",
        "sched_switch\nas next",
        "sched_switch\nas prev, asleep",
    )
    for start, end, state in zip((0.0, *ends), ends, states, strict=False):
        ax.barh(0.8, end - start, left=start, height=0.7, color=colours[state], edgecolor="white")
        ax.text(
            (start + end) / 2, 0.8, state, ha="center", va="center", color="white", weight="bold", fontsize=9
        )
    for at, event in zip(ends, events, strict=False):
        ax.plot([at, at], [1.15, 1.5], color=INK, linewidth=1)
        ax.text(at, 1.55, event, ha="center", va="bottom", fontsize=7.5, color=INK)
    arrow(ax, (0, 0.25), (10, 0.25))
    ax.text(10, 0.0, "time", ha="right", va="center", fontsize=8, color=INK)
    return ax


def ring_buffer() -> Axes:
    """A BPF ring buffer: the pages that the kernel and a process share, and the records that lie in them."""
    ax = canvas(12.6, 5.6, "A ring buffer: above, the memory that both sides see; below, what lies in it")
    area(ax, (0.1, 3.55), 12.4, 1.95, "shared by the kernel and your process")
    for box in (
        Box(1.55, 4.35, "consumer position", "you write it", BLUE, width=2.6),
        Box(4.35, 4.35, "producer position", "the kernel writes it", ORANGE, width=2.6),
        Box(7.6, 4.35, "data", "a power of two of pages", GREEN, width=3.4),
        Box(10.8, 4.35, "data, once more", "the same pages again", GREEN, width=2.8, dashed=True),
    ):
        draw(ax, box)
    for box in (
        Box(1.15, 1.6, "free", "given back", GREY, width=1.9, dashed=True),
        Box(3.2, 1.6, "woken", "8 + 16 bytes", GREEN, width=2.0),
        Box(5.4, 1.6, "switched", "8 + 24 bytes", GREEN, width=2.2),
        Box(7.55, 1.6, "discarded", "skipped by you", GREY, width=1.9),
        Box(9.55, 1.6, "busy", "being written", VERMILION, width=1.9),
        Box(11.5, 1.6, "free", "", GREY, width=1.8, dashed=True),
    ):
        draw(ax, box)
    for at, who, colour in (
        (2.15, "you have read up to here", BLUE),
        (10.55, "the kernel has reserved up to here", ORANGE),
    ):
        arrow(ax, (at, 2.75), (at, 2.15), colour=colour)
        ax.text(at, 2.85, who, ha="center" if at > 5 else "left", va="bottom", fontsize=8, color=colour)
    ax.text(
        8.6, 0.78, "you stop here until it is written", ha="left", va="center", fontsize=8, color=VERMILION
    )
    header = "each begins with 8 bytes: length (30 bits), discard (1), busy (1), its own page (32)"
    ax.text(2.2, 0.3, header, ha="left", va="center", fontsize=8, color=INK)
    ax.plot([2.25, 2.25], [0.5, 1.05], color=INK, linewidth=1)
    return ax


def cgroup_of_a_task(*, cgroup_id: int, path: str, name: str) -> Axes:
    """From a task to the name of its control group, and the short cut that leads to somebody else's.

    :param cgroup_id: of the task that is woken.
    :param path: of its cgroup; the last part is shown.
    :param name: what people call it.
    """
    ax = canvas(12.6, 6.0, "From a task to its cgroup's name: above, in the kernel; below, in your process")
    at = [1.35, 4.6, 7.85, 11.1]
    area(ax, (0.1, 2.15), 12.4, 3.8, "in the kernel")
    chain(
        ax,
        [
            Box(at[0], 5.0, "the woken task", "task_struct", ORANGE),
            Box(at[1], 5.0, "css_set", "one cgroup per tree", ORANGE),
            Box(at[2], 5.0, "cgroup", "dfl_cgrp: in cgroup2", ORANGE),
            Box(at[3], 5.0, "kernfs node", f"id {cgroup_id}", GREEN),
        ],
    )
    for (one, other), word in zip(pairwise(at), ("cgroups", "dfl_cgrp", "kn"), strict=True):
        ax.text((one + other) / 2, 5.1, word, ha="center", va="bottom", fontsize=7.5, color=INK)
    current = Box(at[0], 3.05, "current", "who runs here now", VERMILION, dashed=True)
    stranger = Box(at[2], 3.05, "somebody's cgroup", "or idle's, the root", VERMILION, width=2.6, dashed=True)
    for box in (current, stranger):
        draw(ax, box)
    arrow(ax, (at[0] + 1.15, 3.05), (at[2] - 1.3, 3.05), colour=VERMILION)
    helper = "bpf_get_current_cgroup_id()"
    ax.text((at[0] + at[2]) / 2 - 0.05, 3.13, helper, ha="center", va="bottom", fontsize=8, color=VERMILION)
    last = path.rstrip("/").rsplit("/", 1)[-1]
    chain(
        ax,
        [
            Box(at[3], 0.95, "a directory", f"inode {cgroup_id}", GREEN),
            Box(at[2], 0.95, "its path", f"…/{last}"[:26]),
            Box(at[1], 0.95, "what makes such", "unit, container, pod"),
            Box(at[0], 0.95, text.plain(name)[:20], "name, kind, owner"),
        ],
    )
    arrow(ax, (at[3], 4.5), (at[3], 1.45), colour=GREEN)
    ax.text(at[3] + 0.12, 3.0, "the same\nnumber", fontsize=8, color=GREEN, va="center")
    return ax
