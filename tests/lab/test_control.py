"""Control problems in closed form: estimates through the action, by the score and over all actions agree with them in mean."""

import json
import math

import pytest
import torch

from unipg.cli import main
from unipg.lab import control
from unipg.seeding import generator


@pytest.mark.parametrize("name", control.PROBLEMS)
def test_every_way_to_differentiate_has_the_exact_gradient_in_mean(name) -> None:
    """Each coordinate within 4 standard errors of the closed form."""
    problem = control.PROBLEMS[name](0)
    for title, term in control.methods(problem).items():
        batches = [control.batch_of(problem, 64, generator(1, name, number)) for number in range(150)]
        found = torch.stack([control.estimate(problem, term, batch) for batch in batches])
        error = found.std(0) / math.sqrt(len(found))
        assert bool(((found.mean(0) - problem.gradient).abs() <= 4 * error + 1e-9).all()), title


def test_the_gradient_of_one_state_is_that_of_the_formula() -> None:
    """J = −(std² + (mean − best)²)."""
    problem = control.one_state(0.5, -0.3, -0.5)
    assert problem.gradient.tolist() == pytest.approx([1.6, 1.6, -2 * math.exp(-1)])


def test_the_linear_quadratic_gradient_is_that_of_the_policy_gradient_theorem() -> None:
    """Σ discount^t E[x_t²] · ∂E_a[Q]/∂mean / x, against the derivative of the cost itself."""
    a, b, cost, discount, gain, log_std, noise = 0.9, 0.5, 0.1, 0.95, -0.4, -1.0, 0.3
    problem = control.linear_quadratic(a, b, cost, discount, gain, log_std, noise)
    pull, variance = a + b * gain, math.exp(2 * log_std)
    level = (1 + cost * gain**2) / (1 - discount * pull**2)
    moment = (1 + discount * (noise**2 + b**2 * variance) / (1 - discount)) / (1 - discount * pull**2)
    by_gain = -2 * (cost * gain + discount * level * b * pull) * moment
    by_spread = -2 * variance * (cost + discount * level * b**2) / (1 - discount)
    assert problem.gradient.tolist() == pytest.approx([by_gain, 0.0, by_spread], rel=1e-12)


def test_states_are_visited_as_often_as_the_chain_says() -> None:
    """The second moment of sampled visits, and the shares of a Markov chain."""
    problem = control.linear_quadratic()
    states = problem.visits(40_000, generator(0, "visits"))
    pull, variance = 0.9 - 0.2, math.exp(-2)
    moment = (1 + 0.95 * (0.09 + 0.25 * variance) / 0.05) / (1 - 0.95 * pull**2) * 0.05
    assert float((states**2).mean()) == pytest.approx(moment, rel=0.03)


def test_the_exact_baseline_and_the_path_lower_the_noise() -> None:
    by_name = {result.name: result.measured.snr.value for result in control.run_control(control.linear_quadratic(), 150)}
    assert by_name["pathwise"] > by_name["score, baseline V(s)"] > 3 * by_name["score"]
    by_name = {result.name: result.measured.snr.value for result in control.run_control(control.markov(), 150)}
    assert by_name["enumerated"] > by_name["score, baseline V(s)"] > 3 * by_name["score"]


def test_the_command_writes_a_page_and_its_numbers(tmp_path, capsys) -> None:
    assert main(["lab", "--problem", "lq", "--batches", "20", "--group-sizes", "8,32", "--output", str(tmp_path)]) == 0
    numbers = json.loads((tmp_path / "lab.json").read_text(encoding="utf-8"))
    assert {row["name"] for row in numbers["study"]} == {"pathwise", "score", "score, baseline V(s)"}
    assert "the gradient is known in closed form" in (tmp_path / "lab.html").read_text(encoding="utf-8")
    assert "pathwise" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--algorithms", "grpo"], "--algorithms does not apply to problem 'lq'"),
        (["--grid"], "--grid does not apply to problem 'lq'"),
        (["--batches", "1"], "accepted: 2 or more"),
        (["--group-sizes", "0"], "a batch has 0 states"),
    ],
)
def test_what_does_not_apply_is_refused_in_one_line(more, said, tmp_path, capsys) -> None:
    assert main(["lab", "--problem", "lq", "--output", str(tmp_path), *more]) == 2
    assert said in capsys.readouterr().err


def test_a_problem_that_diverges_is_refused() -> None:
    with pytest.raises(ValueError, match=r"diverges: discount · \(a \+ b · gain\)² is "):
        control.linear_quadratic(gain=2.0)
