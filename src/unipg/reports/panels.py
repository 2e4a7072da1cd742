"""What a run is looked at for: which charts each section of the page has, and the sentence that says how to read each.

Metrics that are named nowhere here are drawn too, by `other_charts`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from html import escape
from itertools import pairwise
from typing import Any

from unipg.reports.charts import (
    Chart,
    Curve,
    Group,
    Panel,
    colour,
    curves,
    evaluation_chart,
    faded,
    fan_charts,
    finite,
    heat_maps,
    line_charts,
    one_each,
    stacked_bars,
)
from unipg.reports.run import Run, Series
from unipg.reports.text import duration, is_percent, metrics_of, percent, tasks_of

RETURN = Panel(
    "Return",
    {"return/mean": "training episodes"},
    "Training: mean return of the episodes that ended in each iteration, exploring; points: iterations, line: smoothed, band: the middle "
    "80 % of the points around. Evaluation: fresh episodes with the most likely actions, with 95 % intervals. Healthy: both rise, then "
    "hold. A steep fall that does not recover is a collapse; training far below the evaluation is what exploration costs.",
    band=True,
)
LEARNING = (
    Panel(
        "Return of the last 100 episodes",
        {"return/last_100": "mean return"},
        "Mean over the last 100 training episodes, whenever they ended; slower but steadier than the return of an iteration.",
        band=True,
    ),
    Panel(
        "Training reward",
        {"reward/mean": "mean reward"},
        "Mean reward of the trajectories of each iteration. Points: iterations, line: smoothed, band: the middle 80 % of the points "
        "around. Healthy: rises, then holds. It may fall while the evaluation rises if the prompts become harder.",
        band=True,
    ),
    Panel(
        "Preference accuracy",
        {"preference/accuracy": "accuracy"},
        "Share of training pairs whose chosen completion the policy already scores higher. Near 100 % early: what follows is overfitting.",
        percent=True,
    ),
    Panel(
        "Preference margin",
        {"preference/margin": "margin"},
        "By how much the chosen completion's score exceeds the rejected one's. Healthy: grows and levels off.",
    ),
    Panel(
        "Log-probability of given completions",
        {"preference/log_prob_chosen": "chosen", "preference/log_prob_rejected": "rejected"},
        "Sum over a completion's tokens. Both falling means that probability moves to completions that no pair covers.",
        unit="nats",
    ),
    Panel(
        "Spread of the reward",
        {"reward/std": "standard deviation", "reward/max": "highest"},
        "Methods that compare answers to one prompt learn from differences: a standard deviation near zero leaves nothing to learn.",
    ),
    Panel(
        "Success rate of the groups",
        {"groups/success_rate": "success rate"},
        "Share of answers that succeed, mean over prompts. Most is learned from prompts between the two ends; near 0 % or 100 % little is.",
        percent=True,
    ),
)

OPTIMISATION = (
    Panel(
        "Loss",
        {"loss": "loss"},
        "Good for spotting jumps only: the loss of a policy gradient does not measure progress, and its values are not comparable between "
        "algorithms.",
        smoothed=False,
    ),
    Panel(
        "Gradient norm",
        {"gradient_norm": "gradient norm"},
        "Healthy: the same order of magnitude throughout. Growing spikes announce instability; zero means that nothing is learned.",
        smoothed=False,
    ),
    Panel(
        "Entropy",
        {"entropy": "entropy", "temperature_loss/entropy": "entropy", "policy_gradient/entropy": "entropy"},
        "How undecided the policy is. Healthy: falls slowly. An early collapse means it has stopped exploring (of real actions entropies "
        "may be negative); a steady rise means it drifts into noise.",
        unit="nats",
    ),
    Panel(
        "Divergence from the anchor",
        {"kl/anchor": "KL"},
        "Kullback-Leibler divergence from the anchor policy. Healthy: grows slowly and levels off.",
        unit="nats",
    ),
    Panel("Learning rate", {"learning_rate": "learning rate"}, "As set by the schedule.", smoothed=False, ticks=".3~g"),
    Panel(
        "Length",
        {"length/mean": "mean length"},
        "Tokens or steps of a trajectory. Longer without better rewards is padding; a collapse to very short answers is giving up.",
    ),
    Panel(
        "Truncated",
        {"length/truncated_fraction": "truncated"},
        "Share of trajectories cut off by the length limit. Healthy: near zero; otherwise answers count as wrong because they are cut.",
        percent=True,
    ),
    Panel(
        "Groups without signal",
        {"groups/no_signal_fraction": "no signal"},
        "Share of prompts whose answers all got the same reward, so that comparing them teaches nothing. Near 100 % almost all sampling is "
        "wasted: the prompts are too easy or too hard.",
        percent=True,
    ),
    Panel(
        "Rows that move the policy",
        {"rows/active_fraction": "active rows"},
        "Share of trajectories that carry a weight. The rest was sampled and scored without any effect on the policy.",
        percent=True,
    ),
    Panel("Verifier failures", {"verifier/failures": "failures"}, "Answers that could not be scored. Healthy: zero.", smoothed=False),
)

PREDICTED = "values/predicted"
GAP = Panel(
    "Promised less observed",
    {PREDICTED: "gap"},
    "What each critic says the actions taken were worth, less the discounted return that followed (or, without replay, the lambda-return). "
    "0: right on average; above: it promises too much; below: too little. Rewards of other scales make other gaps.",
)
MEMBERS = {
    "error": (
        "Errors of the critic's members",
        "Each column is one iteration: value minus target. Few far away from the rest are heavy tails, of a shape below 2.",
    ),
    "beta": (
        "Predicted shape of errors",
        "Each column is one iteration: beta over steps and members. One value everywhere says nothing new.",
    ),
    "variance": ("Predicted variance of errors", "Each column is one iteration: over steps and members."),
}
"""Histograms of critics that predict their errors."""
EXTREMES = {"": "mean", "_min": "least", "_max": "largest"}
CRITIC = (
    Panel(
        "Critic loss",
        {"regression/loss": "critic loss"},
        "Squared (or Huber) error against the targets, over some updates of each iteration; several critics add up. It often rises while "
        "returns do, since larger values have larger errors; healthy: it levels off. Growth without end is divergence.",
        smoothed=False,
        ticks=".3~g",
    ),
    Panel(
        "Promised and observed",
        {PREDICTED: "critic", "values/observed": "observed return", "values/lambda_return": "lambda-return"},
        "What the critic says the actions taken were worth, and the discounted return that followed (an entropy bonus counts where the "
        "target has one; lambda-returns hold some of the critic's own values). Healthy: the critic's curve comes to lie on the other, "
        "slowly where targets are lagged copies. Above it promises too much, below too little. Of replayed methods the observed returns "
        "are those of exploring, somewhat earlier policies: a small gap is no fault.",
    ),
    Panel(
        "Variance explained by the critic",
        {"values/explained_variance": "explained"},
        "1 − Var(lambda-return − value) / Var(lambda-return). 1: the critic knows which states are good; 0: no better than a constant; "
        "below 0: worse. Healthy: rises towards 1.",
    ),
    Panel(
        "Drift of the critic's increments",
        {"critic/drift": "drift"},
        "Mean of r dt + e^{−beta dt} V' − V over dt, of the values before the update. 0: nothing is gained or lost on average that the "
        "values did not foresee; above 0: they are too low.",
    ),
    Panel(
        "Variation of the critic's increments",
        {"critic/variation": "variation"},
        "Their mean square over dt: what noise and exploration move per unit of time. It belongs to right values too, and does not vanish "
        "with dt; a critic that makes it small has become flat.",
    ),
    Panel(
        "Temperature",
        {"temperature_loss/temperature": "alpha"},
        "Weight of the entropy in the policy's aim, where it is learned. Healthy: falls, then settles. Growth without end means that the "
        "target entropy is out of reach.",
        ticks=".3~g",
    ),
    Panel(
        "Shape of the critic's errors",
        {f"{term}/beta{end}": label for term in ("regression", "value_loss") for end, label in EXTREMES.items()},
        "The beta that members predict for their own errors: 2 is Gaussian, 1 Laplace, smaller ones have heavier tails. Healthy: settles. "
        "At its floor of 0.001 everywhere, rewards are too large for a density of scale 1.",
    ),
    Panel(
        "Predicted variance of the critic's errors",
        {f"{term}/variance{end}": label for term in ("regression", "value_loss") for end, label in EXTREMES.items()},
        "What members predict of their own errors. Healthy: near the square of their spread.",
        ticks=".3~g",
    ),
    Panel(
        "Errors of the critic's members",
        {
            f"{term}/error{end}": label
            for term in ("regression", "value_loss")
            for end, label in {"_std": "standard deviation", "_min": "least", "_max": "largest"}.items()
        },
        "Value minus target of each member. Extremes far beyond the standard deviation are heavy tails; a mean that stays away from 0 is "
        "the bias of a loss that is not squared.",
    ),
)
REPLAY = (
    Panel(
        "Kept transitions",
        {"replay/size": "transitions"},
        "What updates draw from. Healthy: grows to the capacity, from where on the oldest are forgotten.",
        smoothed=False,
        unit="transitions",
    ),
    Panel(
        "Filled",
        {"replay/filled": "filled"},
        "Share of the buffer's capacity (replay.capacity) in use.",
        percent=True,
        smoothed=False,
    ),
    Panel(
        "Age of what was drawn",
        {"replay/age": "mean age"},
        "Steps of the environments between a transition and the update that drew it; mean of the iteration's last update. Drawn evenly it "
        "is half of what is kept: it grows until the buffer is full, then holds.",
        unit="steps",
    ),
)
RATIO = Panel(
    "Updates per environment step",
    {"replay/updates": "updates per step"},
    "The update-to-data ratio: 0 during the warm-up, then as replay.updates_per_step says.",
    smoothed=False,
    unit="updates / step",
)

TOOLS = (
    Panel(
        "Turns",
        {"tools/turns": "turns"},
        "Turns of the policy in a rollout: one more than it waited for results. A rise with the reward is a policy that learns to look up "
        "more; a fall to one is a policy that gives up its tools.",
    ),
    Panel(
        "How calls end",
        {"tools/ok_fraction": "result", "tools/error_fraction": "error", "tools/timeout_fraction": "out of time"},
        "Shares of all calls. Errors are calls that are not written as they must be, unknown tools and wrong arguments, and tools that "
        "failed; the policy is told. Healthy: nearly all give a result.",
        percent=True,
    ),
    Panel(
        "Stopped by the limit of turns",
        {"tools/turn_limit_fraction": "stopped"},
        "Share of rollouts that ended with a call which was not run any more. Healthy: near zero; otherwise raise rollouts.tools.turns.",
        percent=True,
    ),
)
CALLS = "tools/calls"
STRATA = {
    "strata/share_": ("Rollouts by stratum", "Share of the rollouts in each stratum: how the policy's habits shift.", True),
    "strata/reward_": ("Reward by stratum", "Mean reward in each stratum. What pays is what the policy should move to.", False),
}
"""Families of metrics that are drawn together, by what their names begin with."""
SETS = (
    Panel(
        "How different a set's members are",
        {"sets/diversity": "diversity", "sets/score": "score"},
        "Mean over the sets of an iteration: d, in [0, 1], and F = mean reward · d, which is what grows. Healthy: F rises. Diversity that "
        "falls to its least value (1/n where d is the share of distinct ones) while the reward rises is a policy that keeps one way.",
    ),
    Panel(
        "Sets of equals",
        {"sets/alike_fraction": "all members alike"},
        "Share of the sets whose members all have the same signature. Near 100 % only rewards tell sets apart.",
        percent=True,
    ),
    Panel(
        "The most common signature",
        {"sets/most_common_fraction": "share"},
        "Share of the rollouts from one prompt or state that have its most common signature, mean over these. Healthy: well below 100 % "
        "where there are several ways.",
        percent=True,
    ),
    Panel(
        "Sets without signal",
        {"sets/no_signal_fraction": "no signal"},
        "Share of the prompts or states whose sets all score the same: there the advantage is exactly 0.",
        percent=True,
    ),
    Panel(
        "Rollouts in sets",
        {"sets/member_fraction": "in a set"},
        "Share of all rows; the others, and what is behind the window of a row, have an advantage of their own.",
        percent=True,
    ),
    Panel(
        "Steps taken again",
        {"vines/replayed_steps": "steps"},
        "Of environments, on the way to the states that vines begin at; they are not among the policy's steps.",
        smoothed=False,
    ),
)
WAYS = "vines/share_"
MIXTURE = {
    "router/share_": (
        "Weights of the components",
        "Mean over states of what the router gives each component. Healthy: follows who wins. One near 100 % and the others near 0 mean "
        "that the mixture has become a single Gaussian.",
        True,
    ),
    "router/won_": (
        "Components whose action was best",
        "Share of states in which each component's drawn action was worth most to the critics: what the router is trained on.",
        True,
    ),
    "router/action_": (
        "Mean action of the components",
        "By component and number of the action, in the policy's units. Curves that lie on each other are components that do the same.",
        False,
    ),
}
"""The same of a mixture's components."""

