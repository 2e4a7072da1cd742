"""Writes docs/speed.md and its charts from what language.py, control.py, replay.py, offline.py, overlap.py and gpu.py measured."""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks" / "results"
Result = dict[str, Any]

COLOURS = {"ours": "#0072B2", "trl": "#D55E00", "plain": "#999999"}
WAYS = {
    "full": "full log-softmax",
    "selective": "chosen logit less log-sum-exp",
    "ours": "ours",
    "ours_entropy": "ours, with the entropy",
    "trl": "TRL's chunked head, with the entropy",
}
MEASURED = {"step": "whole step", "update": "update alone", "rollout": "generation alone"}
LIMITS = {
    "uniform": "What is left is arithmetic that every side has to do: decoding one token of each row at a time, which all sides "
    "do at the speed of the same matrix products, and forward and backward over completions that are all of one length. Only the prompts "
    "are saved.",
    "brief": "There is no prompt to share and no padding to leave out. Matrix products that every side has to do are over half "
    "of decoding and most of the update, and run at what the core can do (here about 90 GFLOP/s in float32).",
    "skewed": "Decoding takes as many steps as the longest row has tokens, whatever the sides do about the others.",
    "dead": "Where little is left to compute, what a step costs at any size counts: planning, the optimiser, the shared prompts.",
}
INTRODUCTION = """\
# Speed

What a step costs beside other libraries, on one CPU thread. Every speed stands beside an equality: before anything is timed, each
side takes one SGD step from the same weights on the same completions, and the weights must agree to 1e-6 of the largest. The page is
written by `make bench`; nothing on it is typed by hand.

How it is measured: each side is a process of its own, on one thread, with the same initial weights, prompts, completion lengths,
rewards and optimiser. Each is first tried at several settings and runs at the fastest (of those within 5 %, at the one that needs least
memory). Then steps of the sides alternate, after one that does not count; the tables show medians with the smallest and largest.
CPU-seconds are user and system time of the process; memory is the most that the process held, libraries included, and in brackets what
the steps added to what was there before the first. TRL runs without compilation, in float32 and without recomputing activations, unless
the settings tried say otherwise; on a CPU its trainer projects prompts onto the vocabulary too.
"""
TURNS = (
    "a name ends with the width of the two hidden layers. The bare loop is the same arithmetic written down plainly, with torch's "
    "optimisers and nothing around it. The sides took turns, which are compared pair by pair."
)
KEPT = (
    "SAC and TD3 on Pendulum-v1 (an update of 256 transitions after every step) and DQN on CartPole-v1 (64, after every fourth), at "
    f"Stable-Baselines3's defaults otherwise; {TURNS} That losses and gradients are equal on the same tensors is tested; learning curves "
    "beside Stable-Baselines3's are [claims](claims.md)."
)
GIVEN = f"TD3+BC, IQL and PRDC on 12,000 given transitions of Pendulum-v1, in batches of 256; {TURNS}"
RUNNING = """\
## Running it

    make bench                                                   sets up .venv and .venv-peers, measures, writes this page
    python benchmarks/speed/language.py --quick                  two minutes: does it run?
    python benchmarks/speed/language.py --cases dead --repeats 3 --peers some/environment/bin/python
    UNIPG_CLEANRL=cleanrl/ppo.py make bench                      with CleanRL's script, which no package index has
    python benchmarks/speed/page.py                              this page from the stored results

Results: `benchmarks/results/speed-*.json`. Leave the machine alone meanwhile: CPU-seconds rise by half when
other processes share the caches. `tests/test_speed.py` checks in a few seconds, on counts of tokens, decode steps and logits rather than on
time, that nothing here got worse.
"""


def spread(found: Result, digits: int = 2) -> str:
    return f"{found['median']:.{digits}f} ({found['min']:.{digits}f} – {found['max']:.{digits}f})"


def table(heading: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(heading)} |", "|" + "---|" * len(heading), *(f"| {' | '.join(row)} |" for row in rows), ""]


# ---------------------------------------------------------------------------------------------------------------------- language


