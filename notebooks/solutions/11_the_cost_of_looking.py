# %% exercise:11.1
answer = lk.write_program(
    "sampling",
    change={"where->calls % LK_PARAM_N == 0": "bpf_get_prandom_u32() % LK_PARAM_N == 0"},
)
lk.check("11.1", answer, lab=lab, source=sampling_c)

# %% exercise:11.2
one_percent_ns = 0.01 * 1e9
answer = one_percent_ns / ladder.loc["and count in a hash", "pays_ns"]
lk.check("11.2", answer, ladder=ladder)

# %% exercise:11.3
answer = samples.loc["window", "total_bytes"] / samples.loc["all", "total_bytes"]
lk.check("11.3", answer, samples=samples)

# %% exercise:11.4
answer = "on the way to the program"
lk.check("11.4", answer)
