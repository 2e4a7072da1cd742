"""TRL's losses on given completions beside ours, on the same tensors. What is found is written down in docs/peers.md.

TRL's own methods are called on stand-ins that hold the attributes they read; the stand-in model answers with the test's tensors.
"""

from __future__ import annotations

import warnings
from collections import defaultdict
from dataclasses import dataclass
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from unipg import Constant, Evaluation, PolicyGradient, SequenceMeanTokenMean, Source, TokenMean, Trajectories
from unipg.algorithms import Algorithm, Setting, algorithm_named
from unipg.estimator import PREFERENCES, GroupMeanTokenSum, Logistic, LogOdds, LogRatio, Objective, PairPreference, Planning, Squared, Term
from unipg.estimator.likelihoods import categorical_log_prob

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # TRL and what it imports warn while they are imported
    DPOTrainer = pytest.importorskip("trl.trainer.dpo_trainer").DPOTrainer
    from trl.experimental.cpo import CPOConfig
    from trl.experimental.cpo.cpo_trainer import CPOTrainer
    from trl.experimental.orpo.orpo_trainer import ORPOTrainer
    from trl.trainer.kto_trainer import KTOTrainer
    from trl.trainer.reward_trainer import RewardTrainer

PAIRS, STEPS, VOCABULARY = 6, 9, 7
BETA = 0.3


@dataclass
class Pairs:
    """Completions of several lengths, the chosen ones first, as TRL holds them: token t of `STEPS + 1`, of which the first is no answer."""

    logits: Tensor
    """[2·PAIRS, STEPS + 1, VOCABULARY]"""
    tokens: Tensor
    """[2·PAIRS, STEPS + 1]"""
    completion: Tensor
    """[2·PAIRS, STEPS + 1] bool: the answer. Before it is the prompt, after it padding."""
    present: Tensor
    anchor: Tensor
    """[2·PAIRS, STEPS]"""

    @property
    def mask(self) -> Tensor:
        """[2·PAIRS, STEPS] of the next tokens."""
        return self.completion[:, 1:]

    def log_prob(self, logits: Tensor | None = None) -> Tensor:
        """[2·PAIRS, STEPS] of each next token."""
        return categorical_log_prob((self.logits if logits is None else logits)[:, :-1], self.tokens[:, 1:])[0]

    def batch(self, chosen: float = 1.0, **changes) -> Trajectories:
        """`chosen`: the reward of the first half; 0 swaps the labels."""
        fields = {
            "action": self.tokens[:, 1:],
            "mask": self.mask,
            "group": torch.arange(PAIRS).repeat(2),
            "source": torch.full((2 * PAIRS,), int(Source.PREFERENCE)),
            "reward": torch.tensor([chosen] * PAIRS + [1 - chosen] * PAIRS, dtype=torch.float64),
            "anchor_log_prob": self.anchor,
        }
        return Trajectories(**{**fields, **changes})


@pytest.fixture(params=[0, 1, 2], ids=lambda seed: f"seed{seed}")
def pairs(request) -> Pairs:
    rng = torch.Generator().manual_seed(request.param)
    steps = torch.arange(STEPS + 1)
    begin = torch.randint(1, 4, (PAIRS, 1), generator=rng).repeat(2, 1)
    end = begin + torch.randint(1, STEPS - 2, (2 * PAIRS, 1), generator=rng)
    end[0] = STEPS + 1
    logits = 2 * torch.randn(2 * PAIRS, STEPS + 1, VOCABULARY, dtype=torch.float64, generator=rng)
    anchor = -2 * torch.rand(2 * PAIRS, STEPS, dtype=torch.float64, generator=rng)
    tokens = torch.randint(VOCABULARY, (2 * PAIRS, STEPS + 1), generator=rng)
    return Pairs(logits, tokens, (steps >= begin) & (steps < end), steps < end, anchor)


class Alone:
    """An accelerator with one process."""

    device = torch.device("cpu")

    def gather(self, tensor):
        return tensor

    gather_for_metrics = gather


class Model(torch.nn.Module):
    """Asked only whether it trains, and how."""

    is_gradient_checkpointing = False


