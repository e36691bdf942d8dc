/*
 * purpose: Read an argument that the tracepoint does not have.
 * hooks: {enter: ["raw_tracepoint:sys_enter"]}
 * maps:
 *   calls: {holds: "the argument"}
 * license: GPL-2.0-only
 */
#include "lk.h"

BPF_ARRAY(calls, u64, 1);

int lk_enter(struct bpf_raw_tracepoint_args *ctx)
{
    int first = 0;
    u64 *last = calls.lookup(&first);

    if (last)
        *last = ctx->args[12];
    return 0;
}