def language(result: Result, images: Path) -> list[str]:
    """The language half."""
    lines = ["## Language: one GRPO step", ""]
    cases = {name: case for name, case in result["cases"].items() if case["sides"]}
    lines += _targets(result)
    if cases:
        draw_cases(cases, images / "speed-language.png")
        lines += ["![seconds and memory of each side](images/speed-language.png)", ""]
    for name, case in cases.items():
        lines += _case(name, case)
    if result.get("layouts"):
        draw_layouts(result["layouts"], images / "speed-layouts.png")
        lines += _layouts(result["layouts"])
    if result.get("skipping"):
        lines += _skipping(result["skipping"])
    if result.get("projection"):
        lines += _projection(result["projection"])
    return [*lines, *_ran(result)]


def _targets(result: Result) -> list[str]:
    rows, missed = [], []
    for name, case in result["cases"].items():
        apart = case["equality"].get("trl", {}).get("difference")
        for kind, verdict in zip(("time", "memory"), case["verdicts"], strict=False):
            at = "at least" if kind == "time" else "at most"
            said = "reached" if verdict["reached"] else "**not reached**"
            value = f"{verdict['value']:.2f}" + (
                f" (added by the steps: {verdict['without_start']:.2f})" if "without_start" in verdict else ""
            )
            rows.append(
                [case["title"], verdict["what"], f"{at} {verdict['target']:g}", value, said, "" if apart is None else f"{apart:.0e}"]
            )
            if not verdict["reached"]:
                missed.append(_missed(case["title"], verdict, LIMITS[name] if kind == "time" else _loaded(case, verdict["target"])))
    for verdict in result.get("projection", {}).get("verdicts", []):
        said = "reached" if verdict["reached"] else "**not reached**"
        apart = result["projection"]["ways"]["ours"]["difference"]
        rows.append(
            ["Vocabulary projection", verdict["what"], f"at most {verdict['target']:g}", f"{verdict['value']:.2f}", said, f"{apart:.0e}"]
        )
        if not verdict["reached"]:
            why = "Forming the logits again is a fourth matrix product beside three, and the exponentials come on top."
            missed.append(_missed("Vocabulary projection", verdict, why))
    if not rows:
        return []
    lines = table(["", "against TRL's trainer at its fastest setting", "aim", "found", "", "weights or gradients differ by"], rows)
    return [*lines, *(f"- {line}" for line in missed), *([""] if missed else [])]


def _loaded(case: Result, target: float) -> str:
    """What a share of memory leaves out of account: what was loaded before, and the settings of ours that need less."""
    ours, theirs = case["sides"]["ours"], case["sides"]["trl"]["peak_mb"]
    held, aim = ours["base_mb"], target * theirs
    more = f" unipg's hold {held:.0f} MB then, more than the aim of {aim:.0f} MB by themselves." if held > aim else ""
    least = min(ours["tried"], key=lambda t: t["peak_mb"], default=None)
    if least is not None and least["setting"] != ours["setting"] and case["clock"] == "cpu":
        longer = least["cpu"] / next(t["cpu"] for t in ours["tried"] if t["setting"] == ours["setting"])
        more += f" With {_setting(least['setting'])} the share is {least['peak_mb'] / theirs:.2f}, at {longer:.2f} times the time."
    return "Interpreter, PyTorch and transformers, loaded before the first step, are a large part of both processes." + more


def _missed(title: str, verdict: Result, why: str) -> str:
    short = abs(verdict["value"] / verdict["target"] - 1)
    return f"{title}, {verdict['what']}: {verdict['value']:.2f} where {verdict['target']:g} was aimed at, {short:.0%} off. {why}".rstrip()


