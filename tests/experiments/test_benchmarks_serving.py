"""People who chat over HTTP, a few of them with a tiny network, and what is counted."""

from __future__ import annotations

import pytest
import study_server
from served import Parrot, run_folder, serving_agents, trained_agent
from studies import Echo

from experiments.benchmarks import serving
from experiments.human_study.config import StudyConfig
from experiments.human_study.store import Store
from experiments.serving.agents import Guarded
from experiments.serving.batching import Batcher
from experiments.serving.config import AgentSettings
from imagination.simulation import load_world


def check(found, people: int) -> None:
    assert found["people"] == people and found["failed"] == 0
    assert 0 < found["p50"] <= found["p95"] and 0 <= found["within_1_s"] <= 1
    assert found["answers_per_second"] > 0


def test_people_chat_and_their_answers_are_timed():
    batcher = Batcher(8)
    with serving_agents({"ilql": trained_agent(batcher)}, batcher) as address:
        check(serving.chat(address, "ilql", load_world("teaching"), 3, 4, 0.01), 3)


def test_people_go_through_the_pages_of_a_study(tmp_path):
    quick = StudyConfig(answer_floor=0, requests_per_second=1e6)
    with study_server.served(tmp_path, agents=[Echo("ilql")], config=quick) as (site, address):
        found = serving.chat(address, "", load_world("teaching"), 2, 5, 0.0, serving.PAGES)
    check(found, 2)
    assert 0 < found["pages_p95"] < 10
    store = Store(site.study.store.path)
    assert len(store.participants()) >= 2 and store.talks()[0].messages


def test_answers_that_fail_are_counted(capsys):
    async def crash(_):
        raise RuntimeError

    agents = {"crash": Guarded(Parrot("crash", crash), 5)}
    with (
        serving_agents(agents) as address,
        pytest.raises(SystemExit, match="no question was answered"),
    ):
        serving.chat(address, "crash", load_world("teaching"), 2, 2, 0.01)
    assert capsys.readouterr().out.count("'500 Internal") == 4


@pytest.mark.slow
def test_the_server_has_a_process_of_its_own_whose_memory_is_told(tmp_path):
    folder = run_folder(tmp_path / "run")
    settings = AgentSettings(batch_size=4, warm_up=False, cache_megabytes=1.0)
    found = serving.run(str(folder.path), "ilql", 3, 2, 0.01, settings)
    check(found, 3)
    assert found["peak_bytes"] > 1e8
