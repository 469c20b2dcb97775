"""Does the picture follow the words? Retrieval among the pictures of the training set, against shuffled prompts.

Questions, each asked again with the prompts shuffled among the samples, which shows what pictures that ignore their
prompt would score:

1. Trained captions: is the caption's own picture among the k pictures nearest to its sample?
2. Held-out captions: the same, of a picture that training never saw. No network judges it.
3. Held-out captions: is the caption of the nearest picture close to the prompt in meaning?

Nearness of pictures is L2 over uint8 pixels at the samples' own size, computed exactly.
"""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from imagen.errors import UserError
from imagen.metric.base import Direction, Metric, Subject
from imagen.metric.pictures import Pictures, PictureSet, in_memory
from imagen.randomness import generator_of
from imagen.ranges import Count, Natural
from imagen.text_encoder import TextEncoder
from imagen.types import TextEmbedding


class Retrieval(Metric):
    """All questions, as numbers for a report.

    ``k`` lists the sizes of the neighbourhood, ``permutations`` is how many shuffles the held-out p-value counts,
    ``seed`` that of the shuffles.
    """

    by_prompt = True

    def __init__(self, *, k: list[int], permutations: Count, seed: Natural) -> None:
        if not k or min(k) < 1:
            raise UserError(f"metric.retrieval.k={k} must list at least one neighbourhood size, each at least 1")
        self.k, self.permutations, self.seed = k, permutations, seed
        self._sentence_encoder = ""
        self._values: dict[str, Float[Tensor, " _"]] = {}
        self._asked = {"train": 0, "val": 0}

    def measure(self, subject: Subject) -> dict[str, float]:
        return self(subject.drawn, subject.own())

    def __call__(self, drawn: Pictures, reference: PictureSet) -> dict[str, float]:
        """Each question of the pictures drawn for captions of its split; without any, its figures are left out.

        Raises: UserError if no caption drawn is one of ``reference``, or that is too large to be held in memory.
        """
        self._values = {}
        captions, trained = reference.whole.captions, len(reference.train)
        row_of = {
            split: {captions[i]: i for i in reversed(rows)}
            for split, rows in (("train", range(trained)), ("val", range(trained, len(captions))))
        }
        asked = {split: [i for i, said in enumerate(drawn.captions) if said in rows] for split, rows in row_of.items()}
        if not any(asked.values()):
            raise UserError("retrieval needs prompts that are captions of the data set, and none of these is")
        self._asked = {split: len(rows) for split, rows in asked.items()}
        pictures, samples = in_memory(reference.whole, "retrieval"), torch.cat(list(drawn.batches(1024)))
        own = {split: torch.tensor([row_of[split][drawn.captions[i]] for i in rows]) for split, rows in asked.items()}
        figures: dict[str, float] = {}
        if asked["train"]:
            figures |= self.hits("retrieval", samples[asked["train"]], own["train"], pictures)
        if asked["val"]:
            self._sentence_encoder = reference.judge.name
            sentences = embed_sentences(reference.judge, captions)
            figures |= self.hits("heldout", samples[asked["val"]], own["val"], pictures)
            figures |= self.meaning(samples[asked["val"]], own["val"], pictures, sentences)
        self._values = {
            name: _spread(values, asked["val" if name.startswith("heldout") else "train"], len(drawn))
            for name, values in self._values.items()
        }
        return figures

    def directions(self) -> dict[str, Direction]:
        return dict.fromkeys(self._values, "higher")

    def depends(self, subject: Subject) -> dict[str, Any]:
        own = subject.own()
        return {"data": own.whole.captioned_digest, "judge": own.judge.declared()}

    def values(self) -> dict[str, Float[Tensor, " _"]]:
        return self._values

    def counts(self) -> dict[str, int]:
        ranks = [f"top{k}{suffix}" for k in self.k for suffix in ("", "_shuffled")]
        names = {
            "train": [f"retrieval_{rank}" for rank in ranks],
            "val": [*(f"heldout_{rank}" for rank in ranks), "heldout_cosine", "heldout_cosine_shuffled", "heldout_p"],
        }
        return {name: count for split, count in self._asked.items() for name in names[split]}

    def provenance(self) -> dict[str, str | int | float]:
        nearness = {"extractor": "pixels", "resize": "none"}
        return {**nearness, "sentence_encoder": self._sentence_encoder, "seed": self.seed}

    def hits(
        self, name: str, samples: UInt8[Tensor, "m 3 h w"], own: Int[Tensor, " m"], pictures: UInt8[Tensor, "n 3 h w"]
    ) -> dict[str, float]:
        """Share of samples with a hit: ``<name>_top<k>`` and ``<name>_top<k>_shuffled`` for every k.

        ``own[i]`` is the row in ``pictures`` of the picture whose caption sample i was drawn from; ``pictures`` are all
        of the set. By chance a share of about k / n hits.
        """
        _check(samples, pictures, largest_k=max(self.k))
        shuffle = derangement(len(own), generator_of(self.seed, "retrieval", "shuffle"))
        ranks = {"": own_rank(samples, own, pictures), "_shuffled": own_rank(samples, own[shuffle], pictures)}
        self._values |= {f"{name}_top{k}": (ranks[""] < k).double() for k in self.k}
        return {
            f"{name}_top{k}{suffix}": (rank < k).double().mean().item()
            for k in self.k
            for suffix, rank in ranks.items()
        }

    def meaning(
        self,
        samples: UInt8[Tensor, "m 3 h w"],
        own: Int[Tensor, " m"],
        pictures: UInt8[Tensor, "n 3 h w"],
        sentences: Float[Tensor, "n d"],
    ) -> dict[str, float]:
        """Mean cosine between the prompts' sentences and those of the nearest pictures' captions, of all in the set.

        ``heldout_cosine``; ``heldout_cosine_shuffled``, its mean over the shuffles; ``heldout_p``, see
        ``permutation_test``. ``sentences[j]`` is the sentence embedding of the caption of ``pictures[j]``.
        """
        _check(samples, pictures, largest_k=1)
        unit = F.normalize(sentences.double(), dim=-1)
        cosine = unit[own] @ unit[nearest(samples, pictures)].T
        observed, shuffled, p = permutation_test(
            cosine, self.permutations, generator_of(self.seed, "retrieval", "permutations")
        )
        self._values["heldout_cosine"] = cosine.diagonal()
        return {"heldout_cosine": observed, "heldout_cosine_shuffled": shuffled, "heldout_p": p}


