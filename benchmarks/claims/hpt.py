"""The claim of HPT (arXiv 2509.04419) on a toy: hybrid post-training beats SFT, GRPO and LUFFY on the same budget.

The toy, "noisy expert on string operations": a prompt is an operation and four letters of an alphabet of eight, the answer four letters.
The base model knows two of the four operations and never succeeds at the other two; the demonstrations cover all four, but one in five
has a wrong letter. Reinforcement alone never finds the two unknown operations, supervision alone is bounded by the expert's 80 %.

    python benchmarks/claims/hpt.py                        the whole claim, written to benchmarks/results/hpt.{json,md,png}
    python benchmarks/claims/hpt.py --quick                a minute: does it run? The numbers mean nothing
    python benchmarks/claims/hpt.py --methods hpt,sft      some of the methods
    python benchmarks/claims/hpt.py --architecture gpt2    another small transformer, written to benchmarks/results/hpt-gpt2.{json,md,png}

Every method runs through the library's own loop with its registered algorithm. A finished run is kept at once, so a stopped benchmark
continues where it was when the same command is given again (on the same commit).
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import datetime
import hashlib
import itertools
import json
import operator
import os
import platform
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from unipg.algorithms.base import Algorithm, algorithm_named
from unipg.errors import InputError, nearest
from unipg.policies.causal_lm import CausalLanguageModel, ScratchModel, build_model
from unipg.rollouts.base import EvaluationResult
from unipg.rollouts.evaluation import EvaluationRecipe
from unipg.rollouts.prompts import PromptRollouts
from unipg.rollouts.text import SamplingRecipe
from unipg.samplers.base import UniformSampler
from unipg.seeding import generator, seed_everything
from unipg.statistics import Interval, mean_interval, paired_difference
from unipg.tasks.base import Item, Verifier
from unipg.tasks.verifiers import exact_match
from unipg.training.optimization import OptimizerRecipe
from unipg.training.run import versions
from unipg.training.trainer import Trainer, TrainingRecipe

ROOT = Path(__file__).resolve().parents[2]
LETTERS = "abcdefgh"
OPERATIONS = ("copy", "reverse", "shift", "reverse-shift")
LENGTH = 4
BASE = "base"
SAMPLED, GREEDY = "pass@1 (sampled)", "pass@1 (greedy)"

# ---------------------------------------------------------------------------------------------------------------------- the task


@dataclass(frozen=True)
class Toy:
    """Sizes of the toy; the defaults are those of the claim."""

    steps: int = 400
    """Optimiser steps of each method."""
    prompts: int = 32
    """Prompts per step."""
    items: int = 2000
    """Fixed prompts of post-training, each with one demonstration."""
    wrong: float = 0.2
    """Share of the demonstrations with one wrong letter."""
    learning_rate: float = 1e-3
    held_out: int = 200
    """Fresh prompts of each operation that the score is taken on."""
    window: int = 50
    """Steps between held-out scores, and in one point of a curve."""
    base_steps: int = 400
    base_prompts: int = 128
    base_frequencies: tuple[float, ...] = (1.0, 0.25, 0.0, 0.0)
    """Of the operations in the base model's training data, up to a factor."""
    base_wrong: float = 0.1
    base_learning_rate: float = 3e-3
    weight_decay: float = 0.01
    model: ScratchModel = ScratchModel("llama", hidden_size=64, layers=2, heads=2, intermediate_size=256, max_positions=16)

    def __post_init__(self) -> None:
        if self.steps < 3:
            raise InputError(f"--steps is {self.steps}; accepted: 3 or more")


QUICK = {"steps": 12, "items": 200, "held_out": 20, "window": 4, "base_steps": 30}


@dataclass
class StringTask:
    """Items of string operations, verified by exact match."""

    name: str
    items: Sequence[Item]
    verifier: Verifier = exact_match


def answer(operation: int, letters: Sequence[int]) -> list[int]:
    """The right answer: copy, reverse, shift each letter to the next (cyclically), or both."""
    turned = list(reversed(letters)) if operation in (1, 3) else list(letters)
    return [(letter + 1) % len(LETTERS) for letter in turned] if operation >= 2 else turned


