"""Draws the figures of the docs from the library itself: `make figures` (about a minute)."""

from __future__ import annotations

import tempfile
from pathlib import Path

import matplotlib
import torch

from unipg import (
    CurrentPolicy,
    Evaluation,
    Everything,
    OldPolicy,
    Outcome,
    PolicyGradient,
    RatioClip,
    ShapedUniform,
    TokenMean,
    Trajectories,
    TruncatedWeight,
    Uniform,
    coefficient,
)
from unipg.algorithms import algorithm_named
from unipg.cli import main
from unipg.lab import BigramPolicy
from unipg.laws.cases import VOCABULARY, random_batch
from unipg.laws.checks import gradient, prepared

matplotlib.use("Agg")
from matplotlib import pyplot

IMAGES = Path(__file__).parent / "images"


def coefficients() -> None:
    """What multiplies ∇log pi, by the parts: against the ratio for rollouts, against the probability for demonstrations."""
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(11, 4))
    ratio = torch.linspace(0.4, 1.8, 561, dtype=torch.float64).unsqueeze(1)
    old = torch.full_like(ratio, -2.0)
    for sign, style in ((1.0, "-"), (-1.0, "--")):
        rows = Trajectories(
            action=torch.zeros(ratio.shape, dtype=torch.long), mask=torch.ones(ratio.shape, dtype=torch.bool), old_log_prob=old
        )
        for name, mask, reference, colour in (
            ("REINFORCE", Everything(), CurrentPolicy(), "#888888"),
            ("PPO, GRPO (0.2)", RatioClip(0.2, 0.2), OldPolicy(), "#2f7ed8"),
            ("CISPO (0.28)", Everything(), TruncatedWeight(1.0, 0.28), "#e8710a"),
        ):
            advantage = torch.full_like(ratio, sign)
            log_prob = old + ratio.log()
            stable = mask(log_prob - old, advantage, rows)
            drawn = coefficient(log_prob, reference(log_prob, rows), advantage, stable)
            left.plot(ratio, drawn, style, color=colour, label=name if sign > 0 else None)
    left.set(xlabel="importance ratio pi / pi_old", ylabel="coefficient on ∇log pi", title="rollouts: full line Â = 1, dashed Â = −1")
    p = torch.linspace(0.002, 1, 500, dtype=torch.float64).unsqueeze(1)
    rows = Trajectories(action=torch.zeros(p.shape, dtype=torch.long), mask=torch.ones(p.shape, dtype=torch.bool))
    for name, reference, colour in (
        ("SFT: pi_ref = pi", CurrentPolicy(), "#888888"),
        ("DFT, SRFT: pi_ref = 1", Uniform(), "#1a9e77"),
        ("LUFFY: reshaped by p / (p + 0.1)", ShapedUniform(0.1), "#9a6ae0"),
    ):
        ones = torch.ones_like(p)
        right.plot(p, coefficient(p.log(), reference(p.log(), rows), ones, ones.bool()), color=colour, label=name)
    right.set(xlabel="probability of the demonstrated token", title="demonstrations, Â = 1")
    for axes in (left, right):
        axes.grid(alpha=0.3)
        axes.legend()
    figure.tight_layout()
    figure.savefig(IMAGES / "coefficients.png", dpi=110)


