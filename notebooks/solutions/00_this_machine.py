# %% exercise:00.1
answer = usable[0]
lk.check("00.1", answer, usable=usable)

# %% exercise:00.2
answer = tracepoints["name"].str.startswith("sched_").sum()
lk.check("00.2", answer, tracepoints=tracepoints)
