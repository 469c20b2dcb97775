"""One shard of a split in all its folders: is each of its tars whole, and do their samples fit each other?"""

import hashlib
import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from imagen.data.index import PICTURE_FIELDS, TEXT_FIELDS, scan
from imagen.data.shards import ENCODER_MEMBER, TOKENS_SUFFIX
from imagen.data.tokens import caption_hash
from imagen.files import Location
from imagen.prep.verify.files import Place, check_index, check_parquet, check_tar, read_stats
from imagen.prep.verify.findings import Findings
from imagen.prep.verify.samples import as_object, check_encoder, check_picture, check_tokens, storage_of
from imagen.prep.verify.whole_tar import WholeTar

Span = tuple[int, int]  # (offset, size) of a member's bytes


@dataclass(frozen=True)
class Shard:
    """One shard of a split: size and place of its pictures, smallest first, and its text embeddings in each folder."""

    images: list[tuple[int, Place]]
    texts: list[Place]


@dataclass(frozen=True)
class Again:
    """Captions of one sidecar that are to be encoded again: by key, where caption and tokens lie in the two tars."""

    images: Location
    sidecar: Location
    spans: dict[str, tuple[Span, Span]]


@dataclass
class Checked:
    """What the check of one shard found, and what is left to do where the encoder is."""

    findings: Findings = field(default_factory=Findings)
    again: list[Again] = field(default_factory=list)


@dataclass(frozen=True)
class CheckShard:
    """Check a shard; of its pictures a ``fraction`` is decoded, ``captions`` of each sidecar are to be encoded again.

    Which those are is a function of their keys. Every tar is read as a stream; what is kept are keys and hashes.
    """

    fraction: float
    captions: int

    def __call__(self, shard: Shard) -> Checked:
        checked = Checked()
        findings = checked.findings
        hashes: dict[Place, dict[str, str]] = {}
        for size, place in shard.images:
            if _is_due(place, findings) and (found := self._pictures(place, size, findings)) is not None:
                hashes[place] = found
        # where sizes disagree on a caption the smallest is held to be right: it is the one that is encoded
        captions = {key: caption for found in reversed(hashes.values()) for key, caption in found.items()}
        for place, found in hashes.items():
            for key in captions.keys() - found.keys():
                findings.add("missing key", f"{place} {key}")
            for key in found:
                if found[key] != captions[key]:
                    findings.add("wrong caption", f"{place} {key}", "a smaller size has another caption")
        for place in shard.texts:
            if not place.there and any(images.whole and images.expected for _, images in shard.images):
                findings.add("missing sidecar", str(place))
            elif place.there and not any(images.there for _, images in shard.images):
                findings.add("extra tar", str(place), "of no pictures")
            elif place.there and (good := self._texts(place, captions, findings)) and hashes:
                checked.again.append(self._again(next(iter(hashes)).tar, place.tar, good))
        return checked

    def _pictures(self, place: Place, size: int, findings: Findings) -> dict[str, str] | None:
        """Key -> hash of the caption; None where the tar is damaged."""
        stats = read_stats(place, findings)
        tar = WholeTar(place.tar, self._is_wanted)
        hashes: dict[str, str] = {}
        for key, members in _samples(tar, PICTURE_FIELDS):
            where = f"{place} {key}"
            if key in hashes:
                findings.add("duplicate key", where)
            for name in ("picture", "caption"):
                if name not in members:
                    findings.add("missing member", where, name)
            # a caption that is not UTF-8 is hashed as it is encoded: read as far as it goes
            hashes[key] = caption_hash((members.get("caption") or b"").decode(errors="replace"))
            info = as_object(members["info"]) if "info" in members else {}
            if info is None:
                findings.add("damaged json", where)
            if (picture := members.get("picture")) is not None:
                check_picture(picture, info or {}, size, stats.get("shape"), where, findings)
        findings.checked["samples"] += len(hashes)
        if not check_tar(tar, place, stats, len(hashes), findings):
            return None
        check_index(place, PICTURE_FIELDS, stats, findings)
        check_parquet(place, stats, set(hashes), findings)
        return hashes

    def _is_wanted(self, name: str) -> bool:
        key, _, suffix = name.rpartition(".")
        kind = PICTURE_FIELDS.get(suffix.lower())
        return kind in ("caption", "info") or (kind == "picture" and _standing(key) < self.fraction)

    def _texts(self, place: Place, captions: dict[str, str], findings: Findings) -> list[str]:
        """The keys whose embeddings are as they should be, as far as can be told without the encoder."""
        if not place.whole:
            findings.add("unfinished shard", str(place))
        stats = read_stats(place, findings)
        tar = WholeTar(place.tar, lambda name: name == ENCODER_MEMBER or name.endswith(TOKENS_SUFFIX))
        width, storage = None, storage_of(place.tar.parent.name)
        seen: dict[str, bool] = {}
        for number, (name, content) in enumerate(tar):
            if name == ENCODER_MEMBER and number == 0:
                width = check_encoder(content or b"", place.tar.parent.name, str(place), findings)
            elif name.endswith(TOKENS_SUFFIX):
                key = name.removesuffix(TOKENS_SUFFIX)
                where = f"{place} {key}"
                if key in seen:
                    findings.add("duplicate key", where)
                if captions and key not in captions:
                    findings.add("extra key", where)
                seen[key] = check_tokens(content or b"", width, storage, captions.get(key), where, findings)
        findings.checked["embeddings"] += len(seen)
        if not check_tar(tar, place, stats, len(seen), findings):
            return []
        if width is None:
            findings.add("wrong encoder", str(place), f"its first member is no {ENCODER_MEMBER}")
        for key in captions.keys() - seen.keys():
            findings.add("missing key", f"{place} {key}")
        check_index(place, TEXT_FIELDS, stats, findings)
        return [key for key, good in seen.items() if good and key in captions]

    def _again(self, images: Location, sidecar: Location, keys: list[str]) -> Again:
        chosen = set(sorted(keys, key=_standing)[: self.captions])
        captions = _spans(scan(images, PICTURE_FIELDS), "caption", chosen)
        tokens = _spans(scan(sidecar, TEXT_FIELDS), "tokens", chosen)
        return Again(images, sidecar, {key: (captions[key], tokens[key]) for key in captions.keys() & tokens.keys()})


