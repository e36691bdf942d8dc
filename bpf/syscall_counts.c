/*
 * purpose: Count system calls per process and call, in the kernel; with the bytes that write() was asked to write.
 * hooks:
 *   enter:
 *     - "tracepoint:raw_syscalls:sys_enter"
 *     - "raw_tracepoint:sys_enter"
 * types: ["@pt_regs.dx?", "@pt_regs.regs?"]  # where the third argument is: x86-64, arm64
 * params:
 *   tgid: {type: u32, default: 0, help: "count only this process; 0 is every process"}
 * maps:
 *   counts: {holds: "calls per process and system call number"}
 *   totals: {holds: "calls per CPU", value: calls}
 *   write_size: {holds: "bytes asked for by write()", histogram: {slots: log2, unit: bytes}}
 *   ledger: {holds: "what was seen and lost", internal: true}
 * ledger: {event: system call, losses: [map_full]}
 * license: GPL-2.0-only
 */
#include "lk.h"

struct lk_call {
    u32 tgid;
    u32 nr;
};

struct lk_calls {
    u64 calls;
    u64 first_ns; /* CLOCK_MONOTONIC */
    u64 last_ns;
    char comm[LK_TASK_COMM_LEN];
};

struct lk_count_ledger {
    u64 seen;
    u64 delivered;
    u64 map_full;
};

BPF_HASH(counts, struct lk_call, struct lk_calls, 16384);
BPF_PERCPU_ARRAY(totals, u64, 1);
BPF_PERCPU_ARRAY(write_size, u64, 65);
BPF_PERCPU_ARRAY(ledger, struct lk_count_ledger, 1);

static __always_inline int count_call(u32 nr, u64 third_argument)
{
    struct lk_call key = {.tgid = bpf_get_current_pid_tgid() >> 32, .nr = nr};
    struct lk_calls fresh = {}, *entry;
    struct lk_count_ledger *book;
    u64 now = bpf_ktime_get_ns(), *cell;
    int first = 0, slot;

    if (LK_PARAM_TGID && key.tgid != LK_PARAM_TGID)
        return 0;
    book = ledger.lookup(&first);
    if (!book)
        return 0;
    book->seen++;
    fresh.first_ns = now;
    entry = counts.lookup_or_try_init(&key, &fresh);
    if (!entry) {
        book->map_full++;
        return 0;
    }
    __sync_fetch_and_add(&entry->calls, 1);
    entry->last_ns = now;
    bpf_get_current_comm(&entry->comm, sizeof(entry->comm));
    cell = totals.lookup(&first);
    if (cell)
        *cell += 1;
    if (nr == LK_NR_write) {
        slot = lk_log2_slot(third_argument);
        cell = write_size.lookup(&slot);
        if (cell)
            *cell += 1;
    }
    book->delivered++;
    return 0;
}

#if defined(LK_HOOK_enter_RAW_TRACEPOINT)
/* (struct pt_regs *regs, long id): the arguments are in the registers that were saved on entry */
int lk_enter(struct bpf_raw_tracepoint_args *ctx)
{
    u64 regs = ctx->args[0], third = 0;

#ifdef LK_OFFSET_pt_regs_dx
    bpf_probe_read_kernel(&third, sizeof(third), (void *)(regs + LK_OFFSET_pt_regs_dx));
#else
    bpf_probe_read_kernel(&third, sizeof(third), (void *)(regs + LK_OFFSET_pt_regs_regs + 2 * sizeof(u64)));
#endif
    return count_call(ctx->args[1], third);
}
#else
/* include/trace/events/syscalls.h: long id, unsigned long args[6], after the 8 bytes common to all events */
struct lk_sys_enter {
    u64 common;
    s64 id;
    u64 args[6];
};

int lk_enter(struct lk_sys_enter *ctx)
{
    return count_call(ctx->id, ctx->args[2]);
}
#endif