SAMPLING = (
    Panel(
        "Decode steps",
        {"decode/steps": "decode steps"},
        "Sequential steps that the rollouts of an iteration took: what sampling costs in time where many rows are decoded together.",
    ),
    Panel(
        "Use of the decode slots",
        {"decode/utilization": "used"},
        "Share of the slots that gave a token in a decode step. Low means that many rows waited for the longest.",
        percent=True,
    ),
    Panel(
        "Responses cut by the window",
        {"window/cut_fraction": "go on"},
        "Share of the responses that were not finished within the window and go on in the next iteration. 0 % is plain PPO.",
        percent=True,
    ),
    Panel(
        "Age of responses",
        {"window/oldest": "oldest, in iterations", "window/per_response": "windows of a finished one"},
        "How long ago the oldest response in work was begun, and how many policies wrote a finished one. Healthy: levels off.",
    ),
    Panel(
        "Tokens that train",
        {"tokens/policy": "policy", "tokens/critic": "critic"},
        "Tokens of the windows, from which the policy learns, and of finished responses, from which the critic does.",
    ),
    Panel(
        "Staleness",
        {"staleness/steps": "optimiser steps"},
        "Optimiser steps between the policy that sampled a batch and the one that begins to learn from it.",
        smoothed=False,
    ),
    Panel(
        "Mismatch: mean",
        {"mismatch/log_ratio": "log ratio"},
        "Mean distance of a token's log-probability when it was sampled from that when its batch begins to train. Healthy: rounding only "
        "where the policy is the same, small and steady where batches are collected ahead.",
        unit="nats",
        ticks=".3~g",
    ),
    Panel(
        "Mismatch: largest ratio",
        {"mismatch/ratio_max": "largest ratio"},
        "Largest likelihood ratio of a token between those two policies. 1 means no difference.",
        smoothed=False,
    ),
)
CURVATURE = (
    Panel(
        "Tokens rejected for their step",
        {"curvature/rejected": "either", "curvature/rejected_by_shift": "shift", "curvature/rejected_by_gain": "gain"},
        "Share of the tokens whose own step was predicted to be too large. Healthy: 2 to 8 %; far more starves the update.",
        percent=True,
    ),
    Panel(
        "Predicted shift of the policy",
        {
            "curvature/shift_q01": "1 %",
            "curvature/shift_q50": "median",
            "curvature/shift_q99": "99 %",
            "curvature/shift_kept_max": "largest kept",
            "curvature/delta_f": "threshold",
        },
        "m_F of single tokens, by the last layer alone: it ranks steps well and underestimates their size. Kept tokens are below the "
        "threshold.",
        unit="nats",
        ticks=".2~e",
    ),
    Panel(
        "Predicted gain of the objective",
        {
            "curvature/gain_q01": "1 %",
            "curvature/gain_q50": "median",
            "curvature/gain_q99": "99 %",
            "curvature/gain_kept_max": "largest kept",
            "curvature/delta_h": "threshold",
        },
        "m_H of single tokens: how much a token's own step would change its part of the objective.",
        ticks=".2~e",
    ),
)
"""What only some runs measure: a section of its own each."""

