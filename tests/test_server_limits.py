"""What ``tinygptv serve`` refuses: requests, clients, options."""

from __future__ import annotations

import argparse
import http.client
import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import httpx
import openai
import pytest
from conftest import plain_environment
from served import LAUNCH, Served, ask, serving
from tinygptv.runtime import TinyGPTVError
from tinygptv.runtime.commands import options as command_options
from tinygptv.runtime.commands import serve as command

TOKEN = "a-word-that-nobody-guesses"
SECRET = "quetzalcoatl"


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with serving(tmp_path_factory.mktemp("server é"), "--max-body", "1") as running:
        yield running


def post(served: Served, body: object, **headers: str) -> httpx.Response:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    sent = {"content-type": "application/json"} | headers
    return httpx.post(f"{served.url}/v1/chat/completions", content=content, headers=sent)


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("https://example.com/cat.png", "fetches nothing"),
        ("data:image/png;base64,!!", "not valid base64"),
        ("data:image/png;base64,aGVsbG8=", "not a picture"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_images_that_cannot_be_had(served: Served, url: str, told: str, stream: bool) -> None:
    content = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": "hi"}]
    with pytest.raises(openai.BadRequestError, match=told):
        served.client().chat.completions.create(
            model="demo",
            messages=[{"role": "user", "content": content}],  # type: ignore[list-item, misc]
            stream=stream,
        )


def test_what_does_not_fit(served: Served) -> None:
    with pytest.raises(openai.BadRequestError, match="context is 512, which leaves no room for an answer") as caught:
        ask(served.client(), None, " shape" * 600, max_tokens=4096)
    assert caught.value.code == "context_length_exceeded"
    with pytest.raises(openai.APIStatusError, match="larger than 1000000 bytes") as large:
        ask(served.client(), None, "x" * 1_000_000)
    assert large.value.status_code == 413
    # Without a length that is said beforehand.
    chunked = httpx.post(
        f"{served.url}/v1/chat/completions",
        content=(b" " * 50_000 for _ in range(50)),
        headers={"content-type": "application/json"},
    )
    assert chunked.status_code == 413


@pytest.mark.parametrize(
    ("body", "headers", "status"),
    [
        (b"{", {}, 400),
        ({"messages": []}, {}, 400),
        ({"messages": [], "tools": [{}]}, {}, 400),
        ({"messages": [{"role": "user", "content": "\ud800"}]}, {}, 400),
        ({"\ud800": 1}, {}, 400),
        ({"messages": [{"role": "user", "content": "<ImageHere>"}]}, {}, 400),
        ({"model": "gpt-4o"}, {}, 404),
        (b"{}", {"content-type": "text/plain"}, 415),
        (b"{}", {"host": "evil.example"}, 403),
        (b"{}", {"origin": "http://evil.example"}, 403),
        (b"{}", {"origin": "null"}, 403),
    ],
)
def test_refusals_have_one_shape(served: Served, body: object, headers: dict[str, str], status: int) -> None:
    response = post(served, body, **headers)
    assert response.status_code == status
    assert set(response.json()["error"]) == {"message", "type", "param", "code"}
    assert "access-control-allow-origin" not in response.headers


def test_other_addresses(served: Served) -> None:
    assert httpx.get(f"{served.url}/v1/embeddings").status_code == 404
    assert (
        httpx.get(f"{served.url}/api/embed").json()["error"].startswith('GET "/api/embed": Not Found; this server has')
    )
    wrong = httpx.get(f"{served.url}/v1/chat/completions")
    assert (wrong.status_code, wrong.headers["allow"]) == (405, "POST")
    assert wrong.json()["error"]["type"] == "invalid_request_error"


PAGE = "https://example.com"


@pytest.fixture(scope="module")
def open_to_a_page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with serving(tmp_path_factory.mktemp("open server"), "--allow-origin", PAGE, "--allow-origin", "null") as running:
        yield running


@pytest.mark.parametrize(
    ("origin", "allowed"), [(PAGE, True), ("null", True), ("http://example.com", False), (f"{PAGE}.evil.test", False)]
)
def test_pages_of_other_origins(open_to_a_page: Served, origin: str, allowed: bool) -> None:
    """As a browser asks before it sends JSON, and then sends it; refusals can be read by the page as well."""
    url = f"{open_to_a_page.url}/v1/chat/completions"
    wanted = {"access-control-request-method": "POST", "access-control-request-headers": "authorization, content-type"}
    private = {"access-control-request-private-network": "true"}
    preflight = httpx.options(url, headers={"origin": origin, **wanted, **private})
    assert (preflight.status_code == 200) == allowed
    assert (preflight.headers.get("access-control-allow-origin") == origin) == allowed
    if allowed:
        assert "authorization" in preflight.headers["access-control-allow-headers"]
        assert preflight.headers["access-control-allow-private-network"] == "true"
    for messages, status in (([{"role": "user", "content": "hi"}], 200), ([], 400)):
        response = post(open_to_a_page, {"messages": messages, "max_tokens": 1}, origin=origin)
        assert response.status_code == (status if allowed else 403)
        assert (response.headers.get("access-control-allow-origin") == origin) == allowed
    assert "access-control-allow-credentials" not in response.headers
    host = post(open_to_a_page, {"messages": []}, origin=origin, host="evil.example")
    assert host.status_code == 403


def test_pages_of_any_origin(tmp_path: Path) -> None:
    with serving(tmp_path, "--allow-origin", "*") as running:
        response = post(running, {"messages": []}, origin="http://anything.example")
        assert (response.status_code, response.headers["access-control-allow-origin"]) == (400, "*")
        assert post(running, {"messages": []}, host="evil.example").status_code == 403


def test_a_form_of_a_page_is_no_request_of_ollamas(served: Served) -> None:
    """curl -d may send this type, as Ollama's examples do; a web page cannot."""
    form = {"content-type": "application/x-www-form-urlencoded"}
    body = b'{"model": "demo", "prompt": "hi", "stream": false, "options": {"num_predict": 1}}'
    assert httpx.post(f"{served.url}/api/generate", content=body, headers=form).status_code == 200
    refused = httpx.post(f"{served.url}/api/generate", content=body, headers=form | {"origin": served.url})
    assert refused.status_code == 415


def test_figures(served: Served) -> None:
    def figures() -> dict[str, float]:
        lines = httpx.get(f"{served.url}/metrics").text.splitlines()
        return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines if line[:1] != "#")}

    before = figures()
    done = ask(served.client(), "teal_circle.png", f"[caption] {SECRET}")
    post(served, {"messages": []})
    after = figures()

    def grown(name: str) -> float:
        return after[name] - before.get(name, 0)

    assert grown('tinygptv_requests_total{api="v1/chat/completions",status="200"}') == 1
    assert grown('tinygptv_requests_total{api="v1/chat/completions",status="400"}') == 1
    assert grown('tinygptv_answers_total{finish_reason="stop"}') == 1
    assert grown("tinygptv_prompt_tokens_total") == done.usage.prompt_tokens
    assert grown("tinygptv_completion_tokens_total") == done.usage.completion_tokens
    assert grown("tinygptv_decode_seconds_count") == 1
    assert after["tinygptv_pending"] == 0
    assert SECRET not in str(after)


