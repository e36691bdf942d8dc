/*
 * purpose: Read a register that a process had when it entered the kernel, by following the pointer.
 * hooks: {enter: ["raw_tracepoint:sys_enter"]}
 * maps:
 *   calls: {holds: "first word of the last caller's registers"}
 * license: GPL-2.0-only
 */
#include "lk.h"

BPF_ARRAY(calls, u64, 1);

int lk_enter(struct bpf_raw_tracepoint_args *ctx)
{
    u64 where = ctx->args[0];
    int first = 0;
    u64 *last = calls.lookup(&first);

    if (!last)
        return 0;
    *last = *(volatile u64 *)where;
    return 0;
}
