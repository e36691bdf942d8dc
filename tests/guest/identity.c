/*
 * purpose: What the kernel's own structs say about the task that makes a system call, beside what its helpers say.
 * hooks:
 *   enter: ["raw_tracepoint:sys_enter"]
 * types:
 *   - task_struct.pid
 *   - task_struct.tgid
 *   - task_struct.comm
 *   - task_struct.start_time
 *   - task_struct.start_boottime
 *   - task_struct.real_parent
 *   - task_struct.cgroups
 *   - css_set.dfl_cgrp
 *   - cgroup.kn
 *   - kernfs_node.id
 * params:
 *   tgid: {type: u32, help: "the process to look at"}
 * maps:
 *   seen: {holds: "the last sight of each thread", key: thread}
 * license: GPL-2.0-only
 */
#include "lk.h"

struct lk_identity {
    u64 cgroup_id;
    u64 helper_cgroup_id;
    u64 start_time_ns;
    u64 start_boottime_ns;
    u32 pid;
    u32 tgid;
    u32 parent_tgid;
    u32 unused;
    char comm[LK_TASK_COMM_LEN];
};

BPF_HASH(seen, u32, struct lk_identity, 1024);

int lk_enter(struct bpf_raw_tracepoint_args *ctx)
{
    struct task_struct *task = (struct task_struct *)bpf_get_current_task();
    struct lk_identity found = {};
    u64 both = bpf_get_current_pid_tgid();
    u32 thread = both;

    if (both >> 32 != LK_PARAM_TGID)
        return 0;
    found.pid = task->pid;
    found.tgid = task->tgid;
    found.parent_tgid = task->real_parent->tgid;
    found.start_time_ns = task->start_time;
    found.start_boottime_ns = task->start_boottime;
    found.cgroup_id = task->cgroups->dfl_cgrp->kn->id;
    found.helper_cgroup_id = bpf_get_current_cgroup_id();
    bpf_probe_read_kernel_str(&found.comm, sizeof(found.comm), task->comm);
    seen.update(&thread, &found);
    return 0;
}
