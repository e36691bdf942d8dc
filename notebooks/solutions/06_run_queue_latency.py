# %% exercise:06.1
row = hogs.set_index("role").loc["hog_a"]
answer = row["wait_ns"] / (row["wait_ns"] + row["run_ns"])
lk.check("06.1", answer, hogs=hogs)

# %% exercise:06.2
answer = lk.write_program(
    "runq_latency",
    change={
        "    u64 preempted_wait_ns;\n": "    u64 preempted_wait_ns;\n    u64 long_waits;\n",
        "    entry->waits++;\n": "    entry->waits++;\n"
        "    if (wait_ns >= 1000000)\n        entry->long_waits++;\n",
    },
)
lk.check("06.2", answer, lab=lab)

# %% exercise:06.3
answer = "almost none"
lk.check("06.3", answer)
