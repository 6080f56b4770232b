"""`gruppo demo`: the demo of an installed wheel. The work is done by `gruppo.demo.run`."""

from __future__ import annotations

from typing import Annotated

import tyro


def run(argv: list[str]) -> int:
    """Train the built-in tiny policy. Returns the exit code."""
    return tyro.cli(demo, args=argv, prog="gruppo demo")


def demo(
    output_dir: Annotated[str, tyro.conf.arg(help="Folder for the run.")] = "runs/demo",
    seed: Annotated[int, tyro.conf.arg(help="Seed of everything random.")] = 0,
    steps: Annotated[int | None, tyro.conf.arg(help="Optimizer steps; None takes the demo's own number.")] = None,
) -> int:
    """Train the built-in tiny policy with GRPO on arithmetic, and show what changed."""
    from gruppo.demo.run import main

    if steps is None:
        main(output_dir=output_dir, seed=seed)
    else:
        main(output_dir=output_dir, seed=seed, steps=steps)
    return 0
