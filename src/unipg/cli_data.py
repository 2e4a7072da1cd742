"""`unipg data`: datasets are collected, checked and shown. Thin, as `cli.py` is."""

from __future__ import annotations

import argparse
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unipg.hub import in_home

if TYPE_CHECKING:
    from unipg.replay import Transitions


PLACES = "an .npz, .hdf5 or .parquet file, a folder (a dataset's, Minari's, or a run with a replay buffer), or minari:NAME"


def add_data(commands: Any) -> None:
    """Adds the command and its own commands."""
    data = commands.add_parser("data", help="datasets of transitions: collect, check, show, and what a policy would earn by them")
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
    collect.add_argument("--out", required=True, metavar="FILE", type=in_home, help="an .npz file, a folder, or minari:NAME")
    collect.add_argument("--seed", type=int, default=0, help="of start states and actions (default 0)")
    collect.add_argument("--medium", type=float, default=1 / 3, metavar="SHARE", help="of the way from random to expert (default 1/3)")
    collect.add_argument("--references", metavar="MIN,MAX", help="returns that score 0 and 100 (default: measured, 100 episodes each)")
    collect.add_argument("--threads", type=int)
    collect.set_defaults(run=_collect)

    value = kinds.add_parser("estimate", help="what a policy would earn, from data of others alone: fitted Q, importance sampling")
    value.add_argument("model", type=in_home, help="a controller: a run folder or its model folder")
    value.add_argument("--data", required=True, metavar="FILE", type=in_home, help=PLACES)
    value.add_argument(
        "--behaviour", metavar="MODEL", type=in_home, help="a controller in the place of who acted; adds importance sampling"
    )
    value.add_argument("--sample", action="store_true", help="of the policy that draws its actions, not of its most likely ones")
    value.add_argument("--discount", type=float, default=0.99, help="per step (default 0.99)")
    value.add_argument("--updates", type=int, default=10_000, help="of the fitted Q (default 10000)")
    value.add_argument("--recipe", metavar="FILE", type=in_home, help="where a model without a run folder acts")
    value.add_argument("--seed", type=int, default=0)
    value.add_argument("--threads", type=int)
    value.add_argument("--json", metavar="FILE", type=in_home, help="write the estimates to this file")
    value.set_defaults(run=_estimate)

    look = kinds.add_parser(
        "check",
        help="look for what ruins offline learning: one line a finding",
        description="Exits with 0 where nothing is found, with 1 where something is, with 2 for a dataset that cannot be read.",
    )
    look.add_argument("--environment", metavar="ID", help="whose time limit and bounds the rows are compared with (default: the card's)")
    look.add_argument("--ignore", default="", metavar="A,B,…", help="kinds of findings, as they are named in their lines")
    show = kinds.add_parser("show", help="the card, columns, episodes and rewards of a dataset")
    show.add_argument("--json", action="store_true", help="the whole card, as an object")
    for parser in (look, show):
        parser.add_argument("data", metavar="FILE", type=in_home, help=PLACES)
        parser.add_argument("--entries", default="", metavar="A,B,…", help="of observations that have several by name, those to read")
    look.set_defaults(run=_check)
    show.set_defaults(run=_show)


def _collect(options: argparse.Namespace) -> int:
    import torch

    from unipg.replay import save_data
    from unipg.replay.formats import check_free
    from unipg.terminal import TrainingDisplay, evaluation_progress, plain_console
    from unipg.training.collecting import collect_dataset, references_from, trained_run
    from unipg.training.observer import Stopped
    from unipg.training.recipe import check_threads, load_recipe

    if options.threads is not None:
        check_threads(options.threads)
        torch.set_num_threads(options.threads)
    check_free(options.out)
    references = None if options.references is None else references_from(options.references)
    console = plain_console()
    display = None if Path(options.source).is_dir() else TrainingDisplay(console, load_recipe(options.source).build_algorithm().name)
    try:
        with display or nullcontext():
            folder = trained_run(options.source, display)
    except Stopped as stopped:
        console.print("stopped; nothing is lost: the same command goes on from here", soft_wrap=True)
        return 128 + stopped.signal
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
        console.print(line, soft_wrap=True, highlight=False, markup=False)
    console.print(f"file     {options.out}", soft_wrap=True, highlight=False)
    console.print(f"next     unipg data check {options.out}", soft_wrap=True, highlight=False)
    return 0


