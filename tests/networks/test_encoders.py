"""Observations as they are stored and as networks read them: every space, by hand and against Gymnasium's own flattening."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.spaces.utils import flatten
from gymnasium.vector.utils import batch_space

from unipg.errors import InputError
from unipg.networks import Encoder, encoder_for, encoder_from
from unipg.networks.encoders import Image, observation_of
from unipg.replay import Column, Ring
from unipg.seeding import generator

FLAT = [
    spaces.Box(-1.0, 1.0, (2, 3), np.float32),
    spaces.Box(-1.0, 1.0, (), np.float64),
    spaces.Box(0, 255, (5,), np.uint8),
    spaces.Discrete(300),
    spaces.Discrete(3, start=-1),
    spaces.MultiDiscrete([3, 2, 300]),
    spaces.MultiDiscrete(np.array([[3, 2], [2, 4]]), start=np.array([[1, 0], [-1, 7]])),
    spaces.MultiBinary((2, 2)),
    spaces.Dict({"z": spaces.Discrete(4, start=2), "a": spaces.Box(0.0, 9.0, (2,)), "m": spaces.Dict({"b": spaces.MultiBinary(3)})}),
]


def encoder_of(space: spaces.Space, **settings: str) -> Encoder:
    return encoder_for(space, generator(0), **settings)  # type: ignore[arg-type]


@pytest.mark.parametrize("space", FLAT, ids=str)
def test_flat_spaces_are_read_as_gymnasium_flattens_them(space: spaces.Space) -> None:
    encoder, rows = encoder_of(space), 7
    many = batch_space(space, rows)
    many.seed(1)
    given = many.sample()
    singles = [spaces_row(given, k) for k in range(rows)]
    expected = torch.from_numpy(np.stack([flatten(space, one) for one in singles]).astype(np.float32))
    stored = encoder.flatten(given)
    assert stored.dtype == encoder.stored.dtype == "float32"
    assert stored.shape == (rows, *encoder.stored.shape)
    assert expected.shape == (rows, encoder.size)
    assert torch.equal(encoder(torch.from_numpy(stored)), expected)
    assert np.array_equal(encoder.on_the_host()(stored), expected.numpy())
    for one, row in zip(singles, stored, strict=True):
        assert np.array_equal(encoder.flatten_one(one), row)
        assert encoder.read(one)[1]
        assert np.array_equal(encoder.read(one)[0][0], row)
    again, alone = encoder.read(given)
    assert np.array_equal(again, stored)
    assert not alone
    plain = json.loads(json.dumps(encoder.space))
    assert np.array_equal(encoder_from(plain, generator(5)).flatten(given), stored)


def spaces_row(given: object, k: int) -> object:
    return {key: spaces_row(value, k) for key, value in given.items()} if isinstance(given, dict) else given[k]  # type: ignore[index]


def test_a_dict_is_stored_in_the_order_of_its_keys_a_number_for_each_that_counts() -> None:
    encoder = encoder_of(FLAT[-1])
    stored = encoder.flatten_one({"z": 5, "m": {"b": np.array([1, 0, 1], np.int8)}, "a": np.array([0.5, 8.0], np.float32)})
    assert stored.tolist() == [0.5, 8.0, 1.0, 0.0, 1.0, 3.0]
    assert encoder(torch.from_numpy(stored[None])).tolist() == [[0.5, 8.0, 1.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0]]


@pytest.mark.parametrize(
    ("space", "width"), [(spaces.Box(0, 255, (4, 6, 3), np.uint8), 72), (spaces.Discrete(300), 4), (FLAT[6], 16), (FLAT[8], 24)], ids=str
)
def test_a_ring_keeps_them_as_they_are_stored(space: spaces.Space, width: int) -> None:
    encoder = encoder_of(space)
    ring = Ring(None, [Column("observation", *encoder.stored)], 50)
    assert ring.row_bytes == width
    given = batch_space(space, 40).sample() if not isinstance(space, spaces.Discrete) else np.arange(260, 300)
    stored = encoder.flatten(given)
    if space.dtype == np.uint8:
        stored[:, 0] = 255
    ring.append(observation=stored)
    drawn = ring.draw(torch.arange(40))["observation"]
    assert drawn.dtype == torch.from_numpy(stored).dtype
    assert np.array_equal(drawn.numpy().reshape(stored.shape), stored)
    assert torch.equal(encoder(drawn), encoder(torch.from_numpy(stored)))


@pytest.mark.parametrize(("shape", "channels"), [((4, 6, 3), "auto"), ((3, 4, 6), "auto"), ((4, 6, 3), "last"), ((3, 4, 6), "first")])
def test_an_image_arrives_channel_first_and_divided_once(shape: tuple[int, ...], channels: str, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = encoder_of(spaces.Box(0, 255, shape, np.uint8), channels=channels)
    assert encoder.stored == ((3, 4, 6), "uint8")
    image = np.zeros((2, 3, 4, 6), np.uint8)  # the row, a channel of its own, the side of 4 and the side of 6
    image[1] = 255
    image[0] = 50 * np.arange(1, 4)[:, None, None] + 10 * np.arange(4)[:, None] + np.arange(6)
    given = image if shape == (3, 4, 6) else image.transpose(0, 2, 3, 1)
    stored = encoder.flatten(given)
    assert stored.dtype == np.uint8
    assert np.array_equal(stored, image)
    assert np.array_equal(encoder.flatten_one(given[0]), image[0])
    seen = []
    convolve = torch.nn.functional.conv2d
    monkeypatch.setattr("unipg.networks.encoders.conv2d", lambda x, *rest: seen.append(x) or convolve(x, *rest))
    out = encoder(torch.from_numpy(stored))
    torch.testing.assert_close(seen[0], torch.from_numpy(image).float() / 255)
    assert out.shape == (2, encoder.size)
    torch.testing.assert_close(torch.from_numpy(encoder.on_the_host()(stored)), out)


def test_large_images_go_through_the_layers_of_mnih() -> None:
    encoder = encoder_of(spaces.Box(0, 255, (84, 84, 4), np.uint8))
    torchs = torch.nn.Sequential(
        *(torch.nn.Conv2d(4, 32, 8, 4), torch.nn.ReLU(), torch.nn.Conv2d(32, 64, 4, 2), torch.nn.ReLU()),
        *(torch.nn.Conv2d(64, 64, 3, 1), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(3136, 512), torch.nn.ReLU()),
    )
    with torch.no_grad():
        for mine, own in zip(encoder.parameters(), torchs.parameters(), strict=True):
            own.copy_(mine)
    image = torch.randint(256, (2, 4, 84, 84), generator=generator(1), dtype=torch.uint8)
    torch.testing.assert_close(encoder(image), torchs(image / 255))
    assert encoder.size == 512
    assert image.element_size() * math.prod(encoder.stored.shape) == 84 * 84 * 4


def test_encoders_begin_as_they_are_told_from_their_own_generator() -> None:
    space = spaces.Box(0, 255, (8, 8, 3), np.uint8)
    before = torch.random.get_rng_state()
    plain, orthogonal = encoder_of(space), encoder_of(space, init="orthogonal")
    assert torch.equal(torch.random.get_rng_state(), before)
    assert isinstance(plain, Image)
    for k, inputs in ((0, 27), (1, 16 * 36)):
        largest = max(p.abs().max().item() for p in plain.layers[k].parameters())
        assert 0.9 * inputs**-0.5 < largest <= inputs**-0.5
        w = orthogonal.layers[k].weight.detach().flatten(1)
        torch.testing.assert_close(w @ w.T, 2 * torch.eye(len(w)), rtol=1e-4, atol=1e-5)
        assert not orthogonal.layers[k].bias.any()


@pytest.mark.parametrize(
    ("space", "message"),
    [
        (spaces.Text(3), r"observations are Text\(.*accepted: Box, Discrete"),
        (spaces.Sequence(spaces.Discrete(2)), r"observations are Sequence\(.*accepted: Box"),
        (spaces.Graph(spaces.Box(0, 1, (2,)), None), r"observations are Graph\(.*accepted: Box"),
        (spaces.Tuple([spaces.Discrete(2)]), r"observations are Tuple\(.*accepted: Box"),
        (spaces.Dict({"a": spaces.Dict({"b": spaces.Text(2)})}), r"entry 'b' of entry 'a' of the environment's observations are Text"),
        (
            spaces.Dict({"v": spaces.Discrete(2), "eye": spaces.Box(0, 255, (8, 8, 3), np.uint8)}),
            "entry 'eye' of .* is an image",
        ),
        (spaces.Box(0, 255, (8, 8, 8), np.uint8), r"images \[8, 8, 8\] whose channels may be on any axis; .*channels: first or last"),
        (spaces.Box(0, 255, (36, 48, 40), np.uint8), r"images \[36, 48, 40\] whose channels may be on any axis"),
        (spaces.Box(0, 255, (6, 2, 4), np.uint8), r"images \[6, 2, 4\] whose channels may be on any axis"),
        (spaces.Box(0, 255, (2, 9, 1), np.uint8), r"images are \[2, 9, 1\], channels last; accepted: sides of at least 3"),
        (spaces.Discrete(10**9), r"Discrete\(1000000000\), each value an input of its own; accepted: at most 100000"),
        (spaces.Dict({}), r"observations are Dict\(\); accepted"),
    ],
)
def test_what_no_encoder_reads_is_named(space: spaces.Space, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        encoder_of(space)
    assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match="did you mean 'first'"):
        observation_of(FLAT[0], "frist")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("space", "given", "message"),
    [
        (FLAT[0], np.zeros((3, 2)), r"shape \[3, 2\]; accepted: \[2, 3\], or several: \[N, 2, 3\]"),
        (FLAT[0], np.full((2, 3), np.nan), "holds a number that is not finite"),
        (FLAT[4], 2, "holds 2; accepted: whole numbers, -1 to 1"),
        (FLAT[4], 0.5, "holds 0.5; accepted: whole numbers"),
        (FLAT[5], [[2, 1, 299], [2, 2, 0]], "holds 2; accepted: whole numbers, 0 to 2, 0 to 1, 0 to 299"),
        (FLAT[8], {"a": [0.0, 0.0], "z": 2}, "the observation has entries a, z; accepted: a, m, z"),
        (FLAT[8], 3, "the observation has entries int; accepted: a, m, z"),
        (FLAT[8], {"a": [0.0, 0.0], "z": [2, 3], "m": {"b": [0, 0, 1]}}, "entries for one and entries for several"),
        (FLAT[8], {"a": [0.0, 0.0], "z": 2, "m": {"b": [0, 0]}}, r"entry 'b' of entry 'm' of the observation has the shape \[2\]"),
        (spaces.Box(0, 255, (3, 4, 6), np.uint8), np.full((3, 4, 6), 0.5), "numbers that are no bytes"),
        (FLAT[0], ["a"], "not made of numbers"),
    ],
)
def test_observations_that_do_not_fit_are_named(space: spaces.Space, given: object, message: str) -> None:
    with pytest.raises(InputError, match=message):
        encoder_of(space).read(given)
