/*
 * purpose: >
 *   How long did runnable tasks wait for a CPU? The classical way, with stamps of our own clock: a task begins to wait when
 *   it is woken or when it is put off the CPU while still runnable, and ends when it is switched in.
 * hooks:
 *   wakeup: ["raw_tracepoint:sched_wakeup"]
 *   wakeup_new: ["raw_tracepoint:sched_wakeup_new"]
 *   switch: ["raw_tracepoint:sched_switch"]
 * types:
 *   - task_struct.pid
 *   - task_struct.tgid
 *   - task_struct.comm
 *   - task_struct.start_time
 *   - task_struct.__state|state
 *   - task_struct.on_cpu
 *   - task_struct.cgroups
 *   - css_set.dfl_cgrp
 *   - cgroup.kn
 *   - kernfs_node.id
 *   - task_struct.se
 *   - sched_entity.cfs_rq
 *   - cfs_rq.rq
 *   - rq.nr_switches
 *   - rq.clock
 *   - task_struct.sched_info?
 *   - sched_info.last_arrival?
 *   - sched_info.last_queued?
 * params:
 *   tgid: {type: u32, default: 0, help: "measure only this process; 0 is every process"}
 * maps:
 *   waits: {holds: "waits per task, keyed by its start so that a reused pid is another task"}
 *   latency: {holds: "all waits", histogram: {slots: log2, unit: ns}}
 *   stamps: {holds: "tasks alive: when each began to wait (0: not waiting)", key: pid}
 *   ledger: {holds: "what was seen and lost", internal: true}
 * ledger:
 *   event: switch-in
 *   losses: [unmatched, map_full, clock_backwards]
 *   unseen: unseen
 *   notes: {reconstructed: "of them with one end taken from the kernel's own notes, as it was not seen"}
 * license: GPL-2.0-only
 */
#include "lk.h"

#define LK_TASKS 65536

enum lk_reason { LK_NOT_WAITING, LK_WOKEN, LK_PREEMPTED };

struct lk_stamp {
    u64 since_ns;
    u64 start_time_ns;
    u32 reason;
    u32 unused;
};

struct lk_task {
    u64 start_time_ns;
    u32 pid;
    u32 tgid;
};

struct lk_waits {
    u64 cgroup_id;
    u64 waits;
    u64 wait_ns;
    u64 max_wait_ns;
    u64 preempted_waits;
    u64 preempted_wait_ns;
    char comm[LK_TASK_COMM_LEN];
};

struct lk_runq_ledger {
    u64 seen;
    u64 delivered;
    u64 unmatched;       /* switched in, and nobody knows since when it had waited */
    u64 map_full;        /* the table of results is full */
    u64 clock_backwards; /* a stamp that lies in the future */
    u64 stamps_failed;   /* the table of stamps is full: shows up as unmatched later */
    u64 stamps_freed;    /* tasks that exited */
    u64 reconstructed;   /* one end of the wait was not seen, and taken from the kernel's notes; part of delivered */
    u64 unseen;          /* further switches that the kernel counted and we were not called for */
    u64 nr_switches;     /* the kernel's counter at the last call, not a count of ours */
};

BPF_HASH(stamps, u32, struct lk_stamp, LK_TASKS);
BPF_HASH(waits, struct lk_task, struct lk_waits, LK_TASKS);
BPF_PERCPU_ARRAY(latency, u64, 65);
BPF_PERCPU_ARRAY(ledger, struct lk_runq_ledger, 1);

static __always_inline bool measured(struct task_struct *task)
{
    return !LK_PARAM_TGID || task->tgid == LK_PARAM_TGID;
}

/* The task begins to wait now, unless it waits already. */
static __always_inline int begin(struct task_struct *task, u32 reason, u64 now,
                                struct lk_runq_ledger *book)
{
    struct lk_stamp fresh = {}, *stamp;
    u32 pid = task->pid;

    stamp = stamps.lookup(&pid);
    if (stamp) {
        if (reason == LK_PREEMPTED || !stamp->since_ns) {
            stamp->reason = reason;
            stamp->since_ns = now;
        }
        return 0;
    }
    fresh.reason = reason;
    fresh.start_time_ns = task->start_time;
    fresh.since_ns = now;
    if (stamps.update(&pid, &fresh))
        book->stamps_failed++;
    return 0;
}

static __always_inline int woken(struct task_struct *task)
{
    struct lk_runq_ledger *book;
    int first = 0;

    /* A task that is still on a CPU is not waiting: it was woken before it got round to sleeping. */
    if (!task->pid || !measured(task) || task->on_cpu)
        return 0;
    book = ledger.lookup(&first);
    return book ? begin(task, LK_WOKEN, bpf_ktime_get_ns(), book) : 0;
}

/* The task leaves the CPU: it waits again if it is still runnable, and is forgotten if it exits. */
static __always_inline void left(struct task_struct *prev, u64 prev_state, bool preempt, u64 now,
                                 struct lk_runq_ledger *book)
{
    struct lk_stamp *stamp;
    u32 pid = prev->pid;

    if (!pid || !measured(prev))
        return;
    if (preempt || !prev_state) {
        begin(prev, LK_PREEMPTED, now, book);
        return;
    }
    if (prev_state & LK_TASK_DEAD) {
        if (!stamps.delete(&pid))
            book->stamps_freed++;
        return;
    }
    stamp = stamps.lookup(&pid);
    if (stamp)
        stamp->since_ns = 0;
}

