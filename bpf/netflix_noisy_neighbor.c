/*
 * purpose: >
 *   The published noisy-neighbour program, as published: run-queue latency by stamps at wakeup, sampled by a rate limit, each
 *   sample with the cgroups of the task that leaves the CPU and of the one that gets it. Kept with its flaws, to learn from.
 * hooks:
 *   wakeup: ["raw_tracepoint:sched_wakeup"]
 *   wakeup_new: ["raw_tracepoint:sched_wakeup_new"]
 *   switch: ["raw_tracepoint:sched_switch"]
 * types: [task_struct.pid, "task_struct.__state|state", task_struct.cgroups, css_set.dfl_cgrp, cgroup.kn, kernfs_node.id]
 * params:
 *   rate_limit_ns: {type: u64, default: 100000, help: "at most one event per cgroup and CPU in so many ns; 0 is no limit"}
 *   tasks: {type: u32, default: 65536, help: "size of the tables: tasks that wait, and cgroups"}
 *   ring_pages: {type: u32, default: 1024, help: "size of the ring in pages of memory, a power of two"}
 *   wake: {type: bool, default: 1, help: "wake the reader for each event, as published; it makes switches of its own then"}
 * maps:
 *   events: {holds: "sampled latencies", ring: {tag: "", types: {runq: 0}}}
 *   runq: {holds: "one latency", internal: true}
 *   runq_enqueued: {holds: "when tasks were woken, by pid", key: pid, value: ts}
 *   cgroup_id_to_last_event_ts: {holds: "last event of a cgroup on each CPU", key: cgroup_id, value: ts}
 *   ledger: {holds: "what was seen and lost", internal: true}
 * ledger:
 *   event: switch-in
 *   losses: [missed_enqueue, rate_limited, ring_full]
 *   notes:
 *     stamps_kept: "wakeups found a stamp of an earlier one and left it there (flaw 2)"
 *     stamps_failed: "wakeups found no room for a stamp (flaw 3)"
 *     limits_failed: "events found no room for the time of their cgroup: its rate is not limited (flaw 4)"
 * license: GPL-2.0-only
 */
#include "lk.h"

/*
 * After "Noisy Neighbor Detection with eBPF" (Netflix Technology Blog, September 2024), whose names of maps and members these
 * are. It uses tp_btf and the kfuncs bpf_rcu_read_lock/unlock, which bcc cannot; a raw tracepoint hands over the same
 * arguments, and reads with bpf_probe_read_kernel need no lock. It does not publish RATE_LIMIT_NS, MAX_TASK_ENTRIES and
 * RINGBUF_SIZE_BYTES: they are parameters here. The ledger is ours; the published program counts none of it.
 *
 * What is wrong with it, marked below where it happens:
 *   flaw 1  a task that is put off the CPU while it would go on is not stamped: it waits, and nobody notices
 *   flaw 2  BPF_NOEXIST keeps the first of several stamps: a task woken while it still ran, slept and was woken again seems to
 *           have waited all the while
 *   flaw 3  nothing removes the stamp of a task that ends unrun, or of one that was woken while it ran and then exits: the
 *           table fills, a reused pid inherits it
 *   flaw 4  cgroups that are gone keep their place in the table of the rate limit; when it is full, others have no limit
 *   flaw 5  the rate limit keeps the first event of each window and does not count the rest: neither a sum nor an unbiased
 *           percentile can be had from what is left
 *   flaw 6  prev is whoever left the CPU just now, at the end of the wait, though others may have had it all the while; it
 *           may have left of its own accord; it may be idle, whose cgroup is the root
 *   flaw 7  time under the task's own quota is part of the latency
 */
#define LK_EEXIST 17

struct lk_runq {
    u64 prev_cgroup_id;
    u64 cgroup_id;
    u64 runq_lat;
    u64 ts;
};

struct lk_netflix_ledger {
    u64 seen;
    u64 delivered;
    u64 missed_enqueue;
    u64 rate_limited;
    u64 ring_full;
    u64 stamps_kept;
    u64 stamps_failed;
    u64 limits_failed;
};