def first_in_hash_order(captions: Iterable[str], count: int) -> list[str]:
    """The ``count`` captions whose SHA-256 (of their UTF-8) is smallest, in that order; equal captions count once.

    A choice that nobody made by eye, and that stays when other captions come or go.
    """
    return sorted(set(captions), key=lambda caption: hashlib.sha256(caption.encode()).digest())[:count]


def sentence_embedding(text: TextEmbedding) -> Float[Tensor, "b d"]:
    """One unit vector a caption: the mean over its real tokens, special tokens too, as MiniLM's sentences are made."""
    weight = text.mask[..., None].to(text.tokens.dtype)
    return F.normalize((text.tokens * weight).sum(dim=1) / weight.sum(dim=1).clamp(min=1), dim=-1)


def embed_sentences(encoder: TextEncoder, captions: Sequence[str], batch_size: int = 64) -> Float[Tensor, "n d"]:
    """One unit vector a caption, in batches of captions of like length."""
    by_length = sorted(range(len(captions)), key=lambda i: len(captions[i]))
    vectors: list[Tensor] = [torch.empty(0)] * len(captions)
    for start in range(0, len(by_length), batch_size):
        rows = by_length[start : start + batch_size]
        embedded = sentence_embedding(encoder.encode([captions[i] for i in rows])).cpu()
        for row, vector in zip(rows, embedded, strict=True):
            vectors[row] = vector
    return torch.stack(vectors)


