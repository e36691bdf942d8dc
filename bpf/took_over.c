/*
 * purpose: Who takes over the CPU from whom, one count per pair of processes. Every switch counts, of whatever kind.
 * hooks: {switch: ["raw_tracepoint:sched_switch"]}
 * types: [task_struct.tgid, "task_struct.__state|state"]
 * maps:
 *   took: {holds: "switches from one process to another; tgid 0 is the idle task", value: switches}
 *   ledger: {holds: "what was seen and lost", internal: true}
 * ledger: {event: switch, losses: [map_full]}
 * license: GPL-2.0-only
 */
#include "lk.h"

struct lk_pair {
    u32 prev_tgid;
    u32 next_tgid;
};

struct lk_took_ledger {
    u64 seen;
    u64 delivered;
    u64 map_full;
};

BPF_HASH(took, struct lk_pair, u64, 65536);
BPF_PERCPU_ARRAY(ledger, struct lk_took_ledger, 1);

/* True if the task that leaves would have gone on: it was put off the CPU, and did not go to sleep. */
static __always_inline bool put_off(bool preempt, u64 prev_state)
{
    return preempt || prev_state == 0;
}

/* (bool preempt, struct task_struct *prev, struct task_struct *next[, unsigned int prev_state]) */
int lk_switch(struct bpf_raw_tracepoint_args *ctx)
{
    struct task_struct *prev = (struct task_struct *)ctx->args[1];
    struct task_struct *next = (struct task_struct *)ctx->args[2];
    struct lk_pair pair = {};
    struct lk_took_ledger *book;
    u64 prev_state, none = 0, *switches;
    int first = 0;

#if LK_ARGS_sched_switch >= 4 /* since 5.18 (commit fa2c3254d7cf) */
    prev_state = ctx->args[3];
#else
    prev_state = prev->LK_task_struct___state;
#endif
    book = ledger.lookup(&first);
    if (!book)
        return 0;
    book->seen++;
    pair.prev_tgid = prev->tgid;
    pair.next_tgid = next->tgid;
    switches = took.lookup_or_try_init(&pair, &none);
    if (!switches) {
        book->map_full++;
        return 0;
    }
    __sync_fetch_and_add(switches, 1);
    book->delivered++;
    return 0;
}
