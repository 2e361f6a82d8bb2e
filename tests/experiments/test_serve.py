"""The program `experiments/serve.py`, in this process."""

from __future__ import annotations

import io
import sys
import threading
import time

import httpx2
import pytest
from rich.console import Console

from experiments import serve
from experiments.serving import web
from ilql_jax.errors import UserError


def told(*arguments: str) -> str:
    """The message of the error that a command line ends with."""
    with pytest.raises(UserError) as caught:
        serve.run(["serve.py", *arguments], Console(file=io.StringIO()))
    return str(caught.value)


def test_it_serves_until_it_is_stopped(monkeypatch):
    servers, make = [], web.server
    monkeypatch.setattr(web, "server", lambda *a: servers.append(make(*a)) or servers[-1])
    output = io.StringIO()
    words = ["serve.py", "--agents=world:teaching:optimum", "--port=0"]
    console = Console(file=output, width=200)
    thread = threading.Thread(target=serve.run, args=(words, console), daemon=True)
    thread.start()
    while "Serving" not in output.getvalue() and thread.is_alive():
        time.sleep(0.01)
    line = next(line for line in output.getvalue().splitlines() if "Serving" in line)
    address = line.split()[-1].rstrip(".")
    with httpx2.Client(verify=False) as client:
        body = {"model": "teaching:optimum", "messages": [{"role": "user", "content": "Hi!"}]}
        found = client.post(f"{address}/v1/chat/completions", json=body)
    assert found.json()["ilql"]["act"] and "Warning" not in output.getvalue()
    servers[0].should_exit = True
    thread.join(20)
    assert not thread.is_alive()
    with pytest.raises(httpx2.ConnectError), httpx2.Client(verify=False) as client:
        client.get(f"{address}/healthz")


def test_what_cannot_be_served_is_told_before_anything_is_loaded(monkeypatch):
    monkeypatch.setattr("experiments.serving.agents.load_agent", pytest.fail)
    assert "no agent is named: add --workdir=" in told()
    assert "no flag --wordkir. Did you mean --workdir?" in told("--wordkir=runs/teaching")
    assert "there is no such folder" in told("--workdir=nowhere", "--port=0")
    agents = "--agents=world:teaching:optimum"
    with web.listen(web.WebConfig(port=0)) as taken:
        port = taken.getsockname()[1]
        message = told(agents, f"--port={port}")
        assert f"port {port}" in message and "Give another --port" in message
    assert "no address of this machine" in told(agents, "--host=nowhere.invalid")
    assert "cannot listen on 192.0.2.1" in told(agents, "--host=192.0.2.1", "--port=0")


def test_without_the_extra_the_way_to_install_it_is_told(monkeypatch):
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    message = told("--agents=world:teaching:optimum", "--port=0")
    assert "uvicorn" in message and "pip install -e '.[serve]'" in message


@pytest.mark.parametrize(("host", "is_open"), [("0.0.0.0", True), ("127.0.0.1", False)])
def test_an_address_that_others_reach_is_warned_of(monkeypatch, host: str, is_open: bool):
    class Server:
        def run(self, sockets):
            pass

    monkeypatch.setattr(web, "server", lambda *_: Server())
    output = io.StringIO()
    web.run(None, web.WebConfig(host=host), None, ["Serving."], Console(file=output, width=300))
    assert ("Warning" in output.getvalue() and "TLS" in output.getvalue()) == is_open
    assert "Serving." in output.getvalue()


def test_help_is_complete(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["serve.py", "--help"])
    serve.main()
    output = capsys.readouterr().out
    for flag in ("--workdir", "--agents", "--batch_size", "--port", "--host", "--too_long"):
        assert flag in output