def stand_in(**changes) -> SimpleNamespace:
    """What all trainers' methods read of `self`."""
    fields = {
        "args": SimpleNamespace(gradient_checkpointing_kwargs=None, center_rewards_coefficient=None),
        "accelerator": Alone(),
        "model": Model(),
        "aux_loss_enabled": False,
        "beta": BETA,
        "label_smoothing": 0.0,
        "_metrics": defaultdict(lambda: defaultdict(list)),
        "_total_train_tokens": 0,
        "_tp_size": 1,
    }
    return SimpleNamespace(**{**fields, **changes})


def fused(log_prob: Tensor) -> SimpleNamespace:
    """What a model with a fused head answers: 0 where there is no label."""
    nothing = torch.zeros_like(log_prob)
    return SimpleNamespace(log_probs=log_prob, entropy=nothing, mean_logits=nothing, is_top1=nothing.bool())


# theirs: value, and gradient in the log-probabilities [B,T] (or in the logits)


def dpo(pairs: Pairs, *kinds: str, weights: tuple[float, ...] = (1.0,), rows: Tensor | None = None, **changes) -> tuple[Tensor, Tensor]:
    """`rows`: those of a micro-batch."""
    rows = torch.arange(2 * PAIRS) if rows is None else rows
    leaf = pairs.log_prob()[rows].clone().requires_grad_()
    mask = pairs.mask[rows]
    fields = {
        "ref_model": lambda **_: fused(torch.where(mask, pairs.anchor[rows], 0)),
        "precompute_ref_logps": False,
        "ld_alpha": None,
        "f_divergence_type": "reverse_kl",
        "loss_types": kinds,
        "loss_weights": weights,
        "use_weighting": False,
    }
    inputs = {
        "input_ids": pairs.tokens[rows],
        "attention_mask": pairs.present[rows].long(),
        "completion_mask": pairs.completion[rows].long(),
    }
    loss = DPOTrainer._compute_loss(stand_in(**fields, **changes), lambda **_: fused(torch.where(mask, leaf, 0)), inputs, False)
    return loss.detach(), torch.autograd.grad(loss, leaf)[0]


def kto(pairs: Pairs, other: Pairs, rows: Tensor | None = None, **changes) -> tuple[Tensor, Tensor]:
    """The chosen completions are liked; `other` holds the completions that do not belong."""
    rows = torch.arange(2 * PAIRS) if rows is None else rows
    leaf = pairs.log_prob()[rows].clone().requires_grad_()

    def model(log_prob: Tensor, log_prob_of_other: Tensor):
        def answer(input_ids: Tensor, **_):
            asked, mask = (log_prob_of_other, other.mask[rows]) if input_ids is other_ids else (log_prob, pairs.mask[rows])
            return fused(torch.where(mask, asked, 0))

        return answer

    other_ids = other.tokens[rows]
    inputs = {
        "input_ids": pairs.tokens[rows],
        "attention_mask": pairs.present[rows].long(),
        "completion_mask": pairs.completion[rows].long(),
        "KL_input_ids": other_ids,
        "KL_attention_mask": other.present[rows].long(),
        "KL_completion_mask": other.completion[rows].long(),
        "label": rows < PAIRS,
    }
    fields = {
        "ref_model": model(pairs.anchor[rows], other.anchor[rows]),
        "precompute_ref_logps": False,
        "calculate_KL": True,
        "loss_type": "kto",
        "desirable_weight": 1.0,
        "undesirable_weight": 1.0,
    }
    self = stand_in(**{**fields, **changes})
    self._compute_kl_logps = lambda asked, batch: KTOTrainer._compute_kl_logps(self, asked, batch)
    loss = KTOTrainer._compute_loss(self, model(leaf, other.log_prob()[rows]), inputs, False)
    return loss.detach(), torch.autograd.grad(loss, leaf)[0]