DECODER = (
    Panel(
        "Decoder: validation error",
        {"decoder/validation": "error"},
        "Mean squared error on held-out pairs, of the weights that were kept. Its least possible value is not 0: noise cannot be foretold.",
        smoothed=False,
    ),
    Panel(
        "Decoder: saturated data",
        {"decoder/saturated": "beyond 0.99"},
        "Share of the decoder's data within 1 % of a bound, where tanh is flat. Near 100 % it is fitted to differences that hardly matter.",
        percent=True,
        smoothed=False,
    ),
    Panel(
        "Latent standard deviation",
        {"latent_pull/std": "sigma", "latent_pull/mean": "mu"},
        "Of the Gaussian that latent actions are drawn from, over states and dimensions. Healthy: sigma falls within a stage. At 0.001 or "
        "10 it is at its limits and no longer moves.",
    ),
)
GATE = {"gate/offline_fraction": "offline fraction"}
EFFECTIVE = {"ratio/ess": "effective sample size"}
QUANTILES = ("ratio/q01", "ratio/q25", "ratio/q50", "ratio/q75", "ratio/q99", "ratio/max")
SIDES = {
    "blocked_positive": "blocked, advantage above 0",
    "blocked_negative": "blocked, advantage below 0",
    "overflow": "overflow",
}
MOMENTS = {"mean": "mean", "std": "standard deviation"}
WAITED = "time/waited_for_rollouts"
STEPS = "environment/steps"
LEARNERS = ("gradient_norm", "learning_rate")
"""What each learner has of its own."""
THROUGHPUT = {"rollout": "rollout", "update": "update"}


