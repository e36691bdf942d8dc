/*
 * purpose: Keep a path of 600 bytes in a local variable.
 * hooks: {enter: ["raw_tracepoint:sys_enter"]}
 * maps:
 *   calls: {holds: "sum of some characters"}
 * license: GPL-2.0-only
 */
#include "lk.h"

BPF_ARRAY(calls, u64, 1);

int lk_enter(struct bpf_raw_tracepoint_args *ctx)
{
    char path[600] = {};
    int first = 0;
    u64 *sum = calls.lookup(&first);

    bpf_probe_read_kernel_str(path, sizeof(path), (void *)ctx->args[0]);
    if (sum)
        *sum += path[ctx->args[1] & 255];
    return 0;
}