def with_logits(trl, pairs: Pairs, **changes) -> tuple[Tensor, Tensor]:
    """CPO's and ORPO's trainers, which take logits: their whole loss, and its gradient in the logits."""
    leaf = pairs.logits.clone().requires_grad_()
    fields = {
        "is_encoder_decoder": False,
        "pad_token_id": 0,
        "padding_value": 0,
        "concatenated_inputs": trl.concatenated_inputs,
        "get_batch_logps": trl.get_batch_logps,
        "cpo_alpha": 0.0,
        "simpo_gamma": 0.5,
        "alpha": 0.0,
    }
    self = stand_in(**{**fields, **changes})
    for name in ("concatenated_forward", "cpo_loss" if trl is CPOTrainer else "odds_ratio_loss"):
        setattr(self, name, getattr(trl, name).__get__(self))
    labels = torch.where(pairs.completion, pairs.tokens, -100)
    tensors = {"input_ids": pairs.tokens, "attention_mask": pairs.present.long(), "labels": labels}
    halves = (("chosen", slice(None, PAIRS)), ("rejected", slice(PAIRS, None)))
    inputs = {f"{half}_{name}": tensor[rows] for half, rows in halves for name, tensor in tensors.items()}
    loss, _ = trl.get_batch_loss_metrics(self, lambda *_, **__: SimpleNamespace(logits=leaf), inputs)
    return loss.detach(), torch.autograd.grad(loss, leaf)[0]


# ours


def gradient(objective: Objective | Term, batch: Trajectories, log_prob: Tensor) -> Tensor:
    leaf = log_prob.detach().clone().requires_grad_()
    return torch.autograd.grad(objective(Evaluation(leaf), batch), leaf)[0]


def of(name: str, pairs: Pairs, batch: Trajectories | None = None, **settings) -> Tensor:
    """[B,T] the gradient of a registered algorithm."""
    algorithm: Algorithm = algorithm_named(name)(**settings)
    ready = algorithm.prepare(pairs.batch() if batch is None else batch, Setting(STEPS), Planning())
    return gradient(algorithm.terms(Setting(STEPS)), ready, pairs.log_prob())


def value(name: str, pairs: Pairs, **settings) -> Tensor:
    """The preference loss as a registered algorithm reports it: a mean over pairs."""
    algorithm = algorithm_named(name)(**settings)
    ready = algorithm.prepare(pairs.batch(), Setting(STEPS), Planning())
    return algorithm.preference().facts(ready, Evaluation(pairs.log_prob()))["loss"].nanmean()


def in_logits(pairs: Pairs, gradient_in_log_prob: Tensor) -> Tensor:
    leaf = pairs.logits.clone().requires_grad_()
    return torch.autograd.grad(pairs.log_prob(leaf), leaf, gradient_in_log_prob)[0]


def supervised(aggregate, **changes) -> PolicyGradient:
    """Minus the log-likelihood of the chosen completions."""
    fields = {"aggregate": aggregate, "rows": PREFERENCES, "row_weight": "chosen", "count_weightless": False}
    return PolicyGradient(advantage=Constant(1.0), **{**fields, **changes})


def likelihood(pairs: Pairs, aggregate, mask: Tensor | None = None) -> Tensor:
    """[B,T] the gradient of minus the log-likelihood of the chosen rows."""
    batch = pairs.batch(mask=pairs.mask if mask is None else mask).with_planned(chosen=(torch.arange(2 * PAIRS) < PAIRS).double())
    return gradient(supervised(aggregate), batch, pairs.log_prob())


TIGHT = 1e-12


# DPO and IPO


@pytest.mark.parametrize("beta", [0.01, 0.3, 5.0])
def test_dpo(pairs, equal, beta) -> None:
    loss, found = dpo(pairs, "sigmoid", beta=beta)
    assert found.abs().max() > 1e-5
    equal(of("dpo", pairs, beta=beta), found, TIGHT)
    equal(value("dpo", pairs, beta=beta), loss, TIGHT)


def test_label_smoothing(pairs, equal) -> None:
    """TRL's `sigmoid` does not read it. Its `robust` loss subtracts what cDPO adds, and divides: an unbiased estimate of the clean loss,
    while cDPO's keeps each pair from being pushed without end."""
    wrong = 0.1
    clean, swapped = of("dpo", pairs, beta=BETA), of("dpo", pairs, pairs.batch(chosen=0.0), beta=BETA)
    equal(clean, dpo(pairs, "sigmoid", label_smoothing=wrong)[1], TIGHT)
    equal(of("cdpo", pairs, beta=BETA, label_smoothing=wrong), (1 - wrong) * clean + wrong * swapped, TIGHT)
    robust = dpo(pairs, "robust", label_smoothing=wrong)[1]
    equal(((1 - wrong) * clean - wrong * swapped) / (1 - 2 * wrong), robust, TIGHT)
    assert (robust - of("cdpo", pairs, beta=BETA, label_smoothing=wrong)).abs().max() > 1e-3
    # CPO's smoothing is cDPO's, under an anchor that finds everything equally likely
    even = pairs.batch(anchor_log_prob=torch.zeros_like(pairs.anchor))
    found = with_logits(CPOTrainer, pairs, loss_type="sigmoid", label_smoothing=wrong)[1]
    equal(in_logits(pairs, of("cdpo", pairs, even, beta=BETA, label_smoothing=wrong)), found, TIGHT)


