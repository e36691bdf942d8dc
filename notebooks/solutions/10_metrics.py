# %% exercise:10.1
answer = (160 - 100) + 20 + (50 - 20)
lk.check("10.1", answer)

# %% exercise:10.2
buckets = mine[mine["sample"] == "labkit_runq_latency_seconds_bucket"].set_index("le")["value"]
answer = buckets["+Inf"] - buckets["0.004194304"]
lk.check("10.2", answer, scraped=scraped, service=service)

# %% exercise:10.3
answer = f'topk(1, rate(labkit_runq_wait_by_occupant_seconds_total{{name="{service}"}}[1m]))'
lk.check("10.3", answer, stage=stage, graph=graph)

# %% exercise:10.4
answer = 40 * 200 * (25 + 2)
lk.check("10.4", answer)

# %% exercise:10.5
answer = lk.write_program(
    "syscall_counts",
    change={
        "    u64 last_ns;\n": "    u64 last_ns;\n    u64 bytes;\n",
        "    entry->last_ns = now;\n": (
            "    entry->last_ns = now;\n"
            "    if (nr == LK_NR_write)\n"
            "        __sync_fetch_and_add(&entry->bytes, third_argument);\n"
        ),
    },
)
lk.check("10.5", answer, lab=lab)

# %% exercise:10.6
by_hand = course.assign(rate=course["value"].diff(10) / 5)
answer = by_hand.plot(x="seconds", y="rate", legend=False)
answer.set(xlabel="seconds since the beginning", ylabel="waits per second", ylim=(0, None))
answer.set_title("Waits of the service, from its counter")
lk.check("10.6", answer, course=course)

# %% exercise:10.7
answer = others.loc[others["name"] == "hog", "wait_ns"].sum() / 1e9 / 60
lk.check("10.7", answer, others=others, graph=graph)