def spelled(letters: Sequence[int]) -> str:
    return " ".join(LETTERS[i] for i in letters)


def item(index: int, code: int, wrong: float, seed: int, purpose: str) -> Item:
    """The item numbered `code` of all operations × strings; its demonstration has one wrong letter with probability `wrong`."""
    operation, rest = divmod(code, len(LETTERS) ** LENGTH)
    letters = [rest // len(LETTERS) ** place % len(LETTERS) for place in range(LENGTH)]
    right = answer(operation, letters)
    shown = list(right)
    draw = generator(seed, "demonstration of", purpose, index)
    if float(torch.rand((), generator=draw)) < wrong:
        place = int(torch.randint(LENGTH, (), generator=draw))
        shown[place] = (shown[place] + int(torch.randint(1, len(LETTERS), (), generator=draw))) % len(LETTERS)
    prompt = f"<bos> {OPERATIONS[operation]} {spelled(letters)} ="
    return Item(index, prompt, (spelled(shown),), spelled(right))


def base_task(toy: Toy, seed: int) -> StringTask:
    """What the base model learns from: fresh items for each of its steps."""
    count, strings = toy.base_steps * toy.base_prompts, len(LETTERS) ** LENGTH
    draw = generator(seed, "base items")
    operations = torch.multinomial(torch.tensor(toy.base_frequencies), count, replacement=True, generator=draw)
    codes = operations * strings + torch.randint(strings, (count,), generator=draw)
    return StringTask(BASE, [item(i, code, toy.base_wrong, seed, BASE) for i, code in enumerate(codes.tolist())])


def post_training_tasks(toy: Toy, seed: int) -> tuple[StringTask, list[StringTask]]:
    """The fixed items of post-training, and for each operation held-out items that are none of them."""
    strings = len(LETTERS) ** LENGTH
    order = torch.randperm(len(OPERATIONS) * strings, generator=generator(seed, "items")).tolist()
    train = [item(i, code, toy.wrong, seed, "training") for i, code in enumerate(order[: toy.items])]
    held_out = []
    for number, operation in enumerate(OPERATIONS):
        codes = [code for code in order[toy.items :] if code // strings == number][: toy.held_out]
        held_out.append(StringTask(operation, [item(i, code, 0.0, seed, "held out") for i, code in enumerate(codes)]))
    return StringTask("strings", train), held_out


def word_tokenizer() -> Any:
    """One token per letter and operation, 16 in all.

    Padding is the end token and `<bos>` a plain word: decoding then drops nothing but the end, so exact match is exact.
    """
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = ["<eos>", "<unknown>", "<bos>", "=", *OPERATIONS, *LETTERS]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unknown>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>", pad_token="<eos>")


# ---------------------------------------------------------------------------------------------------------------------- the methods


@dataclass(frozen=True)
class Method:
    """Algorithms one after the other, and how their losses are normalised."""

    title: str
    phases: tuple[tuple[Algorithm, float], ...]
    """Each algorithm with the share of all steps at which it ends."""
    normalisation: str

    def steps(self, toy: Toy) -> list[tuple[Algorithm, int]]:
        """Each algorithm with its number of steps."""
        ends = [0, *(int(toy.steps * end) for _, end in self.phases)]
        return [(phase[0], after - before) for phase, before, after in zip(self.phases, ends, ends[1:], strict=False)]


def _algorithm(name: str, **settings: Any) -> Algorithm:
    return algorithm_named(name)(**settings)


_CENTRED = "sum over tokens of A · log pi / (5 tokens · 256 rollouts), A = R − group mean"
METHODS: dict[str, Method] = {
    "sft": Method("SFT", ((_algorithm("sft"), 1.0),), "mean over all demonstration tokens of the step"),
    "dr_grpo": Method("GRPO, as in HPT's scripts (clip-free Dr. GRPO)", ((_algorithm("dr_grpo", clip=False), 1.0),), _CENTRED),
    "grpo": Method(
        "GRPO, as published",
        ((_algorithm("grpo"), 1.0),),
        "mean over 256 rollouts of each one's token mean, A = (R − group mean) / group std; the clip never acts at one step per batch",
    ),
    "sft_then_grpo": Method(
        "SFT for a third of the steps, then GRPO (clip-free Dr. GRPO)",
        ((_algorithm("sft"), 1 / 3), (_algorithm("dr_grpo", clip=False), 1.0)),
        "each phase as SFT and as clip-free Dr. GRPO alone; a fresh optimiser at the change",
    ),
    "luffy": Method(
        "LUFFY (7 rollouts and the demonstration)",
        ((_algorithm("luffy"), 1.0),),
        "sum over tokens / (5 tokens · 256 rows: 224 rollouts and 32 demonstrations), A = R − mean over both; "
        "entropy bonus 0.001 · token mean",
    ),
    "srft": Method(
        "SRFT (7 rollouts and the demonstration)",
        ((_algorithm("srft"), 1.0),),
        "rollouts and reinforced demonstrations: sum over tokens / (5 tokens · 256 rows); SFT: mean over all demonstration tokens; "
        "entropy bonus 0.001 · token mean",
    ),
    "hpt": Method(
        "HPT, gate 0",
        ((_algorithm("hpt", gamma=0.0), 1.0),),
        "rollouts of the prompts that keep them: sum over tokens of A · log pi / (5 tokens · ALL 256 rollouts), A = R − group mean; "
        "SFT: sum over tokens of the gated demonstrations / tokens of ALL 32 demonstrations of the step (their lengths are equal here: "
        "the token mean times the gated fraction); entropy bonus 0.001 · token mean over the rows that train",
    ),
}

# ---------------------------------------------------------------------------------------------------------------------- one run


@dataclass
class Curve:
    """An observer that keeps each step's metrics and the held-out scores, and passes progress on."""

    told: Callable[[], None]
    rows: list[dict[str, Any]] = field(default_factory=list)
    scores: dict[int, dict[str, dict[str, float]]] = field(default_factory=dict)
    """By number of steps done, then by operation: the sampled and the greedy share of right answers."""

    def phase(self, name: str, done: float) -> None: ...

    def iteration(self, done: int, total: int, metrics: dict[str, Any]) -> None:
        self.rows.append(metrics)
        self.told()

    def evaluation(self, results: list[EvaluationResult]) -> None:
        self.scores[len(self.rows)] = {r.task: {name: r.metrics[name]["value"] for name in (SAMPLED, GREEDY)} for r in results}

    def windows(self, metric: str, size: int) -> list[float | None]:
        """Means of a metric over consecutive windows of steps; None where no step has it."""
        means: list[float | None] = []
        for start in range(0, len(self.rows), size):
            values = [row[metric] for row in self.rows[start : start + size] if metric in row]
            means.append(sum(values) / len(values) if values else None)
        return means


def _score(by_operation: dict[str, dict[str, float]], name: str = SAMPLED) -> float:
    return sum(values[name] for values in by_operation.values()) / len(by_operation)


def train(
    toy: Toy,
    policy: CausalLanguageModel,
    phases: list[tuple[Algorithm, int]],
    experience: PromptRollouts,
    learning_rate: float,
    seed: int,
    told: Callable[[], None],
) -> dict[str, Any]:
    """Trains the policy phase by phase with the library's loop; scores, curves and what was used."""
    began, processor = time.perf_counter(), time.process_time()
    curve = Curve(told)
    rollouts = steps = 0
    with tempfile.TemporaryDirectory() as folder:
        for number, (algorithm, iterations) in enumerate(phases):
            trainer = Trainer(
                algorithm,
                policy,
                experience,
                folder=Path(folder) / str(number),
                training=TrainingRecipe(iterations, experience.prompts, save_every=iterations, evaluate_every=toy.window),
                optimizer=OptimizerRecipe(learning_rate, weight_decay=toy.weight_decay),
                seed=seed,
                observer=curve,
            )
            trainer.train()
            rollouts += iterations * experience.prompts * (algorithm.rollouts if algorithm.uses_rollouts else 0)
            steps += trainer.step - sum(trainer.skipped.values())
    last = curve.scores[len(curve.rows)]
    return {
        "score": _score(last),
        "operations": {operation: values[SAMPLED] for operation, values in last.items()},
        "greedy": _score(last, GREEDY),
        "curve": {str(step): _score(by_operation) for step, by_operation in curve.scores.items()},
        "reward": curve.windows("reward/mean", toy.window),
        "offline_fraction": curve.windows("gate/offline_fraction", toy.window),
        "rollouts": rollouts,
        "optimiser_steps": steps,
        "seconds": time.perf_counter() - began,
        "cpu_seconds": time.process_time() - processor,
    }


def experience_of(toy: Toy, task: StringTask, prompts: int, held_out: list[StringTask], seed: int) -> PromptRollouts:
    return PromptRollouts(
        task,
        UniformSampler(len(task.items), seed),
        prompts=prompts,
        sampling=SamplingRecipe(max_new_tokens=LENGTH + 1),
        evaluation=EvaluationRecipe(items=toy.held_out, samples=1),
        evaluation_tasks=held_out,
    )


def base_phases(toy: Toy) -> list[tuple[Algorithm, int]]:
    return [(_algorithm("sft"), toy.base_steps)]


def train_base(toy: Toy, seed: int, told: Callable[[], None]) -> tuple[CausalLanguageModel, dict[str, Any]]:
    """The base model of a seed, which all methods start from, and its scores."""
    seed_everything(seed, BASE)
    tokenizer = word_tokenizer()
    model = build_model(toy.model, tokenizer)
    for part in model.modules():
        if isinstance(part, torch.nn.Dropout):
            part.p = 0.0  # GPT-2's default is 0.1: what is trained would not be what was sampled
    policy = CausalLanguageModel(model, tokenizer)
    experience = experience_of(toy, base_task(toy, seed), toy.base_prompts, post_training_tasks(toy, seed)[1], seed)
    return policy, train(toy, policy, base_phases(toy), experience, toy.base_learning_rate, seed, told)


def run_method(toy: Toy, method: Method, base: CausalLanguageModel, seed: int, told: Callable[[], None]) -> dict[str, Any]:
    """Post-trains a copy of the base model."""
    task, held_out = post_training_tasks(toy, seed)
    experience = experience_of(toy, task, toy.prompts, held_out, seed)
    return train(toy, copy.deepcopy(base), method.steps(toy), experience, toy.learning_rate, seed, told)


# ---------------------------------------------------------------------------------------------------------------------- all runs


class Left:
    """Lines of progress with the time that is left."""

    SECONDS_BETWEEN = 10.0

    def __init__(self, toy: Toy, wanted: list[tuple[str, int]]) -> None:
        self.toy = toy
        bases = {seed for _, seed in wanted}
        self.work = sum(self._work(name) for name, _ in wanted if name != BASE) + self._work(BASE) * len(bases)
        self.done, self.began, self.last, self.doing = 0.0, time.monotonic(), 0.0, ""

    def _work(self, name: str) -> float:
        return sum(self._costs(name))

    def _costs(self, name: str) -> list[float]:
        """Of each step; measured: a constant and a share per row."""
        toy = self.toy
        prompts, phases = (toy.base_prompts, base_phases(toy)) if name == BASE else (toy.prompts, METHODS[name].steps(toy))
        return [30.0 + prompts * max(1, algorithm.rollouts) for algorithm, steps in phases for _ in range(steps)]

    def of(self, name: str, seed: int) -> Callable[[], None]:
        """The callback of one run's steps."""
        costs = self._costs(name)
        remaining = iter(costs)
        done = 0

        def told() -> None:
            nonlocal done
            done += 1
            self.done += next(remaining)
            now = time.monotonic()
            if now - self.last >= self.SECONDS_BETWEEN:
                self.last = now
                left = (now - self.began) / self.done * (self.work - self.done)
                print(f"{name} seed {seed}: step {done}/{len(costs)}; left {datetime.timedelta(seconds=round(left))}", flush=True)

        return told


def run_all(toy: Toy, methods: Sequence[str], seeds: Sequence[int], store: Path, commit: str) -> list[dict[str, Any]]:
    """Every method with every seed, base models included; finished runs are read from the store and new ones appended to it."""
    runs = _stored(store, toy, commit)
    wanted = [(name, seed) for seed in seeds for name in (BASE, *methods)]
    missing = [pair for pair in wanted if pair not in runs]
    if len(missing) < len(wanted):
        print(f"{len(wanted) - len(missing)} of {len(wanted)} runs were finished before", flush=True)
    left = Left(toy, missing)
    store.parent.mkdir(parents=True, exist_ok=True)
    for seed in seeds:
        names = [name for name, s in missing if s == seed]
        if not names:
            continue
        base, scores = train_base(toy, seed, left.of(BASE, seed))
        for name in names:
            result = scores if name == BASE else run_method(toy, METHODS[name], base, seed, left.of(name, seed))
            runs[name, seed] = run = {"method": name, "seed": seed, **_rounded(result)}
            with store.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"identity": _identity(toy, name, commit), **run}) + "\n")
            print(f"{name} seed {seed}: {run['score']:.3f} in {run['seconds']:.0f} s", flush=True)
    return [runs[pair] for pair in wanted]