def _case(name: str, case: Result) -> list[str]:
    work, ours = case["work"], case["sides"]["ours"]
    measured = case["clock"]
    lines = [f"### {case['title']}", ""]
    lines += [
        f"{case['about']} {work['prompts']} prompts of {work['prompt_tokens']} tokens with {work['rollouts']} completions each, "
        f"{work['completion_tokens']:,} completion tokens; {work['layers']} layers of width {work['hidden']}, "
        f"{work['vocabulary']:,} words.",
        "",
    ]
    rows = []
    for side, found in case["sides"].items():
        equality = case["equality"].get(side)
        apart = "" if equality is None else f"{equality['difference']:.0e}" + ("" if equality["equal"] else " **not equal**")
        rows.append(
            [
                found["title"],
                spread(found["cpu"]),
                spread(found["wall"]),
                f"{found['rollout']['median']:.2f}",
                f"{found['update']['median']:.2f}",
                f"{found['peak_mb']:.0f} ({found['peak_mb'] - found['base_mb']:.0f})",
                f"{found[measured]['median'] / ours[measured]['median']:.2f}",
                apart,
            ]
        )
    heading = [
        "",
        "CPU-seconds",
        "wall seconds",
        "of it generation",
        "of it update",
        "peak MB (added)",
        f"{_measured(work)}, ours = 1",
        "weights differ by",
    ]
    lines += table(heading, rows)
    moved = next((e["moved"] for e in case["equality"].values()), None)
    if moved is not None:
        lines += [f"The compared step moved weights by up to {moved:.2g} of the largest weight.", ""]
    if case["work"]["measured"] == "rollout":
        tokens = case["work"]["completion_tokens"]
        rates = ", ".join(f"{s['title']} {tokens / s['rollout']['median']:,.0f}" for s in case["sides"].values())
        lines += [
            f"Tokens per CPU-second: {rates}. The peer here is transformers' `generate`, which serving engines leave far behind on a GPU: "
            "with a 4-billion-parameter model on a B200, transformers' own continuous batching reached 7 % of vLLM's 7,224 tokens per "
            "second (unsloth#5108). On one CPU thread there is no such engine to compare with.",
            "",
        ]
    tried = [
        f"{found['title']}: "
        + "; ".join(f"{_setting(t['setting'])} {t['cpu']:.2f} s, {t['peak_mb']:.0f} MB" for t in found["tried"])
        + f"; taken: {_setting(found['setting'])}"
        for found in case["sides"].values()
        if found["tried"]
    ]
    return [*lines, *([f"Settings tried (`{name}`), CPU-seconds and peak memory:", "", *(f"- {t}" for t in tried), ""] if tried else [])]


def _measured(work: Result) -> str:
    return MEASURED[work["measured"]]


def _setting(setting: Result) -> str:
    names = {
        "rows": "{} rows in a forward pass",
        "micro_batch_tokens": "{} tokens in a forward pass",
        "gradient_checkpointing": "activations recomputed",
    }
    return ", ".join(names.get(name, name + " {}").format(value) for name, value in setting.items()) or "as it comes"


def _layouts(found: list[Result]) -> list[str]:
    lines = ["### Where packing and sharing lose, and what the planner chooses", ""]
    lines += [
        "An update's forward and backward pass, padded, packed, with shared prompts, and as planned. The plan may "
        "not lose by more than 5 %.",
        "",
    ]
    rows = []
    for shape in found:
        ways = shape["ways"]
        row = [f"{shape['title']}"]
        for way in ("padded", "packed", "shared"):
            cell = "–" if way not in ways else f"{ways[way]['median'] * 1e3:.0f} ms, {shape['tokens'][way]:,} tokens"
            row.append(f"**{cell}**" if way == shape["chosen"] else cell)
        row += [
            f"{ways['planned']['median'] * 1e3:.0f} ms",
            shape["chosen"],
            f"{shape['cost']:.2f}" + (" **loses**" if shape["loses"] else ""),
        ]
        rows.append([*row, f"{shape['difference']:.0e}"])
    lines += table(["", "padded", "packed", "shared", "planned", "chosen", "chosen / best", "gradients differ by"], rows)
    return [*lines, "![layouts](images/speed-layouts.png)", ""]


