# %% exercise:00.1
answer = usable[0]
lk.check("00.1", answer, usable=usable)

# %% exercise:00.2
answer = tracepoints["name"].str.startswith("sched_").sum()
lk.check("00.2", answer, tracepoints=tracepoints)

# %% exercise:00.3
hooks = """ *     - "kprobe:{sys}execve"
 *     - "fentry:{sys}execve"
 *     - "tracepoint:syscalls:sys_enter_execve"
 *     - "raw_tracepoint:sys_enter"
"""
answer = lk.write_program("hello", change={hooks: ' *     - "tracepoint:sched:sched_process_fork"\n'})
lk.check("00.3", answer, lab=lab)
