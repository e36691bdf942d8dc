/*
 * purpose: Count system calls per process and number, without asking whether the entry is there.
 * hooks: {enter: ["raw_tracepoint:sys_enter"]}
 * maps:
 *   calls: {holds: "calls per process and number of the call", value: calls}
 * license: GPL-2.0-only
 */
#include "lk.h"

struct lk_caller {
    u32 tgid;
    u32 nr;
};

BPF_HASH(calls, struct lk_caller, u64, 16384);

int lk_enter(struct bpf_raw_tracepoint_args *ctx)
{
    struct lk_caller caller = {.tgid = bpf_get_current_pid_tgid() >> 32, .nr = ctx->args[1]};
    u64 *count = calls.lookup(&caller);

    *count += 1;
    return 0;
}
