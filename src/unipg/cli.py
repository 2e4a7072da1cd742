"""The command line: thin; parses, calls, prints."""

from __future__ import annotations

import argparse
import json
import os
import shlex
import sys
import textwrap
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from unipg.cli_data import add_data
from unipg.errors import InputError, command_line, memory_is_full, nearest, one_line
from unipg.files import Command, check_output, disk_is_full, generator, write_output
from unipg.hub import check_place, in_home

COMMANDS = ("algorithms", "explain", "diff", "train", "evaluate", "export", "check-model", "keys", "lab", "report", "data")


class _Parser(argparse.ArgumentParser):
    """argparse with one-line errors."""

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message}; see '{self.prog} --help'")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command; returns the exit code: 0 done, 1 findings (`data check`), 2 bad input, a full disk or memory, 130 stopped by
    Ctrl-C, 143 by SIGTERM."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    plain, warnings.formatwarning = warnings.formatwarning, _one_line_warning
    try:
        if arguments and not arguments[0].startswith("-") and arguments[0] not in COMMANDS:
            raise InputError(f"command '{arguments[0]}' does not exist; {nearest(arguments[0], COMMANDS)}")
        parser = _parser()
        options, rest = parser.parse_known_args(arguments)
        for text in rest:  # argparse takes no more positional values behind an option; overrides may stand anywhere
            if options.command != "train" or text.startswith("-") or "=" not in text:
                parser.error(f"unrecognized argument '{text}'")
            options.overrides.append(text)
        options.arguments = arguments
        with command_line():
            return int(options.run(options) or 0)
    except InputError as error:
        print("unipg: " + " ".join(str(error).split()), file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        training = "; a checkpoint that was written is good: continue with --resume" if arguments[:1] == ["train"] else ""
        print(f"unipg: stopped at once{training}", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of our output (head) has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        if not disk_is_full(error):
            raise
        place = f": '{error.filename}' cannot be written" if error.filename else ""
        print(f"unipg: the disk is full{place}", file=sys.stderr)
        return 2
    except (MemoryError, RuntimeError) as error:
        if not memory_is_full(error):
            raise
        less = "smaller networks or batches, or fewer environments, need less"
        print(f"unipg: the memory is full: {one_line(error)}; {less}", file=sys.stderr)
        return 2
    finally:
        warnings.formatwarning = plain


def _one_line_warning(message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None) -> str:
    if category is not UserWarning:
        return f"{filename}:{lineno}: {category.__name__}: {message}\n"
    return f"unipg: warning: {' '.join(str(message).split())}\n"


def _parser() -> argparse.ArgumentParser:
    from unipg import __version__

    parser = _Parser(prog="unipg", description="One policy-gradient estimator, four interchangeable parts, every algorithm.")
    parser.add_argument("--version", action="version", version=f"unipg {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND", parser_class=_Parser)

    table = commands.add_parser("algorithms", help="the live table: every algorithm by its four parts")
    table.add_argument("--json", action="store_true", help="as a list of objects")
    table.set_defaults(run=_algorithms)

    explain = commands.add_parser("explain", help="one algorithm: equation, parts, hyper-parameters, sources")
    explain.add_argument("name")
    explain.set_defaults(run=_explain)

    diff = commands.add_parser("diff", help="which parts of two algorithms differ, and how far apart their gradients are on the same batch")
    diff.add_argument("first", help="an algorithm")
    diff.add_argument("second", help="another one")
    diff.add_argument(
        "--on",
        metavar="RECIPE",
        type=in_home,
        help="a recipe or a run folder whose model, prompts or environment to use, and its settings for the algorithm that it trains "
        "(default: short strings)",
    )
    diff.add_argument("--set", action="append", default=[], metavar="key=value", help="override a key of the recipe; may be repeated")
    diff.add_argument("--seed", type=int, help="of the batch (default: the recipe's)")
    diff.add_argument("--output", metavar="FILE", type=in_home, help="write a page to this HTML file, and the numbers beside it as JSON")
    diff.set_defaults(run=_diff)

    train = commands.add_parser(
        "train",
        help="train what a recipe says",
        description="Sections of a recipe, and keys that may be overridden as section.key=value: " + ", ".join(_sections()) + ". "
        "Every key, its default and meaning: unipg keys [SECTION].",
    )
    train.add_argument("recipe", type=in_home, help="a YAML file")
    train.add_argument("overrides", nargs="*", metavar="key=value", help="dotted overrides, e.g. algorithm.gamma=0.25")
    train.add_argument("--resume", action="store_true", help="continue the run in the recipe's output folder")
    train.add_argument(
        "--trust", action="store_true", help="with --resume: load environments that another user's run has pickled, which runs code"
    )
    train.add_argument("--report", action="store_true", help="write the HTML report into the run folder at the end")
    train.set_defaults(run=_train)

    evaluate = commands.add_parser(
        "evaluate", help="pass@1, pass@k and maj@k with intervals on named tasks; return and length of a controller's episodes"
    )
    evaluate.add_argument("model", type=in_home, help="a hub name, a model folder or a run folder")
    evaluate.add_argument(
        "--task",
        action="append",
        default=[],
        metavar="NAME[:{OPTIONS}]",
        help="a reasoning-gym task, or a data file, with options in YAML, e.g. 'chain_sum:{max_digits: 2, tools: [calculator]}'; "
        "may be repeated",
    )
    evaluate.add_argument(
        "--recipe", type=in_home, help="take held-out tasks and sampling settings, or a controller's environment, from a recipe"
    )
    evaluate.add_argument("--items", type=int, help="items of each task (default 200)")
    evaluate.add_argument("--samples", type=int, help="sampled answers per item, for pass@k and maj@k (default 0: greedy only)")
    evaluate.add_argument("--k", help="the k of pass@k and maj@k, e.g. 1,4,8 (default: 1 and all samples)")
    evaluate.add_argument("--temperature", type=float, help="of sampled answers (default 1)")
    evaluate.add_argument("--max-new-tokens", type=int, help="limit on an answer's tokens (default 64)")
    evaluate.add_argument("--episodes", type=int, help="of a controller: episodes with its most likely actions (default: its recipe's)")
    evaluate.add_argument("--sample", action="store_true", help="of a controller: draw actions as in training, not the most likely ones")
    evaluate.add_argument(
        "--record",
        metavar="FILE",
        type=in_home,
        help="of a controller: film the episodes (default 3) into this .mp4 or .gif, without a screen",
    )
    evaluate.add_argument("--checkpoint", default="last", help="of a run: last (default), or best of those measured during training")
    evaluate.add_argument("--seed", type=int, default=0)
    evaluate.add_argument("--device", default="auto")
    evaluate.add_argument("--threads", type=int)
    evaluate.add_argument("--json", metavar="FILE", type=in_home, help="write the results, with sampled answers, to this file")
    evaluate.set_defaults(run=_evaluate)

    export = commands.add_parser("export", help="a controller's most likely action as one file for other programs")
    export.add_argument("model", type=in_home, help="a run folder, or a controller's model folder")
    export.add_argument("--format", default="onnx", help="onnx (default) or torchscript")
    export.add_argument("--output", metavar="FILE", type=in_home, help="default: actor.onnx or actor.pt in that folder")
    export.add_argument("--checkpoint", default="last", help="of a run: last (default), or best of those measured during training")
    export.set_defaults(run=_export)

    check = commands.add_parser("check-model", help="what of packing, shared prompts and decoding is proved for a model")
    check.add_argument(
        "model", type=in_home, help="a hub name, a model folder, a run folder, or an architecture of transformers, e.g. qwen3"
    )
    check.add_argument("--attention", help="transformers' attention implementation (sdpa, eager); default: its choice")
    check.add_argument("--trust-remote-code", action="store_true", help="run the model's own code")
    check.add_argument("--json", action="store_true", help="as an object")
    check.set_defaults(run=_check_model)

    keys = commands.add_parser("keys", help="every key of a recipe, with default and meaning")
    keys.add_argument("section", nargs="?", help="e.g. training, policy.lora, or an algorithm (default: all but algorithms)")
    keys.add_argument("--json", action="store_true", help="as an object")
    keys.set_defaults(run=_keys)

    lab = commands.add_parser("lab", help="bias, variance and signal-to-noise of algorithms against the exact gradient")
    lab.add_argument("--algorithms", default="", metavar="A,B,…", help="names (default: all)")
    lab.add_argument("--problem", default="strings", help="bandit, strings (default), tree; of control: one-state, lq, mdp; of values: sde")
    lab.add_argument("--vocabulary", type=int, help="tokens, arms or actions of the problem")
    lab.add_argument("--length", type=int, help="longest answer, in tokens or steps")
    lab.add_argument("--group-sizes", metavar="N,…", help="rollouts per prompt (default 8); of control: visited states; sde: paths")
    lab.add_argument("--lags", metavar="N,…", help="gradient steps that the sampling policy lies behind (default 0,4)")
    lab.add_argument("--clip", metavar="X,…", help="clip ranges, for algorithms that have one (default: their own)")
    lab.add_argument("--noise", metavar="P,…", help="probability that a trajectory is scored 1 − R instead of R (default 0)")
    lab.add_argument("--dt", metavar="X,…", help="of problem sde: times between two looks at a path (default 0.2,0.1,0.05,0.02,0.01)")
    lab.add_argument("--batches", type=int, help="independent batches per measurement (default 400; grid 200)")
    lab.add_argument("--mismatch", action="store_true", help="instead: samplers that differ from the trainer, with and without corrections")
    lab.add_argument("--grid", action="store_true", help="instead: every combination of masks, references, advantages and aggregates")
    for kind in ("masks", "references", "advantages", "aggregates"):
        lab.add_argument(f"--{kind}", default="", metavar="A,B,…", help="of the grid: class names, or symbols with their settings")
    lab.add_argument("--seed", type=int, default=0)
    lab.add_argument("--output", default="runs/lab", type=in_home, help="folder for lab.html, lab.png and lab.json (default runs/lab)")
    lab.set_defaults(run=_lab)

    report = commands.add_parser("report", help="one self-contained HTML page of one or several runs")
    report.add_argument("runs", nargs="+", type=in_home, help="run folders")
    report.add_argument("--output", type=in_home, help="the page (default: report.html in the first run's folder)")
    report.set_defaults(run=_report)

    add_data(commands)
    return parser


def _sections() -> list[str]:
    from unipg.settings import every_key

    return list(every_key()[""])


def _algorithms(options: argparse.Namespace) -> None:
    from unipg.algorithms.base import registered, table_row

    rows = [table_row(a) for a in registered().values()]
    if options.json:
        print(json.dumps(rows, indent=1))
        return
    from unipg.terminal import algorithm_table, plain_console

    console = plain_console()
    console.print(algorithm_table(rows, console.width))


def _explain(options: argparse.Namespace) -> None:
    from rich.markdown import Markdown

    from unipg.algorithms.base import algorithm_named
    from unipg.reports.explain import explanation
    from unipg.terminal import plain_console

    text = explanation(algorithm_named(options.name))
    console = plain_console()
    console.print(Markdown(text)) if console.is_terminal else print(text)


def _diff(options: argparse.Namespace) -> None:
    from unipg.algorithms.base import algorithm_named
    from unipg.lab import diff, diff_control, diff_page
    from unipg.terminal import plain_console

    first, second = algorithm_named(options.first)(), algorithm_named(options.second)()
    for algorithm in (first, second) if options.on is None else ():
        if not algorithm.learns_from_answers():
            raise InputError(f"algorithm '{algorithm.name}' trains controllers; accepted: --on RECIPE, one with an environment")
    page = Path(options.output) if options.output else None
    for path in (page, page.with_suffix(".json")) if page else ():
        check_output(path, "diff")
    console = plain_console()
    if options.on is None:
        seed = options.seed or 0
        policy, experience = diff.string_setting(seed)
        batch = diff.shared_batch(first, second, policy, experience, seed)
        found = diff.measure(first, second, policy, batch, experience.max_new_tokens)
    else:
        _quiet()
        with console.status("one batch and two gradients …"):
            loaded = diff.recipe_of(options.on, first, second, options.set)
            first, second = (diff.as_trained(loaded, algorithm) for algorithm in (first, second))
            compare = diff.on_prompts if loaded.environment is None else diff_control.on_environments
            found = compare(loaded, first, second, loaded.seed if options.seed is None else options.seed)
    console.print(diff_page.tables(found))
    if page:
        write_output(page, diff_page.render(found), "diff")
        _write_json(page.with_suffix(".json"), found.as_json(), "diff")
        console.print(f"page  {page}", soft_wrap=True, highlight=False)


def _quiet() -> None:
    """Turns off the bars that transformers shows while it reads and writes models: ours say what matters."""
    from transformers.utils import logging

    logging.disable_progress_bar()


def _train(options: argparse.Namespace) -> int:
    from unipg.settings import check_settings, read_settings, up_to_date

    settings = read_settings(options.recipe, options.overrides)
    if up_to_date():
        check_settings(settings)  # before torch is there: most mistakes are names
    from unipg.terminal import TrainingDisplay, plain_console
    from unipg.training.recipe import load_recipe
    from unipg.training.run import run_recipe
    from unipg.training.trainer import Stopped

    _quiet()
    recipe = load_recipe(options.recipe, options.overrides)
    console = plain_console()
    command = "unipg train " + shlex.join([options.recipe, *options.overrides, *(["--resume"] if options.resume else [])])
    folder = Path(recipe.output)
    earlier = _record(folder)
    if options.resume and earlier.get("status") == "finished" and earlier.get("iterations") == recipe.training.iterations:
        console.print(f"{folder} is finished: nothing left to do (training.iterations=… trains it for longer)")
        return 0
    if options.report:
        check_output(folder / "report.html", "report")
    try:
        with TrainingDisplay(console, recipe.build_algorithm().name) as display:
            run_recipe(recipe, resume=options.resume, trust=options.trust, observer=display, command=command)
    except Stopped as stopped:
        resume = shlex.join(["unipg", "train", options.recipe, *options.overrides, "--resume"])
        console.print(f"stopped; nothing is lost. Continue with:  {resume}", soft_wrap=True)
        return 128 + stopped.signal
    if os.environ.get("RANK", "0") != "0":
        return 0
    shown = [("metrics", folder / "metrics.jsonl"), ("model", folder / "model")]
    measured = _record(folder).get("evaluations")
    if measured:
        last, best = (_measured(measured[name]) for name in ("last", "best"))
        console.print(
            f"return   last {last}; best {best}, the highest of {measured['n']}, so likely too high", soft_wrap=True, highlight=False
        )
        console.print(f"measure  unipg evaluate {folder} --checkpoint best", soft_wrap=True, highlight=False)
        shown.append(("best", folder / "best"))
    if options.report:
        from unipg.reports import write_report

        shown.append(("report", write_report([folder], folder / "report.html")))
    for label, path in shown:
        console.print(f"{label:8} {path}", soft_wrap=True, highlight=False)
    if not options.report:
        console.print(f"next     unipg report {folder}", soft_wrap=True, highlight=False)
    return 0


def _measured(evaluation: dict[str, Any]) -> str:
    scores = "".join(f", {name} {value:.1f}" for name, value in evaluation.items() if name.startswith("score"))
    return f"{evaluation['return']:.4g} at iteration {evaluation['iteration']}{scores}"


def _record(folder: Path) -> dict[str, Any]:
    try:
        found = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _evaluate(options: argparse.Namespace) -> None:
    check_place(options.model, runs=True)
    import dataclasses

    from unipg.terminal import evaluation_progress, evaluation_table, plain_console
    from unipg.training.evaluate import evaluate_model

    _quiet()
    console = plain_console()
    if options.json:
        check_output(Path(options.json), "evaluate")
    with evaluation_progress(console) as progress:
        results = evaluate_model(
            options.model,
            tasks=options.task,
            recipe=options.recipe,
            items=options.items,
            samples=options.samples,
            k=None if options.k is None else _numbers(options.k),
            temperature=options.temperature,
            max_new_tokens=options.max_new_tokens,
            episodes=options.episodes,
            sample=options.sample,
            record=options.record,
            checkpoint=options.checkpoint,
            seed=options.seed,
            device=options.device,
            threads=options.threads,
            progress=progress,
        )
    console.print(evaluation_table(results))
    if options.record:
        console.print(f"film     {options.record}", soft_wrap=True, highlight=False)
    if options.json:
        found = [dataclasses.asdict(result) for result in results]
        _write_json(Path(options.json), {"model": options.model, "seed": options.seed, "results": found}, "evaluate")
    for result in results:
        if result.broken:
            raise InputError(f"the verifier of {result.task} raised an error for every answer; the first: {result.trouble.splitlines()[0]}")
        if result.trouble:
            console.print(f"some answers of {result.task} could not be scored: {result.trouble.splitlines()[0]}", soft_wrap=True)


def _export(options: argparse.Namespace) -> None:
    check_place(options.model, runs=True)
    from unipg.terminal import plain_console
    from unipg.training.export import export_model

    console = plain_console()
    with console.status(f"tracing, and writing {options.format} …"):
        path, told = export_model(options.model, options.format, output=options.output, checkpoint=options.checkpoint)
    for kind in ("inputs", "outputs"):
        for each in told[kind]:
            console.print(f"{kind[:-1]:8} {each['name']} [{', '.join(map(str, each['shape']))}] {each['dtype']}", highlight=False)
    console.print(f"file     {path}", soft_wrap=True, highlight=False)


def _check_model(options: argparse.Namespace) -> int:
    import dataclasses

    from unipg.policies.check import proof_of_name
    from unipg.terminal import plain_console, proof_table

    _quiet()
    proof, longest = proof_of_name(options.model, options.attention, options.trust_remote_code)
    if options.json:
        print(json.dumps(dataclasses.asdict(proof) | {"longest": longest}, indent=1))
    else:
        console = plain_console()
        console.print(proof_table(proof))
        if longest is not None:
            console.print(f"Right for rows of at most {longest} tokens alone; longer ones are refused.", highlight=False)
    proof.require()
    return 0


def _keys(options: argparse.Namespace) -> None:
    from unipg.settings import keys_of

    found = keys_of(options.section)
    if options.json:
        print(json.dumps(found, indent=1, ensure_ascii=False))
        return
    for section, keys in found.items():
        print(f"{section or 'recipe'}")
        for name, key in keys.items():
            default = f" = {json.dumps(key['default'], ensure_ascii=False)}" if "default" in key else ""
            print(f"  {name}: {key['type']}{default}")
            for line in textwrap.wrap(key["meaning"], 110):
                print(f"      {line}")


def _numbers(text: str, option: str = "--k", kind: type[int] | type[float] = int) -> tuple[Any, ...]:
    try:
        return tuple(kind(part) for part in text.split(","))
    except ValueError:
        what = "whole numbers" if kind is int else "numbers"
        raise InputError(f"{option} is '{text}'; accepted: {what} separated by commas") from None


def _write_json(path: Path, content: dict[str, Any], command: Command) -> None:
    write_output(path, json.dumps({"generator": generator(command), **content}, indent=1), command)


def _lab(options: argparse.Namespace) -> None:

    from unipg.lab.page import check_folder, terminal_tables, write
    from unipg.lab.run import run_lab, split_names
    from unipg.terminal import evaluation_progress, plain_console

    def several(name: str, kind: type[int] | type[float]) -> tuple[Any, ...] | None:
        text = getattr(options, name)
        return None if text is None else _numbers(text, f"--{name.replace('_', '-')}", kind)

    console = plain_console()
    check_folder(Path(options.output))
    with evaluation_progress(console) as progress:
        findings = run_lab(
            algorithms=split_names(options.algorithms),
            problem=options.problem,
            vocabulary=options.vocabulary,
            length=options.length,
            group_sizes=several("group_sizes", int),
            lags=several("lags", int),
            clips=several("clip", float),
            noises=several("noise", float),
            steps=several("dt", float),
            batches=options.batches,
            mismatch=options.mismatch,
            grid=options.grid,
            parts={kind: split_names(getattr(options, f"{kind}s")) for kind in ("mask", "reference", "advantage", "aggregate")},
            seed=options.seed,
            command=shlex.join(["unipg", *options.arguments]),
            progress=progress,
        )
    for path in write(findings, Path(options.output)):
        console.print(str(path), soft_wrap=True, highlight=False)
    for table in terminal_tables(findings, console.width):
        console.print(table)


def _report(options: argparse.Namespace) -> None:
    from unipg.reports import write_report

    runs = [Path(run) for run in options.runs]
    output = Path(options.output) if options.output else runs[0] / "report.html"
    print(write_report(runs, output))


if __name__ == "__main__":
    sys.exit(main())
