"""The victim of the demonstration."""

from labkit.containers.demand import serve_until, summary


def test_a_service_alone_sees_its_own_work_and_no_more_requests_than_periods() -> None:
    import time

    start = time.monotonic_ns()
    latencies, due = serve_until(start, start + 200_000_000, period_ns=20_000_000, work_ns=2_000_000)
    assert 1 <= len(latencies) <= 10
    assert min(latencies) >= 2_000_000
    assert due >= start + 200_000_000


def test_what_a_service_says_of_its_latencies() -> None:
    said = summary([n * 1_000_000 for n in range(1, 101)], used_ns=400_000_000, wall_ns=2_000_000_000)
    assert said == {"requests": 100, "p50_ms": 51.0, "p99_ms": 100.0, "max_ms": 100.0, "cpu_share": 0.2}
    assert summary([], 0, 0)["requests"] == 0
