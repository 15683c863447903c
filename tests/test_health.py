import pytest
from fastapi.testclient import TestClient

from app.main import create_app
from app.settings import Settings


def test_is_ready_when_database_broker_and_store_answer(client: TestClient) -> None:
    answer = client.get("/readyz")
    assert answer.status_code == 200
    assert answer.json() == {"ready": True, "checks": {"database": "ok", "broker": "ok", "store": "ok"}, "workers": 0}


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_is_not_ready_without_a_broker_and_says_so(settings: Settings) -> None:
    lonely = settings.model_copy(update={"broker_url": "redis://127.0.0.1:1/0"})
    with TestClient(create_app(lonely)) as client:
        answer = client.get("/readyz")
        alive = client.get("/healthz")
    assert answer.status_code == 503
    assert answer.json()["checks"]["broker"].startswith("does not answer")
    assert alive.status_code == 200


def test_metrics_count_requests_by_route(client: TestClient) -> None:
    client.get("/v1/models/nobody")
    text = client.get("/metrics").text
    assert 'enginesmith_http_requests_total{method="GET",route="/models/{model}",status="404"} 1.0' in text
    assert "enginesmith_workers 0.0" in text
