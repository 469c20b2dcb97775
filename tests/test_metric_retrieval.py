"""Retrieval: what it must say of samples that are perfect, random, shuffled, or of a set with duplicates."""

import math

import pytest
import torch

from imagen import build
from imagen.cli import compose
from imagen.errors import UserError
from imagen.metric.pictures import InMemory, PictureSet
from imagen.metric.retrieval import (
    Retrieval,
    derangement,
    first_in_hash_order,
    nearest,
    own_rank,
    permutation_test,
    sentence_embedding,
)
from imagen.randomness import generator_of
from imagen.types import TextEmbedding

METRIC = Retrieval(k=[1, 10], permutations=999, seed=0)


def noise(count: int, name: str) -> torch.Tensor:
    return torch.randint(0, 256, (count, 3, 4, 4), generator=generator_of("test", name), dtype=torch.uint8)


def grey(*levels: int) -> torch.Tensor:
    """One picture of 1 pixel a level: distances between them are differences of levels."""
    return torch.tensor(levels, dtype=torch.uint8)[:, None, None, None].expand(-1, 3, 1, 1)


def test_perfect_samples_always_hit_and_shuffled_ones_do_not():
    pictures = noise(300, "pictures")
    own = torch.arange(20, 276)
    result = METRIC.hits("retrieval", pictures[own], own, pictures)
    assert (result["retrieval_top1"], result["retrieval_top10"]) == (1.0, 1.0)
    assert result["retrieval_top1_shuffled"] == 0.0
    assert result["retrieval_top10_shuffled"] < 0.1


def test_samples_that_ignore_their_caption_hit_k_in_n_times():
    n = 500
    result = METRIC.hits("retrieval", noise(2000, "samples"), torch.arange(2000) % n, noise(n, "pictures"))
    for k in (1, 10):
        for suffix in ("", "_shuffled"):
            assert abs(result[f"retrieval_top{k}{suffix}"] - k / n) < 5 * math.sqrt(k / n / 2000)


def test_rank_counts_the_pictures_that_are_nearer():
    pictures = grey(0, 10, 20, 40, 80)
    ranks = own_rank(grey(21, 21, 21, 21, 21), torch.arange(5), pictures)  # distances 21 11 1 19 59
    assert ranks.tolist() == [3, 1, 0, 2, 4]


def test_an_identical_picture_is_as_good_as_the_own_one():
    pictures = grey(50, 50, 50, 90)
    assert own_rank(grey(51, 51, 51), torch.tensor([0, 1, 2]), pictures).tolist() == [0, 0, 0]
    assert own_rank(grey(51), torch.tensor([3]), pictures).tolist() == [3]  # the three count as three neighbours


def test_held_out_samples_are_asked_for_their_own_picture_among_all():
    metric, pictures = Retrieval(k=[1, 2, 3], permutations=1, seed=0), grey(0, 10, 20, 40, 80)
    found = metric.hits("heldout", grey(21, 21, 21), torch.tensor([2, 3, 0]), pictures)  # ranks 0, 2, 3
    assert [found[f"heldout_top{k}"] for k in metric.k] == pytest.approx([1 / 3, 1 / 3, 2 / 3])
    assert metric.values()["heldout_top3"].tolist() == [1, 1, 0]


def test_another_picture_at_the_same_distance_stands_before_the_own_one():
    assert own_rank(grey(50, 50), torch.tensor([0, 1]), grey(40, 60)).tolist() == [1, 1]


def test_nearest_is_exact_where_float32_would_round():
    pictures = torch.full((2, 3, 64, 64), 255, dtype=torch.uint8)
    pictures[0, 0, 0, 0] = 254
    assert nearest(torch.full((1, 3, 64, 64), 255, dtype=torch.uint8), pictures).tolist() == [1]


@pytest.mark.parametrize("count", [2, 3, 10, 257])
def test_derangement_moves_everything_and_loses_nothing(count: int):
    shuffle = derangement(count, generator_of(0))
    assert (shuffle != torch.arange(count)).all()
    assert shuffle.sort().values.tolist() == list(range(count))
    assert torch.equal(shuffle, derangement(count, generator_of(0)))


def test_heldout_of_perfect_samples_is_one_and_significant():
    pictures, sentences = noise(60, "pictures"), torch.eye(60)
    own = torch.arange(0, 60, 3)
    result = METRIC.meaning(pictures[own], own, pictures, sentences * 7)
    assert result["heldout_cosine"] == pytest.approx(1.0)
    assert result["heldout_cosine_shuffled"] == pytest.approx(1 / 20, abs=0.01)  # one fixed point on average, of 20
    assert result["heldout_p"] == 1 / 1000


def test_heldout_compares_the_prompt_with_the_nearest_pictures_caption():
    pictures = grey(0, 100, 200)
    sentences = torch.tensor([[1.0, 0.0], [1.0, 1.0], [0.0, 2.0]])
    result = METRIC.meaning(grey(110, 190), torch.tensor([0, 2]), pictures, sentences)
    assert result["heldout_cosine"] == pytest.approx((math.sqrt(0.5) + 1) / 2)


