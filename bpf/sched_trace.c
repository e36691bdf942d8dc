/*
 * purpose: >
 *   Everything the scheduler did, as events at full rate: who left and who got which CPU, when and since when it had been
 *   queued, wakeups, and moves of waiting tasks to another CPU. Enough to compute afterwards, exactly, who waited for whom.
 * hooks:
 *   switch: ["raw_tracepoint:sched_switch"]
 *   wakeup: ["raw_tracepoint:sched_wakeup"]
 *   wakeup_new: ["raw_tracepoint:sched_wakeup_new"]
 *   migrate: ["raw_tracepoint:sched_migrate_task"]
 * types:
 *   - task_struct.pid
 *   - task_struct.__state|state
 *   - task_struct.on_cpu
 *   - task_struct.on_rq
 *   - task_struct.throttled?
 *   - task_struct.cgroups
 *   - css_set.dfl_cgrp
 *   - css_set.subsys
 *   - cgroup_subsys_state.cgroup
 *   - cgroup.kn
 *   - kernfs_node.id
 *   - task_struct.se
 *   - sched_entity.cfs_rq
 *   - cfs_rq.rq
 *   - cfs_rq.throttled_clock_self?
 *   - cfs_rq.throttled_clock_self_time?
 *   - "cfs_rq.throttled_clock_pelt|throttled_clock_task?"
 *   - "cfs_rq.throttled_clock_pelt_time|throttled_clock_task_time?"
 *   - cfs_rq.throttle_count?
 *   - rq.clock
 *   - rq.clock_task
 *   - rq.clock_pelt?
 *   - rq.cpu
 *   - rq.nr_switches
 *   - task_struct.sched_info
 *   - sched_info.run_delay
 *   - sched_info.last_arrival
 *   - sched_info.last_queued
 * params:
 *   ring_pages: {type: u32, default: 8192, help: "size of the ring in pages of memory, a power of two"}
 *   subsystem: {type: s32, default: -1, help: "cgroups are those of this v1 controller's tree; -1 is the cgroup2 tree"}
 * maps:
 *   events: {holds: "the scheduler's events", ring: {tag: kind, types: {switched: 1, woken: 2, migrated: 3}}}
 *   switched: {holds: "a CPU went from one task to another", internal: true}
 *   woken: {holds: "a task became runnable", internal: true}
 *   migrated: {holds: "a queued task was moved to another CPU", internal: true}
 *   lost: {holds: "events lost so far on all CPUs, for each switch to carry", internal: true}
 *   ledger: {holds: "what was seen and lost", internal: true}
 * ledger: {event: event, losses: [ring_full], unseen: unseen}
 * license: GPL-2.0-only
 */
#include "lk.h"

/*
 * All times are those of the run queue's clock (rq->clock), the clock of run_delay: at sched_switch, clock - last_queued of
 * the next task is to the nanosecond what its run_delay is about to grow by (sched_info_arrive in kernel/sched/stats.h runs
 * after the tracepoint). It is not CLOCK_MONOTONIC, and the clocks of two CPUs may differ a little: compare times of one CPU.
 */

/* include/uapi/linux/bpf.h; a plain number, since old headers lack it. A reader that is woken records itself. */
#define LK_RB_NO_WAKEUP 1

enum lk_kind { LK_KIND_SWITCHED = 1, LK_KIND_WOKEN = 2, LK_KIND_MIGRATED = 3 };
enum lk_switched_flags { LK_PREEMPT = 1, LK_THROTTLED = 2, LK_THROTTLED_KNOWN = 4 };
enum lk_woken_flags { LK_NEW = 1, LK_ON_CPU = 2 };

struct lk_switched {
    u64 time_ns;
    u32 prev_pid;
    u8 kind;
    u8 flags; /* the tracepoint's preempt; prev is throttled; this kernel knows which task is (6.18 and later) */
    u16 cpu;
    u32 next_pid;
    u32 switches;   /* low half of rq->nr_switches: two events of a CPU that are not one apart have a gap between them */
    u32 prev_state; /* 0: prev would have gone on */
    u32 lost;       /* events lost before this one, on all CPUs */
    u64 prev_cgroup_id;
    u64 next_cgroup_id;
    u64 prev_arrived_ns;        /* since when prev had this CPU: true also if its switch-in was not seen */
    u64 queued_ns;              /* next: since when it stood in this CPU's queue; 0 if it did not */
    u64 run_delay_ns;           /* next: before this wait is added */
    u64 prev_throttle_clock_ns; /* time that the queue of prev has been throttled so far; 0 if prev is not */
    u64 next_throttle_clock_ns; /* the same of next's queue */
    u64 stolen_ns;              /* clock - clock_task: interrupts and hypervisor, since boot */
};

struct lk_woken {
    u64 time_ns;
    u32 pid;
    u8 kind;
    u8 flags; /* new task; still on a CPU: woken before it got round to sleeping, so it does not wait */
    u16 cpu;  /* where it was queued */
    u64 throttle_clock_ns;
    u64 stolen_ns;
};

