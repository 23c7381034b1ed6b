"""Asking a chat model behind an OpenAI-compatible address, and keeping every answer (`stepwell.chat`).

One `Endpoint` says which model is asked and how; one `Client` asks it. What is kept needs neither key nor package nor
endpoint. An endpoint that is gone is one error, after which a run goes on where it stopped. The key is read from the
environment when the first request is sent, and is written nowhere.
"""

from __future__ import annotations

import contextlib
import os
import random
import re
import time
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from pydantic import ConfigDict, Field, field_validator

from stepwell.chat import Answer, Attempt, Attempts, Check, Message, anything, fault, next_try, unusable
from stepwell.errors import StepwellError
from stepwell.spec import Spec

LONGEST_WAIT_SECONDS = 60.0
TRANSIENT = frozenset({408, 409, 425, 429})
NO_COMPLETION = "what it sends is no chat completion (a base_url mostly ends in /v1)"
VARIABLE = re.compile(r"[A-Z][A-Z0-9_]*")


class Budget(Spec):
    """What one client may spend; answers from the cache cost nothing.

    Attributes:
        requests: sent at most, those that fail among them; None = as many as it takes.
        tokens: no request is sent once so many were used, prompts and answers together; None = as many as it takes.
    """

    requests: int | None = Field(default=None, ge=1)
    tokens: int | None = Field(default=None, ge=1)


class Endpoint(Spec):
    """A chat model behind an OpenAI-compatible address, and how it is asked.

    Attributes:
        base_url: up to what comes before `/chat/completions`, such as http://localhost:8000/v1; no key in it.
        model: the name that the endpoint knows the model by.
        api_key_env: NAME of the environment variable that holds the key; None = the endpoint asks for none.
        temperature: None = not sent: the endpoint's own, the only one that some models take.
        max_tokens: length of an answer at most, in tokens.
        max_tokens_field: how the request calls it; OpenAI's reasoning models only take `max_completion_tokens`.
        timeout_seconds: to wait for one answer.
        retries: times a request is repeated that failed (no answer in time, no connection, HTTP 408, 409, 425, 429
            or 5xx), and times an answer is asked for again that cannot be used.
        backoff_seconds: wait before the first repetition; it doubles each time, give or take half, up to a minute.
        budget: what may be spent.
    """

    # A key that was put in place of its variable's name must not come back in the error that says so.
    model_config = ConfigDict(hide_input_in_errors=True)

    base_url: str
    model: str = Field(min_length=1)
    api_key_env: str | None = None
    temperature: float | None = Field(default=0.0, ge=0, le=2)
    max_tokens: int = Field(default=512, ge=1)
    max_tokens_field: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"
    timeout_seconds: float = Field(default=60.0, gt=0)
    retries: int = Field(default=3, ge=0)
    backoff_seconds: float = Field(default=1.0, ge=0)
    budget: Budget = Budget()

    @field_validator("base_url")
    @classmethod
    def _address(cls, value: str) -> str:
        parts = urlsplit(value)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError("must be an address such as http://localhost:8000/v1")
        if parts.username or parts.password or parts.query or parts.fragment:
            raise ValueError("must be an address without user, key or query: name the key's variable in api_key_env")
        return value.rstrip("/")

    @field_validator("api_key_env")
    @classmethod
    def _variable(cls, value: str | None) -> str | None:
        if value is not None and not VARIABLE.fullmatch(value):
            raise ValueError("must be the NAME of an environment variable (A-Z, 0-9, _) that holds the key")
        return value