BPF_HASH(runq_enqueued, u32, u64, LK_PARAM_TASKS);
BPF_PERCPU_HASH(cgroup_id_to_last_event_ts, u64, u64, LK_PARAM_TASKS);
BPF_RINGBUF_OUTPUT(events, LK_PARAM_RING_PAGES);
BPF_ARRAY(runq, struct lk_runq, 1);
BPF_PERCPU_ARRAY(ledger, struct lk_netflix_ledger, 1);

static __always_inline u64 get_task_cgroup_id(struct task_struct *task)
{
    return task->cgroups->dfl_cgrp->kn->id;
}

static __always_inline int enqueued(struct task_struct *task)
{
    struct lk_netflix_ledger *book;
    u64 ts = bpf_ktime_get_ns();
    u32 pid = task->pid;
    int first = 0, error;

    if (!pid) /* the article leaves out "kernel tasks, which are identifiable by their PID of 0": that is idle alone */
        return 0;
    error = runq_enqueued.insert(&pid, &ts); /* flaws 2 and 3: insert is BPF_NOEXIST */
    if (!error)
        return 0;
    book = ledger.lookup(&first);
    if (!book)
        return 0;
    if (error == -LK_EEXIST)
        book->stamps_kept++;
    else
        book->stamps_failed++;
    return 0;
}

int lk_wakeup(struct bpf_raw_tracepoint_args *ctx)
{
    struct task_struct *task = (struct task_struct *)ctx->args[0];

    return enqueued(task);
}

int lk_wakeup_new(struct bpf_raw_tracepoint_args *ctx)
{
    struct task_struct *task = (struct task_struct *)ctx->args[0];

    return enqueued(task);
}

/* (bool preempt, struct task_struct *prev, struct task_struct *next[, unsigned int prev_state]) */
int lk_switch(struct bpf_raw_tracepoint_args *ctx)
{
    struct task_struct *prev = (struct task_struct *)ctx->args[1]; /* flaw 1: prev gets no stamp, whatever its state */
    struct task_struct *next = (struct task_struct *)ctx->args[2];
    u64 *tsp, *last_ts, now, runq_lat, prev_cgroup_id, cgroup_id, last_ts_val;
    struct lk_netflix_ledger *book;
    struct lk_runq *event;
    u32 next_pid = next->pid;
    int first = 0;
#if LK_ARGS_sched_switch >= 4 /* since 5.18 (commit fa2c3254d7cf) */
    u64 prev_state = ctx->args[3]; /* 0: it would go on. Nothing here asks; see flaw 1, and exercise 08.2 */
#else
    u64 prev_state = prev->LK_task_struct___state;
#endif

    if (!next_pid)
        return 0;
    book = ledger.lookup(&first);
    if (!book)
        return 0;
    book->seen++;

    tsp = runq_enqueued.lookup(&next_pid);
    if (!tsp) {
        book->missed_enqueue++; /* the other end of flaw 1 */
        return 0;
    }
    now = bpf_ktime_get_ns();
    runq_lat = now - *tsp; /* flaw 7 */
    runq_enqueued.delete(&next_pid);

    prev_cgroup_id = get_task_cgroup_id(prev); /* flaw 6 */
    cgroup_id = get_task_cgroup_id(next);

    last_ts = cgroup_id_to_last_event_ts.lookup(&cgroup_id);
    last_ts_val = last_ts ? *last_ts : 0;
    if (now - last_ts_val < LK_PARAM_RATE_LIMIT_NS) { /* flaw 5 */
        book->rate_limited++;
        return 0;
    }

    event = events.ringbuf_reserve(sizeof(struct lk_runq));
    if (!event) {
        book->ring_full++;
        return 0;
    }
    event->prev_cgroup_id = prev_cgroup_id;
    event->cgroup_id = cgroup_id;
    event->runq_lat = runq_lat;
    event->ts = now;
    events.ringbuf_submit(event, LK_PARAM_WAKE ? 0 : 1 /* BPF_RB_NO_WAKEUP */);
    book->delivered++;
    if (cgroup_id_to_last_event_ts.update(&cgroup_id, &now)) /* flaw 4 */
        book->limits_failed++;
    return 0;
}