def test_a_host_by_its_own_names(served: Served) -> None:
    port = int(served.url.rpartition(":")[2])
    for host, status in (("localhost", 200), (f"[::1]:{port}", 200), ("127.0.0.1.evil.example", 403), ("", 403)):
        connection = http.client.HTTPConnection("127.0.0.1", port)
        connection.putrequest("GET", "/v1/models", skip_host=True)
        connection.putheader("Host", host)
        connection.endheaders()
        assert connection.getresponse().status == status
        connection.close()


def test_a_token(tmp_path: Path) -> None:
    (tmp_path / "token").write_text(f"{TOKEN}\n")
    with serving(tmp_path, "--host", "0.0.0.0", "--token-file", "token") as running:
        port = running.url.rpartition(":")[2]
        local = replace(running, url=f"http://127.0.0.1:{port}")
        assert ask(local.client(TOKEN), "teal_circle.png", "[caption]").choices[0].message.content == "a teal circle"
        for wrong in ("none", TOKEN[:-1], f"{TOKEN}x"):
            with pytest.raises(openai.AuthenticationError, match="Bearer"):
                local.client(wrong).models.list()
        refused = httpx.get(f"{local.url}/v1/models")
        assert (refused.status_code, refused.headers["www-authenticate"]) == (401, "Bearer")
        named = {"host": "server.example", "authorization": f"Bearer {TOKEN}"}
        assert httpx.get(f"{local.url}/v1/models", headers=named).status_code == 200
        for path, status in (("/health", 200), ("/ready", 200), ("/metrics", 401), ("/api/tags", 401)):
            assert httpx.get(f"{local.url}{path}").status_code == status
        assert httpx.get(f"{local.url}/").status_code == 200
    assert TOKEN not in running.messages.read_text()


