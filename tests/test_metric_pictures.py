"""Pictures in memory and in files are the same to a metric."""

import pytest
import torch
from pictures import random_pictures

from imagen.errors import UserError
from imagen.image_grid import save_png, to_pil
from imagen.metric.pictures import InFiles, InMemory, first, in_memory, joined, made_small, repeated


def test_files_and_memory_give_the_same_batches(tmp_path):
    images = random_pictures(5, 8)
    files = [tmp_path / f"{i}.png" for i in range(5)]
    for path, image in zip(files, images, strict=True):
        save_png(to_pil(image), path)
    captions = list("abcde")
    there, read = InMemory(images, captions), InFiles(files, captions)
    assert len(there) == len(read) == 5
    for one, other in zip(there.batches(2), read.batches(2), strict=True):
        assert torch.equal(one, other)


def test_sets_made_of_others_are_handed_out_in_batches_of_any_size():
    a, b = InMemory(random_pictures(5, 8), list("abcde")), InMemory(random_pictures(3, 8), list("xyz"))
    both = joined(a, b)
    assert [len(batch) for batch in both.batches(3)] == [3, 3, 2]
    assert torch.equal(in_memory(both, "this"), torch.cat([a.images, b.images]))
    assert both.captions == list("abcdexyz")
    twice = repeated(b, 2)
    assert twice.captions == list("xxyyzz")
    assert torch.equal(torch.cat(list(twice.batches(4))), b.images.repeat_interleave(2, dim=0))
    assert torch.equal(torch.cat(list(first(a, 2).batches(9))), a.images[:2])
    small = torch.cat(list(made_small(a, 4).batches(2)))
    means = a.images.float().unflatten(3, (4, 2)).unflatten(2, (4, 2)).mean(dim=(3, 5))
    assert (small.float() - means).abs().max() <= 0.5


def test_a_set_of_other_captions_is_another():
    a, b = (InMemory(random_pictures(2, 4), captions) for captions in (["a", "b"], ["a", "c"]))
    assert a.digest == b.digest
    assert a.captioned_digest != b.captioned_digest


def test_a_damaged_file_is_named(tmp_path):
    path = tmp_path / "0.png"
    path.write_bytes(b"nothing")
    with pytest.raises(UserError, match=r"0\.png cannot be read .* it is drawn again"):
        list(InFiles([path], ["a"]).batches(1))
