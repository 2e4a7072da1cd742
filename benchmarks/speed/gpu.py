"""What a GPU step costs, in five measurements, each beside how far its gradient or its probabilities are from the plain way's.

    python benchmarks/speed/gpu.py                      on a GPU: a random Qwen3-0.6B in bfloat16; JSON to benchmarks/results
    python benchmarks/speed/gpu.py --quick              anywhere: a tiny model in float32; does it run? Written to runs/speed
    python benchmarks/speed/gpu.py --only projection,packed

projection   selected log-probabilities and entropy of a 151,936-word vocabulary, 2k to 64k tokens: ms, GB
packed       an update of skewed lengths that fill 30 % and 60 % of the padded batch: padded against packed
shared       prompts of 512 to 8k tokens, groups of 8, completions of 512: each row alone against the prompt once
sampler      tokens per second of 64 and 256 rows: transformers' generate, continuous batching, and with steps replayed as a graph
update       everything on, 16k tokens: tokens per second and share of the bf16 peak (MFU)

Times are medians of interleaved repeats after warm-up. No inference engine is compared: those that exist decode ten times faster than
transformers does.
"""

from __future__ import annotations

import argparse
import datetime
import functools
import gc
import json
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from unipg import Trajectories
from unipg.algorithms.base import Setting, algorithm_named
from unipg.estimator import Planning
from unipg.estimator.projection import project
from unipg.policies import packing
from unipg.policies.causal_lm import CausalLanguageModel, recompute_activations
from unipg.rollouts.generation import Decoding, sample
from unipg.training.record import cpu_name, versions

ROOT = Path(__file__).resolve().parents[2]
OUTPUT = ROOT / "benchmarks" / "results" / "speed-gpu.json"
PEAK_TFLOPS = {"H100": 989.0, "H200": 989.0, "A100": 312.0, "B200": 2250.0}
"""Dense bf16, from the makers' data sheets."""
Row = dict[str, Any]


@dataclass(frozen=True)
class Size:
    """What is measured: a model, and how much of everything."""

    hidden: int = 1024
    layers: int = 28
    heads: int = 16
    key_heads: int = 8
    head: int = 128
    intermediate: int = 3072
    vocabulary: int = 151_936
    dtype: str = "bfloat16"
    projected: tuple[int, ...] = (2048, 8192, 16_384, 65_536)
    longest: int = 2048
    rows: int = 32
    prompts: tuple[int, ...] = (512, 2048, 8192)
    completion: int = 512
    sampled: tuple[int, ...] = (64, 256)
    new_tokens: int = 256
    update_tokens: int = 16_384
    repeats: int = 5


QUICK = Size(32, 2, 2, 1, 16, 64, 211, "float32", (64, 128), 24, 6, (8, 16), 6, (4,), 8, 128, 2)


class Tokenizer:
    """As much of one as a policy asks for."""

    eos_token_id, pad_token_id = 0, 1


def told(text: str) -> None:
    print(text, flush=True)


def built(size: Size, device: str) -> CausalLanguageModel:
    from transformers import Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=size.vocabulary,
        hidden_size=size.hidden,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        num_key_value_heads=size.key_heads,
        head_dim=size.head,
        intermediate_size=size.intermediate,
        max_position_embeddings=40_960,
        tie_word_embeddings=True,
    )
    with torch.device(device):
        model = Qwen3ForCausalLM(config)
    return CausalLanguageModel(model.to(getattr(torch, size.dtype)), Tokenizer())


# ---------------------------------------------------------------------------------------------------------------------- clocks


def finished(device: str) -> None:
    if device != "cpu":
        torch.cuda.synchronize()