def _terms(runs: Sequence[Run], prefix: str, leaves: dict[str, str]) -> list[str]:
    """`term` of the metrics `prefix/term/leaf`, in the order in which they were written."""
    keys = [key for run in runs for key in run.metrics if key.startswith(f"{prefix}/") and key.count("/") >= 2]
    return list(dict.fromkeys(key.split("/", 1)[1].rpartition("/")[0] for key in keys if key.rpartition("/")[2] in leaves))


def _panels(runs: Sequence[Run], panels: Sequence[Panel]) -> list[Chart]:
    return [chart for panel in panels for chart in line_charts(runs, curves(runs, panel.keys), panel)]


def learning_charts(runs: Sequence[Run]) -> list[Chart]:
    """Evaluations first, then training reward; returns of a controller's training and evaluations together."""
    returns = return_charts(runs)
    ranked = sorted(
        ((rank, metric, task) for task in tasks_of(runs) for rank, metric in enumerate(metrics_of(runs, task))), key=lambda item: item[0]
    )
    caption = "Held-out performance with its 95 % interval. Two points whose intervals overlap may differ by chance only."
    shown = [(metric, task) for _, metric, task in ranked if not (returns and metric == "return")]
    charts = [evaluation_chart(runs, task, metric, is_percent(metric), caption) for metric, task in shown]
    return [*returns, *(chart for chart in charts if chart.data), *_panels(runs, LEARNING)]


