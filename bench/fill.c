/*
 * purpose: Fills a ring buffer for the bench. Never attached - each run is one BPF_PROG_TEST_RUN, so the reader can be timed alone.
 * hooks:
 *   fill: ["raw_tracepoint:sched_switch"]
 * params:
 *   ring_pages: {type: u32, default: 16384, help: "size of the ring in pages of memory, a power of two"}
 *   burst: {type: u32, default: 512, help: "records per run"}
 *   mixed: {type: bool, default: 0, help: "two sizes of record in a changing order, as a scheduler makes them"}
 * maps:
 *   events: {holds: "made-up events", ring: {tag: kind, types: {small: 1, large: 2}}}
 *   small: {holds: "one kind of event", internal: true}
 *   large: {holds: "another kind, 8 bytes longer", internal: true}
 * license: GPL-2.0-only
 */
#include "lk.h"

#define NO_WAKEUP 1 /* BPF_RB_NO_WAKEUP, include/uapi/linux/bpf.h */

struct bench_small {
    u64 time_ns;
    u32 pid;
    u16 kind;
    u16 cpu;
};

struct bench_large {
    u64 time_ns;
    u32 prev_pid;
    u16 kind;
    u16 cpu;
    u32 next_pid;
    u32 runnable;
};

BPF_RINGBUF_OUTPUT(events, LK_PARAM_RING_PAGES);
BPF_ARRAY(small, struct bench_small, 1);
BPF_ARRAY(large, struct bench_large, 1);

static __always_inline int put_small(u32 step, u64 now)
{
    struct bench_small *event = events.ringbuf_reserve(sizeof(struct bench_small));

    if (!event)
        return 0;
    event->time_ns = now + step;
    event->pid = step & 1023;
    event->kind = 1;
    event->cpu = step & 1;
    events.ringbuf_submit(event, NO_WAKEUP);
    return 1;
}

static __always_inline int put_large(u32 step, u64 now)
{
    struct bench_large *event = events.ringbuf_reserve(sizeof(struct bench_large));

    if (!event)
        return 0;
    event->time_ns = now + step;
    event->prev_pid = step & 1023;
    event->kind = 2;
    event->cpu = step & 1;
    event->next_pid = (step + 1) & 1023;
    event->runnable = step & 1;
    events.ringbuf_submit(event, NO_WAKEUP);
    return 1;
}

/* Returns how many records fitted. */
int lk_fill(struct bpf_raw_tracepoint_args *ctx)
{
    u64 now = bpf_ktime_get_ns();
    u32 step, done = 0;

    for (step = 0; step < LK_PARAM_BURST; step++) {
        /* No fixed alternation: 0 1 1 0 1 0 0 1 ... by the bits of a product. */
        if (LK_PARAM_MIXED && ((step * 2654435761u) >> 31))
            done += put_small(step, now);
        else
            done += put_large(step, now);
    }
    return done;
}
