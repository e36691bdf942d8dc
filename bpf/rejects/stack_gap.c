/*
 * purpose: Count system calls with a key that has a hole in it.
 * hooks: {enter: ["raw_tracepoint:sys_enter"]}
 * maps:
 *   calls: {holds: "calls per process and number"}
 * license: GPL-2.0-only
 */
#include "lk.h"

struct lk_key {
    u32 tgid; /* four bytes that nobody fills follow it: the next member is aligned to eight */
    u64 nr;
};

BPF_HASH(calls, struct lk_key, u64, 1024);

int lk_enter(struct bpf_raw_tracepoint_args *ctx)
{
    struct lk_key key;
    u64 one = 1;

    key.tgid = bpf_get_current_pid_tgid() >> 32;
    key.nr = ctx->args[1];
    calls.update(&key, &one);
    return 0;
}