@pytest.mark.parametrize("beta", [0.01, 0.3])
def test_ipo_averages_over_tokens(pairs, equal, beta) -> None:
    loss, found = dpo(pairs, "ipo", beta=beta)
    equal(of("ipo", pairs, beta=beta, average=True), found, TIGHT)
    equal(value("ipo", pairs, beta=beta, average=True), loss, TIGHT)
    assert (of("ipo", pairs, beta=beta) - found).abs().max() > 1  # our default is the paper's sum
    # CPO's ipo has the mean per token too, and no anchor
    term = PairPreference(Squared(1 / (2 * beta)), LogRatio(1.0, anchored=False, average=True))
    ours = gradient(PolicyGradient(advantage=term, aggregate=GroupMeanTokenSum(), rows=PREFERENCES), pairs.batch(), pairs.log_prob())
    equal(in_logits(pairs, ours), with_logits(CPOTrainer, pairs, loss_type="ipo", beta=beta)[1], TIGHT)


def test_sigmoid_norm_is_a_score_per_token(pairs, equal) -> None:
    term = PairPreference(Logistic(), LogRatio(BETA, average=True))
    ours = gradient(PolicyGradient(advantage=term, aggregate=GroupMeanTokenSum(), rows=PREFERENCES), pairs.batch(), pairs.log_prob())
    equal(ours, dpo(pairs, "sigmoid_norm")[1], TIGHT)


# RPO


def test_rpo(pairs, equal) -> None:
    """TRL's `sft` is a mean over the chosen tokens of the micro-batch, with a weight of its own."""
    weight = 0.2
    loss, found = dpo(pairs, "sigmoid", "sft", weights=(1.0, weight))
    equal(of("dpo", pairs, beta=BETA) + weight * likelihood(pairs, TokenMean()), found, TIGHT)
    chosen = pairs.mask[:PAIRS]
    equal(value("dpo", pairs, beta=BETA) - weight * pairs.log_prob()[:PAIRS][chosen].mean(), loss, TIGHT)
    average = {"beta": BETA, "sft_weight": weight, "sft_over": "average"}
    assert (of("regularized_preference_optimization", pairs, **average) - found).abs().max() > 1e-4
    # chosen completions of one length leave no difference
    chosen[:] = torch.arange(STEPS) >= 4
    found = dpo(pairs, "sigmoid", "sft", weights=(1.0, weight))[1]
    equal(of("regularized_preference_optimization", pairs, **average), found, TIGHT)
    eta = weight / (STEPS - 4) / BETA
    equal(of("regularized_preference_optimization", pairs, beta=BETA, eta=eta), found, TIGHT)


