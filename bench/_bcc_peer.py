"""bcc as people use it, in a process of its own, on a map of the parent's. Run as a script.

The first line on standard input is the request: ``{"bcc": folder of the package, "worker": labkit's ``_bcc_worker.py``,
which knows how to import it, "fd": map, "entries": int, "form": "hash", "percpu_hash", "ring" or "bare_ring"}``. Each
further line is one measurement: ``{"do": "items" | "items_lookup_batch" | "ring", "expect": int}``; the answer is
``{"seconds": float, "count": int}``. The map is the very one that labkit reads: bcc compiles one like it, for its types,
and is then handed the parent's file descriptor.
"""

import importlib.util
import json
import sys
import time

_VALUE = "struct value_t { u64 count; u64 total_ns; };"
_EVENTS = """
struct small_t { u64 time_ns; u32 pid; u16 kind; u16 cpu; };
struct event_t { u64 time_ns; u32 prev_pid; u16 kind; u16 cpu; u32 next_pid; u32 runnable; };
BPF_RINGBUF_OUTPUT(bench, 8);
BPF_ARRAY(unused, struct small_t, 1);
int types_come_from_here(void *ctx) {
    struct event_t event = {};
    bench.ringbuf_output(&event, sizeof(event), 0);
    return 0;
}
"""
_TEXTS = {
    "hash": _VALUE + "BPF_HASH(bench, u64, struct value_t, 16);",
    "percpu_hash": _VALUE + "BPF_PERCPU_HASH(bench, u64, struct value_t, 16);",
    "ring": _EVENTS,
    "bare_ring": _EVENTS,
}


class _Callback:
    """The callback that tutorials teach: one call per event, its members into a list, a DataFrame at the end."""

    def __init__(self, program, table):
        import ctypes

        self.program, self.rows, self.small_rows = program, [], []
        small = program["unused"].Leaf

        def collect(_, data, size):
            if size == 16:
                event = ctypes.cast(data, ctypes.POINTER(small)).contents
                self.small_rows.append((event.time_ns, event.pid, event.kind, event.cpu))
                return
            event = table.event(data)
            self.rows.append(
                (event.time_ns, event.prev_pid, event.kind, event.cpu, event.next_pid, event.runnable)
            )

        table.open_ring_buffer(collect)

    def drain(self, expect):
        import pandas as pd

        self.rows.clear()
        self.small_rows.clear()
        while len(self.rows) + len(self.small_rows) < expect:
            self.program.ring_buffer_consume()  # what poll calls once it is woken; nobody wakes here
        columns = ["time_ns", "prev_pid", "kind", "cpu", "next_pid", "runnable"]
        frames = [pd.DataFrame(self.rows, columns=columns)]
        if self.small_rows:
            frames.append(pd.DataFrame(self.small_rows, columns=["time_ns", "pid", "kind", "cpu"]))
        return sum(map(len, frames))


class _BareCallback:
    """The least a callback can do with an event: see its type, look at one member, keep nothing."""

    def __init__(self, program, table):
        self.program, self.count, self.total = program, 0, 0

        def look(_, data, size):
            self.total += table.event(data).prev_pid
            self.count += 1

        table.open_ring_buffer(look)

    def drain(self, expect):
        self.count = 0
        while self.count < expect:
            self.program.ring_buffer_consume()  # what poll calls once it is woken; nobody wakes here
        return self.count


def main():
    request = json.loads(sys.stdin.readline())
    found = importlib.util.spec_from_file_location("worker", request["worker"])
    worker = importlib.util.module_from_spec(found)
    found.loader.exec_module(worker)
    bcc = worker.import_bcc(request["bcc"])
    program = bcc.BPF(text=_TEXTS[request["form"]])
    table = program["bench"]
    table.map_fd = request["fd"]
    table.max_entries = request["entries"]
    work = {"items": table.items, "items_lookup_batch": lambda: list(table.items_lookup_batch())}
    ring = None
    if request["form"] == "ring":
        ring = _Callback(program, table)
    elif request["form"] == "bare_ring":
        ring = _BareCallback(program, table)
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        order = json.loads(line)
        start = time.process_time()
        found = ring.drain(order["expect"]) if order["do"] == "ring" else work[order["do"]]()
        seconds = time.process_time() - start
        count = found if isinstance(found, int) else len(found)
        del found
        print(json.dumps({"seconds": seconds, "count": count}), flush=True)


if __name__ == "__main__":
    main()