def _is_due(place: Place, findings: Findings) -> bool:
    """Whether a shard of pictures is there to be read; why not is a finding."""
    if not place.there:
        if place.expected:
            findings.add("missing tar", str(place))
    elif not place.expected:
        findings.add("extra tar", str(place), "beyond those that the stats of its folder promise")
    elif not place.whole:
        findings.add("unfinished shard", str(place))
    return place.whole and place.expected


def _standing(key: str) -> float:
    """In [0, 1): where a key stands among all, the same whatever the set and the machine."""
    return int.from_bytes(hashlib.sha256(key.encode(errors="surrogateescape")).digest()[:8], "big") / 2**64


def _spans(index: np.ndarray, name: str, keys: set[str]) -> dict[str, Span]:
    wanted = {key.encode(errors="surrogateescape"): key for key in keys}
    return {wanted[row["key"]]: row[name].item() for row in index if row["key"] in wanted}


def _samples(tar: WholeTar, fields: dict[str, str]) -> Iterator[tuple[str, dict[str, bytes | None]]]:
    """Neighbours of one key, their contents by field; what has none of ``fields`` is no sample."""
    named = ((name.rpartition("."), content) for name, content in tar)
    for key, members in itertools.groupby(named, key=lambda member: member[0][0]):
        sample = {fields[name[2].lower()]: content for name, content in members if name[2].lower() in fields}
        if sample:
            yield key, sample