def _skipping(found: list[Result]) -> list[str]:
    lines = ["### Where skipping rows gains nothing", ""]
    lines += ["The update with 60 % of rows without advantage. A KL term touches every row, so none may be left out, and none is.", ""]
    rows = [[v["title"], f"{v['active']:.0%}", spread(v["update"])] for v in found]
    return lines + table(["", "rows computed", "CPU-seconds of the update"], rows)


def _projection(found: Result) -> list[str]:
    lines = ["### Vocabulary projection", ""]
    lines += [
        f"Log-probabilities of {found['tokens']:,} tokens from {found['vocabulary']:,} words and hidden states of width {found['hidden']}, "
        "forward and backward; each measurement in a process of its own.",
        "",
    ]
    full = found["ways"]["full"]["cpu"]["median"]
    rows = [
        [
            WAYS[way],
            spread(f["cpu"]),
            spread(f["wall"]),
            f"{f['cpu']['median'] / full:.2f}",
            f"{f['extra_mb']['median'] / 1e3:.3f}",
            f"{f['difference']:.0e}",
        ]
        for way, f in found["ways"].items()
    ]
    return lines + table(["", "CPU-seconds", "wall seconds", "full = 1", "extra GB", "gradients differ by"], rows)


def _ran(result: Result) -> list[str]:
    machine, versions = result["machine"], result["versions"]
    changed = ", with changes to the library" if result["library_modified"] else ""
    lines = ["### What ran", ""]
    lines += [f"- command: `{result['command']}`", f"- commit: {result['commit'] or 'unknown'}{changed}", f"- date: {result['date']}"]
    lines += [f"- machine: {machine['cpu']}, {machine['cores']} cores, one thread used, load {machine['load_before']:.1f} before"]
    lines += [f"- versions, {side}: {', '.join(f'{k} {v}' for k, v in found.items())}" for side, found in versions.items()]
    if result["quick"]:
        lines += ["- **tiny sizes (`--quick`): these numbers mean nothing**"]
    return [*lines, ""]


