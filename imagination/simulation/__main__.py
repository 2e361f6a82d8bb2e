"""Prints the figures of the worlds: `python -m imagination.simulation [world ...]`."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from imagination.simulation.loading import WORLDS, load_world
from imagination.simulation.planning import (
    Planner,
    blind_value,
    normalized_score,
    policy_value,
    reference_values,
)
from imagination.simulation.world import POPULATIONS, World, WorldError


def figures(world: World) -> dict[str, Any]:
    """Figures of a world: size of its language, shares and exact values.

    Args:
        world: The world.

    Returns:
        `surface_forms`, `vocabulary`, `personas`, `difficult_share`, and per population
        `references`, `behaviours` (value), `blind` and `average_optimum`: the value of the
        policy that is optimal on average, met by this population.
    """
    average = Planner(world, "average")
    return {
        "surface_forms": world.surface_forms(),
        "vocabulary": len(world.vocabulary()),
        "personas": len(world.population("average")),
        "difficult_share": sum(
            probability
            for persona, probability in world.population("average").items()
            if world.is_difficult(persona)
        ),
        "population": {
            name: {
                "references": reference_values(world, name),
                "behaviours": {b: policy_value(world, b, name) for b in world.behaviours},
                "blind": blind_value(world, name),
                "average_optimum": average.value_among(name),
            }
            for name in POPULATIONS
        },
    }


def markdown(world: World) -> str:
    """The figures as a table."""
    numbers = figures(world)
    lines = [
        f"### {world.name}",
        "",
        f"{numbers['personas']} personas, {numbers['difficult_share']:.1%} of the average "
        f"population difficult; {len(world.acts)} acts, {numbers['surface_forms']} surface forms, "
        f"{numbers['vocabulary']} words.",
        "",
        "| value (normalized score) | average | difficult |",
        "| --- | --- | --- |",
    ]
    populations = [numbers["population"][name] for name in POPULATIONS]

    def row(label: str, values: list[float]) -> str:
        cells = [
            f"{value:.3f} ({normalized_score(value, population['references']):.2f})"
            for value, population in zip(values, populations, strict=True)
        ]
        return f"| {label} | {' | '.join(cells)} |"

    lines.append(row("optimum", [p["references"]["optimum"] for p in populations]))
    lines.append(row("optimum of the average", [p["average_optimum"] for p in populations]))
    lines.append(row("a fixed sequence of acts", [p["blind"] for p in populations]))
    for name, behaviour in world.behaviours.items():
        label = f"behaviour: {name} ({behaviour.share:.0%} of the data)"
        lines.append(row(label, [p["behaviours"][name] for p in populations]))
    lines.append(row("mean of the behaviours", [p["references"]["behaviour"] for p in populations]))
    lines.append(row("uniform", [p["references"]["uniform"] for p in populations]))
    return "\n".join(lines)


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m imagination.simulation", description=__doc__)
    parser.add_argument("world", nargs="*", help="by name or file; all of the project if not given")
    for name in parser.parse_args(arguments).world or WORLDS:
        try:
            world = load_world(name)
        except WorldError as error:
            parser.error(str(error))
        print(markdown(world) + "\n", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
