# %% exercise:02.1
declared = "BPF_PERCPU_ARRAY(write_size, u64, 65);\n"
described = ' *   write_size: {holds: "bytes asked for by write()", histogram: {slots: log2, unit: bytes}}\n'
filled = "    if (nr == LK_NR_write) {\n"
read_block = """    if (nr == LK_NR_read) {
        slot = lk_log2_slot(third_argument);
        cell = read_size.lookup(&slot);
        if (cell)
            *cell += 1;
    }
"""
answer = lk.write_program(
    "syscall_counts",
    change={
        declared: declared + declared.replace("write_size", "read_size"),
        described: described + described.replace("write", "read"),
        filled: read_block + filled,
    },
)
lk.check("02.1", answer, lab=lab, source=source)

# %% exercise:02.2
answer = counts.groupby("tgid")["calls"].sum().sort_values(ascending=False)
lk.check("02.2", answer, counts=counts)

# %% exercise:02.3
import matplotlib.pyplot as plt

share = write_size["count"].cumsum() / write_size["count"].sum()
ax = plt.subplots(figsize=(7.2, 2.8), dpi=110, layout="constrained")[1]
ax.step(write_size["hi"], share, where="post", color=plots.BLUE)
ax.set_xscale("log", base=2)
ax.set(xlabel="bytes asked for (logarithmic)", ylabel="share of writes", ylim=(0, 1.05))
ax.set_title("Writes of at most so many bytes", loc="left", fontsize=11)
ax.grid(True, color="#dddddd")
answer = ax
lk.check("02.3", answer, write_size=write_size)