struct lk_migrated {
    u64 time_ns; /* by the clock of the CPU that it leaves */
    u32 pid;
    u8 kind;
    u8 unused;
    u16 cpu; /* the one it leaves */
    u64 cgroup_id;
    u64 run_delay_ns; /* the wait on the CPU that it leaves is in it already */
    u64 throttle_clock_ns;
    u64 stolen_ns;
};

struct lk_trace_ledger {
    u64 seen;
    u64 delivered;
    u64 ring_full;
    u64 unseen;      /* further switches that the kernel counted and we were not called for */
    u64 nr_switches; /* the kernel's counter at the last call, not a count of ours */
};

BPF_RINGBUF_OUTPUT(events, LK_PARAM_RING_PAGES);
BPF_ARRAY(switched, struct lk_switched, 1);
BPF_ARRAY(woken, struct lk_woken, 1);
BPF_ARRAY(migrated, struct lk_migrated, 1);
BPF_ARRAY(lost, u64, 1);
BPF_PERCPU_ARRAY(ledger, struct lk_trace_ledger, 1);

static __always_inline void count_loss(struct lk_trace_ledger *book)
{
    int first = 0;
    u64 *total = lost.lookup(&first);

    book->ring_full++;
    if (total)
        __sync_fetch_and_add(total, 1);
}

static __always_inline u64 cgroup_of(struct task_struct *task)
{
    struct css_set *set = task->cgroups;
#if LK_PARAM_SUBSYSTEM >= 0
    struct cgroup_subsys_state *state = NULL;
    struct cgroup *group = NULL;
    struct kernfs_node *node = NULL;
    u64 id = 0;

    bpf_probe_read_kernel(&state, sizeof(state), &set->subsys[LK_PARAM_SUBSYSTEM]);
    bpf_probe_read_kernel(&group, sizeof(group), &state->cgroup);
    bpf_probe_read_kernel(&node, sizeof(node), &group->kn);
    bpf_probe_read_kernel(&id, sizeof(id), &node->id);
    return id;
#else
    return set->dfl_cgrp->kn->id;
#endif
}

/*
 * How long a queue has been throttled so far, by its own quota or an ancestor's; only differences mean something.
 * throttled_clock_self is since when it is, and throttled_clock_self_time the sum of earlier times (since 6.6, commit
 * 677ea015f231). Before, there are the clocks that load tracking keeps, which stand still while the CPU idles: an upper bound.
 */
#define LK_NAMED_throttled_clock_pelt 1 /* since 5.19 (commit 64eaf50731ac); else it is throttled_clock_task */
#define LK_NAMED_(name) LK_NAMED_##name
#define LK_NAMED(name) LK_NAMED_(name)

static __always_inline u64 throttle_clock(struct cfs_rq *queue, u64 now)
{
#if defined(LK_HAS_cfs_rq_throttled_clock_self) && defined(LK_HAS_cfs_rq_throttled_clock_self_time)
    u64 since = queue->throttled_clock_self, sum = queue->throttled_clock_self_time;

    return since && since < now ? sum + (now - since) : sum;
#elif defined(LK_HAS_cfs_rq_throttled_clock_pelt) && defined(LK_HAS_cfs_rq_throttled_clock_pelt_time)
    u64 since = queue->LK_cfs_rq_throttled_clock_pelt, sum = queue->LK_cfs_rq_throttled_clock_pelt_time, clock;
    struct rq *rq = queue->rq;
    int depth = queue->throttle_count;

#if LK_NAMED(LK_cfs_rq_throttled_clock_pelt)
    clock = rq->clock_pelt;
#else
    clock = rq->clock_task;
#endif
    return depth && clock > since ? sum + (clock - since) : sum;
#else
    return 0;
#endif
}

/* rq->nr_switches counts every switch of this CPU, also those for which we are not called. */
static __always_inline void count_unseen(struct lk_trace_ledger *book, u64 switches)
{
    u64 last = book->nr_switches;

    book->nr_switches = switches;
    if (last && switches > last + 1)
        book->unseen += switches - last - 1;
}

static __always_inline int woke(struct task_struct *task, u8 flags)
{
    struct cfs_rq *queue = task->se.cfs_rq;
    struct rq *rq = queue->rq;
    u64 now = rq->clock, stolen = now - rq->clock_task, throttled = 0;
    struct lk_trace_ledger *book;
    struct lk_woken *event;
    u32 pid = task->pid;
    u16 cpu = rq->cpu;
    int first = 0;

    if (task->on_cpu)
        flags |= LK_ON_CPU;
    book = ledger.lookup(&first);
    if (!book)
        return 0;
#ifndef LK_HAS_task_struct_throttled
    throttled = throttle_clock(queue, now);
#endif
    book->seen++;
    event = events.ringbuf_reserve(sizeof(struct lk_woken));
    if (!event) {
        count_loss(book);
        return 0;
    }
    event->time_ns = now;
    event->pid = pid;
    event->kind = LK_KIND_WOKEN;
    event->flags = flags;
    event->cpu = cpu;
    event->throttle_clock_ns = throttled;
    event->stolen_ns = stolen;
    events.ringbuf_submit(event, LK_RB_NO_WAKEUP);
    book->delivered++;
    return 0;
}

