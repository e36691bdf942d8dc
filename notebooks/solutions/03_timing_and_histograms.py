# %% exercise:03.1
answer = lk.write_program("syscall_counts", floored_c, change={"value > 1 &&": "value > 0 &&"})
lk.check("03.1", answer, lab=lab, floored=floored_c)

# %% exercise:03.2
nap = naps_taken[naps_taken["asked_us"] == 50]
answer = (nap["slept_ns"] / 1000 - nap["asked_us"]).median()
lk.check("03.2", answer, naps=naps_taken)

# %% exercise:03.3
count = duration["count"]
answer = ((duration["lo"] * count).sum() / count.sum(), (duration["hi"] * count).sum() / count.sum())
lk.check("03.3", answer, duration=duration)

# %% exercise:03.4
import matplotlib.pyplot as plt

ax = plt.subplots(figsize=(7.2, 3.2), dpi=110, layout="constrained")[1]
over_us = naps_taken["slept_ns"] / 1000 - naps_taken["asked_us"]
ax.plot(naps_taken["asked_us"], over_us, ".", color=plots.BLUE, alpha=0.5)
ax.set_xscale("log")
ax.set(xlabel="asked for (µs)", ylabel="too long by (µs)", ylim=(0, None))
ax.set_title("A nap is too long by about the same, however long it is", loc="left", fontsize=11)
ax.grid(True, color="#dddddd")
answer = "about the same for all"
lk.check("03.4", answer)
