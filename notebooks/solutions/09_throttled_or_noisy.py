# %% exercise:09.1
row = causes.loc["throttled_beside_hog"]
answer = 1 - row["throttled"] / row.sum()
lk.check("09.1", answer, causes=causes)

# %% exercise:09.2
answer = lk.write_program(
    "noisy_neighbor",
    change={
        "    u64 migrations;\n": "    u64 migrations;\n    u64 throttled_waits;\n",
        "    waiter->book->delivered++;\n": (
            "    waiter->book->delivered++;\n    if (throttled_ns)\n        waiter->book->throttled_waits++;\n"
        ),
    },
)
lk.check("09.2", answer, lab=lab)

# %% exercise:09.3
answer = "quota_on_parent"
lk.check("09.3", answer)

# %% exercise:09.4
answer = (50, 200)
lk.check("09.4", answer)
