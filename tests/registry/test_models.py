from fastapi.testclient import TestClient


def test_registers_a_model_and_reads_it_back(client: TestClient) -> None:
    made = client.post("/v1/models", json={"name": "minilm", "description": "d", "labels": {"team": "search"}})
    assert made.status_code == 201
    assert made.headers["Location"] == "/v1/models/minilm"
    read = client.get("/v1/models/minilm").json()
    assert read == made.json()
    assert read["labels"] == {"team": "search"}


def test_refuses_a_name_that_is_taken(client: TestClient) -> None:
    client.post("/v1/models", json={"name": "minilm"})
    again = client.post("/v1/models", json={"name": "minilm"})
    assert again.status_code == 409
    assert again.json()["code"] == "model_exists"


def test_names_the_fault_of_a_bad_name_and_of_a_misspelt_field(client: TestClient) -> None:
    answer = client.post("/v1/models", json={"name": "Mini LM", "descripton": "x"})
    assert answer.status_code == 422
    assert answer.headers["content-type"] == "application/problem+json"
    assert {error["pointer"] for error in answer.json()["errors"]} == {"/name", "/descripton"}


def test_says_how_to_register_a_model_that_is_not_there(client: TestClient) -> None:
    problem = client.get("/v1/models/nobody").json()
    assert problem["code"] == "model_not_found"
    assert "POST /v1/models" in problem["detail"]


def test_pages_through_models_in_the_order_of_their_names(client: TestClient) -> None:
    for name in ("c", "a", "d", "b"):
        client.post("/v1/models", json={"name": name})
    first = client.get("/v1/models?limit=3").json()
    assert [model["name"] for model in first["data"]] == ["a", "b", "c"]
    assert first["has_more"]
    client.post("/v1/models", json={"name": "aa"})  # neither repeats nor hides what comes after
    second = client.get(f"/v1/models?limit=3&after={first['next_cursor']}").json()
    assert [model["name"] for model in second["data"]] == ["d"]
    assert (second["has_more"], second["next_cursor"]) == (False, None)


def test_refuses_a_cursor_it_did_not_make(client: TestClient) -> None:
    answer = client.get("/v1/models?after=!!!")
    assert (answer.status_code, answer.json()["code"]) == (422, "bad_cursor")
