"""A real server answers well, late, wrongly or not at all; what was answered is kept, and keys are seen nowhere."""

from __future__ import annotations

import json
import random
import socket
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from fake_endpoint import Raw, completion, error, own_environment, serving
from stepwell.chat import Attempt, Attempts, without_thinking
from stepwell.endpoint import Budget, Client, Endpoint
from stepwell.errors import StepwellError
from stepwell.fingerprint import fingerprint

HELLO = [{"role": "user", "content": "Hello?"}]
__all__ = ["own_environment"]
KEY = "sk-very-secret-0123456789"


def only_digits(text: str) -> str:
    return "" if text.strip().isdigit() else "it is no number"


def failing(endpoint: Endpoint, cache: Path, check: Any = None) -> StepwellError:
    with pytest.raises(StepwellError) as caught, Client(endpoint, cache) as client:
        client.ask(HELLO, *([check] if check else []))
    return caught.value


def test_an_answer_is_asked_for_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with serving(completion("Hello.")) as server:
        endpoint = server.endpoint(temperature=0.5, max_tokens=9)
        with Client(endpoint, tmp_path) as client:
            assert client.ask(HELLO).text == "Hello."
            assert client.ask(HELLO).text == "Hello."
            assert (client.requests, client.tokens) == (1, 7)
        assert server.asked == [{"model": "m", "messages": HELLO, "max_tokens": 9, "temperature": 0.5}]
        assert server.paths == ["/v1/chat/completions"]
        # Another process needs neither the server nor the package nor the key.
        monkeypatch.setitem(sys.modules, "openai", None)
        with Client(endpoint.model_copy(update={"api_key_env": "NOT_SET"}), tmp_path) as client:
            assert client.ask(HELLO).text == "Hello." and client.requests == 0
    kept = list(tmp_path.iterdir())
    request = {"base_url": endpoint.base_url, "model": "m", "max_tokens": 9, "temperature": 0.5, "messages": HELLO}
    assert [path.name for path in kept] == [f"{fingerprint(request)}.json"]
    assert json.loads(kept[0].read_text()) == {"request": request, "attempts": [{"text": "Hello.", "cut": False}]}


@pytest.mark.parametrize(
    "other",
    [{"model": "n"}, {"temperature": 0.1}, {"temperature": None}, {"max_tokens": 8}, {"base_url": "http://localhost"},
     {"max_tokens_field": "max_completion_tokens"}],
)  # fmt: skip
def test_all_that_determines_an_answer_is_in_its_name(tmp_path: Path, other: dict[str, Any]):
    first = Endpoint(base_url="http://127.0.0.1:1/v1", model="m")
    one, two = Client(first, tmp_path), Client(first.model_copy(update=other), tmp_path)
    assert fingerprint(one._request(HELLO)) != fingerprint(two._request(HELLO))
    same = first.model_copy(update={"timeout_seconds": 1.0, "retries": 0, "api_key_env": "K", "budget": Budget()})
    assert one._request(HELLO) == Client(same, tmp_path)._request(HELLO)


def test_options_as_some_models_want_them(tmp_path: Path):
    with serving(completion("x")) as server:
        options = {"temperature": None, "max_tokens_field": "max_completion_tokens"}
        with Client(server.endpoint(**options), tmp_path) as client:
            client.ask(HELLO)
    assert server.asked == [{"model": "m", "messages": HELLO, "max_completion_tokens": 512}]


@pytest.mark.parametrize(
    "first",
    [
        error(500),
        error(503, headers={"retry-after": "0.01"}),
        error(429, "slow down", code="rate_limit_exceeded"),
        Raw(body="<html>a proxy's page</html>", type="text/html"),
        Raw(body='{"choices": [', type="application/json"),
        Raw(body='{"object": "something else"}'),
        Raw(body='{"choices": []}'),
        Raw(body='{"choices": [{"message": {"content": 5}}]}'),
        Raw(body="[]"),
        Raw(body=""),
    ],
)  # fmt: skip
def test_what_passes_is_tried_again(tmp_path: Path, first: Raw):
    state = random.getstate()
    with serving(first, completion("Hello.")) as server, Client(server.endpoint(), tmp_path) as client:
        assert client.ask(HELLO).text == "Hello." and client.requests == 2
    assert random.getstate() == state