def return_charts(runs: Sequence[Run]) -> list[Chart]:
    """Training returns with the evaluations of the same episodes' kind over them; nothing where no episode was counted."""
    charts = line_charts(runs, curves(runs, RETURN.keys), RETURN)
    for chart in charts:
        for trace in chart.data:
            trace["opacity"] = 0.6
            if len(runs) > 1:
                trace["name"] += ", training"
        for task in tasks_of(runs):
            evaluated = evaluation_chart(runs, task, "return", False, "").data
            for trace in evaluated:
                trace["name"] = f"{trace['name']}, evaluation" if len(runs) > 1 else f"evaluation on {escape(task)}{_how(runs[0], task)}"
                if len(runs) == 1:
                    trace["line"] = trace["line"] | {"color": colour(1)}
            chart.data += evaluated
        chart.data += _stage_marks(runs, chart)
        chart.layout["yaxis"]["title"] = {"text": "return of an episode"}
        chart.layout["showlegend"] = True
    return charts


def _stage_marks(runs: Sequence[Run], chart: Chart) -> list[dict[str, Any]]:
    """A vertical line where a run began a new stage, as high as the chart's curves."""
    heights = [y for trace in chart.data for y in trace["y"] if y is not None]
    marks = []
    for index, run in enumerate(runs):
        begun = [i for i, more in _growth(run.metrics.get("stage", Series())) if more > 0]
        if begun and heights:
            middle, half = (max(heights) + min(heights)) / 2, (max(heights) - min(heights)) / 2
            line = {"type": "constant", "value": half, "thickness": 1.2, "width": 0, "color": faded(colour(index), 0.7)}
            name = f"{run.label}, new stage" if len(runs) > 1 else "new stage"
            place = {"x": begun, "y": [middle] * len(begun), "error_y": line, "meta": {"run": index, "clock": "metrics"}}
            look = {
                "mode": "markers",
                "marker": {"symbol": "line-ns-open", "size": 8, "color": colour(index)},
                "hovertemplate": "new stage",
            }
            marks.append({"type": "scatter", "name": escape(name), **place, **look})
    return marks


def decoder_charts(runs: Sequence[Run]) -> list[Chart | Group]:
    """What a generative decoder was fitted to, beside what it makes of noise, at the last fit of each run; and how the fits went."""
    drawn: dict[int, Chart] = {}
    for index, run in enumerate(runs):
        data: list[dict[str, Any]] = []
        for name in sorted(name for name in run.histograms if name.startswith(("decoder/data/", "decoder/samples/"))):
            _, what, number = name.split("/")
            last = run.histograms[name][-1]
            total = sum(last.counts) or 1
            line = {"shape": "hvh", "color": colour(int(number)), "width": 2, "dash": "solid" if what == "data" else "dot"}
            middles = [(a + b) / 2 for a, b in pairwise(last.edges)]
            trace = {"x": finite(middles), "y": finite(count / total for count in last.counts), "mode": "lines", "line": line}
            data.append({"type": "scatter", "name": f"{what}, dimension {number}", "hovertemplate": "%{y:.1%} at %{x:.2f}", **trace})
        if data:
            axes = {"yaxis": {"tickformat": ".3~p", "rangemode": "tozero"}, "xaxis": {"title": {"text": "action, in units of its bounds"}}}
            at = run.histograms[next(name for name in run.histograms if name.startswith("decoder/data/"))][-1].iteration
            drawn[index] = Chart("", f"Fitted in iteration {at}.", data, {**axes, "showlegend": True})
    caption = (
        "Solid: the actions that the decoder was fitted to, over all states that were visited. Dotted: what it makes of N(0, I) in the "
        "same states. Healthy: one covers the other, all peaks included; mass between two peaks is what the fit has blurred."
    )
    return [*one_each(runs, "Decoder: samples against data", caption, drawn), *_panels(runs, DECODER)]


def _how(run: Run, task: str) -> str:
    """How actions were chosen in evaluations of a task, where there are several ways."""
    told = dict.fromkeys(result.how for e in run.evaluations for result in e.results if result.task == task and result.how)
    return f", {escape(' and '.join(told))}" if told else ""


def critic_charts(runs: Sequence[Run]) -> list[Chart]:
    """What critics are off by, and what they promise."""
    lost = [f"{'regression' if 'regression/loss' in run.metrics else 'critic'}/loss" for run in runs]
    found = [curve for index, key in enumerate(lost) for curve in curves(runs, {key: "critic loss"}) if curve.run == index]
    charts = line_charts(runs, found, CRITIC[0])
    if len(runs) == 1:
        return charts + _panels(runs, CRITIC[1:])
    gaps = [Curve(index, "gap", gap) for index, run in enumerate(runs) if (gap := _gap(run)).iterations]
    return charts + line_charts(runs, gaps, GAP) + _panels(runs, [panel for panel in CRITIC[1:] if PREDICTED not in panel.keys])