def measured(ways: Mapping[str, Callable[[], Any]], repeats: int, device: str) -> dict[str, Row]:
    """Median ms of each way, taken in turns, and the most GB it needed beside what was there; a way out of memory says so."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    memory: dict[str, float] = {}
    failed: set[str] = set()
    for turn in range(repeats + 1):
        for name, way in ways.items():
            if name in failed:
                continue
            gc.collect()
            if device != "cpu":
                torch.cuda.reset_peak_memory_stats()
                before = torch.cuda.memory_allocated()
            try:
                finished(device)
                began = time.perf_counter()
                way()
                finished(device)
            except torch.OutOfMemoryError:
                failed.add(name)
                torch.cuda.empty_cache()
                continue
            if turn:
                seconds[name].append(time.perf_counter() - began)
            if device != "cpu":
                memory[name] = (torch.cuda.max_memory_allocated() - before) / 1e9
    return {
        name: {"out_of_memory": True}
        if name in failed
        else {"ms": 1000 * statistics.median(s), "min": 1000 * min(s), "max": 1000 * max(s), "extra_gb": memory.get(name)}
        for name, s in seconds.items()
    }


def apart(found: Tensor, wanted: Tensor) -> float:
    """Largest difference, over the largest entry of what is wanted."""
    return float((found.double() - wanted.double()).abs().max() / wanted.double().abs().max())


# ---------------------------------------------------------------------------------------------------------------------- measurements


def full(hidden: Tensor, weight: Tensor, token: Tensor) -> tuple[Tensor, Tensor]:
    """Log-probability and entropy from the log-softmax of all logits."""
    log_p = torch.log_softmax((hidden @ weight.T).float(), -1)
    return log_p.gather(1, token.unsqueeze(1)).squeeze(1), -(log_p.exp() * log_p).sum(1)


def ours(hidden: Tensor, weight: Tensor, token: Tensor) -> tuple[Tensor, Tensor]:
    log_prob, entropy = project(hidden, weight, token, entropy=True)
    assert entropy is not None
    return log_prob, entropy


def gradient(way: Callable[..., tuple[Tensor, Tensor]], hidden: Tensor, weight: Tensor, token: Tensor, slope: Tensor) -> Tensor:
    """Of a weighted sum of log-probabilities and entropies on the hidden states; that on the weight is computed and dropped."""
    log_prob, entropy = way(hidden, weight, token)
    return torch.autograd.grad((slope * log_prob).sum() + 0.1 * (slope * entropy).sum(), (hidden, weight))[0]


def projection(size: Size, device: str) -> list[Row]:
    rows = []
    dtype = getattr(torch, size.dtype)
    weight = (torch.randn(size.vocabulary, size.hidden, device=device) / size.hidden**0.5).to(dtype).requires_grad_()
    for tokens in size.projected:
        hidden = torch.randn(tokens, size.hidden, device=device).to(dtype).requires_grad_()
        token = torch.randint(size.vocabulary, (tokens,), device=device)
        inputs = hidden, weight, token, torch.randn(tokens, device=device)
        found = measured({way.__name__: functools.partial(gradient, way, *inputs) for way in (full, ours)}, size.repeats, device)
        few = hidden.detach()[:1024].requires_grad_(), weight, *(x[:1024] for x in inputs[2:])
        rows.append({"tokens": tokens, "ways": found, "gradient_difference": apart(gradient(ours, *few), gradient(full, *few))})
        told(f"projection, {tokens} tokens: {shown(found)}")
    return rows


def batch_of(lengths: list[int], prompts: list[int], groups: list[int], vocabulary: int, device: str) -> Trajectories:
    """Rows of a group's prompt and an answer of their own."""
    draw = torch.Generator().manual_seed(0)
    width = max(p + n for p, n in zip(prompts, lengths, strict=True))
    asked = torch.randint(2, vocabulary, (max(groups) + 1, width), generator=draw)
    action = torch.randint(2, vocabulary, (len(lengths), width), generator=draw)
    steps = torch.arange(width)
    begin = torch.tensor(prompts).unsqueeze(1)
    end = begin + torch.tensor(lengths).unsqueeze(1)
    action = torch.where(steps < begin, asked[torch.tensor(groups)], action)
    mask = (steps >= begin) & (steps < end)
    reward = torch.rand(len(lengths), generator=draw)
    return Trajectories(action=action, mask=mask, present=steps < end, group=torch.tensor(groups), reward=reward).to(device)


def update(policy: CausalLanguageModel, batch: Trajectories) -> Tensor:
    """One GRPO step's gradient; that of the first layer's query projection."""
    policy.module.zero_grad(set_to_none=True)
    planning = Planning()
    objective = algorithm_named("grpo")(rollouts=8).terms(Setting(4096))
    planned = objective.plan(objective.prepare(batch, planning), planning)
    objective.loss(policy.evaluate(planned, entropy=True), planned, planning).backward()
    gradient = next(p for n, p in policy.model.named_parameters() if n.endswith("q_proj.weight")).grad
    assert gradient is not None
    return gradient.clone()


