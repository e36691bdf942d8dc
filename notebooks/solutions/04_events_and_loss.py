# %% exercise:04.1
at = 0
for _ in range(10):
    length = struct.unpack_from("<I", raw, at)[0] & 0x3FFFFFFF
    at += 8 + (length + 7) // 8 * 8
answer = at
lk.check("04.1", answer, raw=raw)

# %% exercise:04.2
wakeup = "    book->seen++;\n    event = events.ringbuf_reserve(sizeof(struct lk_woken));\n"
answer = lk.write_program(
    "sched_events",
    change={
        "losses: [ring_full]": "losses: [ring_full, skipped]",
        "    u64 ring_full;\n": "    u64 ring_full;\n    u64 skipped;\n",
        wakeup: wakeup.replace("seen++;\n", "seen++;\n    book->skipped++;\n    return 0;\n"),
    },
)
lk.check("04.2", answer, lab=lab, source=source)

# %% exercise:04.3
answer = (kept["switched"]["lost"].diff() > 0).sum()
lk.check("04.3", answer, switched=kept["switched"])

# %% exercise:04.4
answer = "how often the ring is read"
lk.check("04.4", answer)
