# %% exercise:01.1
member = "struct lk_caller {\n"
fill = "    bpf_get_current_comm("
answer = lk.write_program(
    "hello",
    change={
        member: member + "    u32 tgid;\n",
        fill: "    caller.tgid = bpf_get_current_pid_tgid() >> 32;\n" + fill,
    },
)
lk.check("01.1", answer, lab=lab, hello_c=hello_c)

# %% exercise:01.2
answer = hello.loc[hello["comm"] == "lk-spawner", "calls"].sum() / hello["calls"].sum()
lk.check("01.2", answer, hello=hello)

# %% exercise:01.3
answer = "true"
lk.check("01.3", answer)