@contextmanager
def laid_out(layout: Callable[[Trajectories], packing.Layout | None]) -> Any:
    """Every batch is run along `layout` and no other."""
    before = packing.plan
    packing.plan = lambda batch, hidden: layout(batch)  # type: ignore[assignment]
    try:
        yield
    finally:
        packing.plan = before


def padded(batch: Trajectories) -> None:
    return None


def packed(batch: Trajectories) -> packing.Layout:
    return packing.layout_of(batch, torch.zeros(len(batch), dtype=torch.long, device=batch.mask.device))


def shared(batch: Trajectories) -> packing.Layout:
    return packing.layout_of(batch, packing.shared_prefixes(batch))


LAYOUTS: dict[str, Callable[[Trajectories], packing.Layout | None]] = {"padded": padded, "packed": packed, "shared": shared}


def updates(policy: CausalLanguageModel, batch: Trajectories, names: list[str], size: Size, device: str) -> Row:
    """The update of a batch along each layout, by SDPA, and by FlexAttention where the model has it."""
    recompute_activations(policy.model)
    policy.module.train()
    kinds = [(name, flex) for name in names for flex in ((False, True) if policy._flex and name != "padded" else (False,))]
    has_flex = policy._flex

    def run(name: str, flex: bool) -> Tensor:
        policy._flex = flex
        with laid_out(LAYOUTS[name]):
            return update(policy, batch)

    ways = {f"{name}{', flex' if flex else ''}": functools.partial(run, name, flex) for name, flex in kinds}
    found = measured(ways, size.repeats, device)
    alive = [name for name in ways if "ms" in found[name]]
    reference = ways[alive[0]]()
    differences = {name: apart(ways[name](), reference) for name in alive[1:]}
    policy._flex = has_flex
    return {"ways": found, "differences": differences, "reference": alive[0]}


def skewed(size: Size, fill: float) -> list[int]:
    """Lengths whose mean is `fill` of the longest."""
    draw = torch.rand(size.rows, generator=torch.Generator().manual_seed(1))
    lengths = (size.longest * draw ** (1 / fill - 1)).long().clamp(1, size.longest).tolist()
    lengths[0] = size.longest
    return lengths


