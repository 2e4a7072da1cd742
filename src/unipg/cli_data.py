"""`unipg data`: datasets are collected, checked and shown. Thin, as `cli.py` is."""

from __future__ import annotations

import argparse
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from unipg.hub import in_home


def add_data(commands: Any) -> None:
    """Adds the command and its own commands."""
    data = commands.add_parser("data", help="datasets of transitions: collect, check, show")
    kinds = data.add_subparsers(dest="data", required=True, metavar="COMMAND", parser_class=type(data))

    collect = kinds.add_parser("collect", help="play episodes in a run's environment and keep them, with a data card")
    collect.add_argument("source", type=in_home, help="a run folder, or a recipe, which is trained first where it has no run yet")
    collect.add_argument(
        "--mix",
        default="expert",
        help="random, medium, medium-replay, expert (default), medium-expert; or several behaviours with their episodes, "
        "random=25,medium=25,expert=10",
    )
    collect.add_argument("--episodes", type=int, help="episodes of each behaviour that is played (default 100)")
    collect.add_argument("--out", required=True, metavar="FILE", type=in_home, help="an .npz file")
    collect.add_argument("--seed", type=int, default=0, help="of start states and actions (default 0)")
    collect.add_argument("--medium", type=float, default=1 / 3, metavar="SHARE", help="of the way from random to expert (default 1/3)")
    collect.add_argument("--references", metavar="MIN,MAX", help="returns that score 0 and 100 (default: measured, 100 episodes each)")
    collect.add_argument("--threads", type=int)
    collect.set_defaults(run=_collect)


def _collect(options: argparse.Namespace) -> None:
    import torch

    from unipg.replay import save_data
    from unipg.replay.formats import check_free
    from unipg.terminal import TrainingDisplay, evaluation_progress, plain_console
    from unipg.training.collecting import collect_dataset, references_from, trained_run
    from unipg.training.recipe import check_threads, load_recipe

    if options.threads is not None:
        check_threads(options.threads)
        torch.set_num_threads(options.threads)
    check_free(options.out)
    references = None if options.references is None else references_from(options.references)
    console = plain_console()
    display = None if Path(options.source).is_dir() else TrainingDisplay(console, load_recipe(options.source).build_algorithm().name)
    with display or nullcontext():
        folder = trained_run(options.source, display)
    with evaluation_progress(console) as progress:
        data = collect_dataset(
            folder,
            mix=options.mix,
            episodes=options.episodes,
            seed=options.seed,
            medium=options.medium,
            references=references,
            progress=progress,
        )
    save_data(data, options.out)
    for line in _told(data.card):
        console.print(line, soft_wrap=True, highlight=False)
    console.print(f"file     {options.out}", soft_wrap=True, highlight=False)
    console.print(f"next     unipg data check {options.out}", soft_wrap=True, highlight=False)


def _told(card: dict[str, Any]) -> list[str]:
    """The card in a few lines."""
    parts = card.get("parts", [])
    return [f"{card['name']}: {_counted(card)}", *(f"  {part['behaviour']}: {_counted(part)}" for part in parts if len(parts) > 1)]


def _counted(card: dict[str, Any]) -> str:
    told = f"{card['transitions']} transitions, {card['episodes']} episodes"
    if returns := card.get("returns"):
        told += f", return {returns['mean']:.4g} ± {returns['std']:.3g} ({returns['min']:.4g} to {returns['max']:.4g})"
    if score := card.get("score"):
        told += f", score {score['mean']:.1f} ({score['label']})"
    return told