def _identity(toy: Toy, name: str, commit: str) -> str:
    """What must be the same for a stored run to stand for a new one."""
    method = None if name == BASE else METHODS[name]
    phases = [(a.name, dataclasses.asdict(a), n) for a, n in method.steps(toy)] if method else []
    text = json.dumps([commit, dataclasses.asdict(toy), name, phases])
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def _stored(store: Path, toy: Toy, commit: str) -> dict[tuple[str, int], dict[str, Any]]:
    runs = {}
    for line in store.read_text(encoding="utf-8").splitlines() if store.is_file() else []:
        try:
            run = json.loads(line)
        except json.JSONDecodeError:  # a kill in the middle of a line
            continue
        if run.get("method") in (BASE, *METHODS) and run.pop("identity") == _identity(toy, run["method"], commit):
            runs[run["method"], run["seed"]] = run
    return runs


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _rounded(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_rounded(v) for v in value]
    return round(value, 6) if isinstance(value, float) else value


# ---------------------------------------------------------------------------------------------------------------------- results

CLAIMS: tuple[tuple[str, Callable[[float, float], bool], float, str], ...] = (
    ("sft", operator.gt, 0.1, "HPT > SFT + 0.1"),
    ("dr_grpo", operator.gt, 0.3, "HPT > GRPO (clip-free Dr. GRPO) + 0.3"),
    ("grpo", operator.gt, 0.3, "HPT > GRPO as published + 0.3 (added here)"),
    ("luffy", operator.gt, 0.3, "HPT > LUFFY + 0.3"),
    ("sft_then_grpo", operator.ge, -0.03, "HPT ≥ SFT then GRPO − 0.03"),
)
"""How HPT's score minus that of each of these methods must compare with a margin."""
OFFLINE_BELOW = 0.05


