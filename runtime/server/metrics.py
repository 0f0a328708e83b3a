"""The server's metrics, in the text format of Prometheus."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest

from .asked import Answered
from .queue import AnswerQueue

MEDIA_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_SECONDS = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 25.0, 50.0, 100.0, 250.0)


class Metrics:
    """Counts requests and answers; records nothing of their content."""

    def __init__(self, queue: AnswerQueue) -> None:
        """
        Args:
            queue: Queue of the model's answers.
        """
        self._registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        for name, what, value in (
            ("receiving", "Requests that are being read", lambda: queue.receiving),
            ("pending", "Requests that wait or are being answered", lambda: queue.pending),
        ):
            Gauge(f"tinygptv_{name}", what, registry=registry).set_function(value)
        self._requests = Counter(
            "tinygptv_requests", "By API and HTTP status; 499: the client left", ("api", "status"), registry=registry
        )
        self._answers = Counter("tinygptv_answers", "Complete answers", ("finish_reason",), registry=registry)
        self._prompt = Counter("tinygptv_prompt_tokens", "Positions of prompts, images included", registry=registry)
        self._cached = Counter(
            "tinygptv_cached_tokens", "Those of them that were not computed again", registry=registry
        )
        self._completion = Counter("tinygptv_completion_tokens", "Tokens of answers", registry=registry)
        self._first = Histogram(
            "tinygptv_time_to_first_token_seconds", "Without the wait", buckets=_SECONDS, registry=registry
        )
        self._decode = Histogram(
            "tinygptv_decode_seconds", "From an answer's first token on", buckets=_SECONDS, registry=registry
        )

    def request(self, api: str, status: int) -> None:
        """Count a request that has ended."""
        self._requests.labels(api, str(status)).inc()

    def answer(self, result: Answered) -> None:
        """Count a complete answer."""
        answer = result.answer
        self._answers.labels(answer.finish_reason).inc()
        self._prompt.inc(answer.prompt_tokens)
        self._cached.inc(answer.cached_tokens)
        self._completion.inc(len(answer.token_ids))
        self._first.observe(answer.timings.time_to_first_token)
        self._decode.observe(answer.timings.decode)

    def text(self) -> bytes:
        """All metrics as text."""
        return generate_latest(self._registry)
