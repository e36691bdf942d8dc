/*
 * purpose: >
 *   Four samples of the same calls of write(), drawn side by side: all of them, every n-th, one in n at random, and the first of
 *   each window of time.
 * hooks: {enter: ["raw_tracepoint:sys_enter"]}
 * types: ["@pt_regs.dx?", "@pt_regs.regs?"]  # where the third argument is: x86-64, arm64
 * params:
 *   comm8: {type: u64, default: 0, help: "the first eight bytes of a process's name as a number; 0 is every process"}
 *   n: {type: u32, default: 10, help: "one in so many"}
 *   window_us: {type: u32, default: 1000, help: "the length of a window"}
 * maps:
 *   all: {holds: "bytes asked for, of every call", histogram: {slots: log2, unit: bytes}}
 *   every: {holds: "of every n-th call", histogram: {slots: log2, unit: bytes}}
 *   random: {holds: "of one call in n, drawn at random", histogram: {slots: log2, unit: bytes}}
 *   window: {holds: "of the first call in each window", histogram: {slots: log2, unit: bytes}}
 *   state: {holds: "where each CPU's samples stand", internal: true}
 *   ledger: {holds: "what was seen and lost", internal: true}
 * ledger: {event: write}
 * license: GPL-2.0-only
 */
#include "lk.h"

struct lk_state {
    u64 calls;
    u64 window_began_ns;
};

struct lk_sampling_ledger {
    u64 seen;
    u64 delivered;
};

BPF_PERCPU_ARRAY(all, u64, 65);
BPF_PERCPU_ARRAY(every, u64, 65);
BPF_PERCPU_ARRAY(random, u64, 65);
BPF_PERCPU_ARRAY(window, u64, 65);
BPF_PERCPU_ARRAY(state, struct lk_state, 1);
BPF_PERCPU_ARRAY(ledger, struct lk_sampling_ledger, 1);

static __always_inline bool wanted(void)
{
    u64 name[2] = {};

    bpf_get_current_comm(&name, sizeof(name));
    return !LK_PARAM_COMM8 || name[0] == LK_PARAM_COMM8;
}

static __always_inline int sample(u64 bytes)
{
    u64 now = bpf_ktime_get_ns(), *cell;
    struct lk_sampling_ledger *book;
    struct lk_state *where;
    int first = 0, slot = lk_log2_slot(bytes);

    book = ledger.lookup(&first);
    where = state.lookup(&first);
    if (!book || !where)
        return 0;
    book->seen++;
    cell = all.lookup(&slot);
    if (cell)
        *cell += 1;
    where->calls++;
    if (where->calls % LK_PARAM_N == 0) {
        cell = every.lookup(&slot);
        if (cell)
            *cell += 1;
    }
    if (bpf_get_prandom_u32() % LK_PARAM_N == 0) {
        cell = random.lookup(&slot);
        if (cell)
            *cell += 1;
    }
    if (now - where->window_began_ns >= LK_PARAM_WINDOW_US * 1000ULL) {
        where->window_began_ns = now;
        cell = window.lookup(&slot);
        if (cell)
            *cell += 1;
    }
    book->delivered++;
    return 0;
}

/* (struct pt_regs *regs, long id): the arguments are in the registers that were saved on entry */
int lk_enter(struct bpf_raw_tracepoint_args *ctx)
{
    u64 regs = ctx->args[0], third = 0;

    if (ctx->args[1] != LK_NR_write || !wanted())
        return 0;
#ifdef LK_OFFSET_pt_regs_dx
    bpf_probe_read_kernel(&third, sizeof(third), (void *)(regs + LK_OFFSET_pt_regs_dx));
#else
    bpf_probe_read_kernel(&third, sizeof(third), (void *)(regs + LK_OFFSET_pt_regs_regs + 2 * sizeof(u64)));
#endif
    return sample(third);
}