def summary(runs: list[dict[str, Any]], methods: Sequence[str]) -> dict[str, Any]:
    """By method: means over seeds with 95 % intervals."""
    found = {}
    for name in (BASE, *methods):
        mine = [run for run in runs if run["method"] == name]
        found[name] = {
            "score": _over_seeds([run["score"] for run in mine]),
            "operations": {op: _over_seeds([run["operations"][op] for run in mine]) for op in OPERATIONS},
            "greedy": _over_seeds([run["greedy"] for run in mine]),
            "while_training": _over_seeds([_while_training(run["curve"]) for run in mine]),
            "rollouts": mine[0]["rollouts"],
            "optimiser_steps": _over_seeds([run["optimiser_steps"] for run in mine]),
            "cpu_seconds": _over_seeds([run["cpu_seconds"] for run in mine]),
        }
    return found


def _while_training(curve: dict[str, float]) -> float:
    """The held-out score averaged over all steps, by the trapezoidal rule."""
    points = [(int(step), score) for step, score in curve.items()]
    area = sum((after - before) * (a + b) / 2 for (before, a), (after, b) in itertools.pairwise(points))
    return area / (points[-1][0] - points[0][0])


def _over_seeds(values: list[float]) -> dict[str, Any]:
    return _known(mean_interval(values))


