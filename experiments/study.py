"""Human study: people talk with blinded agents in a browser, and rate them.

python experiments/study.py --runs=runs/teaching              # serve, and print the address
python experiments/study.py --runs=runs/teaching --pilot=20   # simulated participants, the report
python experiments/study.py --runs=runs/teaching --report     # what came of it
python experiments/study.py --runs=runs/teaching --power      # how many participants it takes

What participants read and are asked is a YAML file (--questionnaire). Everything that is kept is in
one folder: study.sqlite, and with --report study_report.html, study.json, ratings.jsonl and
conversations.jsonl, which a run learns from. The researcher's page is /admin, behind the token in
the variable STUDY_TOKEN. Settings of the runs are changed by --config.KEY=VALUE.
"""

from __future__ import annotations

from rich.console import Console

from experiments import flags, launch
from experiments.human_study.config import StudyConfig
from experiments.serving.config import AgentSettings
from experiments.serving.web import WebConfig

KINDS = {"the study": StudyConfig, "its agents": AgentSettings, "its server": WebConfig}


def main() -> None:
    launch.program(__doc__, KINDS, run)


def run(arguments: list[str], console: Console) -> None:
    """Does what the command line asks for.

    Args:
        arguments: As `sys.argv`.
        console: Told what comes of it.

    Raises:
        UserError: A flag, an agent, a questionnaire or a folder that cannot be.
    """
    settings, overrides = flags.parse(tuple(KINDS.values()), arguments)
    config, how, where = (settings[kind] for kind in KINDS.values())
    from experiments.human_study import command

    if config.power:
        command.show_power(config, console)
    elif config.report:
        command.report(config, command.folder_of(config), overrides, console)
    elif config.pilot:
        command.pilot(config, how, overrides, console)
    else:
        command.serve(config, how, where, overrides, console)


if __name__ == "__main__":
    main()
