# %% exercise:12.1
cells = drawn.cells
is_own = cells["occupant"] == VICTIM
parts = {
    "self_contended": cells.loc[is_own, "wait_ns"].sum(),
    "throttled": cells.loc[cells["kind"] == "throttled", "wait_ns"].sum(),
    "noisy_neighbor": cells.loc[cells["occupant"].str.startswith("neighbour"), "wait_ns"].sum(),
}
order = sorted(parts, key=parts.get, reverse=True)
contended_ms_per_s = sum(parts.values()) / 1e6 / drawn.seconds
if contended_ms_per_s < 5:
    answer = "quiet"
elif parts[order[1]] >= 0.2 * sum(parts.values()):
    answer = "mixed"
else:
    answer = order[0]
verdict = answer
lk.check("12.1", answer, case=drawn)

# %% exercise:12.2
neighbours = drawn.cells[drawn.cells["occupant"].str.startswith("neighbour")]
guilty = verdict in ("noisy_neighbor", "mixed") and len(neighbours)
answer = neighbours.loc[neighbours["wait_ns"].idxmax(), "occupant"] if guilty else "nobody"
lk.check("12.2", answer, case=drawn)

# %% exercise:12.3
others = (drawn.cells["kind"] == "cgroup") & (drawn.cells["occupant"] != VICTIM)
answer = drawn.cells.loc[others, "wait_ns"].sum() / drawn.cells["wait_ns"].sum()
lk.check("12.3", answer, case=drawn)

# %% exercise:12.4
seen = "    book->seen++;\n"
put_off = "    if (!prev->tgid || !put_off(ctx->args[0], prev_state))\n        return 0;\n"
answer = lk.write_program("took_over", change={seen: put_off + seen})
lk.check("12.4", answer, case=drawn, lab=lab, source=took_over_c)

# %% exercise:12.5
answer = {
    "quiet": "leave everything as it is",
    "noisy_neighbor": "give the service its own CPU, or more weight than its neighbours",
    "self_contended": "let the service run fewer tasks at once, or give it more CPUs",
    "throttled": "raise the quota that bites",
    "mixed": "raise the quota, and keep the neighbours away",
}[verdict]
lk.check("12.5", answer, case=drawn)