def _gap(run: Run) -> Series:
    """By how much a critic promised more than came of it."""
    told = next((run.metrics[key] for key in ("values/observed", "values/lambda_return") if key in run.metrics), Series())
    came = dict(zip(told.iterations, told.values, strict=True))
    promised = run.metrics.get(PREDICTED, Series())
    pairs = [(i, value - came[i]) for i, value in zip(promised.iterations, promised.values, strict=True) if i in came]
    return Series([i for i, _ in pairs], [gap for _, gap in pairs])


def replay_charts(runs: Sequence[Run]) -> list[Chart]:
    """What is kept, how old what is drawn is, and how often it is learned from."""
    drawn = []
    for index, run in enumerate(runs):
        steps = dict(_growth(run.metrics.get(STEPS, Series())))
        updates = _growth(run.metrics.get("replay/updates", Series()))
        ratio = [(i, count / steps[i]) for i, count in updates if steps.get(i, 0) > 0]
        if ratio:
            drawn.append(Curve(index, "updates per step", Series([i for i, _ in ratio], [r for _, r in ratio])))
    return _panels(runs, REPLAY) + line_charts(runs, drawn, RATIO)


def _growth(series: Series) -> list[tuple[int, float]]:
    """By how much a count that began at 0 has grown in each iteration."""
    before = [0.0, *series.values][: len(series.values)]
    return [(i, now - then) for i, now, then in zip(series.iterations, series.values, before, strict=True)]


def gate_charts(runs: Sequence[Run]) -> list[Chart]:
    """How much is learned from demonstrations."""
    caption = (
        "Share of the prompts that were learned from demonstrations instead of from the policy's own answers. Healthy: high while the "
        "policy fails, falling as it succeeds. Stuck at 100 % it never learns from its own answers; at 0 % the demonstrations are unused."
    )
    return line_charts(runs, curves(runs, GATE), Panel("Offline fraction", GATE, caption, percent=True))


def distribution_charts(runs: Sequence[Run]) -> list[Chart | Group]:
    """Heat-maps of the histograms."""
    known = {
        "success_rate": (
            "Success rate of the prompts",
            "Each column is one iteration: how its prompts spread from never solved (0) to always solved (1). Healthy: mass moves upwards "
            "and does not sit only at the two ends, where comparing answers teaches nothing.",
        ),
        "reward": ("Reward", "Each column is one iteration: how its rewards spread. Healthy: mass moves upwards."),
        "log_ratio": (
            "Log importance ratio",
            "Current policy against the one that sampled, per token, before any clipping. Healthy: narrow and centred on 0. Widening means "
            "the data are becoming stale for this policy.",
        ),
    }
    found = dict.fromkeys(name for run in runs for name in run.histograms)
    advantage = (
        "Each column is one iteration: what the update was weighted with. Healthy: both signs, no few extreme values that rule the rest."
    )
    climbed = all("replay/size" in run.metrics for run in runs if any(key.startswith("advantage/") for key in run.metrics))
    if climbed:
        advantage = (
            "Each column is one iteration: what the policy climbs at its own actions (the critic's value, with what is added to it). Only "
            "its slope in the action moves the policy, so neither sign nor mean says whether something is wrong."
        )
    names = ["success_rate", "reward", *(name for name in found if name.startswith("advantage/")), "log_ratio"]
    charts: list[Chart | Group] = []
    for name in dict.fromkeys([*names, *found]):
        title, caption = known.get(
            name, (name.replace("_", " ").replace("/", " · "), "Each column is one iteration: how the values spread.")
        )
        if name.endswith(("/error", "/beta", "/variance")):
            title, caption = MEMBERS[name.rpartition("/")[2]]
        if name.startswith("advantage/"):
            title, caption = f"Advantage · {name.partition('/')[2]}", advantage
        charts += heat_maps(runs, name, title, caption)
    for term in _terms(runs, "advantage", MOMENTS):
        keys = {f"advantage/{term}/{leaf}": label for leaf, label in MOMENTS.items()}
        caption = (
            "Mean and spread of the same values."
            if climbed
            else "Healthy: mean near zero for methods with a baseline, and a standard deviation that does not vanish."
        )
        charts += line_charts(runs, curves(runs, keys), Panel(f"Advantage moments · {term}", keys, caption))
    return charts


