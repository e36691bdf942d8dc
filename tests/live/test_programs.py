"""Programs on the running kernel: hooks, fallbacks, parameters, the cache, and that nothing stays."""

import json
import os
import subprocess
import time
from pathlib import Path

import pandas as pd
import pytest

from labkit import bpfsys, spec
from labkit.errors import CompileError, HookNotFound, MapError, ParameterError, VerifierRejected
from labkit.histogram import log2_edges, log2_slot
from labkit.kernel import btf, headers, probe
from labkit.program import load, stale_programs
from labkit.workloads import exact_calls, exact_spawns

pytestmark = pytest.mark.live


def _still_there(ids: set[int]) -> set[int]:
    """Which of these programs are in the kernel after the short while in which it frees them."""
    for _ in range(100):
        left = ids & {p.id for p in stale_programs()}
        if not left:
            break
        time.sleep(0.02)
    return left


def test_hello_counts_exactly_the_programs_that_were_started() -> None:
    with load("hello") as prog, exact_spawns(23).run():
        calls = prog.frame("hello").set_index("comm")["calls"]
        assert calls["lk-spawner"] == 23
        assert prog.ledger.balanced


@pytest.mark.parametrize("hook", ["tracepoint", "raw_tracepoint"])
def test_one_body_counts_the_same_from_each_hook(hook: str) -> None:
    with load("hello", hooks={"exec": hook}) as prog, exact_spawns(7).run():
        assert prog.hooks["hook"].item().startswith(hook + ":")
        assert prog.frame("hello").set_index("comm").loc["lk-spawner", "calls"] == 7


@pytest.mark.parametrize("hook", ["tracepoint", "raw_tracepoint"])
def test_a_parameter_becomes_a_constant_and_arguments_are_read_right(hook: str) -> None:
    size = 5000
    with load("syscall_counts", tgid=os.getpid(), hooks={"enter": hook}) as prog:
        with open(os.devnull, "wb", buffering=0) as sink:
            for _ in range(11):
                sink.write(bytes(size))
        prog.stop()
        counts, sizes = prog.frame("counts"), prog.frame("write_size")
    assert set(counts["tgid"]) == {os.getpid()}
    bucket = sizes[(sizes["lo"] <= size) & (size < sizes["hi"])]
    assert bucket["count"].item() >= 11
    assert (bucket["lo"].item(), bucket["hi"].item()) == (4096, 8192)


def test_bucket_edges_in_the_kernel_are_those_in_python() -> None:
    """0, 1, 2^k-1 and 2^k, asked of write(): the slots of bpf/lk.h against those of labkit.histogram."""
    sizes = sorted({0, 1} | {2**k - 1 for k in range(1, 21)} | {2**k for k in range(1, 21)})
    block = bytes(max(sizes))
    with open(os.devnull, "wb", buffering=0) as sink, load("syscall_counts", tgid=os.getpid()) as prog:
        before = prog.frame("write_size").set_index("lo")["count"]
        for size in sizes:
            os.write(sink.fileno(), block[:size])
        after = prog.frame("write_size").set_index("lo")["count"]
    added = after.sub(before, fill_value=0)
    expected = pd.Series(log2_slot(sizes)).value_counts().sort_index()
    lows = log2_edges()[0]
    assert {int(lo): int(n) for lo, n in added.items() if n} == {int(lows[s]): n for s, n in expected.items()}


def test_exactly_23_calls_are_23_in_the_frame() -> None:
    getppid = 110 if os.uname().machine == "x86_64" else 173
    with load("syscall_counts") as prog, exact_calls(23).run() as truth:
        counts = prog.frame("counts")
        pid = truth.tasks["pid"].item()
    assert counts[(counts["tgid"] == pid) & (counts["nr"] == getppid)]["calls"].item() == 23


def test_the_better_hooks_that_this_kernel_lacks_are_named_with_the_reason() -> None:
    with load("hello") as prog:
        row = prog.hooks.iloc[0]
    kinds = [hook.kind for hook in spec.read("hello").hooks["exec"]]
    for kind in kinds[: kinds.index(row["hook"].split(":")[0])]:
        assert kind in row["passed_over"]


def test_a_second_load_needs_no_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    with load("hello"):
        pass
    monkeypatch.setattr("labkit.compiler._run_worker", lambda *_a, **_k: pytest.fail("the compiler ran"))
    with load("hello") as prog:
        assert prog.cached


def test_a_damaged_cache_entry_is_compiled_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tree = headers.merged_tree()
    monkeypatch.setenv("LABKIT_CACHE", str(tmp_path))
    (tmp_path / "headers").symlink_to(tree.parent)
    with load("hello"):
        pass
    (entry,) = (tmp_path / "programs").glob("hello-*.json")
    stored = json.loads(entry.read_text())
    body = stored["artifact"]  # still JSON, with other instructions in it
    at = body.index('"code": "') + len('"code": "') + 40
    stored["artifact"] = body[:at] + ("B" if body[at] == "A" else "A") + body[at + 1 :]
    entry.write_text(json.dumps(stored))
    with load("hello") as prog:
        assert not prog.cached


