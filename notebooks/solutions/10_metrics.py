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
