/*
 * purpose: Do as many steps as the number of the system call says.
 * hooks: {enter: ["raw_tracepoint:sys_enter"]}
 * maps:
 *   calls: {holds: "a sum of random bits"}
 * license: GPL-2.0-only
 */
#include "lk.h"

BPF_ARRAY(calls, u64, 1);

int lk_enter(struct bpf_raw_tracepoint_args *ctx)
{
    u64 sum = 0, step, steps = ctx->args[1];
    int first = 0;
    u64 *total = calls.lookup(&first);

    if (!total)
        return 0;
    for (step = 0; step < steps; step++)
        sum += bpf_get_prandom_u32() & 1;
    *total += sum;
    return 0;
}