@pytest.mark.parametrize(
    ("response", "cause"),
    [
        (error(500), "HTTP 500"),
        (error(429), "HTTP 429"),
        (Raw(body="<html>", type="text/html"), "what it sends is no chat completion (a base_url mostly ends in /v1)"),
        (Raw(body='{"a": 1}'), "what it sends is no chat completion (a base_url mostly ends in /v1)"),
    ],
)
def test_what_does_not_pass_is_one_error(tmp_path: Path, response: Raw, cause: str):
    with serving(response) as server:
        found = failing(server.endpoint(), tmp_path)
        assert len(server.asked) == 3
    assert found.cause == f"the model endpoint http://127.0.0.1:{server.port}/v1 failed 3 times in a row: {cause}"
    assert found.way_out == f"see that it is up, and run again: what it answered is kept in {tmp_path}"
    assert found.__cause__ is None and found.__context__ is None


def test_an_endpoint_that_does_not_answer_in_time(tmp_path: Path):
    slow = Raw(body=completion("late").body, after_seconds=0.4)
    with serving(slow) as server:
        found = failing(server.endpoint(timeout_seconds=0.1, retries=0), tmp_path)
        assert found.cause.endswith("failed once, and no retries are allowed: no answer within 0.1 s")
    with (
        serving(slow, completion("Hello.")) as server,
        Client(server.endpoint(timeout_seconds=0.2), tmp_path) as client,
    ):
        assert client.ask(HELLO).text == "Hello."


def test_an_endpoint_that_is_gone_keeps_what_it_answered(tmp_path: Path):
    later = [{"role": "user", "content": "And?"}]
    with serving(completion("Hello.")) as server, Client(server.endpoint(), tmp_path) as client:
        client.ask(HELLO)
    endpoint = server.endpoint(backoff_seconds=0.0)
    with pytest.raises(StepwellError) as caught, Client(endpoint, tmp_path) as client:
        assert client.ask(HELLO).text == "Hello."
        client.ask(later)
    assert "failed 3 times in a row: it cannot be reached (" in caught.value.cause
    assert "refused" in caught.value.cause
    assert caught.value.way_out.endswith(f"what it answered is kept in {tmp_path}")


def test_waits_grow_with_jitter_and_heed_the_endpoint(tmp_path: Path):
    client = Client(Endpoint(base_url="http://x/v1", model="m", backoff_seconds=2), tmp_path)
    for number, wanted in enumerate((2, 4, 8, 16)):
        waits = [client._wait_seconds(number, 0) for _ in range(50)]
        assert wanted / 2 <= min(waits) < wanted < max(waits) <= 1.5 * wanted
    assert client._wait_seconds(0, 30) == 30 and client._wait_seconds(0, 3600) == 60
    assert client._wait_seconds(20, 0) <= 90


def test_the_wait_that_the_endpoint_asks_for_is_kept(tmp_path: Path):
    with serving(error(429, headers={"retry-after": "0.3"}), completion("x")) as server:
        begun = time.monotonic()
        with Client(server.endpoint(), tmp_path) as client:
            client.ask(HELLO)
        assert time.monotonic() - begun >= 0.3


@pytest.mark.parametrize(
    ("response", "cause", "way_out"),
    [
        (error(404, "no model m here"), "refuses to ask m (HTTP 404): no model m here", "check base_url, model and"),
        (error(400, f"bad\n{KEY}"), "refuses to ask m (HTTP 400): bad", "check base_url, model and the options"),
        (error(422, f"not {KEY}"), "refuses to ask m (HTTP 422): not ***", "check base_url, model and the options"),
        (error(429, "pay first", code="insufficient_quota"), "refuses to ask m (HTTP 429): pay first", "check"),
        (Raw(status=400, body='{"detail": "too long"}'), "refuses to ask m (HTTP 400): too long", "check"),
        (error(401, f"wrong key {KEY}"), "refuses the key in A_KEY (HTTP 401)", "check that the key is right"),
        (error(403, f"wrong key {KEY[:9]}"), "refuses the key in A_KEY (HTTP 403)", "check that the key is right"),
    ],
)
def test_what_is_refused_is_not_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, response: Raw, cause: str, way_out: str
):
    monkeypatch.setenv("A_KEY", KEY)
    with serving(response) as server:
        found = failing(server.endpoint(api_key_env="A_KEY"), tmp_path)
        assert len(server.asked) == 1 and server.keys == [f"Bearer {KEY}"]
    assert found.cause == f"http://127.0.0.1:{server.port}/v1 {cause}"
    assert found.way_out.startswith(way_out)
    assert "sk-" not in str(found)