def draw_cases(cases: dict[str, Result], path: Path) -> None:
    """Stacked phases of each side in each case, and peak memory."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3.2 * len(cases), 5.6), layout="constrained")
    axes = figure.subplots(2, len(cases), squeeze=False)
    for column, case in enumerate(cases.values()):
        upper, lower = axes[0][column], axes[1][column]
        names = list(case["sides"])
        for place, side in enumerate(names):
            found, colour = case["sides"][side], COLOURS[side]
            rollout, update = found["rollout"]["median"], found["update"]["median"]
            upper.bar(place, update, color=colour)
            upper.bar(place, rollout, bottom=update, color=colour, alpha=0.45)
            upper.plot([place, place], [found["cpu"]["min"], found["cpu"]["max"]], color="black", linewidth=1.5)
            lower.bar(place, found["peak_mb"], color=colour)
            lower.bar(place, found["base_mb"], color="white", alpha=0.6)
        upper.set_title(case["title"].replace(", ", ",\n"), fontsize=9)
        for axis in (upper, lower):
            axis.set_xticks(range(len(names)), [{"ours": "unipg", "trl": "TRL", "plain": "plain loop"}[n] for n in names], fontsize=8)
            axis.tick_params(axis="y", labelsize=8)
    axes[0][0].set_ylabel("CPU-seconds\n(dark: update, light: generation)", fontsize=8)
    axes[1][0].set_ylabel("peak memory, MB\n(light: before the first step)", fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def draw_layouts(found: list[Result], path: Path) -> None:
    """Each layout's time beside padded, for each shape."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.0, 0.75 * len(found) + 1.2), layout="constrained")
    axis = figure.subplots()
    colours = {"padded": "#999999", "packed": "#56B4E9", "shared": "#009E73"}
    for place, shape in enumerate(found):
        padded = shape["ways"]["padded"]["median"]
        for number, (way, colour) in enumerate(colours.items()):
            if way in shape["ways"]:
                value, y = shape["ways"][way]["median"] / padded, place + 0.26 * (number - 1)
                axis.barh(y, value, height=0.24, color=colour, label=way if place == 0 else None)
                if way == shape["chosen"]:
                    axis.plot(value + 0.02, y, "k*", markersize=8, label="chosen" if place == 0 else None)
    axis.axvline(1, color="black", linewidth=0.8)
    axis.set_yticks(range(len(found)), [s["title"] for s in found], fontsize=8)
    axis.invert_yaxis()
    axis.set_xlabel("CPU-seconds of forward and backward, padded = 1", fontsize=8)
    axis.legend(fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


# ---------------------------------------------------------------------------------------------------------------------- page


def page(
    found_language: Result | None,
    found_control: Result | None,
    images: Path,
    found_gpu: Result | None = None,
    found_overlap: Result | None = None,
    found_hopper: Result | None = None,
    found_replay: Result | None = None,
    found_offline: Result | None = None,
) -> str:
    """The whole page; a half that was not measured is said to be missing."""
    lines = [INTRODUCTION]
    if found_language is None:
        lines += ["## Language: one GRPO step", "", "Not measured yet: run `make bench`.", ""]
    else:
        lines += language(found_language, images)
    lines += ["## Control", ""]
    lines += ["Not measured yet: run `make bench`.", ""] if found_control is None else control(found_control, images)
    lines += [] if found_hopper is None else ["### Physics", "", *control(found_hopper, images, "speed-hopper")]
    lines += [] if found_replay is None else ["### Kept transitions", "", *taken_in_turns(KEPT, found_replay)]
    lines += [] if found_offline is None else ["### Given transitions", "", *taken_in_turns(GIVEN, found_offline)]
    lines += ["## Collecting ahead", ""]
    lines += ["Not measured yet: run `make bench`.", ""] if found_overlap is None else collecting_ahead(found_overlap)
    lines += ["## On a GPU", ""]
    not_yet = "Not measured yet: no GPU was at hand. `python benchmarks/speed/gpu.py` measures it; with `--quick` it runs anywhere."
    lines += [not_yet, ""] if found_gpu is None else gpu(found_gpu)
    return "\n".join([*lines, RUNNING])


def collecting_ahead(result: Result) -> list[str]:
    """What overlap.py measured."""
    lines = [
        "`training.overlap` collects the next batch in a process of its own. Wall seconds of an iteration of GRPO on a small transformer, "
        f"medians of {result['repeats']} runs of {result['iterations']} iterations that took turns, with the smallest and largest; in "
        "brackets CPU-seconds of all processes, start included.",
        "",
    ]
    ways = list(next(iter(result["cases"].values())))
    rows = []
    for case, found in result["cases"].items():
        cells = [f"{spread(_summary(found[way]['wall']))} [{statistics.median(found[way]['cpu']):.2f}]" for way in ways]
        first, last = (statistics.median(found[way]["wall"]) for way in (ways[0], ways[-1]))
        rows.append([case, *cells, f"{first / last:.2f}"])
    lines += table(["", *ways, "times faster than one thread"], rows)
    machine = result["machine"]
    lines += _made(result)
    return [*lines, f"- machine: {machine['cpu']}, {machine['cores']} cores", ""]


def _made(result: Result) -> list[str]:
    return [f"- command: `{result['command']}`", f"- commit: {result['commit'] or 'unknown'}", f"- date: {result['written']}"]


def _summary(values: Sequence[float]) -> Result:
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def gpu(result: Result) -> list[str]:
    """The five measurements of gpu.py, as far as they were taken."""
    machine, size = result["machine"], result["size"]
    lines = [
        f"A random model of Qwen3's shape: {size['layers']} layers of width {size['hidden']}, {size['vocabulary']:,} words, "
        f"{size['dtype']}, on one {machine['device']}. FlexAttention {'passed' if machine['flex_attention'] else 'failed'} its trial.",
        "",
    ]
    facts = {"tokens": "tokens", "fill": "filled", "prompt": "prompt tokens", "rows": "rows"}
    equal = ("gradient_difference", "log_prob_difference", "differences")
    for name in ("projection", "packed", "shared", "sampler", "update"):
        rows = []
        for measurement in result.get(name, []):
            what = ", ".join(f"{measurement[key]:g} {word}" for key, word in facts.items() if key in measurement)
            apart = next(measurement[key] for key in equal if key in measurement)
            for way, found in measurement["ways"].items():
                differs = apart.get(way, 0.0) if isinstance(apart, dict) else apart
                ms = f"{found['ms']:.1f} ({found['min']:.1f} – {found['max']:.1f})" if "ms" in found else "out of memory"
                gb = f"{found['extra_gb']:.2f}" if found.get("extra_gb") is not None else ""
                speed = found.get("tokens_per_second") or (measurement.get("tokens_per_second") if way == "update" else None)
                rows.append([what, way, ms, gb, f"{speed:,.0f}" if speed else "", f"{differs:.0e}"])
        if rows:
            lines += [f"### {name.capitalize()}", ""]
            lines += table(["", "way", "ms", "extra GB", "tokens per second", "differs from the plain way by"], rows)
    if any("mfu" in row for row in result.get("update", [])):
        lines += [f"Share of the bf16 peak in the update: {result['update'][0]['mfu']:.1%}.", ""]
    lines += _made(result)
    return [*lines, f"- versions: {', '.join(f'{k} {v}' for k, v in result['versions'].items())}", ""]


SIDES = {"ours": "unipg", "envpool": "unipg, EnvPool", "stable_baselines3": "Stable-Baselines3", "cleanrl": "CleanRL"}


def control(result: Result, images: Path, picture: str = "speed-control") -> list[str]:
    """The control half, of one environment."""
    sides, titles = result["sides"], SIDES
    setting = result["setting"]
    several = "1 environment" if setting["environments"] == 1 else f"{setting['environments']} environments"
    lines = [
        f"PPO on {setting.get('environment', 'CartPole-v1')}: {several}, {setting['window']} steps each before {setting['epochs']} epochs "
        f"over {setting['minibatches']} minibatches, {setting['steps']:,} steps, {setting['seeds']} seeds, separate networks of two "
        "64-unit layers on all sides. The gradient of a minibatch differs from that of a plain PPO loss by "
        f"{result['gradient_difference']:.0e} of its largest entry.",
        "",
    ]
    rows = []
    for name, side in sides.items():
        speed = side["steps_per_cpu_second"]
        returns = [f"{r['value']:.0f} ({r['low']:.0f} – {r['high']:.0f})" for r in (side["mean_return"], side["final_return"])]
        cells = f"{speed['median']:,.0f} ({speed['min']:,.0f} – {speed['max']:,.0f})", f"{side['steps_per_wall_second']:,.0f}"
        rows.append([titles[name], *cells, *returns])
    lines += table(["", "steps per CPU-second", "steps per wall second", "return over the run", "return at its end"], rows)
    for name, comparison in result["comparisons"].items():
        ratio = comparison["ratio"]
        whole, end = ("yes" if comparison["returns_overlap"][name] else "no" for name in ("mean_return", "final_return"))
        said = "reached" if comparison["reached"] else f"**not reached**, {1 - ratio['median'] / ratio['target']:.0%} short"
        side, beside, peer = name.rpartition(" beside ")
        who = f"{titles[side]}: steps" if beside else "Steps"
        lines += [
            f"{who} per CPU-second beside {titles[peer]}'s: {spread(ratio)} times, aimed at {ratio['target']}: {said}. Intervals of "
            f"returns over seeds overlap: over the run {whole}, at its end {end}.",
            "",
        ]
    draw_control({titles[name]: side for name, side in sides.items()}, images / f"{picture}.png")
    lines += [f"![steps per CPU-second and learning curves](images/{picture}.png)", ""]
    machine = result["machine"]
    lines += _made(result)
    lines += [f"- machine: {machine['cpu']}, {machine['cores']} cores, one thread used"]
    lines += [f"- versions, {titles[n]}: {', '.join(f'{k} {v}' for k, v in side['versions'].items())}" for n, side in sides.items()]
    return [*lines, ""]


def taken_in_turns(about: str, result: Result) -> list[str]:
    """What replay.py or offline.py measured."""
    unit, peer = result["unit"], result["needs"].split()[-1]
    heading = ["", f"unipg, {unit} per CPU-second", f"{peer.split('==')[0]}'s", "times", "aim", "", "bare loop's", "of these", "aim", ""]
    rows, missed = [], []
    for name, case in result["cases"].items():
        row = [name, f"{case['ours']['per_cpu_second']['median']:,.0f}"]
        for side, what in (("peer", "the peer"), ("bare", "the bare loop")):
            if side not in case:
                row += ["–"] * 4
                continue
            found, ratio = case[side], case[side]["ratio"]
            told = "reached" if found["reached"] else "**not reached**"
            row += [f"{found['per_cpu_second']['median']:,.0f}", spread(ratio), f"{ratio['target']:.2f}", told]
            missed += [] if found["reached"] else [f"{name} is {1 - ratio['median'] / ratio['target']:.0%} short beside {what}"]
        rows.append(row)
    machine = result["machine"]
    lines = [about, "", *table(heading, rows)]
    if missed:
        lines += [
            f"Of the aims, {'; '.join(missed)}. What a bare loop makes of the peer's speed is about what there is to have: the products "
            "are the same on all sides, and the smaller the networks the more of the time is what stands around them.",
            "",
        ]
    lines += [*_made(result), f"- {result['repeats']} turns; machine: {machine['cpu']}, {machine['cores']} cores, one thread used"]
    lines += [
        f"- the machine's load at the end: {result['load']:.1f}",
        f"- versions: {', '.join(f'{k} {v}' for k, v in result['versions'].items())}; {peer}",
    ]
    return [*lines, ""]


def draw_control(sides: dict[str, Result], path: Path) -> None:
    """Speed, and learning curves with intervals over seeds."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.0, 3.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    for place, (title, side) in enumerate(sides.items()):
        colour, speed = list(COLOURS.values())[place], side["steps_per_cpu_second"]
        left.bar(place, speed["median"], color=colour)
        left.plot([place, place], [speed["min"], speed["max"]], color="black", linewidth=1.5)
        steps = sorted(side["curve"], key=int)
        middle, low, high = ([side["curve"][s][name] for s in steps] for name in ("value", "low", "high"))
        right.plot([int(s) for s in steps], middle, color=colour, label=title)
        right.fill_between([int(s) for s in steps], low, high, color=colour, alpha=0.2)
    left.set_xticks(range(len(sides)), list(sides))
    left.set_ylabel("steps per CPU-second")
    right.set(xlabel="steps", ylabel="return, interquartile mean over seeds")
    right.legend(fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def read(path: Path) -> Result | None:
    if not path.is_file():
        return None
    found: Result = json.loads(path.read_text(encoding="utf-8"))
    return found


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="benchmarks/speed/page.py", description=__doc__)
    parser.add_argument("--language", type=Path, default=RESULTS / "speed-language.json")
    parser.add_argument("--control", type=Path, default=RESULTS / "speed-control.json")
    parser.add_argument("--hopper", type=Path, default=RESULTS / "speed-control-hopper.json")
    parser.add_argument("--replay", type=Path, default=RESULTS / "speed-replay.json")
    parser.add_argument("--offline", type=Path, default=RESULTS / "speed-offline.json")
    parser.add_argument("--gpu", type=Path, default=RESULTS / "speed-gpu.json")
    parser.add_argument("--overlap", type=Path, default=RESULTS / "speed-overlap.json")
    parser.add_argument("--docs", type=Path, default=ROOT / "docs", help="where speed.md and images/ are written (default docs)")
    chosen = parser.parse_args(arguments)
    chosen.docs.mkdir(parents=True, exist_ok=True)
    found = (read(path) for path in (chosen.gpu, chosen.overlap, chosen.hopper, chosen.replay, chosen.offline))
    text = page(read(chosen.language), read(chosen.control), chosen.docs / "images", *found)
    target = chosen.docs / "speed.md"
    target.write_text(text, encoding="utf-8")
    print(target)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
