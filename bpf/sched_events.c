/*
 * purpose: Every wakeup and every switch as an event of its own, through one ring buffer, with each lost one counted.
 * hooks:
 *   wakeup: ["raw_tracepoint:sched_wakeup"]
 *   wakeup_new: ["raw_tracepoint:sched_wakeup_new"]
 *   switch: ["raw_tracepoint:sched_switch"]
 * types: [task_struct.pid, "task_struct.__state|state"]
 * params:
 *   ring_pages: {type: u32, default: 4096, help: "size of the ring in pages of memory, a power of two"}
 *   wake: {type: bool, default: 0, help: "wake the reader for each event, as most programs do; it records itself then"}
 * maps:
 *   events: {holds: "wakeups and switches in order", ring: {tag: kind, types: {woken: 1, switched: 2}}}
 *   woken: {holds: "a task became runnable", internal: true}
 *   switched: {holds: "a CPU went from one task to another", internal: true}
 *   lost: {holds: "events lost so far on all CPUs, for each switch to carry", internal: true}
 *   ledger: {holds: "what was seen and lost", internal: true}
 * ledger: {event: event, losses: [ring_full]}
 * license: GPL-2.0-only
 */
#include "lk.h"

/* include/uapi/linux/bpf.h; plain numbers, since old headers lack them */
#define LK_RB_NO_WAKEUP 1
#define LK_RB_FLAGS (LK_PARAM_WAKE ? 0 : LK_RB_NO_WAKEUP)

enum lk_kind { LK_KIND_WOKEN = 1, LK_KIND_SWITCHED = 2 };

struct lk_woken {
    u64 time_ns; /* CLOCK_MONOTONIC */
    u32 pid;
    u8 kind;
    u8 unused;
    u16 cpu;
};

struct lk_switched {
    u64 time_ns;
    u32 prev_pid;
    u8 kind;
    u8 runnable; /* the task that left would have gone on */
    u16 cpu;
    u32 next_pid;
    u32 lost; /* events lost before this one, on all CPUs: between two that differ, something is missing */
};

struct lk_events_ledger {
    u64 seen;
    u64 delivered;
    u64 ring_full;
};

BPF_RINGBUF_OUTPUT(events, LK_PARAM_RING_PAGES);
BPF_ARRAY(woken, struct lk_woken, 1);
BPF_ARRAY(switched, struct lk_switched, 1);
BPF_ARRAY(lost, u64, 1);
BPF_PERCPU_ARRAY(ledger, struct lk_events_ledger, 1);

static __always_inline void count_loss(struct lk_events_ledger *book)
{
    int first = 0;
    u64 *total = lost.lookup(&first);

    book->ring_full++;
    if (total)
        __sync_fetch_and_add(total, 1);
}

static __always_inline int on_wakeup(struct task_struct *task)
{
    struct lk_events_ledger *book;
    struct lk_woken *event;
    u32 pid = task->pid;
    int first = 0;

    book = ledger.lookup(&first);
    if (!book)
        return 0;
    book->seen++;
    event = events.ringbuf_reserve(sizeof(struct lk_woken));
    if (!event) {
        count_loss(book);
        return 0;
    }
    event->time_ns = bpf_ktime_get_ns();
    event->pid = pid;
    event->kind = LK_KIND_WOKEN;
    event->unused = 0;
    event->cpu = bpf_get_smp_processor_id();
    events.ringbuf_submit(event, LK_RB_FLAGS);
    book->delivered++;
    return 0;
}

int lk_wakeup(struct bpf_raw_tracepoint_args *ctx)
{
    struct task_struct *task = (struct task_struct *)ctx->args[0];

    return on_wakeup(task);
}

int lk_wakeup_new(struct bpf_raw_tracepoint_args *ctx)
{
    struct task_struct *task = (struct task_struct *)ctx->args[0];

    return on_wakeup(task);
}

int lk_switch(struct bpf_raw_tracepoint_args *ctx)
{
    struct task_struct *prev = (struct task_struct *)ctx->args[1];
    struct task_struct *next = (struct task_struct *)ctx->args[2];
    u32 prev_pid = prev->pid, next_pid = next->pid;
    struct lk_events_ledger *book;
    struct lk_switched *event;
    u64 prev_state, *total;
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
    event = events.ringbuf_reserve(sizeof(struct lk_switched));
    if (!event) {
        count_loss(book);
        return 0;
    }
    total = lost.lookup(&first);
    event->lost = total ? *total : 0; /* before the clock: what is lost later has a later time */
    event->time_ns = bpf_ktime_get_ns();
    event->prev_pid = prev_pid;
    event->kind = LK_KIND_SWITCHED;
    event->cpu = bpf_get_smp_processor_id();
    event->next_pid = next_pid;
    event->runnable = ctx->args[0] || !prev_state;
    events.ringbuf_submit(event, LK_RB_FLAGS);
    book->delivered++;
    return 0;
}