def test_an_endpoint_that_wants_a_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with serving(error(401)) as server:
        found = failing(server.endpoint(), tmp_path)
        assert server.keys == ["Bearer none"], "the key of another service was sent to this one"
        assert found.cause == f"http://127.0.0.1:{server.port}/v1 asks for a key (HTTP 401)"
        assert found.way_out == "put its key into an environment variable, and the variable's name into api_key_env"
        monkeypatch.setenv("A_KEY", " ")
        found = failing(server.endpoint(api_key_env="A_KEY"), tmp_path)
        holds = f"the environment variable A_KEY, which should hold the key of http://127.0.0.1:{server.port}/v1"
        assert found.cause == f"{holds}, is not set"
        assert found.way_out.startswith("export A_KEY=... before the run") and len(server.asked) == 1


def test_the_key_is_written_nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("A_KEY", KEY)
    with serving(completion(f"You said {KEY}.\n\nSecond line.")) as server:
        endpoint = server.endpoint(api_key_env="A_KEY")
        with Client(endpoint, tmp_path) as client:
            assert client.ask(HELLO).text == "You said ***.\n\nSecond line."
    assert all(KEY not in path.read_text() for path in tmp_path.iterdir())
    assert KEY not in repr(endpoint) and KEY not in endpoint.model_dump_json()


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("api_key_env", "sk-proj-abc", "must be the NAME of an environment variable"),
        ("api_key_env", "hf_aBcDeF", "must be the NAME of an environment variable"),
        ("base_url", "http://me:hidden@host/v1", "without user, key or query: name the key's variable in api_key_env"),
        ("base_url", "http://host/v1?key=hidden", "without user, key or query"),
        ("base_url", "nowhere:8000/v1", "must be an address such as http://localhost:8000/v1"),
    ],
)
def test_a_key_in_the_wrong_place_is_refused_and_not_repeated(field: str, value: str, said: str):
    with pytest.raises(ValidationError) as caught:
        Endpoint.model_validate({"base_url": "http://x/v1", "model": "m", field: value})
    assert said in str(caught.value) and value not in str(caught.value)
    assert Endpoint(base_url="http://x/v1/", model="m").base_url == "http://x/v1"


def test_nonsense_is_asked_again_with_the_reason(tmp_path: Path):
    script = completion("many"), completion(""), completion("12")
    with serving(*script) as server, Client(server.endpoint(), tmp_path) as client:
        assert client.ask(HELLO, only_digits).text == "12"
    again = "That answer cannot be used: it is no number. Answer again, in the form asked for."
    assert [len(request["messages"]) for request in server.asked] == [1, 3, 1]
    assert server.asked[1]["messages"][1:] == [
        {"role": "assistant", "content": "many"},
        {"role": "user", "content": again},
    ]


@pytest.mark.parametrize(
    ("response", "why"),
    [
        (completion("many"), "it is no number"),
        (completion(None), "it is empty"),
        (completion("  \n", finish="length"), "it is empty, and cut off at 512 tokens"),
        (completion("man", finish="length"), "it is no number, and cut off at 512 tokens"),
    ],
)
def test_nonsense_to_the_end_is_reported_and_kept(tmp_path: Path, response: Raw, why: str):
    with serving(response) as server:
        for _ in range(2):
            with Client(server.endpoint(), tmp_path) as client:
                found = client.ask(HELLO, only_digits)
                assert found.text is None and found.why == f"no usable answer in 3 tries: {why}"
        assert len(server.asked) == 3
        with Client(server.endpoint(retries=3), tmp_path) as client:
            assert client.ask(HELLO, only_digits).text is None and client.requests == 1
        with Client(server.endpoint(retries=0), tmp_path) as client:
            assert client.ask(HELLO, only_digits).why == f"no usable answer in 1 try: {why}"