def _estimate(options: argparse.Namespace) -> None:
    import dataclasses
    import json

    from unipg.files import check_output, generator, write_output
    from unipg.terminal import estimates_table, evaluation_progress, plain_console
    from unipg.training.estimates import estimate_return

    console = plain_console()
    if options.json:
        check_output(Path(options.json), "data")
    with evaluation_progress(console) as progress:
        found = estimate_return(
            options.model,
            options.data,
            discount=options.discount,
            updates=options.updates,
            draws=options.sample,
            behaviour=options.behaviour,
            recipe=options.recipe,
            seed=options.seed,
            threads=options.threads,
            progress=progress,
        )
    console.print(estimates_table(found, options.discount))
    for each in (each for each in found if each.unsettled):
        line = f"{each.estimator} moved by {each.moved:.3g} in the last tenth of its updates: it has not settled, give it more (--updates)"
        console.print(line, soft_wrap=True, highlight=False)
    if options.json:
        told = {"generator": generator("data"), "model": options.model, "data": options.data, "discount": options.discount}
        estimates = [{**dataclasses.asdict(each), "interval": each.interval._asdict()} for each in found]
        write_output(Path(options.json), json.dumps({**told, "estimates": estimates}, indent=1), "data")


def _opened(options: argparse.Namespace, console: Any) -> Transitions:
    """Whatever it holds, numbers that are not finite too."""
    from unipg.replay import open_data
    from unipg.terminal import evaluation_progress

    entries = [name for name in options.entries.split(",") if name] or None
    with evaluation_progress(console) as progress:
        return open_data(options.data, entries=entries, finite=False, progress=lambda done: progress("read", done))


def _check(options: argparse.Namespace) -> int:
    from unipg.replay.cards import rewarded
    from unipg.replay.checks import check
    from unipg.rollouts.environments import EnvironmentRecipe
    from unipg.terminal import plain_console
    from unipg.training.collecting import environment_told

    console = plain_console()
    environment = environment_told(EnvironmentRecipe(options.environment)) if options.environment else None
    data = _opened(options, console)
    with console.status("checking …"):
        found = check(data, environment, tuple(name for name in options.ignore.split(",") if name))
    for finding in found:
        console.print(f"{options.data}: {finding}", soft_wrap=True, highlight=False, markup=False)
    lost = (
        f"; {left} row{'s were' if left > 1 else ' was'} left out, whose next observation is not known"
        if (left := data.card.get("left_out"))
        else ""
    )
    lost += "; there are no rewards" * (not rewarded(data))
    lost += f"; observations that are left alone: {unread}" if (unread := _unread(data.card)) else ""
    told = f"{len(found)} finding{'s' * (len(found) > 1)}" if found else "nothing found"
    console.print(f"{told} in {len(data)} transitions{lost}", soft_wrap=True, highlight=False)
    return int(bool(found))


def _show(options: argparse.Namespace) -> None:
    import json

    from unipg.replay.cards import facts, quantiles, rewarded
    from unipg.terminal import plain_console

    console = plain_console()
    data = _opened(options, console)
    with console.status("adding up …"):
        told = facts(data)
    if options.json:
        print(json.dumps({**data.card, **told}, indent=1))
        return
    card = {**data.card, **told}
    lines = [*_told({"name": options.data, **card}), *(f"{each.name:17} {each.dtype} {list(each.shape)}" for each in data.columns)]
    lines.append(f"lengths           {_spread(told['lengths'])}; " + ", ".join(f"{n} {name}" for name, n in told["ended"].items()))
    spread = ", ".join(f"{name} {value:.4g}" for name, value in quantiles(data.column("reward")).items())
    lines.append("rewards           " + (spread if rewarded(data) else "none are given"))
    if unread := _unread(data.card):
        lines.append(f"left alone        {unread}")
    lines.append(f"sha256            {told['sha256']}")
    for line in lines:
        console.print(line, soft_wrap=True, highlight=False, markup=False)


def _unread(card: dict[str, Any]) -> str:
    """Observations that were not read, with their shapes."""
    return ", ".join(f"{name} {shape}" for name, shape in card.get("unread", {}).items())


def _told(card: dict[str, Any]) -> list[str]:
    """The card in a few lines."""
    parts = card.get("parts", [])
    return [f"{card['name']}: {_counted(card)}", *(f"  {part['behaviour']}: {_counted(part)}" for part in parts if len(parts) > 1)]


def _counted(card: dict[str, Any]) -> str:
    told = f"{card['transitions']} transitions, {card['episodes']} episodes"
    if returns := card.get("returns"):
        told += f", return {_spread(returns)}"
    if score := card.get("score"):
        told += f", score {score['mean']:.1f} ({score['label']})"
    return told


def _spread(told: dict[str, float]) -> str:
    return f"{told['mean']:.4g} ± {told['std']:.3g} ({told['min']:.4g} to {told['max']:.4g})"
