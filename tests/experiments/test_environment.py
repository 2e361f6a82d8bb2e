"""Humans of a task that an LLM imagined, as agents are judged by them."""

from imagination_client import TASK, FakeClient, imagine

from experiments.evaluation.environment import _humans_of_task
from experiments.run_folder import RunFolder
from imagination.agents import PromptedHuman
from imagination.dialogue import write_dialogues


def test_humans_get_what_the_imagined_ones_got(tmp_path):
    def profiles(request):
        if request.step != "engine/personas":
            return None
        answer = request.schema.placeholder()
        for each in answer.profiles:
            each.profile, each.situations = (
                f"PROFILE {request.label} {each.number}.",
                ["ONE.", "TWO."],
            )
        return answer

    folder = RunFolder(tmp_path)
    write_dialogues(folder.dialogues, imagine(FakeClient(profiles), dialogues=36).dialogues)
    humans = _humans_of_task(TASK, folder, "average", 36, 7)
    situations = {}
    for human in humans:
        assert human.human_memory.profile.startswith("PROFILE")
        situations.setdefault(tuple(human.persona.items()), set()).add(human.human_memory.situation)
    assert len(situations) == 18 and all(found == {"ONE.", "TWO."} for found in situations.values())
    client = PromptedClient()
    PromptedHuman(client, TASK).respond(humans[:1])
    (request,) = client.requests
    assert humans[0].human_memory.profile in request.system
    assert f"Why you are here: {humans[0].human_memory.situation}" in request.system
    # Where the data has no such person, the traits are all there is.
    write_dialogues(folder.dialogues, imagine(FakeClient(profiles), dialogues=1).dialogues)
    known = [human.human_memory is not None for human in _humans_of_task(TASK, folder, "a", 18, 7)]
    assert known.count(True) == 1


class PromptedClient(FakeClient):
    config = None

    async def ask(self, request):
        return await self._ask(request)