def micro_batches() -> None:
    """How far the gradient moves when a batch is cut, averaging inside each piece against weights from the whole."""
    algorithm = algorithm_named("dapo")(overlong_factor=0.0)
    counts = [1, 2, 4, 8, 16]
    ours, usual = [], []
    for cut in counts:
        gaps: list[tuple[float, float]] = []
        for seed in range(20):
            batch = random_batch(algorithm, seed, groups=8)
            policy = BigramPolicy(VOCABULARY, seed)
            objective, ready = prepared(algorithm, batch)
            whole = gradient(objective, policy, ready)
            pieces = [c for c in torch.randperm(len(batch), generator=torch.Generator().manual_seed(seed)).tensor_split(cut) if len(c)]
            summed = gradient(objective, policy, ready, cuts=pieces)
            # the usual accumulation: each piece is normalised by its own tokens, then the pieces are averaged
            averaged = sum(gradient(objective, policy, ready.select(c)) for c in pieces) / len(pieces)
            gaps.append((float((summed - whole).norm() / whole.norm()), float((averaged - whole).norm() / whole.norm())))
        ours.append(max(1e-17, sum(a for a, _ in gaps) / len(gaps)))
        usual.append(max(1e-17, sum(b for _, b in gaps) / len(gaps)))
    figure, axes = pyplot.subplots(figsize=(6.5, 4))
    axes.plot(counts, usual, "o-", color="#d64545", label="mean inside each micro-batch, then their mean")
    axes.plot(counts, ours, "s-", color="#2f7ed8", label="weights from the whole batch (unipg)")
    axes.set(
        xscale="log",
        yscale="log",
        xlabel="micro-batches",
        ylabel="relative change of the gradient",
        title="the same batch, cut: token mean",
    )
    axes.set_xticks(counts, [str(c) for c in counts])
    axes.grid(alpha=0.3)
    axes.legend()
    figure.tight_layout()
    figure.savefig(IMAGES / "micro-batches.png", dpi=110)
    print(dict(zip(counts, zip(usual, ours, strict=True), strict=True)))


def bandit() -> None:
    """The common objective on the three-armed bandit of the page: estimator against finite differences, over mu."""
    reward, beta = torch.tensor([1.0, 0.0, 0.5], dtype=torch.float64), torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
    base = torch.tensor([0.2, -0.1, 0.4], dtype=torch.float64)

    def value(logits: torch.Tensor, mu: float) -> torch.Tensor:
        p = logits.softmax(0)
        return (p * reward).sum() - mu * (beta * (beta.log() - p.log())).sum()

    mus = torch.linspace(0, 2, 9).tolist()
    found, exact = [], []
    for mu in mus:
        logits = base.clone().requires_grad_()
        log_prob = logits.log_softmax(0).unsqueeze(1)
        advantage = reward + mu * beta / log_prob.detach().exp().squeeze(1)
        rows = Trajectories(
            action=torch.arange(3).unsqueeze(1),
            mask=torch.ones(3, 1, dtype=torch.bool),
            reward=3 * beta * advantage,  # weights of the enumeration: the mean over three rows becomes the expectation
            old_log_prob=beta.log().unsqueeze(1),
        )
        PolicyGradient(advantage=Outcome(), reference=OldPolicy(), aggregate=TokenMean())(Evaluation(log_prob), rows).backward()
        found.append((-logits.grad).tolist())
        step = 1e-6 * torch.eye(3, dtype=torch.float64)
        exact.append([float((value(base + s, mu) - value(base - s, mu)) / 2e-6) for s in step])
    figure, axes = pyplot.subplots(figsize=(6.5, 4))
    for arm, colour in enumerate(("#2f7ed8", "#e8710a", "#1a9e77")):
        axes.plot(mus, [e[arm] for e in exact], color=colour, label=f"arm {arm + 1}: finite differences")
        axes.plot(mus, [f[arm] for f in found], "o", color=colour, label="the estimator" if arm == 0 else None)
    axes.set(xlabel="mu, weight of the demonstrator", ylabel="∂ J_mu / ∂ logit", title="one formula from pure reward to imitation")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.tight_layout()
    figure.savefig(IMAGES / "bandit.png", dpi=110)


def bias_and_variance() -> None:
    """The laboratory's default chart."""
    with tempfile.TemporaryDirectory() as folder:
        main(["lab", "--output", folder])
        (IMAGES / "bias-variance.png").write_bytes((Path(folder) / "lab.png").read_bytes())


if __name__ == "__main__":
    IMAGES.mkdir(exist_ok=True)
    coefficients()
    micro_batches()
    bandit()
    bias_and_variance()
