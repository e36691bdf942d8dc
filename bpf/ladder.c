/*
 * purpose: >
 *   What a look costs, rung by rung. Up to rung 4 it does at each system call what it did on the rung below, and a little more;
 *   rung 5 hands over an event instead of counting in a hash, and rung 6 wakes the reader for it.
 * hooks: {enter: ["raw_tracepoint:sys_enter"]}
 * params:
 *   rung: {type: u32, default: 0, help: "0 nothing, 1 count, 2 clock, 3 hash, 4 name, 5 event, 6 event and wake"}
 * maps:
 *   last: {holds: "when a CPU last came by"}
 *   calls: {holds: "calls per process and number, from rung 3 on"}
 *   events: {holds: "an event per call, on rungs 5 and 6", internal: true}
 *   ledger: {holds: "what was seen and lost; on rung 0 nothing is written", internal: true}
 * ledger: {event: system call, losses: [map_full, ring_full]}
 * license: GPL-2.0-only
 */
#include "lk.h"

enum lk_rung { LK_NOTHING, LK_COUNT, LK_CLOCK, LK_HASH, LK_NAME, LK_EVENT, LK_WAKE };

/* include/uapi/linux/bpf.h; plain numbers, since old headers lack them */
#define LK_RB_NO_WAKEUP 1
#define LK_RB_FORCE_WAKEUP 2

struct lk_caller {
    u32 tgid;
    u32 nr;
};

struct lk_calls {
    u64 calls;
    char comm[LK_TASK_COMM_LEN];
};

struct lk_call_event {
    u64 time_ns;
    u32 tgid;
    u32 nr;
};

struct lk_ladder_ledger {
    u64 seen;
    u64 delivered;
    u64 map_full;
    u64 ring_full;
};

BPF_PERCPU_ARRAY(last, u64, 1);
BPF_HASH(calls, struct lk_caller, struct lk_calls, 16384);
BPF_RINGBUF_OUTPUT(events, 8192);
BPF_PERCPU_ARRAY(ledger, struct lk_ladder_ledger, 1);

static __always_inline bool keep(u32 nr)
{
    struct lk_caller caller = {.tgid = bpf_get_current_pid_tgid() >> 32, .nr = nr};
    struct lk_calls fresh = {}, *entry;

    entry = calls.lookup_or_try_init(&caller, &fresh);
    if (!entry)
        return false;
    __sync_fetch_and_add(&entry->calls, 1);
    if (LK_PARAM_RUNG >= LK_NAME)
        bpf_get_current_comm(&entry->comm, sizeof(entry->comm));
    return true;
}

static __always_inline bool hand_over(u32 nr, u64 now)
{
    struct lk_call_event *event = events.ringbuf_reserve(sizeof(struct lk_call_event));

    if (!event)
        return false;
    event->time_ns = now;
    event->tgid = bpf_get_current_pid_tgid() >> 32;
    event->nr = nr;
    events.ringbuf_submit(event, LK_PARAM_RUNG == LK_WAKE ? LK_RB_FORCE_WAKEUP : LK_RB_NO_WAKEUP);
    return true;
}

/* (struct pt_regs *regs, long id) */
int lk_enter(struct bpf_raw_tracepoint_args *ctx)
{
    struct lk_ladder_ledger *book;
    u64 now = 0, *when;
    int first = 0;

    if (LK_PARAM_RUNG == LK_NOTHING)
        return 0;
    book = ledger.lookup(&first);
    if (!book)
        return 0;
    book->seen++;
    if (LK_PARAM_RUNG >= LK_CLOCK) {
        when = last.lookup(&first);
        now = bpf_ktime_get_ns();
        if (when)
            *when = now;
    }
    if ((LK_PARAM_RUNG == LK_HASH || LK_PARAM_RUNG == LK_NAME) && !keep(ctx->args[1])) {
        book->map_full++;
        return 0;
    }
    if (LK_PARAM_RUNG >= LK_EVENT && !hand_over(ctx->args[1], now)) {
        book->ring_full++;
        return 0;
    }
    book->delivered++;
    return 0;
}
