/*
 * purpose: Wait until a counter has been raised by somebody else.
 * hooks: {enter: ["raw_tracepoint:sys_enter"]}
 * maps:
 *   calls: {holds: "a number that user space may write"}
 * license: GPL-2.0-only
 */
#include "lk.h"

BPF_ARRAY(calls, u64, 1);

int lk_enter(struct bpf_raw_tracepoint_args *ctx)
{
    int first = 0;
    volatile u64 *flag = calls.lookup(&first);

    if (!flag)
        return 0;
    while (*flag == 0)
        ;
    return 0;
}