def own_rank(
    samples: UInt8[Tensor, "m 3 h w"], own: Int[Tensor, " m"], pictures: UInt8[Tensor, "n 3 h w"]
) -> Int[Tensor, " m"]:
    """How many pictures stand before ``pictures[own[i]]`` when they are sorted by their distance from sample i.

    A picture identical to the own one never stands before it; another one at the very same distance does, so that a
    sample that lies equally far from everything hits nothing.
    """
    identity = torch.unique(pictures.flatten(1), dim=0, return_inverse=True)[1]
    ranks = []
    for rows, distance in _squared_distances(samples, pictures):
        others = identity[None, :] != identity[own[rows]][:, None]
        not_farther = distance <= distance.gather(1, own[rows][:, None])
        ranks.append((not_farther & others).sum(dim=1))
    return torch.cat(ranks)


def nearest(samples: UInt8[Tensor, "m 3 h w"], pictures: UInt8[Tensor, "n 3 h w"]) -> Int[Tensor, " m"]:
    """Row of the picture nearest to each sample; of several equally near, the first."""
    return torch.cat([distance.argmin(dim=1) for _, distance in _squared_distances(samples, pictures)])


def derangement(count: int, generator: torch.Generator) -> Int[Tensor, " count"]:
    """A random permutation without fixed points (one cycle through all), for ``count`` of at least 2."""
    assert count >= 2
    order = torch.randperm(count, generator=generator)
    shuffle = torch.empty_like(order)
    shuffle[order] = order.roll(1)
    return shuffle


def permutation_test(
    similarity: Float[Tensor, "m m"], permutations: int, generator: torch.Generator
) -> tuple[float, float, float]:
    """Is the diagonal of ``similarity`` larger than if rows were paired with columns at random?

    Returns the diagonal's mean, its mean over random permutations of the rows, and the one-sided p-value
    (1 + #{permuted >= observed}) / (1 + permutations), which is never 0 (Phipson & Smyth 2010).
    """
    m = similarity.shape[0]
    column = torch.arange(m)
    means = []
    for start in range(0, permutations, 1024):
        count = min(1024, permutations - start)
        rows = torch.rand(count, m, generator=generator, dtype=torch.float64).argsort(dim=1)
        means.append(similarity[rows, column].double().mean(dim=1))
    permuted, observed = torch.cat(means), similarity.diagonal().double().mean().item()
    # sums in another order differ in the last digits: what is equal in truth must count as equal
    as_large = int((permuted >= observed - 1e-9 * max(1.0, abs(observed))).sum())
    return observed, permuted.mean().item(), (1 + as_large) / (1 + permutations)


def _spread(values: Float[Tensor, " m"], rows: list[int], count: int) -> Float[Tensor, " {count}"]:
    """``values`` at their ``rows`` of ``count``, NaN elsewhere."""
    spread = torch.full((count,), torch.nan, dtype=torch.float64)
    spread[rows] = values.double()
    return spread


def _squared_distances(samples: Tensor, pictures: Tensor, chunk: int = 256) -> Iterator[tuple[slice, Tensor]]:
    # whole numbers below 2^53 throughout, hence exact in float64 in any order of summing
    flat = pictures.flatten(1).double()
    length = flat.square().sum(dim=1)
    for start in range(0, len(samples), chunk):
        rows = slice(start, start + chunk)
        sample = samples[rows].flatten(1).double()
        yield rows, sample.square().sum(dim=1, keepdim=True) + length - 2 * sample @ flat.T


def _check(samples: Tensor, pictures: Tensor, largest_k: int) -> None:
    if len(samples) < 2:
        raise UserError(f"{len(samples)} captions cannot be shuffled: retrieval needs at least 2")
    if largest_k >= len(pictures):
        raise UserError(
            f"metric.k={largest_k} says nothing among {len(pictures)} pictures: take a smaller k or a larger set"
        )