def test_waits_that_find_the_table_full_stand_in_the_ledger() -> None:
    source = spec.read("runq_latency").source.replace("#define LK_TASKS 65536", "#define LK_TASKS 2")
    with load("runq_latency", source=source) as prog, exact_spawns(7).run():
        assert len(prog.frame("waits")) == 2
        ledger = prog.ledger
    assert ledger.losses["map_full"] > 7
    assert ledger.balanced, ledger.describe()


def test_leaving_the_block_leaves_nothing_in_the_kernel() -> None:
    before = len(os.listdir("/proc/self/fd"))
    with load("runq_latency") as prog:
        ours = {bpfsys.prog_info(attached.prog_fd).id for attached in prog._attached.values()}
        assert len(ours) == 3
        assert ours <= {p.id for p in stale_programs()}
    assert len(os.listdir("/proc/self/fd")) == before
    assert not _still_there(ours)


def test_a_failed_load_leaves_nothing_either() -> None:
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(VerifierRejected):
        load("hello", source=_spoilt("    book->seen++;", "    book->seen = *(u64 *)((void *)book + 4096);"))
    assert len(os.listdir("/proc/self/fd")) == before


def _spoilt(old: str, new: str) -> str:
    source = spec.read("hello").source
    assert old in source
    return source.replace(old, new)


def test_c_that_does_not_compile_says_where() -> None:
    source = _spoilt("    book->seen++;", "    book->sean++;")
    with pytest.raises(CompileError, match="no member named 'sean'") as caught:
        load("hello", source=source)
    assert caught.value.line == 1 + source.splitlines().index("    book->sean++;")
    assert "clang" not in caught.value.what
    assert "did you mean 'seen'" in caught.value.log


def test_a_program_the_verifier_refuses_says_why_and_where() -> None:
    bad = "    book->seen = *(u64 *)((void *)book + 4096);"
    source = _spoilt("    book->seen++;", bad)
    with pytest.raises(VerifierRejected) as caught:
        load("hello", source=source)
    assert "invalid access to map value" in caught.value.why
    assert caught.value.line == 1 + source.splitlines().index(bad)
    assert "R" in caught.value.log


def test_an_unknown_hook_names_the_nearest() -> None:
    source = spec.read("runq_latency").source.replace(
        'raw_tracepoint:sched_wakeup"]', 'raw_tracepoint:sched_wakup"]'
    )
    with pytest.raises(HookNotFound) as caught:
        load("runq_latency", source=source)
    assert "sched_wakeup" in caught.value.nearest


def test_insisting_on_a_hook_that_the_program_lacks_is_an_error() -> None:
    with pytest.raises(HookNotFound, match="it has"):
        load("runq_latency", hooks={"switch": "kprobe"})
    with pytest.raises(HookNotFound, match="nothing called swich") as caught:
        load("runq_latency", hooks={"swich": "raw_tracepoint"})
    assert caught.value.nearest == ["switch"]


def test_an_unknown_parameter_names_the_nearest() -> None:
    with pytest.raises(ParameterError, match="nearest: tgid"):
        load("runq_latency", tgidd=1)


def test_an_unknown_map_names_those_there_are_and_a_closed_one_says_so() -> None:
    with load("hello") as prog, pytest.raises(MapError, match="it has: hello"):
        prog.frame("helo")
    with pytest.raises(MapError, match="closed"):
        prog.frame("hello")


def test_cost_is_counted_by_the_kernel_where_permitted() -> None:
    with load("hello", hooks={"exec": "raw_tracepoint"}) as prog:
        subprocess.run(["true"], check=True)
        cost = prog.cost()
    if probe()["capabilities"].consequence:
        assert prog.cost_note
        assert cost.empty
    else:
        assert cost["run_count"].item() > 0
        assert 10 < cost["ns_per_run"].item() < 100_000


def test_the_running_kernels_btf_has_what_the_programs_name() -> None:
    kernel = btf.kernel()
    for program in ("hello", "syscall_counts", "runq_latency"):
        text = btf.minimal_structs(kernel, spec.read(program).types)
        assert text.count("_Static_assert") >= text.count("struct task_struct {")
    assert kernel.tracepoint_args("sched_switch") in (3, 4)


def test_statistics_end_with_the_process_that_asked_for_them() -> None:
    setting = Path("/proc/sys/kernel/bpf_stats_enabled")
    before = setting.read_text()
    with load("hello"):
        pass
    assert setting.read_text() == before
    assert isinstance(bpfsys.loaded_programs(), list)