def padding(policy: CausalLanguageModel, size: Size, device: str) -> list[Row]:
    rows = []
    for fill in (0.3, 0.6):
        lengths = skewed(size, fill)
        count = len(lengths)
        batch = batch_of(lengths, [4] * count, [i // 8 for i in range(count)], size.vocabulary, device)
        row = {"fill": sum(lengths) / (count * max(lengths))} | updates(policy, batch, ["padded", "packed"], size, device)
        rows.append(row)
        told(f"packed, {row['fill']:.0%} filled: {shown(row['ways'])}")
    return rows


def prefixes(policy: CausalLanguageModel, size: Size, device: str) -> list[Row]:
    rows = []
    for prompt in size.prompts:
        batch = batch_of([size.completion] * 8, [prompt] * 8, [0] * 8, size.vocabulary, device)
        rows.append({"prompt": prompt} | updates(policy, batch, ["padded", "packed", "shared"], size, device))
        told(f"shared, prompts of {prompt}: {shown(rows[-1]['ways'])}")
    return rows


def sampler(policy: CausalLanguageModel, size: Size, device: str) -> list[Row]:
    rows = []
    model = policy.model.eval()
    for count in size.sampled:
        asked = torch.randint(2, size.vocabulary, (count, 16), generator=torch.Generator().manual_seed(2)).to(device)
        limits = {"max_new_tokens": size.new_tokens, "do_sample": True, "top_k": 0, "eos_token_id": None, "pad_token_id": 1}

        options = {"end_tokens": [], "pad_token": 1, "batch_rows": count, "rollouts": 1, "max_new_tokens": size.new_tokens}

        def continuous(decoding: Decoding, asked: Tensor = asked, options: dict[str, Any] = options) -> Any:
            return sample(model, asked.tolist(), generator=torch.Generator(device).manual_seed(0), decoding=decoding, **options)

        generate = functools.partial(model.generate, asked, attention_mask=torch.ones_like(asked), **limits)
        ways = {"generate": generate, "growing": lambda: continuous("growing"), "fixed": lambda: continuous("fixed")}
        found = measured(ways, size.repeats, device)
        for way in found.values():
            if "ms" in way:
                way["tokens_per_second"] = count * size.new_tokens / way["ms"] * 1000
        answers = [c[0] for c in continuous("fixed")]
        width = asked.shape[1] + size.new_tokens
        action = torch.cat([asked, torch.tensor([c.tokens for c in answers], device=device)], 1)
        mask = (torch.arange(width, device=device) >= asked.shape[1]).expand(count, -1)
        with torch.no_grad():
            trained = policy.evaluate(Trajectories(action=action, mask=mask)).log_prob[:, asked.shape[1] :].float()
        recorded = torch.tensor([c.log_probs for c in answers], device=device)
        rows.append({"rows": count, "ways": found, "log_prob_difference": float((trained - recorded).abs().max())})
        told(f"sampler, {count} rows: {shown(found)}")
    return rows


def everything(policy: CausalLanguageModel, size: Size, device: str, name: str) -> list[Row]:
    """An update with all parts on: skewed answers, a shared prompt, the planner, recomputed activations."""
    lengths = [max(1, n // 4) for n in skewed(size, 0.5)]
    prompt = size.longest // 8
    count = max(8, min(len(lengths), size.update_tokens // (prompt // 8 + sum(lengths) // len(lengths))) // 8 * 8)
    lengths = (lengths * 8)[:count]
    batch = batch_of(lengths, [prompt] * count, [i // 8 for i in range(count)], size.vocabulary, device)
    recompute_activations(policy.model)
    policy.module.train()
    layout = packing.plan(batch, size.hidden)
    tokens = len(layout) if layout is not None else int(batch.mask.numel())
    found = measured({"update": lambda: update(policy, batch)}, size.repeats, device)
    parameters = sum(p.numel() for p in policy.model.parameters())
    second = tokens / found["update"]["ms"] * 1000
    few = batch.select(torch.arange(8, device=batch.mask.device))
    planned = update(policy, few)
    with laid_out(padded):
        difference = apart(planned, update(policy, few))
    row = {"ways": found, "tokens": tokens, "rows": count, "tokens_per_second": second, "gradient_difference": difference}
    peak = next((value for chip, value in PEAK_TFLOPS.items() if chip in name), None)
    if peak is not None:
        row["mfu"] = 6 * parameters * second / (peak * 1e12)
    told(f"update, {tokens} tokens: {second:,.0f} tokens per second")
    return [row]


def shown(ways: Mapping[str, Row]) -> str:
    return ", ".join(f"{name} {'out of memory' if 'ms' not in way else format(way['ms'], '.1f') + ' ms'}" for name, way in ways.items())


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a tiny model, on a CPU too")
    parser.add_argument("--only", help="comma-separated measurements")
    parser.add_argument("--output", type=Path)
    chosen = parser.parse_args(arguments)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cpu" and not chosen.quick:
        told("there is no GPU here; --quick runs a tiny model on the CPU")
        return 2
    size = QUICK if chosen.quick else Size()
    name = torch.cuda.get_device_name() if device != "cpu" else cpu_name()
    policy = built(size, device)
    work: dict[str, Callable[[], list[Row]]] = {
        "projection": lambda: projection(size, device),
        "packed": lambda: padding(policy, size, device),
        "shared": lambda: prefixes(policy, size, device),
        "sampler": lambda: sampler(policy, size, device),
        "update": lambda: everything(policy, size, device, name),
    }
    wanted = chosen.only.split(",") if chosen.only else list(work)
    if unknown := [part for part in wanted if part not in work]:
        told(f"there is no measurement '{unknown[0]}'; accepted: {', '.join(work)}")
        return 2
    result: Row = {
        "written": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": shlex.join(["python", *sys.argv]),
        "commit": subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False).stdout.strip(),
        "machine": {"device": name, "cuda": torch.version.cuda, "flex_attention": policy._flex},
        "versions": versions(),
        "size": size.__dict__,
    }
    output = chosen.output or (ROOT / "runs" / "speed" / "gpu.json" if chosen.quick else OUTPUT)
    output.parent.mkdir(parents=True, exist_ok=True)
    for part in wanted:
        result[part] = work[part]()
        output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")  # after each: a lent machine may go
    told(f"written to {output}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
