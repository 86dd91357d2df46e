"""Near duplicates: copies are found, strangers are not, and the search misses nothing that brute force finds."""

import secrets
from collections.abc import Callable

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.fft import dctn

from data_shards.pack.perceptual_hash import BITS, WITHIN, near_pairs, perceptual_hash
from data_shards.phantom.render import render_radiograph

STRANGERS = 60


@pytest.fixture(scope="module")
def films() -> list[np.ndarray]:
    return [render_radiograph(7, patient).image for patient in range(STRANGERS)]


@pytest.fixture(scope="module")
def hashes(films: list[np.ndarray]) -> list[str]:
    return [perceptual_hash(film) for film in films]


def distance(one: str, other: str) -> int:
    return (int(one, 16) ^ int(other, 16)).bit_count()


def jpeg(film: np.ndarray) -> np.ndarray:
    return cv2.imdecode(cv2.imencode(".jpg", film, [cv2.IMWRITE_JPEG_QUALITY, 50])[1], cv2.IMREAD_GRAYSCALE)


def halved(film: np.ndarray) -> np.ndarray:
    return cv2.resize(film, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA)


def windowed(film: np.ndarray) -> np.ndarray:
    low, high = np.percentile(film, [2, 98])
    return (np.clip((film - low) / (high - low), 0, 1) * 255).astype(np.uint8)


def brightened(film: np.ndarray) -> np.ndarray:
    return (255 * (film / 255) ** 0.7).astype(np.uint8)


def trimmed(film: np.ndarray) -> np.ndarray:
    height, width = film.shape
    return film[height // 100 : -(height // 100), width // 100 : -(width // 100)]


def padded(film: np.ndarray) -> np.ndarray:
    return cv2.copyMakeBorder(film, 0, 0, 40, 60, cv2.BORDER_CONSTANT, value=0)


def deep(film: np.ndarray) -> np.ndarray:
    return film.astype(np.uint16) << 8


def lettered(film: np.ndarray) -> np.ndarray:
    return cv2.putText(film.copy(), "L", (4, 24), cv2.FONT_HERSHEY_SIMPLEX, 0.8, 255, 2)


@pytest.mark.parametrize("altered", [jpeg, halved, windowed, brightened, trimmed, padded, deep, lettered])
def test_copies_are_found_and_strangers_are_not(
    films: list[np.ndarray], hashes: list[str], altered: Callable[[np.ndarray], np.ndarray]
) -> None:
    copies = [perceptual_hash(altered(film)) for film in films]
    found = {(i, j) for i, j, _ in near_pairs(hashes + copies)}
    assert found == {(i, STRANGERS + i) for i in range(STRANGERS)}


def test_the_bits_are_signs_of_a_cosine_transform() -> None:
    values = np.random.default_rng(0).permutation(64 * 64).reshape(64, 64)  # its own ranks, and never averaged
    image = np.repeat(np.repeat(values, 4, axis=0), 4, axis=1).astype(np.uint16)
    window = np.sin(np.pi * (np.arange(64) + 0.5) / 64)
    spectrum = dctn((2 * values - values.max()) * np.outer(window, window))
    ranked = sorted((v * v + u * u, v, u) for v in range(64) for u in range(64))[1 : BITS + 1]
    bits = "".join("1" if spectrum[v, u] > 0 else "0" for _, v, u in ranked)
    assert perceptual_hash(image) == f"{int(bits, 2):064x}"


def test_margins_give_a_second_hash_and_flat_images_none(films: list[np.ndarray]) -> None:
    film = windowed(films[0])
    assert len(perceptual_hash(padded(film))) == 128
    assert perceptual_hash(np.full((300, 200), 9, np.uint8)) == ""
    assert perceptual_hash(np.zeros((1, 1), np.uint16)) == ""
    flat = np.zeros((200, 200), np.uint8)
    flat[90:110, 90:110] = 255  # what is left inside is too small to be told from other such spots
    assert len(perceptual_hash(flat)) == 64


@settings(max_examples=60, deadline=None)
@given(
    centres=st.integers(1, 6),
    count=st.integers(0, 60),
    spread=st.integers(0, 40),
    within=st.integers(0, 127),
    seed=st.integers(0, 2**32 - 1),
)
def test_the_search_is_exact(centres: int, count: int, spread: int, within: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    bits = rng.integers(0, 2, (centres, BITS))[rng.integers(centres, size=count)]
    for row in bits:
        row[rng.choice(BITS, rng.integers(0, spread + 1), replace=False)] ^= 1
    hashes = [f"{int(''.join(map(str, row)), 2):064x}" for row in bits.tolist()]
    hashes = ["" if rng.random() < 0.1 else text for text in hashes]
    first = {text: i for i, text in reversed(list(enumerate(hashes)))}
    expected = [
        (i, j, d)
        for j, other in enumerate(hashes)
        for i, one in enumerate(hashes[:j])
        if one and other and (first[one] == i or first[other] == j) and (d := distance(one, other)) <= within
    ]
    assert near_pairs(hashes, within) == sorted(expected)


def test_of_two_hashes_the_nearest_counts() -> None:
    a, b, c = (secrets.token_hex(32) for _ in range(3))
    off = f"{int(a, 16) ^ 0b111:064x}"
    assert near_pairs([a, b + off, c]) == [(0, 1, 3)]
    assert near_pairs([a + b, b + off, c + c]) == [(0, 1, 0)]
    assert near_pairs([]) == []
    assert near_pairs(["", ""]) == []


def test_equal_hashes_are_near_what_the_first_of_them_is_near() -> None:
    a, b = (secrets.token_hex(32) for _ in range(2))
    off = f"{int(a, 16) ^ 0b11:064x}"
    assert near_pairs([off, a, b, a, a]) == [(0, 1, 2), (0, 3, 2), (0, 4, 2), (1, 3, 0), (1, 4, 0)]
    assert len(near_pairs([a] * 3000 + [off] * 3000)) == 2 * 2999 + 2 * 3000 - 1


def test_many_hashes_are_searched_whole() -> None:
    """More candidates than are compared at a time, with pairs planted at every distance up to the limit."""
    rng = np.random.default_rng(1)
    strangers = [rng.bytes(32).hex() for _ in range(30_000)]
    planted = []
    for d in range(WITHIN + 5):
        mask = sum(1 << int(place) for place in rng.choice(BITS, d, replace=False))
        planted.append(f"{int(strangers[d], 16) ^ mask:064x}")
    expected = [(d, 30_000 + d, d) for d in range(WITHIN + 1)]
    assert near_pairs(strangers + planted) == expected


def test_a_limit_that_brute_force_would_need_is_refused() -> None:
    with pytest.raises(ValueError, match="within 128 bits: give 0 to 127"):
        near_pairs([], within=128)
