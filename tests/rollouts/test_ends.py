"""One end token, never two, none in the middle; the template's own end of a turn; one beginning."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tokenizers.processors import TemplateProcessing

from unipg.errors import InputError
from unipg.policies.causal_lm import ScratchModel, build_model, train_tokenizer
from unipg.rollouts.generation import sample
from unipg.rollouts.scoring import row_tokens
from unipg.rollouts.text import answer_with_end, end_of_answer, end_tokens, prompt_messages, prompt_tokens, templated_tokens
from unipg.tasks.base import Item

CHATML = (
    "{% for m in messages %}<|im_start|>{{m['role']}}\n{{m['content']}}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LLAMA = (
    "{{bos_token}}{% for m in messages %}<|im_start|>{{m['role']}}\n\n{{m['content']}}<|im_end|>{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n\n{% endif %}"
)
BARE = "{% for m in messages %}{{m['role']}}: {{m['content']}}\n{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}"
ENDS = "{% for m in messages %}{{m['role']}}: {{m['content']}}{{eos_token}}{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}"
ITEM = Item(0, "What is 1 + 2?")


def made(template: str | None = None, bos: str | None = None) -> Any:
    tokenizer = train_tokenizer([f"What is {a} + {b}? user assistant" for a in range(10) for b in range(10)], 300)
    if template is not None:
        tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
        tokenizer.chat_template = template
    if bos:
        tokenizer.add_special_tokens({"bos_token": bos})
        tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single=f"{bos} $A", special_tokens=[(bos, tokenizer.bos_token_id)])
    return tokenizer


@pytest.mark.parametrize("text", ["3", "3<|endoftext|>", "3<|endoftext|><|endoftext|>"])
def test_an_answer_ends_once(text: str) -> None:
    tokenizer = made()
    assert answer_with_end(tokenizer, text, "here") == [*tokenizer.encode("3"), tokenizer.eos_token_id]
    assert answer_with_end(tokenizer, text, "here", ended=False) == tokenizer.encode("3")
    tokens, begin = row_tokens(tokenizer, ITEM, text)
    assert tokens[begin:] == [*tokenizer.encode("3"), tokenizer.eos_token_id]


def test_an_end_in_the_middle_is_named() -> None:
    with pytest.raises(InputError, match=r"data.jsonl line 3: an answer has the end token '<\|endoftext\|>' in its middle"):
        answer_with_end(made(), "3<|endoftext|>4", "data.jsonl line 3")
    with pytest.raises(InputError, match=r"'<\|im_end\|>' in its middle"):
        answer_with_end(made(CHATML), "3<|im_end|>\n<|im_start|>user", "here")


@pytest.mark.parametrize(
    ("template", "end"), [(CHATML, "<|im_end|>"), (LLAMA, "<|im_end|>"), (BARE, "<|endoftext|>"), (ENDS, "<|endoftext|>")]
)
def test_answers_end_as_the_template_ends_turns(template: str, end: str) -> None:
    tokenizer = made(template, "<s>" if template == LLAMA else None)
    token = tokenizer.convert_tokens_to_ids(end)
    assert end_of_answer(tokenizer) == token
    assert end_of_answer(tokenizer, "never") == tokenizer.eos_token_id
    row = answer_with_end(tokenizer, "3" + end, "here")
    assert row == [*tokenizer.encode("3", add_special_tokens=False), token]
    if template != BARE:
        whole = templated_tokens(tokenizer, [*prompt_messages(ITEM), {"role": "assistant", "content": "3"}])
        prompt = prompt_tokens(tokenizer, ITEM, "auto")
        assert whole[: len(prompt) + len(row)] == prompt + row
    model = build_model(ScratchModel(hidden_size=16, layers=1, heads=2, intermediate_size=16), tokenizer)
    assert end_tokens(model, tokenizer) == sorted({tokenizer.eos_token_id, token})
    assert end_tokens(model, tokenizer, "never") == [tokenizer.eos_token_id]


def test_a_prompt_begins_once() -> None:
    tokenizer = made(bos="<s>")
    hello = tokenizer.encode("hello", add_special_tokens=False)
    for text in ("hello", "<s>hello"):
        assert prompt_tokens(tokenizer, Item(0, text), "auto") == [tokenizer.bos_token_id, *hello]


def test_padding_that_the_model_does_not_have_is_never_looked_at() -> None:
    tokenizer = made()
    model = build_model(ScratchModel(hidden_size=16, layers=1, heads=2, intermediate_size=16), tokenizer).eval()
    options: dict[str, Any] = {"rollouts": 2, "max_new_tokens": 5, "end_tokens": [0]}
    prompts = [[5, 6, 7], [8]]
    found = [
        sample(model, prompts, pad_token=pad, generator=torch.Generator().manual_seed(0), **options) for pad in (1, len(tokenizer) + 7)
    ]
    assert found[0] == found[1]
