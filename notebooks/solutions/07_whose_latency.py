# %% exercise:07.1
strangers = wakeups["current_id"] != wakeups["woken_id"]
answer = wakeups.loc[strangers, "wakeups"].sum() / wakeups["wakeups"].sum()
lk.check("07.1", answer, wakeups=wakeups)

# %% exercise:07.2
answer = lk.write_program(
    "wakeup_cgroups",
    change={
        " * maps:\n": (
            " * params:\n"
            ' *   cgroup: {type: u64, default: 0, help: "only wakeups of tasks in this cgroup; 0: all"}\n'
            " * maps:\n"
        ),
        "    book = ledger.lookup(&first);\n": (
            "    if (LK_PARAM_CGROUP && pair.woken_id != LK_PARAM_CGROUP)\n"
            "        return 0;\n"
            "    book = ledger.lookup(&first);\n"
        ),
    },
)
lk.check("07.2", answer, lab=lab)

# %% exercise:07.3
answer = "40 % by a cgroup that nobody could name"
lk.check("07.3", answer)

# %% exercise:07.4
answer = keyed.plot.barh(figsize=(6, 2.2), title="Wakeups by task, and by current")
answer.set_xlabel("wakeups")
lk.check("07.4", answer, keyed=keyed)
