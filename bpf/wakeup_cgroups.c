/*
 * purpose: Whose task is woken, and whose task happens to run where that is told. One count per pair of cgroups.
 * hooks: {wakeup: ["raw_tracepoint:sched_wakeup"]}
 * types: [task_struct.cgroups, css_set.dfl_cgrp, cgroup.kn, kernfs_node.id]
 * maps:
 *   wakeups: {holds: "wakeups by the cgroup of current and the cgroup of the task that is woken"}
 *   ledger: {holds: "what was seen and lost", internal: true}
 * ledger: {event: wakeup, losses: [map_full]}
 * license: GPL-2.0-only
 */
#include "lk.h"

struct lk_cgroup_pair {
    u64 current_id; /* of the task that this CPU was running: it may have nothing to do with the wakeup */
    u64 woken_id;   /* of the task that the wakeup is about */
};

struct lk_wakeups {
    u64 wakeups;
    u64 while_idle; /* of those: current was the idle task (pid 0), which lives in the root cgroup too */
};

struct lk_wakeup_ledger {
    u64 seen;
    u64 delivered;
    u64 map_full;
};

BPF_HASH(wakeups, struct lk_cgroup_pair, struct lk_wakeups, 16384);
BPF_PERCPU_ARRAY(ledger, struct lk_wakeup_ledger, 1);

/* (struct task_struct *p): the task that is woken. The helper follows the same pointers, but from current. */
int lk_wakeup(struct bpf_raw_tracepoint_args *ctx)
{
    struct task_struct *woken = (struct task_struct *)ctx->args[0];
    struct lk_cgroup_pair pair = {};
    struct lk_wakeups none = {}, *count;
    struct lk_wakeup_ledger *book;
    int first = 0;

    pair.current_id = bpf_get_current_cgroup_id();
    pair.woken_id = woken->cgroups->dfl_cgrp->kn->id;
    book = ledger.lookup(&first);
    if (!book)
        return 0;
    book->seen++;
    count = wakeups.lookup_or_try_init(&pair, &none);
    if (!count) {
        book->map_full++;
        return 0;
    }
    __sync_fetch_and_add(&count->wakeups, 1);
    if (!(u32)bpf_get_current_pid_tgid())
        __sync_fetch_and_add(&count->while_idle, 1);
    book->delivered++;
    return 0;
}
