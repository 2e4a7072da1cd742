"""Near misses are wrong by a little, and are what given completions of procedural tasks are made of."""

import pytest

from unipg.seeding import generator
from unipg.tasks import reasoning
from unipg.tasks.near_misses import NUMBER, OFF, near_misses
from unipg.tasks.reasoning import ReasoningGymVerifier, reasoning_gym_task

SPELLING = {"min_word_len": 3, "max_word_len": 4}


def distance(one: str, other: str) -> int:
    """Letters to leave out, put in, exchange for another, or exchange with their neighbour."""
    row: dict[tuple[int, int], int] = {}
    for i in range(len(one) + 1):
        for j in range(len(other) + 1):
            if not i or not j:
                row[i, j] = i + j
                continue
            same = one[i - 1] == other[j - 1]
            row[i, j] = min(row[i - 1, j] + 1, row[i, j - 1] + 1, row[i - 1, j - 1] + (not same))
            if i > 1 and j > 1 and one[i - 1] == other[j - 2] and one[i - 2] == other[j - 1]:
                row[i, j] = min(row[i, j], row[i - 2, j - 2] + 1)
    return row[len(one), len(other)]


@pytest.mark.parametrize("answer", ["olleh", "abc", "a", "the cat sat", "aaaa"])
def test_text_is_wrong_by_one_mistake(answer) -> None:
    found = list(near_misses(answer, generator(3, "near")))
    assert found
    assert all(distance(answer, other) == 1 and other.strip() for other in found)


@pytest.mark.parametrize("answer", ["17", "-6", "3 apples", "x = 42", "0"])
def test_numbers_are_off_by_little_or_have_the_other_sign(answer) -> None:
    found = list(near_misses(answer, generator(3, "near")))
    assert found
    assert answer not in found
    value = int(NUMBER.search(answer).group())
    for other in found:
        assert NUMBER.sub("#", other) == NUMBER.sub("#", answer)
        assert int(NUMBER.search(other).group()) in {-value, *(value + off for off in OFF)}


def test_the_same_draw_gives_the_same_and_nothing_has_none() -> None:
    assert list(near_misses("olleh", generator(1, "a"))) == list(near_misses("olleh", generator(1, "a")))
    assert list(near_misses("olleh", generator(1, "a"))) != list(near_misses("olleh", generator(2, "a")))
    assert list(near_misses("", generator(1, "a"))) == []


def test_rejected_answers_of_a_procedural_task_are_near_misses_that_its_scorer_calls_wrong() -> None:
    task = reasoning_gym_task("spell_backward", 60, 1, SPELLING, preferences="pairs")
    for item in task.items:
        chosen, rejected = item.completions
        assert (chosen.text, chosen.score, rejected.score) == (item.expected, 1.0, 0.0)
        assert task.verifier(rejected.text, item) == 0.0
        assert distance(chosen.text, rejected.text) == 1


def test_scored_completions_have_the_scorers_own_values() -> None:
    task = reasoning_gym_task("spell_backward", 20, 1, SPELLING, preferences="scored")
    verifier: ReasoningGymVerifier = task.verifier
    for item in task.items:
        texts = [completion.text for completion in item.completions]
        assert len(set(texts)) == 4
        assert item.completions[0].score == 1.0
        partial = ReasoningGymVerifier(verifier.datasets, binary=False)
        assert [completion.score for completion in item.completions] == [partial(text, item) for text in texts]
        assert max(completion.score for completion in item.completions[1:]) < 1


def test_where_no_near_miss_is_wrong_another_items_answer_is_taken(monkeypatch) -> None:
    monkeypatch.setattr(reasoning, "near_misses", lambda answer, draw: iter([answer, f" {answer} "]))
    task = reasoning_gym_task("spell_backward", 30, 1, SPELLING, preferences="pairs")
    known = {item.expected for item in task.items}
    assert all(item.completions[1].text in known - {item.expected} for item in task.items)


def test_of_a_question_with_few_answers_another_of_them_is_taken() -> None:
    task = reasoning_gym_task("syllogism", 12, 1, preferences="pairs")
    assert {item.expected for item in task.items} == {"Yes", "No"}
    assert all({completion.text for completion in item.completions} == {"Yes", "No"} for item in task.items)
