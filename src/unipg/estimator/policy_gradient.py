"""The estimator: four parts, how they multiply, and how several of them add up.

    coefficient = 1_stable · Â · exp(log pi_theta − log pi_ref)       detached
    loss        = − sum_{b,t} weight[b,t] · coefficient[b,t] · log pi_theta[b,t]

The gradient of the loss is the paper's formula. Compare methods by gradients and coefficients, never by loss values.

Three moments, so that no result depends on how a batch is cut: `prepare` sees the whole rollout batch (advantages, group statistics),
`plan` sees the whole batch of one optimiser step (weights, from global counts), `loss` sees a micro-batch and only sums.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import ClassVar, Literal

import torch
from torch import Tensor

from unipg.errors import InputError
from unipg.estimator.advantages import ROLLOUTS, Advantage, Planning
from unipg.estimator.aggregation import Aggregate, TokenMean
from unipg.estimator.likelihoods import POSITION_KEY, Likelihood, Pathwise, Ranks, Reading, Stepwise, Substituted, position_keys
from unipg.estimator.masks import Everything, Mask
from unipg.estimator.parts import Joint, Part, Schedule, Weight, beyond_row, furthest, weight_at
from unipg.estimator.references import Corrected, CurrentPolicy, Reference
from unipg.shapes import Bool, Float
from unipg.trajectories import Evaluation, Source, Trajectories

LOG_RATIO_LIMIT = 20.0
"""A token whose log pi_theta − log pi_ref exceeds this is masked and counted as `overflow`: exp would only add noise, then inf."""
NOTHING = torch.empty(0)

Surrogate = Literal["score", "ratio"]
UNIT = "unit"
"""Planned [B,T]: what substituted values are multiplied by (`Pathwise.scale`)."""


def coefficient(
    log_prob: Float[Tensor, "B T"],
    log_reference: Float[Tensor, "B T"],
    advantage: Float[Tensor, "B T"],
    stable: Bool[Tensor, "B T"],
) -> Float[Tensor, "B T"]:
    """1_stable · Â · pi_theta / pi_ref, detached: what multiplies ∇log pi. Silent where `stable` is 0, whatever stands there."""
    log_weight = log_prob.detach() - log_reference.detach()
    stable = stable & (log_weight <= LOG_RATIO_LIMIT)
    return torch.where(stable, advantage.detach(), 0) * torch.where(stable, log_weight, 0).exp_()


def per_token_loss(
    log_prob: Float[Tensor, "B T"],
    log_reference: Float[Tensor, "B T"],
    advantage: Float[Tensor, "B T"],
    stable: Bool[Tensor, "B T"],
    surrogate: Surrogate = "score",
) -> Float[Tensor, "B T"]:
    """−1_stable · Â · (score: sg(pi_theta/pi_ref)·log pi_theta; ratio: pi_theta/sg(pi_ref)), with the graph. Equal gradients.

    Both are silent where `stable` is 0. Masked positions must be excluded through `stable`.
    """
    factor = coefficient(log_prob, log_reference, advantage, stable)
    live = factor != 0
    if surrogate == "score":
        return -factor * torch.where(live, log_prob, 0)
    log_weight = torch.where(live, log_prob - log_reference.detach(), 0)
    return -torch.where(live, advantage.detach(), 0) * torch.where(live, log_weight.exp(), 0)


@dataclass(frozen=True)
class Record:
    """What a term saw in one micro-batch, before any truncation; for diagnostics only. All detached, `[N]` over its own tokens."""

    term: str
    log_ratio: Tensor
    advantage: Tensor
    stable: Tensor
    facts: dict[str, Tensor] = field(default_factory=dict)
    """What the advantage tells of itself, `[n]` by name."""
    shapes: tuple[str, ...] = ()
    """Facts of which more than the mean is worth telling."""
    later: dict[str, Callable[[], Tensor]] = field(default_factory=dict)
    """Facts that are found for a record which is kept."""

    @classmethod
    def of(cls, term: str, *, advantage: Tensor | None = None, shapes: tuple[str, ...] = (), **facts: Tensor) -> Record:
        """Of a term without ratios and masks; of any shape, and with its graph until it is `kept`."""
        return cls(term, NOTHING, NOTHING if advantage is None else advantage, NOTHING, facts, shapes)

    def kept(self) -> Record:
        """The same, detached and flat."""
        found = self.facts | {name: find() for name, find in self.later.items()}
        facts = {name: value.detach().reshape(-1) for name, value in found.items()}
        return dataclasses.replace(self, advantage=self.advantage.detach().reshape(-1), facts=facts, later={})


@dataclass(frozen=True)
class Term(Part):
    """One summand of an objective: which rows it takes, how it is aggregated, and its weight.

    `rows`: sources of the rows it takes. `counted`: sources of the rows in its normalisation group, where they are more than those.
    `row_weight`: name of a planned `[B]` tensor of weights (a gate's); a row of weight 0 still counts in the denominator unless
    `count_weightless` is off. `tokens`: name of a planned `[B,T]` bool tensor, the tokens that it takes and counts; default: all of the
    policy's. `name`: how it is called in metrics.
    """

    needs_log_prob: ClassVar[bool] = True
    least_rows: ClassVar[int] = 1
    """Rows that an optimiser step must have for it to say anything."""
    reads_ends: ClassVar[bool] = False
    """Whether what is observed where an episode terminates counts: of a model of the data it does, of values it must not."""
    rows: tuple[Source, ...] = ROLLOUTS
    counted: tuple[Source, ...] | None = None
    aggregate: Aggregate = TokenMean()
    weight: Weight = 1.0
    row_weight: str | None = None
    count_weightless: bool = True
    tokens: str | None = None
    name: str = ""

    @property
    def reads(self) -> frozenset[str]:
        """Fields of the batch that must be there."""
        return self.needs

    @property
    def reads_entropy(self) -> bool:
        return self.needs_entropy

    @property
    def reads_value(self) -> bool:
        """Whether the current critic is evaluated."""
        return False

    @property
    def reads_log_prob(self) -> bool:
        """Whether it looks at the probabilities of the actions that were taken."""
        return self.needs_log_prob

    @property
    def differentiates(self) -> frozenset[str]:
        """Observations whose fresh actions it differentiates, by field."""
        return frozenset()

    @property
    def noise(self) -> frozenset[str]:
        """Observations at which it draws actions, by field: they come with planned noise."""
        return frozenset()

    @property
    def ranks(self) -> Ranks:
        """Observations at which it asks which of a mixture's components is best, and by what. All learners of an update follow the same
        winners, those of before its first step, however the batch is cut."""
        return frozenset()

    @property
    def reach(self) -> Joint:
        """What must be together for its loss: a step alone, a whole row, the rows of a group, or the batch of an optimiser step."""
        return furthest((self.joint, self.aggregate.reach))

    @property
    def compares(self) -> bool:
        """Whether it compares the rows of a group with each other."""
        return False

    @property
    def readings(self) -> tuple[Reading, ...]:
        """What must be read off the next-token distributions."""
        return ()

    def planned_now(self, now: Evaluation, batch: Trajectories, name: str, planning: Planning) -> dict[str, Tensor]:
        """Tensors of a whole optimiser step's batch that depend on the current policy (detached)."""
        return {}

    @property
    def spans(self) -> bool:
        """Whether `planned_now` compares the steps of a whole optimiser step, which may be cut anywhere once that is planned. A batch that
        is not cut needs no plan: `per_token` then makes the same of what it is given."""
        return False

    def prepared(self, batch: Trajectories, planning: Planning) -> dict[str, Tensor]:
        """Tensors computed once on the whole rollout batch; kept as `planned["<name>/<key>"]`."""
        return {}

    def per_token(self, now: Evaluation, batch: Trajectories, name: str, planning: Planning) -> tuple[Tensor, Record | None]:
        """[B,T] loss of each token with the graph, finite everywhere, 0 or weightless where `batch.mask` is 0."""
        raise NotImplementedError(type(self).__name__)

    def is_silent(self, batch: Trajectories, name: str) -> Tensor:
        """[B,T] bool: tokens whose loss provably has no gradient, known before the policy is run."""
        return torch.zeros_like(batch.mask)

    def taken(self, batch: Trajectories) -> Bool[Tensor, "B T"]:
        """[B,T] bool: the policy's tokens in whichever rows that the term's filter lets through."""
        if self.tokens is None:
            return batch.mask
        return batch.mask & batch.require(self.tokens, f"term '{self.name or type(self).__name__}'")

    def touches(self, batch: Trajectories, name: str) -> Tensor:
        """[B,T] bool: tokens of a prepared batch that this term may move, whatever its weight is at the moment."""
        rows = batch.rows_from(*self.rows)
        if self.row_weight is not None:
            rows = rows & (batch.require(self.row_weight, f"term '{name}'") != 0)
        # which tokens it takes may be known only right before an optimiser step: until then, any
        tokens = (self.taken(batch) if self.tokens in batch.planned else batch.mask) & rows.unsqueeze(1)
        return tokens if self.never_silent else tokens & ~self.is_silent(batch, name)

    @property
    def normalisation(self) -> tuple[object, ...]:
        """What `shares` depends on beside the batch: terms in which it is equal have the same."""
        return (type(self).shares, self.rows, self.counted, self.aggregate, self.row_weight, self.count_weightless, self.tokens)

    def shares(self, batch: Trajectories, planning: Planning) -> Tensor:
        """[B,T] weights of this term's tokens over a whole optimiser step, before its own `weight`."""
        assert batch.group is not None
        mine = batch.rows_from(*self.rows)
        counted = mine if self.counted is None else batch.rows_from(*self.counted)
        weight: Tensor | None = None if counted is mine else mine.double()  # rows that do not count have no share as it is
        if self.row_weight is not None:
            weight = mine * batch.require(self.row_weight, f"term '{self.name or type(self).__name__}'").double()
            counted = counted if self.count_weightless else counted & (weight != 0)
        shares = self.aggregate.grouped(self.taken(batch) & counted.unsqueeze(1), batch.group, planning.reduce)
        return shares if weight is None else shares * weight.unsqueeze(1)

    @property
    def never_silent(self) -> bool:
        """Whether every token of its rows may move the policy, whatever the batch holds."""
        return self.row_weight is None and self.tokens is None and type(self).is_silent is Term.is_silent

    def __add__(self, other: Term | Objective) -> Objective:
        return Objective((self,)) + other

    def __rmul__(self, factor: Weight) -> Term:
        if isinstance(factor, Schedule):
            if not isinstance(self.weight, float | int):
                raise InputError("a term has one schedule at most: its weight is scheduled already")
            return dataclasses.replace(self, weight=self.weight * factor)
        return dataclasses.replace(self, weight=factor * self.weight)

    __mul__ = __rmul__

    def __call__(self, now: Evaluation, batch: Trajectories, planning: Planning | None = None) -> Tensor:
        return Objective((self,))(now, batch, planning)


@dataclass(frozen=True)
class PolicyGradient(Term):
    """The formula with its four parts.

        PolicyGradient(mask=RatioClip(0.2, 0.2), reference=OldPolicy(), advantage=GroupStandardized(), aggregate=SequenceMeanTokenMean())

    is GRPO. `surrogate` changes the loss's value, never its gradient.
    """

    advantage: Advantage = field(kw_only=True)
    reference: Reference = field(default=CurrentPolicy(), kw_only=True)
    mask: Mask = field(default=Everything(), kw_only=True)
    likelihood: Likelihood = field(default=Stepwise(), kw_only=True)
    surrogate: Surrogate = field(default="score", kw_only=True)

    def __post_init__(self) -> None:
        if self.likelihood.substitutes:
            for name in ("mask", "reference"):
                if (part := getattr(self, name)) != type(self).__dataclass_fields__[name].default:
                    raise InputError(
                        f"{name} is {part.symbol()}, but {type(self.likelihood).__name__} looks at other actions than those that were "
                        "taken, which have no ratio; accepted: leave it out"
                    )

    def shown(self, part: str) -> str:
        """A part in tables, by its name. Of actions other than those that were taken there is no ratio, so no mask and no reference."""
        return "none" if self.likelihood.substitutes and part in ("mask", "reference") else str(getattr(self, part).symbol())

    @property
    def reads(self) -> frozenset[str]:
        ratio = self.mask.ratio_field
        return self.reference.reads | self.mask.reads | self.advantage.reads | (frozenset({ratio}) if ratio else frozenset())

    @property
    def reads_entropy(self) -> bool:
        return self.advantage.reads_entropy or self.mask.needs_entropy

    @property
    def reads_log_prob(self) -> bool:
        return not (self.likelihood.substitutes or self.likelihood.own)

    @property
    def differentiates(self) -> frozenset[str]:
        return frozenset({"observation"}) if self.likelihood.substitutes else frozenset()

    @property
    def noise(self) -> frozenset[str]:
        return self.likelihood.noise | self.advantage.noise

    @property
    def ranks(self) -> Ranks:
        return self.likelihood.ranks

    @property
    def reach(self) -> Joint:
        return furthest(part.reach for part in (self.mask, self.reference, self.advantage, self.likelihood, self.aggregate))

    @property
    def compares(self) -> bool:
        return self.advantage.is_comparison

    @property
    def readings(self) -> tuple[Reading, ...]:
        return self.likelihood.readings + self.advantage.readings

    def prepared(self, batch: Trajectories, planning: Planning) -> dict[str, Tensor]:
        return {} if self.advantage.is_dynamic else {"advantage": self.advantage(batch, None, planning)}

    @property
    def spans(self) -> bool:
        return self._scaled or self.advantage.spans

    @property
    def _scaled(self) -> bool:
        return isinstance(self.likelihood, Pathwise) and self.likelihood.scale is not None

    def planned_now(self, now: Evaluation, batch: Trajectories, name: str, planning: Planning) -> dict[str, Tensor]:
        if isinstance(self.likelihood, Pathwise) and self._scaled:
            value = self.likelihood.expected(lambda point: self.advantage(batch, point, planning), now)
            return {UNIT: self._unit(value, batch, planning).expand(batch.mask.shape)}
        if not (beyond_row(self.advantage.reach) or self.advantage.spans):
            return {}
        facts = {f"fact/{name}": value for name, value in self.advantage.facts(batch, now).items()}
        return {"advantage": self.advantage(batch, now, planning), **facts}

    @property
    def never_silent(self) -> bool:
        return self.row_weight is None and self.tokens is None and self.advantage.is_dynamic

    def is_silent(self, batch: Trajectories, name: str) -> Tensor:
        if self.advantage.is_dynamic:
            return torch.zeros_like(batch.mask)
        return batch.require(f"{name}/advantage", "PolicyGradient") == 0

    def _unit(self, value: Tensor, batch: Trajectories, planning: Planning) -> Tensor:
        """[] what values are multiplied by, so that their mean size in the whole optimiser step is the likelihood's `scale`."""
        assert isinstance(self.likelihood, Pathwise)
        assert self.likelihood.scale is not None
        mine = self.taken(batch) & batch.rows_from(*self.rows).unsqueeze(1)
        sums = planning.reduce(torch.stack([torch.where(mine, value.detach(), 0).abs().sum(), mine.sum().to(value.dtype)]))
        return self.likelihood.scale / (sums[0] / sums[1].clamp_min(1)).clamp_min(1e-8)

    def per_token(self, now: Evaluation, batch: Trajectories, name: str, planning: Planning) -> tuple[Tensor, Record | None]:
        if isinstance(self.likelihood, Substituted):
            expected = self.likelihood.expected
            value = expected(lambda point: self.advantage(batch, point, planning), now)
            record = Record.of(name, advantage=value)
            if self.advantage.weighs_entropy:
                record.later["entropy"] = lambda: expected(lambda point: -point.log_prob, now)
            if not self._scaled:
                return -value, record
            unit = batch.planned.get(f"{name}/{UNIT}")
            return -value * (self._unit(value, batch, planning) if unit is None else unit), record
        log_prob = self.likelihood(now)
        lp = log_prob.detach()
        log_reference = self.reference(lp, batch)
        if self.advantage.is_dynamic and f"{name}/advantage" not in batch.planned:
            with torch.no_grad():  # a coefficient has no graph
                advantage = self.advantage(batch, now.detach(), planning)
                facts = self.advantage.facts(batch, now.detach())
        else:
            advantage = batch.require(f"{name}/advantage", "PolicyGradient")
            prefix = f"{name}/fact/"
            facts = {key.removeprefix(prefix): value for key, value in batch.planned.items() if key.startswith(prefix)}
        mine = self.taken(batch) & batch.rows_from(*self.rows).unsqueeze(1)
        ratio_field = self.mask.ratio_field
        log_ratio = lp - (log_reference if ratio_field is None else batch.require(ratio_field, type(self.mask).__name__))
        everywhere = bool(mine.all())
        if not everywhere:
            log_ratio, advantage = torch.where(mine, log_ratio, 0), torch.where(mine, advantage, 0)
        advantage = advantage.to(lp.dtype)
        stable = self.mask.at(planning.progress)(log_ratio, advantage, batch) & mine
        loss = per_token_loss(log_prob, log_reference, advantage, stable, self.surrogate)
        keep = (lambda t: t.reshape(-1)) if everywhere else (lambda t: t[mine])
        return loss, Record(name, keep(log_ratio), keep(advantage), keep(stable), {k: v[~v.isnan()] for k, v in facts.items()})


@functools.cache
def _snake(name: str) -> str:
    return re.sub(r"(?<=[a-z])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", name).lower()


@dataclass(frozen=True)
class Objective:
    """A sum of terms. A sum of weighted estimators is an estimator: SFT + RL hybrids, KL, entropy and value losses are all terms."""

    terms: tuple[Term, ...]

    def __add__(self, other: Term | Objective) -> Objective:
        return Objective(self.terms + (other.terms if isinstance(other, Objective) else (other,)))

    def __rmul__(self, factor: Weight) -> Objective:
        return Objective(tuple(factor * term for term in self.terms))

    __mul__ = __rmul__

    def named(self) -> Iterator[tuple[str, Term]]:
        """Each term with its unique name."""
        return iter(self._named)

    @cached_property
    def _named(self) -> tuple[tuple[str, Term], ...]:
        seen: dict[str, int] = {}
        named = []
        for term in self.terms:
            name = term.name or _snake(type(term).__name__)
            seen[name] = seen.get(name, 0) + 1
            named.append((name if seen[name] == 1 else f"{name}_{seen[name]}", term))
        return tuple(named)

    @cached_property
    def reads(self) -> frozenset[str]:
        """Fields of the batch that must be there."""
        return frozenset().union(*(t.reads for t in self.terms))

    @cached_property
    def _log_probs_read(self) -> tuple[str, ...]:
        return tuple(name for name in ("old_log_prob", "behaviour_log_prob", "anchor_log_prob") if name in self.reads)

    def _check_given(self, batch: Trajectories) -> None:
        """Refuses log-probabilities of the batch that are read and not finite, by name; they may also come later than the batch."""
        for name in self._log_probs_read:
            if (log_prob := getattr(batch, name)) is not None:
                check_log_probs(log_prob, batch, name)

    @cached_property
    def reads_entropy(self) -> bool:
        return any(t.reads_entropy for t in self.terms)

    @cached_property
    def reads_log_prob(self) -> bool:
        return any(t.reads_log_prob for t in self.terms)

    @cached_property
    def differentiates(self) -> frozenset[str]:
        """Observations whose fresh actions are differentiated, by field."""
        return frozenset().union(*(t.differentiates for t in self.terms))

    @cached_property
    def noise(self) -> frozenset[str]:
        """Observations at which actions are drawn, by field."""
        return frozenset().union(*(t.noise for t in self.terms))

    @cached_property
    def ranks(self) -> Ranks:
        """See `Term.ranks`."""
        return frozenset().union(*(t.ranks for t in self.terms))

    @cached_property
    def is_settled(self) -> bool:
        """Whether the plan of a batch depends on nothing but which rows it has, from which sources: it may then be used again."""
        return (
            not self.readings
            and not beyond_row(self.reach)
            and all(t.never_silent and not isinstance(t.weight, Schedule) for t in self.terms)
        )

    @cached_property
    def spans(self) -> bool:
        """Whether any term compares the steps of a whole optimiser step; see `Term.spans`."""
        return any(t.spans for t in self.terms)

    @cached_property
    def reads_value(self) -> bool:
        return any(t.reads_value for t in self.terms)

    @cached_property
    def reach(self) -> Joint:
        """What a micro-batch must hold together; see `Part.joint`. With `plan(…, now=…)` a row is enough."""
        return furthest(t.reach for t in self.terms)

    @cached_property
    def compares(self) -> bool:
        """Whether any term compares the rows of a group with each other."""
        return any(t.compares for t in self.terms)

    @cached_property
    def readings(self) -> tuple[Reading, ...]:
        return tuple(dict.fromkeys(r for t in self.terms for r in t.readings))

    def prepare(self, batch: Trajectories, planning: Planning | None = None) -> Trajectories:
        """On the whole rollout batch: advantages, value targets. `planning` carries progress and the sum over workers."""
        planning = planning or Planning()
        check_rewards(batch)
        self._check_given(batch)
        quiet = silence(batch)
        planned = {f"{name}/{k}": v for name, term in self.named() for k, v in term.prepared(quiet, planning).items()}
        return batch.replace(planned={**batch.planned, **planned})

    @cached_property
    def held(self) -> dict[str, Advantage]:
        """Advantages that are taken once, when the learner begins on a batch (`Advantage.held`), by what they are planned as."""
        return {f"{name}/advantage": t.advantage for name, t in self.named() if isinstance(t, PolicyGradient) and t.advantage.held}

    @property
    def holds(self) -> bool:
        return bool(self.held)

    @torch.no_grad()
    def hold(self, batch: Trajectories, planning: Planning, now: Evaluation, found: dict[Advantage, Tensor] | None = None) -> Trajectories:
        """A prepared batch, its rows whole, with the advantages that are held, as the networks are now. `found`: those that are known, and
        then these too."""
        quiet, found = silence(batch), {} if found is None else found
        for advantage in self.held.values():
            if advantage not in found:
                found[advantage] = advantage(quiet, now, planning)
        return batch.replace(planned={**batch.planned, **{name: found[advantage] for name, advantage in self.held.items()}})

    def taken(self, batch: Trajectories) -> Bool[Tensor, "B T"]:
        """[B,T] bool: steps that any of its terms takes, whether they move anything or not."""
        found = torch.zeros_like(batch.mask)
        for term in self.terms:
            found = found | (term.taken(batch) & batch.rows_from(*term.rows).unsqueeze(1))
        return found

    def plan(self, batch: Trajectories, planning: Planning | None = None, now: Evaluation | None = None) -> Trajectories:
        """On the whole batch of one optimiser step: the weight of every token in every term, from global counts.

        `now`: the current policy on this batch, from which advantages that look beyond their own row are fixed for the step, so that the
        batch may then be cut anywhere. Without it they are taken from each micro-batch, which must hold what `reach` says.
        """
        planning = planning or Planning()
        self._check_given(batch)
        if now is not None and self.reads_log_prob:
            check_log_probs(now.log_prob, batch, "log_prob")
        planned: dict[str, Tensor] = {}
        shares: dict[object, Tensor] = {}
        for name, term in self.named():
            if (same := term.normalisation) not in shares:
                shares[same] = term.shares(batch, planning)
            weight = weight_at(term.weight, planning.progress)
            planned[f"{name}/weight"] = shares[same] if weight == 1 else weight * shares[same]
        if self.readings:
            planned[POSITION_KEY] = position_keys(batch, planning.seed + planning.progress.step)
        if now is not None:
            quiet, quiet_now = silence(batch), now.detach().where(batch.mask)
            for name, term in self.named():
                planned |= {f"{name}/{key}": value for key, value in term.planned_now(quiet_now, quiet, name, planning).items()}
        return batch.replace(planned={**batch.planned, **planned})

    def touched_rows(self, batch: Trajectories) -> Bool[Tensor, " B"]:
        """[B] bool: rows of a prepared batch that can move the policy. The others have provably zero gradient and need no forward."""
        touched: Tensor | None = None
        # those that leave nothing out come first: once every row is touched the others need not be asked
        for name, term in sorted(self.named(), key=lambda named: not named[1].never_silent):
            mine = term.touches(batch, name).any(1)
            touched = mine if touched is None else touched | mine
            if term.never_silent and bool(touched.all()):
                break
        return torch.zeros(len(batch), dtype=torch.bool, device=batch.mask.device) if touched is None else touched

    def loss(
        self, now: Evaluation, batch: Trajectories, planning: Planning | None = None, *, records: list[Record] | None = None
    ) -> Float[Tensor, ""]:
        """The loss of a micro-batch of a planned batch; the losses of all micro-batches add up to the loss of the whole.

        Without `old_log_prob` in the batch the current policy is taken to be the old one: the ratio is 1, to the last bit.
        """
        planning = planning or Planning()
        # networks that are evaluated when they are asked are not asked for what no term reads
        # the entropy first: it comes with the log-probabilities
        for read, wanted in (("entropy", self.reads_entropy), ("log_prob", self.reads_log_prob), ("value", self.reads_value)):
            if wanted and (tensor := getattr(now, read)) is not None and tensor.shape != batch.mask.shape:
                raise InputError(f"{read} is {list(tensor.shape)} but mask is {list(batch.mask.shape)}; they must be equal")
        quiet = silence(batch)
        quiet_now = now if quiet is batch else now.where(batch.mask)
        if not self.reads_log_prob:
            per_token = self._summed(quiet_now, quiet, planning, records, None)
            if per_token.requires_grad or not torch.is_grad_enabled():
                return per_token.sum()
            return (now.log_prob * 0.0 + per_token).sum()
        given = [tensor for name in self._log_probs_read if (tensor := getattr(quiet, name)) is not None]
        if not math.isfinite(sum(float(tensor.detach().sum()) for tensor in (quiet_now.log_prob, *given))):  # some came after `plan`
            check_log_probs(now.log_prob, batch, "log_prob")
            self._check_given(batch)
        if quiet.old_log_prob is None and "old_log_prob" in self.reads:
            quiet = quiet.replace(old_log_prob=quiet_now.log_prob.detach())
        per_token = self._summed(quiet_now, quiet, planning, records, quiet_now.log_prob.dtype)
        if not per_token.requires_grad:  # 0, with a usable graph
            per_token = quiet_now.log_prob * 0.0 + per_token
        return per_token.sum()

    def _summed(
        self, now: Evaluation, batch: Trajectories, planning: Planning, records: list[Record] | None, dtype: torch.dtype | None
    ) -> Float[Tensor, "B T"]:
        """The terms' weighted losses of a silenced batch, in `dtype`; None for that of the first term's."""
        per_token: Tensor | None = None
        for name, term in self.named():
            loss, record = term.per_token(now, batch, name, planning)
            weight = batch.require(f"{name}/weight", name).to(dtype or loss.dtype)
            if per_token is None:
                if loss.shape != weight.shape:
                    raise InputError(f"term '{name}' gives {list(loss.shape)} but mask is {list(weight.shape)}; they must be equal")
                per_token = weight * loss
            else:
                per_token = torch.addcmul(per_token, weight, loss)
            if records is not None and record is not None:
                records.append(record.kept())
        return torch.zeros_like(batch.mask, dtype=torch.float32) if per_token is None else per_token

    def __call__(self, now: Evaluation, batch: Trajectories, planning: Planning | None = None) -> Float[Tensor, ""]:
        """Prepare, plan and evaluate a whole batch at once: the estimator on tensors, without model or trainer."""
        planning = planning or Planning()
        return self.loss(now, self.plan(self.prepare(batch, planning), planning, now), planning)


def corrected(objective: Objective, limit: float | None) -> Objective:
    """The objective for rollouts of an older policy: each policy gradient over rollouts divided by what sampled them (`Corrected`).

    Unchanged: references that read the sampler's own record already, those for offline data, and other terms.
    """

    def changed(term: Term) -> Term:
        if not isinstance(term, PolicyGradient) or Source.ROLLOUT not in term.rows:
            return term
        if term.reference.offline or "behaviour_log_prob" in term.reference.reads:
            return term
        return dataclasses.replace(term, reference=Corrected(term.reference, limit))

    return Objective(tuple(changed(term) for term in objective.terms))


def silence(batch: Trajectories) -> Trajectories:
    """The batch with every floating `[B,T]` tensor 0 where the policy did not act, so that nothing there can leak."""
    if batch.full:
        return batch
    shape = batch.mask.shape

    def quiet(tensor: Tensor | None) -> Tensor | None:
        if tensor is None or not tensor.is_floating_point() or tensor.shape != shape:
            return tensor
        return torch.where(batch.mask, tensor, 0)

    fields = ("step_reward", "behaviour_log_prob", "old_log_prob", "old_entropy", "anchor_log_prob", "value", "bootstrap_value")
    return batch.replace(**{name: quiet(getattr(batch, name)) for name in fields}, planned={k: quiet(v) for k, v in batch.planned.items()})


def check_rewards(batch: Trajectories) -> None:
    """Refuses a reward that is not finite, naming the row: in a group it would spoil every other row's advantage."""
    if batch.reward is not None and not bool(torch.isfinite(batch.reward).all()):
        row = int((~torch.isfinite(batch.reward)).nonzero()[0])
        raise InputError(f"the reward of row {row} is {float(batch.reward[row])}; accepted: finite numbers")
    if batch.step_reward is not None and bool((bad := batch.mask & ~torch.isfinite(batch.step_reward)).any()):
        row, step = (int(i) for i in bad.nonzero()[0])
        raise InputError(f"step_reward is {float(batch.step_reward[row, step])} at row {row}, position {step}; accepted: finite numbers")


def check_log_probs(log_prob: Tensor, batch: Trajectories, name: str) -> None:
    """Refuses NaN, +inf and −inf (a sampled action of probability 0) where the policy acted, naming row and position."""
    if log_prob.shape != batch.mask.shape:
        raise InputError(f"{name} is {list(log_prob.shape)} but mask is {list(batch.mask.shape)}; they must be equal")
    if math.isfinite(float(log_prob.detach().sum())):  # none of them is anything else
        return
    bad = batch.mask & ~torch.isfinite(log_prob.detach())
    if bad.any():
        row, step = (int(i) for i in bad.nonzero()[0])
        value = float(log_prob.detach()[row, step])
        why = " (an action that was sampled cannot have probability 0)" if value == float("-inf") else ""
        raise InputError(f"{name} is {value} at row {row}, position {step}{why}")