def test_an_empty_token_is_none(tmp_path: Path) -> None:
    with serving(tmp_path, TINYGPTV_TOKEN="") as running:
        assert [model.id for model in running.client().models.list().data] == ["demo"]


def test_nothing_that_was_asked_is_written_down(tmp_path: Path) -> None:
    with serving(tmp_path) as running:
        ask(running.client(), "teal_circle.png", f"what is a {SECRET}?")
        post(running, {"messages": SECRET})
        httpx.get(f"{running.url}/{SECRET}")
        if sys.platform != "win32":
            running.stop()
    written = running.messages.read_text()
    assert "demo is served at http://127.0.0.1:" in written
    assert SECRET not in written
    assert written.count("\n") == 2  # and that the demo is used
    assert [path.name for path in tmp_path.iterdir()] == ["messages.txt"]


@pytest.mark.parametrize(
    ("options", "environment", "status", "told"),
    [
        (("--host", "0.0.0.0"), {}, 2, "--host 0.0.0.0 lets other machines connect"),
        (("--host", "example.com"), {}, 2, "TINYGPTV_TOKEN"),
        (("--host", "0.0.0.0"), {"TINYGPTV_TOKEN": ""}, 2, "--host 0.0.0.0 lets other machines connect"),
        ((), {"TINYGPTV_TOKEN": "short"}, 1, "at least 16 ASCII characters"),
        (("--token-file", "none"), {}, 1, "none"),
        (("--port", "65536"), {}, 2, "'65536' is not a port"),
        (("--allow-origin", "example.com"), {}, 2, "'example.com' is not an origin"),
        (("--allow-origin", "https://example.com/"), {}, 2, "without a path"),
        (("--bundle", "no such folder"), {}, 1, "no such folder"),
    ],
)
def test_wrong_usage(
    options: tuple[str, ...], environment: dict[str, str], status: int, told: str, tmp_path: Path
) -> None:
    done = subprocess.run(
        [sys.executable, "-c", LAUNCH, "serve", "--port", "0", *options],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=plain_environment(tmp_path, **environment),
        timeout=60,
        check=False,
    )
    assert done.returncode == status
    assert told in done.stderr
    assert "Traceback" not in done.stderr


def test_without_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command_options, "find_spec", lambda name: None)
    with pytest.raises(
        TinyGPTVError,
        match=r'^starlette and uvicorn not installed; run: pip install .*\[serve\]"$',
    ):
        command.run(argparse.Namespace())


def test_the_extra_is_imported_by_those_who_serve_only(tmp_path: Path) -> None:
    script = (
        "import sys, tinygptv.runtime.commands.serve; sys.exit('starlette' in sys.modules or 'uvicorn' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", script], cwd=tmp_path, timeout=60, check=True)


def test_a_port_in_use(served: Served, tmp_path: Path) -> None:
    port = served.url.rpartition(":")[2]
    with pytest.raises(AssertionError, match="status 1"), serving(tmp_path, "--port", port):
        pass
    assert f"cannot serve at 127.0.0.1, port {port}" in (tmp_path / "messages.txt").read_text()
