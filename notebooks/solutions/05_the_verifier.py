# %% exercise:05.1
count = "    table->cell[nr] += 1;\n"
answer = lk.write_program(
    "no_bounds", no_bounds_c, change={count: "    if (nr > 15)\n        nr = 15;\n" + count}
)
lk.check("05.1", answer, lab=lab)

# %% exercise:05.2
unsubmitted_c = reject("unsubmitted").source
answer = lk.write_program(
    "unsubmitted",
    unsubmitted_c,
    change={
        "    if (*event > 300)\n        return 0;\n": "    if (*event > 300) {\n"
        "        events.ringbuf_discard(event, 0);\n        return 0;\n    }\n"
    },
)
lk.check("05.2", answer, lab=lab)

# %% exercise:05.3
answer = (LIMIT - 2) // 2
lk.check("05.3", answer, lab=lab)

# %% exercise:05.4
import matplotlib.pyplot as plt

ax = plt.subplots(figsize=(7.2, 3.2), dpi=110, layout="constrained")[1]
ax.loglog(walked["rounds"], walked["ms"], "o-")
ax.set(xlabel="rounds", ylabel="verification (ms)")
ax.set_title("Ten times the rounds, ten times the time", loc="left", fontsize=11)
ax.grid(True, color="#dddddd")
answer = "in proportion"
lk.check("05.4", answer)
