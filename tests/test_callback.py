import json

import pytest
import torch
from PIL import Image

from imagen import build
from imagen.callback import LossByLogSNR, Progress, SampleGrid
from imagen.cli import compose
from imagen.training import train


def toy(tmp_path, *overrides: str):
    small = ["max_steps=4", "batch_size=4", "validate_every_n_steps=4", "callback.sample_grid.every_n_steps=2"]
    return compose("train", ["experiment=toy", f"output_dir={tmp_path}", *small, *overrides])


def test_sample_grids_are_drawn_on_time_and_change_only_with_the_network(tmp_path):
    folder = train(toy(tmp_path, "optimizer.lr=0.0"))
    grids = sorted(folder.samples.glob("*.png"))
    assert [grid.name for grid in grids] == ["step_0000002.png", "step_0000004.png"]
    one, two = (Image.open(grid).tobytes() for grid in grids)
    assert one == two


def test_a_grid_shows_the_averaged_network(tmp_path):
    cfg = toy(tmp_path)
    module, data = build.build_module(cfg), build.build_data(cfg)
    data.setup("fit")
    batch = next(iter(data.val_dataloader()))
    callback = SampleGrid(every_n_steps=1, num_prompts=2)
    before = callback.draw(module, batch).tobytes()
    with torch.no_grad():
        for parameter in module.denoiser.network.parameters():
            parameter.add_(0.1)
    assert callback.draw(module, batch).tobytes() == before
    with torch.no_grad():
        for parameter in module.ema.network.parameters():
            parameter.add_(0.1)
    assert callback.draw(module, batch).tobytes() != before


def test_grids_and_numbers_reach_tensorboard(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    train(toy(tmp_path, "logger=[tensorboard]"))
    events = EventAccumulator(str(next(tmp_path.rglob("events.out.*")).parent))
    events.Reload()
    assert "samples/toy" in events.Tags()["images"]
    assert "val/loss" in events.Tags()["scalars"]
    assert {tag for tag in events.Tags()["scalars"] if tag.startswith("val/loss_logsnr_")}


@pytest.mark.filterwarnings("ignore")  # wandb's own
def test_grids_and_numbers_of_two_trainings_in_one_process_reach_an_offline_wandb_run_each(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    folders = [train(toy(tmp_path, "logger=[wandb]", f"seed={seed}")) for seed in range(2)]
    runs = [next(tmp_path.glob(f"wandb/offline-run-*-toy-{folder.path.name}")) for folder in folders]
    assert len([*tmp_path.glob("wandb/offline-run-*")]) == len(runs)
    for run, folder in zip(runs, folders, strict=True):
        assert len([*run.glob("files/media/images/samples/*.png")]) == len([*folder.samples.glob("*.png")])
        (written,) = run.glob("*.wandb")
        assert b"val/loss_logsnr_" in written.read_bytes()  # names stand there as they are


def test_bins_of_log_snr_average_to_the_whole(tmp_path):
    folder = train(toy(tmp_path, "validate_every_n_steps=2"))
    rows = [json.loads(line) for line in folder.metrics.read_text().splitlines()]
    last = {row["name"]: row["value"] for row in rows if row["step"] == 4}
    binned = [value for name, value in last.items() if name.startswith("val/loss_logsnr")]
    assert min(binned) <= last["val/loss"] <= max(binned)
    assert len(binned) >= 3  # 28 pictures need not meet every bin


def test_edges_must_increase():
    with pytest.raises(ValueError, match="edges"):
        LossByLogSNR(edges=[1.0, 0.0])


def test_progress_tells_rate_and_the_loss_of_the_whole_batch(tmp_path, capsys):
    own = ["callback.progress.refresh_every_n_steps=1", "trainer.log_every_n_steps=2", "micro_batch_size=2"]
    folder = train(toy(tmp_path, *own))
    shown = capsys.readouterr().err
    rows = [json.loads(line) for line in folder.metrics.read_text().splitlines()]
    losses = [row["value"] for row in rows if row["name"] == "train/loss"]
    assert f"loss {losses[-1]:.4f}" in shown
    assert "4/4" in shown
    assert "img/s" in shown
    bar = Progress(refresh_every_n_steps=1)
    bar.disable()
    assert not bar._enabled
