# %% exercise:08.1
others = cells[(cells["kind"] == "cgroup") & (cells["occupant_id"] != ids["service"])]
answer = others.loc[others["occupant_id"] == ids["hog_b"], "wait_ns"].sum() / others["wait_ns"].sum()
lk.check("08.1", answer, cells=cells, ids=ids)

# %% exercise:08.2
answer = lk.write_program(
    "netflix_noisy_neighbor",
    change={
        "    if (!next_pid)\n        return 0;\n": (
            "    if (ctx->args[0] || !prev_state)\n"
            "        enqueued(prev);\n"
            "    if (!next_pid)\n        return 0;\n"
        )
    },
)
lk.check("08.2", answer, lab=lab)

# %% exercise:08.3
answer = "move the service to another CPU"
lk.check("08.3", answer)

# %% exercise:08.4
import matplotlib.pyplot as plt

shown = cells[cells["kind"] == "cgroup"]
fig, answer = plt.subplots(figsize=(6, 2))
answer.barh(shown["occupant_id"].map(labels).fillna("others"), shown["wait_ns"] / 1e6)
answer.set_xlabel("waited (ms)")
answer.set_title("Who held the CPU while the service waited")
lk.check("08.4", answer, cells=cells)
