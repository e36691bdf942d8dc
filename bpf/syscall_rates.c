/*
 * purpose: >
 *   Count system calls per process in intervals: the counts are kept twice, so that user space can take one set and have
 *   it emptied while the other goes on, and no call is lost or counted twice in between.
 * hooks:
 *   enter:
 *     - "raw_tracepoint:sys_enter"
 *     - "tracepoint:raw_syscalls:sys_enter"
 * params:
 *   entries: {type: u32, default: 16384, help: "how many processes and calls fit into one interval"}
 * maps:
 *   calls: {holds: "calls per process and system call number since the last swap", swaps: true}
 *   ledger: {holds: "what was seen and lost", internal: true}
 * ledger: {event: system call, losses: [map_full]}
 * license: GPL-2.0-only
 */
#include "lk.h"

struct lk_caller {
    u32 tgid;
    u32 nr;
};

struct lk_rates_ledger {
    u64 seen;
    u64 delivered;
    u64 map_full;
};

BPF_HASH(calls, struct lk_caller, u64, LK_PARAM_ENTRIES);
BPF_HASH(calls_twin, struct lk_caller, u64, LK_PARAM_ENTRIES);
BPF_ARRAY(calls_turn, u32, 1); /* 0: write to calls, 1: to its twin */
BPF_PERCPU_ARRAY(ledger, struct lk_rates_ledger, 1);

static __always_inline int count_call(u32 nr)
{
    struct lk_caller key = {.tgid = bpf_get_current_pid_tgid() >> 32, .nr = nr};
    struct lk_rates_ledger *book;
    u64 none = 0, *count;
    u32 *turn;
    int first = 0;

    book = ledger.lookup(&first);
    turn = calls_turn.lookup(&first);
    if (!book || !turn)
        return 0;
    book->seen++;
    if (*turn)
        count = calls_twin.lookup_or_try_init(&key, &none);
    else
        count = calls.lookup_or_try_init(&key, &none);
    if (!count) {
        book->map_full++;
        return 0;
    }
    __sync_fetch_and_add(count, 1);
    book->delivered++;
    return 0;
}

#if defined(LK_HOOK_enter_RAW_TRACEPOINT)
/* (struct pt_regs *regs, long id) */
int lk_enter(struct bpf_raw_tracepoint_args *ctx)
{
    return count_call(ctx->args[1]);
}
#else
/* include/trace/events/syscalls.h: long id, after the 8 bytes common to all events */
struct lk_sys_enter {
    u64 common;
    s64 id;
};

int lk_enter(struct lk_sys_enter *ctx)
{
    return count_call(ctx->id);
}
#endif
