# %% exercise:12.1
from labkit.lessons.ch12 import QUIET_MS_PER_S, REST

held = drawn.cells.groupby("occupant")["wait_ns"].sum()
by_kind = drawn.cells.groupby("kind")["wait_ns"].sum()
parts = {
    "noisy_neighbor": held[held.index.str.startswith("neighbour")].sum(),
    "system": held.get(REST, 0),
    "self_contended": held.get(VICTIM, 0),
    "throttled": by_kind.get("throttled", 0),
}
order = sorted(parts, key=parts.get, reverse=True)
if drawn.cells["wait_ns"].sum() / 1e6 / drawn.seconds < QUIET_MS_PER_S:
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
    "system": "find out what the rest of the machine does",
    "self_contended": "let the service run fewer tasks at once, or give it more CPUs",
    "throttled": "raise the quota that bites",
    "mixed": "raise the quota, and keep the neighbours away",
}[verdict]
lk.check("12.5", answer, case=drawn)