def test_p_value_is_uniform_under_the_null_and_one_where_all_is_equal():
    values = torch.rand(400, 12, 12, generator=generator_of("null"), dtype=torch.float64)
    p = torch.tensor([permutation_test(v, 199, generator_of("p", i))[2] for i, v in enumerate(values)])
    ordered = p.sort().values
    distance = (ordered - torch.linspace(0, 1, len(p), dtype=ordered.dtype)).abs().max()
    assert distance < 1.95 / math.sqrt(len(p))  # Kolmogorov-Smirnov at 0.1 %
    assert permutation_test(torch.full((12, 12), 0.1), 199, generator_of(0))[2] == 1.0


def test_first_in_hash_order_is_the_same_whatever_the_order_and_company():
    captions = [f"caption {i}" for i in range(50)]
    chosen = first_in_hash_order(captions, 5)
    assert chosen == first_in_hash_order(reversed(captions + captions), 5)
    assert chosen == [c for c in first_in_hash_order([*captions, "one more"], 6) if c != "one more"][:5]
    assert first_in_hash_order(["b", "a", "c"], 9) == ["c", "b", "a"]  # 2e7d..., 3e23..., ca97...


def test_sentence_embedding_is_the_mean_of_real_tokens_at_length_one():
    tokens = torch.tensor([[[3.0, 0.0], [0.0, 3.0], [9.0, 9.0]], [[0.0, 2.0], [9.0, 9.0], [9.0, 9.0]]])
    mask = torch.tensor([[True, True, False], [True, False, False]])
    expected = torch.tensor([[math.sqrt(0.5), math.sqrt(0.5)], [0.0, 1.0]])
    torch.testing.assert_close(sentence_embedding(TextEmbedding(tokens, mask)), expected)


@pytest.mark.parametrize(
    ("samples", "pictures", "message"),
    [
        (noise(1, "s"), noise(30, "p"), "1 captions cannot be shuffled"),
        (noise(3, "s"), noise(10, "p"), "k=10 says nothing among 10 pictures"),
    ],
)
def test_what_cannot_be_measured_is_refused(samples, pictures, message):
    with pytest.raises(UserError, match=message):
        METRIC.hits("retrieval", samples, torch.arange(len(samples)), pictures)


@pytest.mark.parametrize("wrong", [{"k": []}, {"k": [0]}])
def test_hyperparameters_out_of_range_are_refused(wrong):
    with pytest.raises(UserError, match="metric"):
        Retrieval(**({"k": [1], "permutations": 1, "seed": 0} | wrong))


def test_a_gallery_is_asked_by_its_captions_in_any_order_with_any_number_of_samples(monkeypatch):
    encoder = build.build_encoder(compose("train", ["experiment=toy"]))
    captions = [f"{'light' if i % 2 else 'dark'} {i}" for i in range(40)]
    pictures = torch.stack([noise(40, "p")[i] // 4 + (150 if i % 2 else 0) for i in range(40)])
    split = {"train": InMemory(pictures[:30], captions[:30]), "val": InMemory(pictures[30:], captions[30:])}
    reference = PictureSet(split.__getitem__, encoder, encoder)
    rows = [35, 3, 3, 31, 12, 7, 38]
    figures = METRIC(InMemory(pictures[rows], [captions[row] for row in rows]), reference)
    assert figures["retrieval_top1"] == 1.0
    assert figures["heldout_cosine"] == pytest.approx(1.0)
    assert METRIC.provenance()["sentence_encoder"] == "hash"
    assert METRIC.values()["retrieval_top1"].isnan().tolist() == [True, False, False, True, False, False, True]
    assert METRIC.values()["heldout_cosine"].nanmean().item() == pytest.approx(figures["heldout_cosine"])
    counts = METRIC.counts()
    assert (counts["retrieval_top1"], counts["retrieval_top10_shuffled"], counts["heldout_p"]) == (4, 4, 3)
    assert (figures["heldout_top1"], figures["heldout_top1_shuffled"], counts["heldout_top10_shuffled"]) == (
        1.0,
        0.0,
        3,
    )
    assert METRIC.values()["heldout_top10"].isnan().tolist() == METRIC.values()["heldout_cosine"].isnan().tolist()
    better = {"retrieval_top1", "retrieval_top10", "heldout_top1", "heldout_top10", "heldout_cosine"}
    assert METRIC.directions() == dict.fromkeys(better, "higher")
    trained = METRIC(InMemory(pictures[:5], captions[:5]), reference)
    assert "retrieval_top10" in trained
    assert "heldout_p" not in trained
    monkeypatch.setattr("imagen.metric.pictures.MOST_IN_MEMORY", 1000)
    with pytest.raises(UserError, match=r"retrieval holds all pictures .* 40 of 4 px are more than .* leave it out"):
        METRIC(InMemory(pictures[:5], captions[:5]), reference)
    with pytest.raises(UserError, match="prompts that are captions of the data set"):
        METRIC(InMemory(pictures[:2], ["a", "b"]), reference)
