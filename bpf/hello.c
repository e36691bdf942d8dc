/*
 * purpose: Hello, kernel. Counts who starts programs, one count per command name.
 * hooks:
 *   exec:
 *     - "kprobe:{sys}execve"
 *     - "fentry:{sys}execve"
 *     - "tracepoint:syscalls:sys_enter_execve"
 *     - "raw_tracepoint:sys_enter"
 * maps:
 *   hello: {holds: "execve calls by the name of the caller, as it was before the call", key: comm, value: calls}
 *   ledger: {holds: "what was seen and lost", internal: true}
 * ledger: {event: "execve call", losses: [map_full]}
 * license: GPL-2.0-only  # the kernel lends its tracing helpers to GPL-compatible programs only
 */
#include "lk.h"

struct lk_caller {
    char comm[LK_TASK_COMM_LEN];
};

struct lk_hello_ledger {
    u64 seen;
    u64 delivered;
    u64 map_full;
};

BPF_HASH(hello, struct lk_caller, u64, 1024);
BPF_PERCPU_ARRAY(ledger, struct lk_hello_ledger, 1);

/* The one body. Which hook calls it is none of its business. */
static __always_inline int say_hello(void)
{
    struct lk_caller caller = {};
    u64 zero = 0, *calls;
    int first = 0;
    struct lk_hello_ledger *book = ledger.lookup(&first);

    if (!book)
        return 0;
    book->seen++;
    bpf_get_current_comm(&caller.comm, sizeof(caller.comm));
    calls = hello.lookup_or_try_init(&caller, &zero);
    if (!calls) {
        book->map_full++;
        return 0;
    }
    __sync_fetch_and_add(calls, 1);
    book->delivered++;
    return 0;
}

#if defined(LK_HOOK_exec_KPROBE)
int lk_exec(struct pt_regs *ctx)
{
    return say_hello();
}
#elif defined(LK_HOOK_exec_RAW_TRACEPOINT)
/* sys_enter fires for every system call: (struct pt_regs *regs, long id) */
int lk_exec(struct bpf_raw_tracepoint_args *ctx)
{
    if (ctx->args[1] != LK_NR_execve)
        return 0;
    return say_hello();
}
#else
int lk_exec(void *ctx)
{
    return say_hello();
}
#endif