class Client:
    """Asks one endpoint, one request at a time, and keeps what it answers; a context, so that connections are closed.

    Args:
        endpoint: which, and how it is asked.
        cache: the folder in which answers are kept; one that outlives a run's stages, or they are asked again.
        between: called before each request, such as a stage's `stop_if_asked`.

    Attributes:
        requests: sent so far, those that failed among them.
        tokens: used so far, as the endpoint counts them; None once it did not say.
    """

    def __init__(self, endpoint: Endpoint, cache: Path, *, between: Callable[[], None] | None = None) -> None:
        self.endpoint, self.between = endpoint, between
        self.kept = Attempts(cache)
        self.requests = 0
        self.tokens: int | None = 0
        self._openai: Any = None
        self._client: Any = None
        self._key: str | None = None
        # Not the global generator: how often an endpoint failed must not change what a study draws.
        self._random = random.Random()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        if self._client is not None:
            self._client.close()
            self._client = None

    def ask(self, messages: Sequence[Message], check: Check = anything) -> Answer:
        """The answer to a conversation, from the cache where it is there.

        Args:
            messages: the conversation, the last message the user's.
            check: what is wrong with an answer. One with a fault is asked for again, `retries` times, and told why.

        Returns:
            The first answer without a fault; without a text, and with the reason, where there was none. That is kept
            as well: another run gives the same without asking.

        Raises:
            StepwellError: the endpoint is gone, or refuses the request or the key; the budget is used up; the variable
                of the key is not set; openai is not installed. What was answered is kept.
        """
        request, attempts, why = self._request(messages), [], ""
        kept = self.kept.read(request)
        for number in range(self.endpoint.retries + 1):
            if number < len(kept):
                attempts.append(kept[number])
            else:
                attempts.append(self._send(next_try(messages, attempts, why)))
                self.kept.write(request, attempts)
            why = fault(attempts[-1], check, self.endpoint.max_tokens)
            if not why:
                return Answer(text=attempts[-1].text, cut=attempts[-1].cut)
        return unusable(len(attempts), attempts[-1], why)

    def _options(self) -> dict[str, Any]:
        one = self.endpoint
        sent = {} if one.temperature is None else {"temperature": one.temperature}
        return {"model": one.model, one.max_tokens_field: one.max_tokens, **sent}

    def _request(self, messages: Sequence[Message]) -> dict[str, Any]:
        # The address is part of it: two servers may call different weights by one name.
        return {"base_url": self.endpoint.base_url, **self._options(), "messages": list(messages)}

    def _send(self, messages: Sequence[Message]) -> Attempt:
        self._open()
        tries, cause = self.endpoint.retries + 1, ""
        for number in range(tries):
            if self.between:
                self.between()
            self._afford()
            found = self._sent_once(messages)
            if isinstance(found, Attempt):
                return found
            cause, asked_wait = found
            if number + 1 < tries:
                time.sleep(self._wait_seconds(number, asked_wait))
        times = "once, and no retries are allowed" if tries == 1 else f"{tries} times in a row"
        raise StepwellError(
            f"the model endpoint {self.endpoint.base_url} failed {times}: {cause}",
            f"see that it is up, and run again: what it answered is kept in {self.kept.folder}",
        )

    def _sent_once(self, messages: Sequence[Message]) -> Attempt | tuple[str, float]:
        """What the endpoint wrote; or why it may be worth another try, and how many seconds it asks to wait."""
        self.requests += 1
        try:
            found = self._client.chat.completions.create(messages=messages, **self._options())
        except self._openai.APIStatusError as error:
            if not _is_transient(error):
                raise self._refused(error) from None
            return f"HTTP {error.status_code}", _retry_after(error)
        except self._openai.APITimeoutError:
            return f"no answer within {self.endpoint.timeout_seconds:g} s", 0.0
        except self._openai.APIConnectionError as error:
            return f"it cannot be reached ({self._clean(str(error.__cause__ or error))})", 0.0
        except (self._openai.OpenAIError, ValueError):
            return NO_COMPLETION, 0.0
        return self._attempt(found) or (NO_COMPLETION, 0.0)

    def _wait_seconds(self, number: int, asked: float) -> float:
        own = min(self.endpoint.backoff_seconds * 2**number, LONGEST_WAIT_SECONDS) * self._random.uniform(0.5, 1.5)
        return max(own, min(asked, LONGEST_WAIT_SECONDS))

    def _open(self) -> None:
        if self._client is not None:
            return
        try:
            self._openai = import_module("openai")
        except ImportError:
            raise StepwellError(
                "asking a model endpoint needs the package openai, which is not installed",
                'pip install "stepwell[endpoint]"',
            ) from None
        name = self.endpoint.api_key_env
        self._key = os.environ.get(name, "").strip() if name else None
        if name and not self._key:
            raise StepwellError(
                f"the environment variable {name}, which should hold the key of {self.endpoint.base_url}, is not set",
                f"export {name}=... before the run, or leave api_key_env out where no key is needed",
            )
        # Always a key of ours: without one, the package would send the one in OPENAI_API_KEY to whatever address.
        self._client = self._openai.OpenAI(
            base_url=self.endpoint.base_url, api_key=self._key or "none", max_retries=0,
            timeout=self.endpoint.timeout_seconds,
        )  # fmt: skip

    def _afford(self) -> None:
        budget = self.endpoint.budget
        kept = f"what was answered is kept in {self.kept.folder}: run again with a larger budget"
        if budget.requests is not None and self.requests >= budget.requests:
            raise StepwellError(
                f"the budget of {budget.requests} requests to {self.endpoint.base_url} is used up", kept
            )
        if budget.tokens is None:
            return
        if self.tokens is None:
            raise StepwellError(
                f"{self.endpoint.base_url} does not say how many tokens it used, so a budget in tokens cannot be kept",
                "give the budget in requests",
            )
        if self.tokens >= budget.tokens:
            raise StepwellError(
                f"the budget of {budget.tokens} tokens at {self.endpoint.base_url} is used up ({self.tokens} used)",
                kept,
            )

    def _attempt(self, found: Any) -> Attempt | None:
        """What a completion says; None for anything else, which endpoints send as well (pages of proxies, errors)."""
        with contextlib.suppress(AttributeError, IndexError, TypeError):
            choice = found.choices[0]
            content = choice.message.content
            if content is None or isinstance(content, str):
                used = getattr(found.usage, "total_tokens", None)
                self.tokens = self.tokens + used if self.tokens is not None and isinstance(used, int) else None
                cut = None if choice.finish_reason is None else choice.finish_reason == "length"
                return Attempt(text=self._clean(content or "", whole=True), cut=cut)
        return None

    def _refused(self, error: Any) -> StepwellError:
        one, status = self.endpoint, error.status_code
        if status in (401, 403):
            # Not in the endpoint's own words: they may quote the key.
            if one.api_key_env is None:
                way_out = "put its key into an environment variable, and the variable's name into api_key_env"
                return StepwellError(f"{one.base_url} asks for a key (HTTP {status})", way_out)
            return StepwellError(
                f"{one.base_url} refuses the key in {one.api_key_env} (HTTP {status})",
                "check that the key is right and may use this model",
            )
        body = error.body if isinstance(error.body, dict) else {}
        said = body.get("message") or body.get("detail") or error.response.reason_phrase
        return StepwellError(
            f"{one.base_url} refuses to ask {one.model} (HTTP {status}): {self._clean(str(said))}",
            f"check base_url, model and the options of the endpoint; what was answered is kept in {self.kept.folder}",
        )

    def _clean(self, text: str, *, whole: bool = False) -> str:
        """A text from outside without the key; its first line, cut where long, unless it is wanted `whole`."""
        text = text.replace(self._key, "***") if self._key else text
        return text if whole else (text.strip().splitlines() or ["no reason given"])[0][:200]


def _is_transient(error: Any) -> bool:
    # A quota that is used up comes as 429 as well, and no waiting helps.
    return error.status_code >= 500 or (error.status_code in TRANSIENT and error.code != "insufficient_quota")


def _retry_after(error: Any) -> float:
    """Seconds that the endpoint asks to wait; 0 where it does not say, or gives a date."""
    with contextlib.suppress(ValueError):
        return max(0.0, float(error.response.headers.get("retry-after", "0")))
    return 0.0
