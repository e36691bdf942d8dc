/*
 * purpose: Hand over the numbers of system calls as events, but not the large ones.
 * hooks: {enter: ["raw_tracepoint:sys_enter"]}
 * maps:
 *   events: {holds: "numbers of system calls", internal: true}
 * license: GPL-2.0-only
 */
#include "lk.h"

BPF_RINGBUF_OUTPUT(events, 8);

int lk_enter(struct bpf_raw_tracepoint_args *ctx)
{
    u64 *event = events.ringbuf_reserve(sizeof(u64));

    if (!event)
        return 0;
    *event = ctx->args[1];
    if (*event > 300)
        return 0;
    events.ringbuf_submit(event, 0);
    return 0;
}
