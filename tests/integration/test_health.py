"""Probes answer on any host, and say no more than what is missing."""

import pytest
from django.test import Client

from services import health
from tenants.models import Tenant
from tests.database import queries


def test_alive_needs_nothing_and_no_known_host(client: Client) -> None:
    assert client.get("/healthz", headers={"host": "10.1.2.3"}).status_code == 200


def test_ready_when_database_redis_and_migrations_are_there(client: Client, db: None) -> None:
    answer = client.get("/readyz", headers={"host": "10.1.2.3"})
    assert (answer.status_code, answer.content) == (200, b"ok\n")


def test_not_ready_while_the_platforms_migrations_are_behind(client: Client, db: None) -> None:
    Tenant.objects.filter(schema_name="public").update(migrations=[])
    answer = client.get("/readyz", headers={"host": "10.1.2.3"})
    assert (answer.status_code, answer.content) == (503, b"migrations\n")


def test_not_ready_without_redis_where_workers_are_rung_for(
    client: Client, db: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse() -> None:
        raise ConnectionRefusedError

    monkeypatch.setattr(health.queues, "redis", refuse)
    assert client.get("/readyz", headers={"host": "10.1.2.3"}).content == b"redis\n"


def test_probing_costs_one_query(client: Client, db: None) -> None:
    with queries(1):
        client.get("/readyz", headers={"host": "10.1.2.3"})