static __always_inline void add(struct task_struct *next, struct lk_stamp *stamp, u64 wait_ns,
                                struct lk_runq_ledger *book)
{
    struct lk_task key = {.start_time_ns = stamp->start_time_ns, .pid = next->pid, .tgid = next->tgid};
    struct lk_waits fresh = {}, *entry;
    int slot = lk_log2_slot(wait_ns);
    u64 *cell = latency.lookup(&slot);

    entry = waits.lookup_or_try_init(&key, &fresh);
    if (!entry) {
        book->map_full++;
        return;
    }
    /* A task is switched in on one CPU at a time: no other program writes to its entry now. */
    entry->cgroup_id = next->cgroups->dfl_cgrp->kn->id;
    bpf_probe_read_kernel_str(&entry->comm, sizeof(entry->comm), next->comm);
    entry->waits++;
    entry->wait_ns += wait_ns;
    if (wait_ns > entry->max_wait_ns)
        entry->max_wait_ns = wait_ns;
    if (stamp->reason == LK_PREEMPTED) {
        entry->preempted_waits++;
        entry->preempted_wait_ns += wait_ns;
    }
    if (cell)
        *cell += 1;
    book->delivered++;
}

/* The wait that began at `since` is over. */
static __always_inline void ended(struct task_struct *task, struct lk_stamp *stamp, u64 since, u64 now,
                                  struct lk_runq_ledger *book)
{
    if (now < since) {
        book->clock_backwards++;
        return;
    }
    add(task, stamp, now - since, book);
}

/*
 * No stamp: the task waits since before we looked, or we were not called when it began to. The kernel notes when it was
 * queued (kernel/sched/stats.h), by the run queue's clock.
 */
static __always_inline void entered_unstamped(struct task_struct *next, struct rq *rq, u64 now,
                                              struct lk_runq_ledger *book)
{
#ifdef LK_HAS_sched_info_last_queued
    u64 queued = next->sched_info.last_queued, clock = rq->clock;
    struct lk_stamp fresh = {.start_time_ns = next->start_time, .reason = LK_WOKEN};
    u32 pid = next->pid;

    if (queued && queued <= clock) {
        if (stamps.update(&pid, &fresh))
            book->stamps_failed++;
        book->reconstructed++;
        ended(next, &fresh, now - (clock - queued), now, book);
        return;
    }
#endif
    book->unmatched++;
}

/* The task gets the CPU: its wait is over. */
static __always_inline void entered(struct task_struct *next, struct rq *rq, u64 now, struct lk_runq_ledger *book)
{
    struct lk_stamp *stamp;
    u64 since;
    u32 pid = next->pid;

    if (!pid || !measured(next)) /* pid 0 is idle: nobody waits for it */
        return;
    book->seen++;
    stamp = stamps.lookup(&pid);
    if (!stamp || !stamp->since_ns) {
        entered_unstamped(next, rq, now, book);
        return;
    }
    since = stamp->since_ns;
    stamp->since_ns = 0;
    ended(next, stamp, since, now, book);
}

/*
 * rq->nr_switches counts every switch of this CPU. If it moved by more than one since our last call, we were not called
 * for the rest; the last of those brought in the task that leaves now, and the kernel notes when.
 */
static __always_inline void catch_up(struct task_struct *prev, struct rq *rq, u64 now, struct lk_runq_ledger *book)
{
    u64 switches = rq->nr_switches, last = book->nr_switches, since, ran_ns;
    struct lk_stamp *stamp;
    u32 pid = prev->pid;

    book->nr_switches = switches;
    if (!last || switches <= last + 1)
        return;
    book->unseen += switches - last - 2;
    if (!pid || !measured(prev))
        return;
    book->seen++;
    stamp = stamps.lookup(&pid);
#ifdef LK_HAS_sched_info_last_arrival
    if (stamp && stamp->since_ns) {
        ran_ns = rq->clock - prev->sched_info.last_arrival;
        since = stamp->since_ns;
        book->reconstructed++;
        ended(prev, stamp, since, now - ran_ns, book);
        return;
    }
#endif
    book->unmatched++;
}

int lk_wakeup(struct bpf_raw_tracepoint_args *ctx)
{
    struct task_struct *task = (struct task_struct *)ctx->args[0];

    return woken(task);
}

int lk_wakeup_new(struct bpf_raw_tracepoint_args *ctx)
{
    struct task_struct *task = (struct task_struct *)ctx->args[0];

    return woken(task);
}

/* (bool preempt, struct task_struct *prev, struct task_struct *next[, unsigned int prev_state]) */
int lk_switch(struct bpf_raw_tracepoint_args *ctx)
{
    struct task_struct *prev = (struct task_struct *)ctx->args[1];
    struct task_struct *next = (struct task_struct *)ctx->args[2];
    struct lk_runq_ledger *book;
    struct rq *rq;
    u64 prev_state, now = bpf_ktime_get_ns();
    int first = 0;

    book = ledger.lookup(&first);
    if (!book)
        return 0;
#if LK_ARGS_sched_switch >= 4 /* since 5.18 (commit fa2c3254d7cf) */
    prev_state = ctx->args[3];
#else
    prev_state = prev->LK_task_struct___state;
#endif
    rq = next->se.cfs_rq->rq;
    catch_up(prev, rq, now, book);
    left(prev, prev_state, ctx->args[0], now, book);
    entered(next, rq, now, book);
    return 0;
}
