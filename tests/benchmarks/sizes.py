"""How much each benchmark does."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """Numbers of messages, unless said otherwise."""

    runs: int
    """At most three, as `limits` has that many queues for those that it makes at once."""
    peer_runs: int
    delivery: int
    delivery_slow: int
    """At 100 ms."""
    post_office: int
    celery: int
    rq: int
    raw: int
    post_office_slow: int
    post_office_threads: int
    """With as many threads as we open connections."""
    celery_slow: int
    flat: tuple[int, ...]
    single: int
    bulk: int
    backlog: int
    """What another tenant has due."""
    urgent_seconds: float
    due: int
    due_seconds: float
    tenants: tuple[int, int]
    sweeps: int
    idle_seconds: float
    """As long as from sweep to sweep, so that each run has one."""
    fan_out: int
    memory: tuple[int, int]
    render: int
    """Mails."""
    fairness_seconds: float
    limit: int
    limit_window: int
    """Seconds."""
    limit_windows: int


SIZES = {
    "full": Size(
        runs=3,
        peer_runs=3,
        delivery=20_000,
        delivery_slow=5_000,
        post_office=2_000,
        celery=1_000,
        rq=200,
        raw=10_000,
        post_office_slow=300,
        post_office_threads=3_000,
        celery_slow=200,
        flat=(1_000, 10_000, 100_000),
        single=500,
        bulk=10_000,
        backlog=100_000,
        urgent_seconds=20,
        due=200,
        due_seconds=20,
        tenants=(10, 1_000),
        sweeps=1_000,
        idle_seconds=15,
        fan_out=100_000,
        memory=(10_000, 100_000),
        render=20_000,
        fairness_seconds=60,
        limit=100,
        limit_window=10,
        limit_windows=6,
    ),
    "quick": Size(
        runs=3,
        peer_runs=1,
        delivery=3_000,
        delivery_slow=1_000,
        post_office=1_000,
        celery=400,
        rq=100,
        raw=3_000,
        post_office_slow=200,
        post_office_threads=1_000,
        celery_slow=80,
        flat=(1_000, 10_000),
        single=300,
        bulk=10_000,
        backlog=20_000,
        urgent_seconds=5,
        due=30,
        due_seconds=3,
        tenants=(10, 1_000),
        sweeps=300,
        idle_seconds=3,
        fan_out=10_000,
        memory=(2_000, 10_000),
        render=5_000,
        fairness_seconds=12,
        limit=100,
        limit_window=4,
        limit_windows=3,
    ),
    "tiny": Size(
        runs=1,
        peer_runs=1,
        delivery=60,
        delivery_slow=20,
        post_office=20,
        celery=5,
        rq=5,
        raw=50,
        post_office_slow=5,
        post_office_threads=5,
        celery_slow=5,
        flat=(20, 60),
        single=5,
        bulk=50,
        backlog=6_000,
        urgent_seconds=0.4,
        due=5,
        due_seconds=0.5,
        tenants=(2, 20),
        sweeps=3,
        idle_seconds=0.5,
        fan_out=200,
        memory=(20, 60),
        render=20,
        fairness_seconds=1.2,
        limit=5,
        limit_window=1,
        limit_windows=3,
    ),
}