def ratio_charts(runs: Sequence[Run]) -> list[Chart | Group]:
    """How far the policy is from the one that sampled, and what the mask held back."""
    fan = (
        "Current policy's likelihood over the sampling policy's, per token, before any clipping, on a log axis: 1 means no difference. "
        "Healthy: the bands hug 1. A rising maximum says that single tokens could rule the update."
    )
    bands = (("ratio/q01", "ratio/q99"), ("ratio/q25", "ratio/q75"))
    charts = fan_charts(runs, "Importance ratio", fan, bands, {"ratio/q50": "median", "ratio/max": "maximum"})
    caption = (
        "What the weighted tokens are worth in equally weighted ones; as a share, 100 % is as good as fresh. Healthy: above about "
        "half. Falling means a few tokens carry the gradient."
    )
    charts += line_charts(runs, curves(runs, EFFECTIVE), Panel("Effective sample size", EFFECTIVE, caption, percent=True))
    for term in _terms(runs, "mask", SIDES):
        keys = {f"mask/{term}/{side}": label for side, label in SIDES.items()}
        caption = (
            "Share of this term's tokens that the stabilization mask keeps from moving the policy, by the sign of their advantage; "
            "overflow counts ratios too large to compute with. Healthy: a few percent; far above that, little of what was sampled is used."
        )
        charts += line_charts(runs, curves(runs, keys), Panel(f"Masked tokens · {term}", keys, caption, percent=True))
    return charts


def optimisation_charts(runs: Sequence[Run]) -> list[Chart]:
    """Loss, gradient, entropy, lengths; gradient norm and learning rate of every learner."""
    panels = []
    for panel in OPTIMISATION:
        panels.append(panel)
        leaf = next(iter(panel.keys))
        if leaf in LEARNERS:
            for key in _of_learners(runs, leaf):
                if leaf == "learning_rate" and _is_constant(runs, key):
                    continue
                panels.append(replace(panel, title=f"{panel.title} · {key.partition('/')[0]}", keys={key: leaf.replace("_", " ")}))
    return _panels(runs, panels)


def _of_learners(runs: Sequence[Run], leaf: str) -> list[str]:
    """`learner/leaf` of the learners beside the policy."""
    return list(dict.fromkeys(key for run in runs for key in run.metrics if key.count("/") == 1 and key.endswith(f"/{leaf}")))


def sampling_charts(runs: Sequence[Run]) -> list[Chart]:
    """What decoding cost, and how old the data are."""
    return _panels(runs, SAMPLING)


def curvature_charts(runs: Sequence[Run]) -> list[Chart]:
    """Which tokens were left out for the step that they would make."""
    return _panels(runs, CURVATURE)


def tool_charts(runs: Sequence[Run]) -> list[Chart]:
    """Calls per rollout, how they end, turns."""
    names = sorted({key for run in runs for key in run.metrics if key.startswith(f"{CALLS}/")})
    keys = {CALLS: "all" if names else "calls"} | {key: key.removeprefix(f"{CALLS}/") for key in names}
    caption = "Calls of a rollout, mean over the rollouts of an iteration."
    return line_charts(runs, curves(runs, keys), Panel("Tool calls per rollout", keys, caption)) + _panels(runs, TOOLS)


def strata_charts(runs: Sequence[Run]) -> list[Chart]:
    """What each stratum is worth, and everything else that is measured of strata."""
    found = sorted({key for run in runs for key in run.metrics if key.startswith("strata/")})
    rest = [key for key in found if not key.startswith(tuple(STRATA))]
    panels = [Panel(_spelled(key), {key: _spelled(key)}, "", percent=is_percent(key)) for key in rest]
    return _families(runs, STRATA) + _panels(runs, panels)


def component_charts(runs: Sequence[Run]) -> list[Chart]:
    """What the router of a mixture makes of its components, and where they are."""
    return _families(runs, MIXTURE, "component ")


def _families(runs: Sequence[Run], families: Mapping[str, tuple[str, str, bool]], label: str = "") -> list[Chart]:
    """A chart for each family that has been measured; `label`: what the names of its curves begin with."""
    charts = []
    for prefix, (title, caption, share) in families.items():
        found = sorted({key for run in runs for key in run.metrics if key.startswith(prefix)})
        keys = {key: label + key.removeprefix(prefix).replace("_", " · " if label else " ") for key in found}
        charts += line_charts(runs, curves(runs, keys), Panel(title, keys, caption, percent=share)) if keys else []
    return charts


def set_charts(runs: Sequence[Run]) -> list[Chart]:
    """How different and how good the sets are that share an advantage, and which ways are taken."""
    ways = sorted({key for run in runs for key in run.metrics if key.startswith(WAYS)})
    caption = "Share of each signature among the vines from episodes' starts. Healthy: no way that succeeds dies out."
    keys = {key: key.removeprefix(WAYS) for key in ways}
    return _panels(runs, SETS) + line_charts(runs, curves(runs, keys), Panel("Vines by signature", keys, caption, percent=True))


def _spelled(key: str) -> str:
    return key.rpartition("/")[2].replace("_", " ").capitalize()


