/*
 * purpose: How long did each call of clock_nanosleep() take? A stamp at entry, the difference at return.
 * hooks:
 *   enter:
 *     - "tracepoint:syscalls:sys_enter_clock_nanosleep"
 *     - "raw_tracepoint:sys_enter"
 *     - "kprobe:{sys}clock_nanosleep"
 *   leave:
 *     - "tracepoint:syscalls:sys_exit_clock_nanosleep"
 *     - "raw_tracepoint:sys_exit"
 *     - "kretprobe:{sys}clock_nanosleep"
 *   end: ["raw_tracepoint:sched_process_exit"]
 * types: ["@pt_regs.orig_ax?", "@pt_regs.syscallno?"]  # which call returns: x86-64, arm64
 * params:
 *   tgid: {type: u32, default: 0, help: "time only this process; 0 is every process"}
 * maps:
 *   sleeps: {holds: "calls per process that returned", combine: {longest_ns: max}}
 *   duration: {holds: "all of them, by how long they took", histogram: {slots: log2, unit: ns}}
 *   stamps: {holds: "threads inside a call: when each entered", key: thread, value: since_ns}
 *   ledger: {holds: "what was seen and lost", internal: true}
 * ledger:
 *   event: return
 *   losses: [unmatched, map_full, clock_backwards]
 *   notes: {never_returned: "calls were entered by threads that ended inside them"}
 * license: GPL-2.0-only
 */
#include "lk.h"

struct lk_sleeper {
    u32 tgid;
    char comm[LK_TASK_COMM_LEN];
};

struct lk_sleeps {
    u64 calls;
    u64 total_ns;
    u64 longest_ns;
};

struct lk_sleep_ledger {
    u64 seen;
    u64 delivered;
    u64 unmatched;       /* returned, and nobody knows since when it had slept: entered before we looked */
    u64 map_full;        /* the table of results is full */
    u64 clock_backwards; /* a stamp that lies in the future */
    u64 stamps_failed;   /* the table of stamps is full: shows up as unmatched later */
    u64 never_returned;  /* the thread was killed in its sleep */
};

BPF_HASH(stamps, u32, u64, 65536);
BPF_PERCPU_HASH(sleeps, struct lk_sleeper, struct lk_sleeps, 4096);
BPF_PERCPU_ARRAY(duration, u64, 65);
BPF_PERCPU_ARRAY(ledger, struct lk_sleep_ledger, 1);

/* The call begins. The stamp is the thread's: each of a process's threads may be in a call of its own. */
static __always_inline int entered(void)
{
    u64 id = bpf_get_current_pid_tgid(), now = bpf_ktime_get_ns();
    struct lk_sleep_ledger *book;
    u32 thread = id, tgid = id >> 32;
    int first = 0;

    book = ledger.lookup(&first);
    if (!book || (LK_PARAM_TGID && tgid != LK_PARAM_TGID))
        return 0;
    if (stamps.update(&thread, &now))
        book->stamps_failed++;
    return 0;
}

static __always_inline void add(u32 tgid, u64 took_ns, struct lk_sleep_ledger *book)
{
    struct lk_sleeper key = {.tgid = tgid};
    struct lk_sleeps fresh = {}, *entry;
    int slot = lk_log2_slot(took_ns);
    u64 *cell;

    bpf_get_current_comm(&key.comm, sizeof(key.comm));
    entry = sleeps.lookup_or_try_init(&key, &fresh);
    if (!entry) {
        book->map_full++;
        return;
    }
    entry->calls++;
    entry->total_ns += took_ns;
    if (took_ns > entry->longest_ns)
        entry->longest_ns = took_ns;
    cell = duration.lookup(&slot);
    if (cell)
        *cell += 1;
    book->delivered++;
}

/* The call returns, on whichever CPU the thread was woken. */
static __always_inline int left(void)
{
    u64 id = bpf_get_current_pid_tgid(), now = bpf_ktime_get_ns(), *since, took_ns;
    struct lk_sleep_ledger *book;
    u32 thread = id, tgid = id >> 32;
    int first = 0;

    book = ledger.lookup(&first);
    if (!book || (LK_PARAM_TGID && tgid != LK_PARAM_TGID))
        return 0;
    book->seen++;
    since = stamps.lookup(&thread);
    if (!since) {
        book->unmatched++;
        return 0;
    }
    took_ns = now - *since;
    if (now < *since)
        book->clock_backwards++;
    else
        add(tgid, took_ns, book);
    stamps.delete(&thread);
    return 0;
}

/* A thread killed in its sleep never returns: its stamp would stay, and one day belong to another. */
int lk_end(struct bpf_raw_tracepoint_args *ctx)
{
    u32 thread = bpf_get_current_pid_tgid();
    struct lk_sleep_ledger *book;
    int first = 0;

    book = ledger.lookup(&first);
    if (book && !stamps.delete(&thread))
        book->never_returned++;
    return 0;
}

#if defined(LK_HOOK_enter_RAW_TRACEPOINT)
/* every system call comes by: (struct pt_regs *regs, long id) */
int lk_enter(struct bpf_raw_tracepoint_args *ctx)
{
    return ctx->args[1] == LK_NR_clock_nanosleep ? entered() : 0;
}
#elif defined(LK_HOOK_enter_KPROBE)
int lk_enter(struct pt_regs *ctx)
{
    return entered();
}
#else
int lk_enter(void *ctx)
{
    return entered();
}
#endif

#if defined(LK_HOOK_leave_RAW_TRACEPOINT)
/* (struct pt_regs *regs, long ret): which call it was lies in the saved registers */
int lk_leave(struct bpf_raw_tracepoint_args *ctx)
{
    u64 regs = ctx->args[0], nr = 0;

#ifdef LK_OFFSET_pt_regs_orig_ax
    bpf_probe_read_kernel(&nr, sizeof(nr), (void *)(regs + LK_OFFSET_pt_regs_orig_ax));
#else
    bpf_probe_read_kernel(&nr, sizeof(u32), (void *)(regs + LK_OFFSET_pt_regs_syscallno));
#endif
    return nr == LK_NR_clock_nanosleep ? left() : 0;
}
#elif defined(LK_HOOK_leave_KRETPROBE)
int lk_leave(struct pt_regs *ctx)
{
    return left();
}
#else
int lk_leave(void *ctx)
{
    return left();
}
#endif