def test_micro_batches_of_the_sft_loss(pairs, equal) -> None:
    """Each of TRL's micro-batches is divided by its own chosen tokens: their mean is not the loss of the batch."""
    rows = torch.arange(2 * PAIRS).view(2, 2, PAIRS // 2)
    found = torch.zeros_like(pairs.anchor)
    for half in rows.unbind(1):
        found[half.flatten()] = dpo(pairs, "sft", rows=half.flatten())[1] / 2
    whole = dpo(pairs, "sft")[1]
    equal(likelihood(pairs, TokenMean()), whole, TIGHT)
    tokens = pairs.mask[:PAIRS].sum(1).double()
    share = torch.cat([half / half.sum() / 2 for half in tokens.split(PAIRS // 2)]) / (tokens / tokens.sum())
    equal(torch.cat([share, torch.ones_like(share)]).unsqueeze(1) * whole, found, TIGHT)
    assert (share - 1).abs().max() > 0.01


# KTO


def _with_other(pairs: Pairs, shift: float) -> tuple[Pairs, Trajectories, Tensor]:
    """Completions that do not belong, with a mean log-ratio of the sign of `shift`; all rows together as ours, and their log-probs."""
    flip = torch.arange(2 * PAIRS).roll(1)
    other = Pairs(*(getattr(pairs, name)[flip] for name in ("logits", "tokens", "completion", "present", "anchor")))
    other.anchor = other.log_prob() - shift * torch.rand_like(other.anchor)
    stranger = Trajectories(
        action=other.tokens[:, 1:],
        mask=other.mask,
        group=torch.arange(2 * PAIRS),
        source=torch.full((2 * PAIRS,), int(Source.MISMATCHED)),
        reward=torch.zeros(2 * PAIRS, dtype=torch.float64),
        anchor_log_prob=other.anchor,
    )
    given = pairs.batch(group=torch.arange(2 * PAIRS))
    return other, Trajectories.join([given, stranger]), torch.cat([pairs.log_prob(), other.log_prob()])


def _kto(batch: Trajectories, log_prob: Tensor, **settings) -> Tensor:
    algorithm = algorithm_named("kto")(**settings)
    return gradient(algorithm.terms(Setting(STEPS)), algorithm.prepare(batch, Setting(STEPS), Planning()), log_prob)


@pytest.mark.parametrize("shift", [-0.5, 0.5], ids=["reference point at 0", "reference point above 0"])
@pytest.mark.parametrize("weights", [(1.0, 1.0), (1.3, 0.6)])
def test_kto(pairs, equal, shift, weights) -> None:
    other, batch, log_prob = _with_other(pairs, shift)
    theirs = kto(pairs, other, desirable_weight=weights[0], undesirable_weight=weights[1])[1]
    ours = _kto(batch, log_prob, beta=BETA, desirable_weight=weights[0], undesirable_weight=weights[1])
    assert theirs.abs().max() > 1e-4
    equal(ours[: 2 * PAIRS], theirs, TIGHT)
    assert (ours[2 * PAIRS :] == 0).all()


def test_micro_batches_of_kto(pairs, equal) -> None:
    """TRL takes a reference point from each micro-batch (and the mean over workers of those); ours is the batch's."""
    other, batch, log_prob = _with_other(pairs, 0.5)
    other.anchor[:PAIRS] -= 0.4
    batch.anchor_log_prob[2 * PAIRS :] = other.anchor
    found = torch.zeros_like(pairs.anchor)
    ours = torch.zeros_like(pairs.anchor)
    for half in torch.arange(2 * PAIRS).split(PAIRS):
        found[half] = kto(pairs, other, rows=half)[1] / 2
        rows = torch.cat([half, half + 2 * PAIRS])
        ours[half] = _kto(batch.select(rows), log_prob[rows], beta=BETA)[:PAIRS] / 2
    equal(ours, found, TIGHT)
    whole = _kto(batch, log_prob, beta=BETA)[: 2 * PAIRS]
    equal(whole, kto(pairs, other)[1], TIGHT)
    assert (whole - found).abs().max() > 1e-4


# SimPO and ORPO


@pytest.mark.parametrize(("beta", "gamma"), [(2.0, 1.0), (0.1, 0.5), (10.0, 0.0)])
def test_simpo(pairs, equal, beta, gamma) -> None:
    loss, found = with_logits(CPOTrainer, pairs, loss_type="simpo", beta=beta, simpo_gamma=gamma)
    equal(in_logits(pairs, of("simpo", pairs, beta=beta, gamma=gamma)), found, TIGHT)
    equal(value("simpo", pairs, beta=beta, gamma=gamma), loss, TIGHT)


def test_simpo_with_the_default_alpha_adds_a_likelihood(pairs, equal) -> None:
    defaults = {name: CPOConfig.__dataclass_fields__[name].default for name in ("beta", "cpo_alpha", "simpo_gamma")}
    assert defaults == {"beta": 0.1, "cpo_alpha": 1.0, "simpo_gamma": 0.5}
    found = with_logits(CPOTrainer, pairs, loss_type="simpo", **defaults)[1]
    ours = of("simpo", pairs, beta=0.1, gamma=0.5) + likelihood(pairs, TokenMean())
    equal(in_logits(pairs, ours), found, TIGHT)


def odds(pairs: Pairs) -> Tensor:
    term = PolicyGradient(advantage=PairPreference(Logistic(), LogOdds()), aggregate=GroupMeanTokenSum(), rows=PREFERENCES)
    return gradient(term, pairs.batch(), pairs.log_prob())


@pytest.mark.parametrize(("exact", "tolerance"), [(True, TIGHT), (False, 2e-6)], ids=["float64", "its own float32"])
def test_odds_ratio_loss(pairs, equal, monkeypatch, exact, tolerance) -> None:
    if exact:
        monkeypatch.setattr(Tensor, "float", Tensor.double)  # it computes in float32 whatever it is given
    leaf = pairs.log_prob().requires_grad_()
    mean = torch.where(pairs.mask, leaf, 0).sum(1) / pairs.mask.sum(1)
    losses = -ORPOTrainer.odds_ratio_loss(stand_in(beta=0.7), mean[:PAIRS], mean[PAIRS:])[0]
    found = torch.autograd.grad(losses.mean(), leaf)[0]
    equal(0.7 * odds(pairs), found, tolerance)
    batch = algorithm_named("orpo")().prepare(pairs.batch(), Setting(STEPS), Planning())
    ours = algorithm_named("orpo")().preference().facts(batch, Evaluation(pairs.log_prob()))["loss"]
    equal(0.7 * ours[:PAIRS], losses.detach(), tolerance)


def test_orpo_trains_on_the_prompt_too(pairs, equal, monkeypatch) -> None:
    monkeypatch.setattr(Tensor, "float", Tensor.double)
    found = with_logits(ORPOTrainer, pairs, beta=0.1)[1]
    everything = likelihood(pairs, TokenMean(), pairs.present[:, 1:])
    equal(in_logits(pairs, everything + 0.1 * odds(pairs)), found, TIGHT)
    ours = in_logits(pairs, of("orpo", pairs, weight=0.1))
    equal(in_logits(pairs, likelihood(pairs, SequenceMeanTokenMean()) + 0.1 * odds(pairs)), ours, TIGHT)
    prompt = pairs.present & ~pairs.completion
    prompt = (prompt[:, 1:] & (torch.arange(2 * PAIRS) < PAIRS).unsqueeze(1)).nonzero(as_tuple=True)
    assert len(prompt[0])
    assert (ours[prompt] == 0).all()
    assert (found[prompt].abs().sum(-1) > 0).all()


# reward models


def test_reward_model(pairs, equal) -> None:
    """The score stands on the last token of each row."""
    rng = torch.Generator().manual_seed(PAIRS)
    leaf = torch.randn(2 * PAIRS, 1, dtype=torch.float64, generator=rng).requires_grad_()
    last = torch.where(pairs.mask, torch.arange(STEPS), -1).amax(1, keepdim=True)
    log_prob = torch.zeros(2 * PAIRS, STEPS, dtype=torch.float64).scatter(1, last, leaf.detach())
    mask = torch.zeros_like(pairs.mask).scatter(1, last, True)

    def theirs(coefficient: float | None = None, **more) -> tuple[Tensor, Tensor]:
        self = stand_in(args=SimpleNamespace(center_rewards_coefficient=coefficient))
        loss = RewardTrainer.compute_loss(self, lambda **_: SimpleNamespace(logits=leaf), {"attention_mask": pairs.present.long(), **more})
        return loss.detach(), torch.autograd.grad(loss, leaf)[0]

    def ours(margin: float = 0.0) -> Tensor:
        term = PairPreference(Logistic(), LogRatio(1.0, anchored=False), margin)
        objective = PolicyGradient(advantage=term, aggregate=GroupMeanTokenSum(), rows=PREFERENCES)
        return gradient(objective, pairs.batch(mask=mask), log_prob).gather(1, last)

    algorithm = algorithm_named("bradley_terry")()
    ready = algorithm.prepare(pairs.batch(mask=mask), Setting(STEPS), Planning())
    found = gradient(algorithm.terms(Setting(STEPS)), ready, log_prob).gather(1, last)
    loss, slope = theirs()
    equal(found, slope, TIGHT)
    equal(algorithm.preference().facts(ready, Evaluation(log_prob))["loss"].nanmean(), loss, TIGHT)
    equal(ours(0.8), theirs(margin=torch.full((PAIRS,), 0.8, dtype=torch.float64))[1], TIGHT)
    pull = 2 * 0.01 / PAIRS * (leaf[:PAIRS] + leaf[PAIRS:]).detach().repeat(2, 1)  # ours has no such term
    equal(found + pull, theirs(0.01)[1], TIGHT)