int lk_wakeup(struct bpf_raw_tracepoint_args *ctx)
{
    struct task_struct *task = (struct task_struct *)ctx->args[0];

    return woke(task, 0);
}

int lk_wakeup_new(struct bpf_raw_tracepoint_args *ctx)
{
    struct task_struct *task = (struct task_struct *)ctx->args[0];

    return woke(task, LK_NEW);
}

/*
 * A task that is moved while it is queued leaves part of its wait behind: run_delay has it, last_queued starts anew. One that
 * is moved as it wakes up (on_rq is 0) has not waited yet.
 */
int lk_migrate(struct bpf_raw_tracepoint_args *ctx)
{
    struct task_struct *task = (struct task_struct *)ctx->args[0];
    struct cfs_rq *queue = task->se.cfs_rq; /* still that of the CPU it leaves */
    struct rq *rq = queue->rq;
    u64 now = rq->clock, stolen = now - rq->clock_task, throttled = throttle_clock(queue, now);
    u64 cgroup_id, run_delay = task->sched_info.run_delay;
    struct lk_trace_ledger *book;
    struct lk_migrated *event;
    u32 pid = task->pid;
    u16 cpu = rq->cpu;
    int first = 0;

    if (!task->on_rq)
        return 0;
    cgroup_id = cgroup_of(task);
    book = ledger.lookup(&first);
    if (!book)
        return 0;
    book->seen++;
    event = events.ringbuf_reserve(sizeof(struct lk_migrated));
    if (!event) {
        count_loss(book);
        return 0;
    }
    event->time_ns = now;
    event->pid = pid;
    event->kind = LK_KIND_MIGRATED;
    event->unused = 0;
    event->cpu = cpu;
    event->cgroup_id = cgroup_id;
    event->run_delay_ns = run_delay;
    event->throttle_clock_ns = throttled;
    event->stolen_ns = stolen;
    events.ringbuf_submit(event, LK_RB_NO_WAKEUP);
    book->delivered++;
    return 0;
}

/* (bool preempt, struct task_struct *prev, struct task_struct *next[, unsigned int prev_state]) */
int lk_switch(struct bpf_raw_tracepoint_args *ctx)
{
    struct task_struct *prev = (struct task_struct *)ctx->args[1];
    struct task_struct *next = (struct task_struct *)ctx->args[2];
    struct cfs_rq *queue = next->se.cfs_rq, *prev_queue;
    struct rq *rq = queue->rq;
    u64 now = rq->clock, stolen = now - rq->clock_task, switches = rq->nr_switches;
    u64 prev_cgroup = cgroup_of(prev), next_cgroup = cgroup_of(next);
    u64 arrived = prev->sched_info.last_arrival;
    u64 queued = next->sched_info.last_queued, run_delay = next->sched_info.run_delay;
    u64 prev_clock = 0, next_clock = throttle_clock(queue, now), prev_state, *total;
    u32 prev_pid = prev->pid, next_pid = next->pid;
    u8 flags = ctx->args[0] ? LK_PREEMPT : 0;
    struct lk_trace_ledger *book;
    struct lk_switched *event;
    int first = 0;

#if LK_ARGS_sched_switch >= 4 /* since 5.18 (commit fa2c3254d7cf) */
    prev_state = ctx->args[3];
#else
    prev_state = prev->LK_task_struct___state;
#endif
#ifdef LK_HAS_task_struct_throttled /* since 6.18 a task is throttled, not its queue (commit e1fad12dcb66) */
    flags |= LK_THROTTLED_KNOWN;
    if (prev->throttled)
        flags |= LK_THROTTLED;
#else
    if (prev_pid && (ctx->args[0] || !prev_state)) /* it may be: its queue's clock will tell */
        flags |= LK_THROTTLED;
#endif
    if (flags & LK_THROTTLED) {
        prev_queue = prev->se.cfs_rq;
        prev_clock = throttle_clock(prev_queue, now);
    }
    book = ledger.lookup(&first);
    if (!book)
        return 0;
    count_unseen(book, switches);
    book->seen++;
    event = events.ringbuf_reserve(sizeof(struct lk_switched));
    if (!event) {
        count_loss(book);
        return 0;
    }
    total = lost.lookup(&first);
    event->time_ns = now;
    event->prev_pid = prev_pid;
    event->kind = LK_KIND_SWITCHED;
    event->flags = flags;
    event->cpu = bpf_get_smp_processor_id();
    event->next_pid = next_pid;
    event->switches = switches;
    event->prev_state = prev_state;
    event->lost = total ? *total : 0;
    event->prev_cgroup_id = prev_cgroup;
    event->next_cgroup_id = next_cgroup;
    event->prev_arrived_ns = arrived;
    event->queued_ns = queued;
    event->run_delay_ns = run_delay;
    event->prev_throttle_clock_ns = prev_clock;
    event->next_throttle_clock_ns = next_clock;
    event->stolen_ns = stolen;
    events.ringbuf_submit(event, LK_RB_NO_WAKEUP);
    book->delivered++;
    return 0;
}