def time_charts(runs: Sequence[Run]) -> list[Chart | Group]:
    """Where the time went, and how fast tokens were sampled and learned from."""
    keys = {key: key.removeprefix("time/") for run in runs for key in run.metrics if key.startswith("time/")}
    # batches that are collected ahead cost only the time that is waited for them
    told = [curve for curve in curves(runs, keys) if curve.label != "rollout" or WAITED not in runs[curve.run].metrics]
    drawn = told + _evaluation_times(runs)
    read = "Where the tallest part is, faster settings help most. In long runs a bar is the mean of neighbouring iterations."
    totals = {index: _totals([curve for curve in drawn if curve.run == index]) for index in range(len(runs))}
    charts = stacked_bars(runs, drawn, "Time of an iteration", read, totals)
    caption = "Tokens sampled and learned from in a second. Healthy: steady. A slow fall usually means longer answers."
    charts += line_charts(runs, _throughput(runs), Panel("Tokens per second", THROUGHPUT, caption))
    caption = "Steps of all environments in a second, updates included but not evaluations. Healthy: steady."
    return charts + line_charts(runs, _pace(runs), Panel("Environment steps per second", {STEPS: "steps"}, caption, unit="steps / s"))


def _pace(runs: Sequence[Run]) -> list[Curve]:
    """Environment steps in a second of collecting and updating."""
    found = []
    for index, run in enumerate(runs):
        timed = [run.metrics.get(f"time/{part}", Series()) for part in THROUGHPUT]
        taken = [dict(zip(series.iterations, series.values, strict=True)) for series in timed]
        rate = [(i, n / s) for i, n in _growth(run.metrics.get(STEPS, Series())) if (s := sum(part.get(i, 0.0) for part in taken)) > 0]
        if rate:
            found.append(Curve(index, "steps per second", Series([i for i, _ in rate], [r for _, r in rate])))
    return found


def _evaluation_times(runs: Sequence[Run]) -> list[Curve]:
    """From the evaluations themselves, for runs whose metrics do not count them."""
    found = []
    for index, run in enumerate(runs):
        timed = [(e.iteration, e.seconds) for e in run.evaluations if math.isfinite(e.seconds)]
        if timed and "time/evaluate" not in run.metrics:
            found.append(Curve(index, "evaluate", Series([i for i, _ in timed], [seconds for _, seconds in timed])))
    return found


def _totals(drawn: Sequence[Curve]) -> str:
    totals = {curve.label: sum(filter(math.isfinite, curve.series.values)) for curve in drawn}
    whole = sum(totals.values())
    parts = ", ".join(f"{label} {percent(total / whole)}" for label, total in totals.items()) if whole > 0 else ""
    return f"Altogether {duration(whole)}: {parts}." if parts else ""


def _throughput(runs: Sequence[Run]) -> list[Curve]:
    found = []
    for part in THROUGHPUT:
        for index, run in enumerate(runs):
            if STEPS in run.metrics:  # of a controller: its steps are told instead
                continue
            tokens, seconds = run.metrics.get(f"tokens/{part}", Series()), run.metrics.get(f"time/{part}", Series())
            taken = dict(zip(seconds.iterations, seconds.values, strict=True))
            rate = [(i, t / s) for i, t in zip(tokens.iterations, tokens.values, strict=True) if (s := taken.get(i, 0.0)) > 0]
            if rate:
                found.append(Curve(index, part, Series([i for i, _ in rate], [r for _, r in rate])))
    return found


def _is_constant(runs: Sequence[Run], key: str) -> bool:
    return all(len(set(run.metrics[key].values)) < 2 for run in runs if key in run.metrics)


def other_charts(runs: Sequence[Run]) -> list[Chart]:
    """Every metric that no other section shows, those of one prefix together."""
    shown = (
        {
            key
            for panel in (RETURN, *LEARNING, *OPTIMISATION, *CRITIC, *REPLAY, RATIO, *SAMPLING, *CURVATURE, *SETS, *DECODER)
            for key in panel.keys
        }
        | GATE.keys()
        | EFFECTIVE.keys()
        | set(QUANTILES)
    )
    shown |= {f"mask/{term}/{side}" for term in _terms(runs, "mask", SIDES) for side in SIDES}
    shown |= {f"advantage/{term}/{moment}" for term in _terms(runs, "advantage", MOMENTS) for moment in MOMENTS}
    shown |= {key for leaf in LEARNERS for key in _of_learners(runs, leaf)} | {STEPS, "critic/loss"}
    rest = {key for run in runs for key in run.metrics if not key.startswith(("time/", "tools/", "strata/", WAYS, *MIXTURE))} - shown
    rest -= {key for key in rest if key.endswith(("rows/active_fraction", "tokens/update")) and _is_constant(runs, key)}
    panels = [Panel(key, {key: key}, "", percent=is_percent(key)) for key in sorted(rest)]
    return [chart for panel in panels for chart in line_charts(runs, curves(runs, panel.keys), panel, height=220)]
