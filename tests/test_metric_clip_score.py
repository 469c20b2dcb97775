"""CLIP score: the cosine that the model itself gives, whatever the batches."""

import pytest
import torch
from pictures import random_pictures, resized_by_pillow
from small_clip import save_small_clip

from imagen.errors import UserError
from imagen.metric.clip_score import CLIPScore, load_clip
from imagen.metric.extractor import CLIP_MEAN, CLIP_STD
from imagen.metric.pictures import InMemory


def test_the_score_is_the_models_own_cosine(tmp_path):
    whole = save_small_clip(tmp_path)
    images, captions = random_pictures(5, 16), ["a cat", "dog", "a red house by the sea", "b", "c d"]
    model, tokenizer = load_clip(str(whole))
    mean, std = torch.tensor(CLIP_MEAN).view(3, 1, 1), torch.tensor(CLIP_STD).view(3, 1, 1)
    words = tokenizer(captions, padding=True, return_tensors="pt")
    logits = model(pixel_values=(images / 255 - mean) / std, **words).logits_per_image / model.logit_scale.exp()
    metric = CLIPScore(path=str(whole), batch_size=2)
    drawn, real = InMemory(images, captions), InMemory(images[:2], captions[:2])
    scores = metric(drawn, real)
    assert scores["clip_score"] == pytest.approx(logits.diag().mean().item(), abs=1e-4)
    assert scores["clip_score_real"] == pytest.approx(logits.diag()[:2].mean().item(), abs=1e-4)
    assert len(metric.provenance()["weights"]) == 32
    assert metric.values()["clip_score"].tolist() == pytest.approx(logits.diag().tolist(), abs=1e-4)
    assert metric.counts() == {"clip_score": 5, "clip_score_real": 2}
    assert set(metric(drawn, InMemory(images[:2], ["", ""]))) == {"clip_score"}  # a folder of pictures has no captions


def test_pictures_of_another_size_are_resized_whole(tmp_path):
    whole = save_small_clip(tmp_path)
    images, captions = random_pictures(3, 40)[..., :24], ["a cat", "dog", "c d"]
    model, tokenizer = load_clip(str(whole))
    mean, std = torch.tensor(CLIP_MEAN).view(3, 1, 1), torch.tensor(CLIP_STD).view(3, 1, 1)
    words = tokenizer(captions, padding=True, return_tensors="pt")
    output = model(pixel_values=(resized_by_pillow(images, 16) - mean) / std, **words)
    metric = CLIPScore(path=str(whole), batch_size=2)
    metric(InMemory(images, captions), InMemory(images, [""] * 3))
    cosines = (output.logits_per_image / model.logit_scale.exp()).diag()
    assert metric.values()["clip_score"].tolist() == pytest.approx(cosines.tolist(), abs=1e-4)


def test_a_missing_model_is_named(tmp_path):
    with pytest.raises(UserError, match="is no CLIP that can be loaded"):
        load_clip(str(tmp_path))