def _known(interval: Interval) -> dict[str, Any]:
    """An interval as JSON: null where one seed alone says nothing of the spread."""
    return {name: None if value != value else _rounded(value) for name, value in interval._asdict().items()}


def assertions(runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The claim, piece by piece, on the mean over seeds and on each seed; pieces about methods that did not run are left out."""
    by_method: dict[str, dict[int, dict[str, Any]]] = {}
    for run in runs:
        by_method.setdefault(run["method"], {})[run["seed"]] = run
    if "hpt" not in by_method:
        return []
    ours = by_method["hpt"]
    checked = []
    for other, exceeds, margin, text in CLAIMS:
        if other not in by_method:
            continue
        theirs = by_method[other]
        gains = {seed: _rounded(ours[seed]["score"] - theirs[seed]["score"]) for seed in ours}
        interval = paired_difference([ours[seed]["score"] for seed in ours], [theirs[seed]["score"] for seed in ours])
        checked.append(
            _assertion(text, interval, exceeds(_rounded(interval.value), margin), gains, {s: exceeds(g, margin) for s, g in gains.items()})
        )
    last = {seed: run["offline_fraction"][-1] for seed, run in ours.items()}
    interval = mean_interval(list(last.values()))
    text = f"HPT's offline fraction in the last steps < {OFFLINE_BELOW:g}"
    checked.append(_assertion(text, interval, interval.value < OFFLINE_BELOW, last, {s: v < OFFLINE_BELOW for s, v in last.items()}))
    return checked


def _assertion(text: str, value: Interval, holds: bool, seeds: dict[int, float], each: dict[int, bool]) -> dict[str, Any]:
    per_seed = {str(seed): {"value": seeds[seed], "passed": each[seed]} for seed in seeds}
    return {"claim": text, **_known(value), "passed": holds, "per_seed": per_seed}


def facts(toy: Toy, arguments: Sequence[str], commit: str, modified: bool) -> dict[str, Any]:
    """What ran, on what."""
    as_claimed = dataclasses.replace(toy, model=Toy.model) == Toy()
    return {
        "claim": f"HPT on the toy 'noisy expert on string operations', {toy.model.architecture}{'' if as_claimed else ', sizes changed'}",
        "source": "arXiv 2509.04419",
        "commit": commit,
        "library_modified": modified,
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": shlex.join(["python", "benchmarks/claims/hpt.py", *arguments]),
        "machine": {"cpu": _cpu(), "cores": os.cpu_count(), "threads": torch.get_num_threads()},
        "versions": versions(),
        "setup": dataclasses.asdict(toy),
    }


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def _git(*arguments: str) -> str:
    try:
        return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""


def write_results(output: Path, told: dict[str, Any], runs: list[dict[str, Any]], methods: Sequence[str]) -> dict[str, Any]:
    """`<output>.json`, `.md` and `.png`; returns what the JSON holds."""
    described = {
        name: {
            "title": METHODS[name].title,
            "algorithms": [{"name": a.name, "ends_at": end, "settings": dataclasses.asdict(a)} for a, end in METHODS[name].phases],
            "normalisation": METHODS[name].normalisation,
        }
        for name in methods
    }
    interval = "95 % percentile bootstrap over seeds (unipg.statistics); with few seeds it is narrower than its name says"
    result = {
        **told,
        "interval": interval,
        "methods": described,
        "summary": summary(runs, methods),
        "assertions": assertions(runs),
        "runs": runs,
    }
    output.parent.mkdir(parents=True, exist_ok=True)
    _beside(output, ".json").write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    _beside(output, ".md").write_text(markdown(result, output.name), encoding="utf-8")
    draw(result, _beside(output, ".png"))
    return result


def _beside(output: Path, suffix: str) -> Path:
    return output.with_name(output.name + suffix)


def _shown(interval: dict[str, Any], digits: int = 3) -> str:
    if interval["low"] is None:
        return f"{interval['value']:.{digits}f}"
    return f"{interval['value']:.{digits}f} [{interval['low']:.{digits}f}, {interval['high']:.{digits}f}]"


def markdown(result: dict[str, Any], name: str) -> str:
    """The results for people."""
    setup, machine = result["setup"], result["machine"]
    seeds = sorted({run["seed"] for run in result["runs"]})
    lines = [
        f"# {result['claim']}",
        "",
        f"Source of the claim: {result['source']}. Score: share of right answers at temperature 1 on {setup['held_out']} fresh prompts of "
        f"each operation; mean over the seeds {', '.join(map(str, seeds))}. Interval: {result['interval']}.",
        "",
        "Greedy: the same prompts at temperature 0. While training: the held-out score averaged over all steps, higher for a method that "
        "learns earlier; not part of the claim. Optimiser steps: those that moved the policy; a batch without any advantage moves nothing. "
        f"Seconds: processor time, held-out scores every {setup['window']} steps included.",
        "",
        "| method | score | " + " | ".join(OPERATIONS) + " | greedy | while training | rollouts | optimiser steps | seconds |",
        "|---|---|" + "---|" * (len(OPERATIONS) + 5),
    ]
    for method, row in result["summary"].items():
        operations = " | ".join(f"{row['operations'][op]['value']:.3f}" for op in OPERATIONS)
        title = "base model" if method == BASE else result["methods"][method]["title"]
        lines.append(
            f"| {title} | {_shown(row['score'])} | {operations} | {row['greedy']['value']:.3f} | {row['while_training']['value']:.3f} | "
            f"{row['rollouts']} | {row['optimiser_steps']['value']:.0f} | {row['cpu_seconds']['value']:.0f} |"
        )
    lines += ["", f"![scores and curves]({name}.png)", "", "## The claim, piece by piece", ""]
    lines += ["| piece | difference or value, mean over seeds | verdict | each seed |", "|---|---|---|---|"]
    for piece in result["assertions"]:
        each = ", ".join(f"{p['value']:.3f}{'' if p['passed'] else ' (FAIL)'}" for p in piece["per_seed"].values())
        lines.append(f"| {piece['claim']} | {_shown(piece)} | {'PASS' if piece['passed'] else 'FAIL'} | {each} |")
    curves = [run for run in result["runs"] if run["method"] == "hpt"]
    if curves:
        lines += ["", f"HPT's offline fraction in each {setup['window']} steps:", ""]
        lines += [f"- seed {run['seed']}: {', '.join(f'{v:.2f}' for v in run['offline_fraction'])}" for run in curves]
    lines += ["", "## How each loss is normalised", ""]
    lines += [f"- {method['title']}: {method['normalisation']}." for method in result["methods"].values()]
    lines += ["", "## How it was measured", ""]
    lines += [
        f"- command: `{result['command']}`",
        f"- commit: {result['commit'] or 'unknown'}{', with changes to the library' if result['library_modified'] else ''}",
        f"- date: {result['date']}",
        f"- machine: {machine['cpu']}, {machine['cores']} cores, {machine['threads']} thread(s) used",
        f"- versions: {', '.join(f'{k} {v}' for k, v in result['versions'].items())}",
        f"- setup: {', '.join(f'{k} {v}' for k, v in setup.items() if k != 'model')}",
        f"- model: {', '.join(f'{k} {v}' for k, v in setup['model'].items() if k != 'vocabulary')}, 16 tokens",
    ]
    return "\n".join(lines) + "\n"


def draw(result: dict[str, Any], path: Path) -> None:
    """Scores with intervals, held-out curves, and HPT's offline fraction."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(16, 4.8), layout="constrained")
    bars, curves, offline = figure.subplots(1, 3)
    names = list(result["summary"])
    for place, name in enumerate(names):
        score, colour = result["summary"][name]["score"], f"C{place}"
        mine = [run for run in result["runs"] if run["method"] == name]
        bars.barh(place, score["value"], color=colour, alpha=0.45)
        if score["low"] is not None:
            bars.plot([score["low"], score["high"]], [place, place], color="black", linewidth=2)
        bars.plot([run["score"] for run in mine], [place] * len(mine), "o", color=colour, markersize=4)
        if name != BASE:
            steps = [int(step) for step in mine[0]["curve"]]
            means = [sum(run["curve"][str(step)] for run in mine) / len(mine) for step in steps]
            curves.plot(steps, means, color=colour, marker=".", label=name)
    bars.set_yticks(range(len(names)), names)
    bars.invert_yaxis()
    bars.set(xlim=(0, 1), xlabel="share of right answers, temperature 1", title="score: mean over seeds, 95 % interval, each seed")
    curves.set(ylim=(0, 1), xlabel="optimiser steps", title="held-out score during training, mean over seeds")
    curves.grid(alpha=0.3)
    if len(names) > 1:
        curves.legend(fontsize=8)
    window = result["setup"]["window"]
    for run in (run for run in result["runs"] if run["method"] == "hpt"):
        values = run["offline_fraction"]
        offline.plot([(i + 1) * window for i in range(len(values))], values, marker=".", label=f"seed {run['seed']}")
        offline.legend(fontsize=8)
    offline.axhline(OFFLINE_BELOW, color="grey", linestyle=":")
    offline.set(ylim=(0, 1), xlabel="optimiser steps", title=f"HPT: share of prompts supervised, per {window} steps")
    offline.grid(alpha=0.3)
    figure.savefig(path, dpi=110)


# ---------------------------------------------------------------------------------------------------------------------- command line


def _options(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="benchmarks/claims/hpt.py", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seeds", type=int, default=5, help="number of seeds, from 0 on")
    parser.add_argument("--methods", default=",".join(METHODS), help=f"comma-separated, of: {', '.join(METHODS)}")
    parser.add_argument("--steps", type=int, help=f"optimiser steps of each method (default {Toy.steps})")
    parser.add_argument(
        "--architecture", default=Toy.model.architecture, help="of transformers: llama, gpt2, qwen3 … (default %(default)s)"
    )
    parser.add_argument("--output", type=Path, help="results, without suffix; default benchmarks/results/hpt, for --quick runs/claims/hpt")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of torch")
    parser.add_argument("--quick", action="store_true", help="tiny sizes and one seed: only whether it runs")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str]) -> int:
    """Runs the benchmark; exit code 0 whichever way the numbers fall, 2 for bad input, 130 when stopped."""
    try:
        options = _options(arguments)
        methods = list(dict.fromkeys(options.methods.split(",")))
        for name in methods:
            if name not in METHODS:
                raise InputError(f"--methods: '{name}' does not exist; {nearest(name, METHODS)}")
        if options.seeds < 1 or options.threads < 1:
            raise InputError(f"--seeds is {options.seeds} and --threads {options.threads}; accepted: 1 or more")
        sizes = (QUICK if options.quick else {}) | ({} if options.steps is None else {"steps": options.steps})
        toy = Toy(**sizes, model=dataclasses.replace(Toy.model, architecture=options.architecture))
        torch.set_num_threads(options.threads)
        from transformers.utils import logging

        logging.disable_progress_bar()
        name = "hpt" if toy.model == Toy.model else f"hpt-{options.architecture}"
        output = options.output or ROOT / ("runs/claims" if options.quick else "benchmarks/results") / name
        commit, modified = _git("rev-parse", "HEAD"), bool(_git("status", "--porcelain", "--", "src"))
        store = _beside(output, ".jsonl")
        runs = run_all(toy, methods, range(1 if options.quick else options.seeds), store, commit)
        result = write_results(output, facts(toy, arguments, commit, modified), runs, methods)
    except InputError as error:
        print(f"benchmarks/claims/hpt.py: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nstopped; finished runs are kept, and the same command continues", file=sys.stderr)
        return 130
    store.unlink()
    for piece in result["assertions"]:
        print(f"{'PASS' if piece['passed'] else 'FAIL'}  {piece['claim']}: {_shown(piece)}")
    print(f"written: {', '.join(_beside(output, s).name for s in ('.json', '.md', '.png'))} in {os.path.relpath(output.parent)}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