def test_a_broken_file_of_the_cache_is_asked_again(tmp_path: Path):
    with serving(completion("Hello.")) as server:
        for number in range(3):
            with Client(server.endpoint(), tmp_path) as client:
                assert client.ask(HELLO).text == "Hello." and client.requests == 1
            (path,) = tmp_path.iterdir()
            path.write_text(['{"request": {', '{"request": {}, "attempts": []}', "[]"][number])


def test_files_are_whole_or_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    kept = Attempts(tmp_path)
    kept.write({"a": 1}, [Attempt(text="first")])

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(StepwellError, match="an answer cannot be kept: No space left on device"):
        kept.write({"a": 1}, [Attempt(text="first"), Attempt(text="second")])
    assert kept.read({"a": 1}) == [Attempt(text="first")] and len(list(tmp_path.iterdir())) == 1


def test_budgets_end_the_asking(tmp_path: Path):
    asked = [[{"role": "user", "content": str(number)}] for number in range(4)]
    with serving(completion("x")) as server:
        endpoint = server.endpoint(budget=Budget(requests=2))
        for answered in (2, 4):  # what was answered costs nothing the second time
            with Client(endpoint, tmp_path / "a") as client:
                for messages in asked[:answered]:
                    client.ask(messages)
        with Client(endpoint, tmp_path / "b") as client, pytest.raises(StepwellError) as caught:
            for messages in asked:
                client.ask(messages)
        assert caught.value.cause == f"the budget of 2 requests to {endpoint.base_url} is used up"
        assert caught.value.way_out.startswith(f"what was answered is kept in {tmp_path / 'b'}")
        endpoint = server.endpoint(budget=Budget(tokens=8))
        with Client(endpoint, tmp_path / "c") as client, pytest.raises(StepwellError) as caught:
            for messages in asked:
                client.ask(messages)
        assert caught.value.cause == f"the budget of 8 tokens at {endpoint.base_url} is used up (14 used)"
    with serving(completion("x", tokens=None)) as server:
        endpoint = server.endpoint(budget=Budget(tokens=8))
        with Client(endpoint, tmp_path / "d") as client, pytest.raises(StepwellError) as caught:
            for messages in asked:
                client.ask(messages)
        assert caught.value.cause.endswith("does not say how many tokens it used, so a budget in tokens cannot be kept")
        assert caught.value.way_out == "give the budget in requests"
        assert Client(endpoint, tmp_path / "d").ask(asked[0]).text == "x"


def test_failed_requests_count(tmp_path: Path):
    with serving(error(500)) as server:
        found = failing(server.endpoint(budget=Budget(requests=2)), tmp_path)
        assert "the budget of 2 requests" in found.cause and len(server.asked) == 2


def test_asking_can_be_stopped_between_requests(tmp_path: Path):
    def stop() -> None:
        raise KeyboardInterrupt

    with serving(completion("x")) as server:
        with pytest.raises(KeyboardInterrupt), Client(server.endpoint(), tmp_path, between=stop) as client:
            client.ask(HELLO)
        assert not server.asked


def test_without_the_package_the_error_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "openai", None)
    found = failing(Endpoint(base_url="http://x/v1", model="m"), tmp_path)
    assert found.cause == "asking a model endpoint needs the package openai, which is not installed"
    assert found.way_out == 'pip install "stepwell[endpoint]"'


def test_what_was_thought_aloud_is_no_part_of_an_answer():
    assert without_thinking("<think>\nYES? NO!\n</think>\n\nYES ") == "YES"
    assert without_thinking(" A <think>b</think>") == "A <think>b</think>"
    assert without_thinking("<think> never ended") == "<think> never ended"


def test_a_name_that_resolves_to_nothing_is_an_endpoint_that_is_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def nowhere(*_: object, **__: object) -> None:
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", nowhere)
    found = failing(Endpoint(base_url="http://nowhere.invalid/v1", model="m", retries=0), tmp_path)
    assert found.cause.endswith("it cannot be reached ([Errno -2] Name or service not known)")
