import lightning
import torch

from imagen import build
from imagen.adafactor import Adafactor
from imagen.cli import compose
from imagen.lightning_module import DiffusionModule
from imagen.micro_batch import accumulation

TOY = ["experiment=toy", "callback=[]", "max_steps=4", "validate_every_n_steps=4", "data.num_workers=0"]


def fit(*overrides: str) -> tuple[DiffusionModule, lightning.Trainer]:
    cfg = compose("train", [*TOY, *overrides])
    module, data = build.build_module(cfg), build.build_data(cfg)
    trainer = lightning.Trainer(
        max_steps=cfg.max_steps,
        accumulate_grad_batches=accumulation(cfg.batch_size, cfg.micro_batch_size, 1),
        gradient_clip_val=1.0,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        limit_val_batches=0,
    )
    trainer.fit(module, data)
    return module, trainer


def test_two_accumulated_halves_equal_the_whole():
    smooth = "optimizer.eps=1.0e-3"  # Adam blows the rounding of gradients near zero up to whole steps
    whole, _ = fit("batch_size=8", smooth)
    halves, trainer = fit("batch_size=8", smooth, "micro_batch_size=4")
    assert trainer.global_step == 4
    for one, two in zip(whole.parameters(), halves.parameters(), strict=True):
        torch.testing.assert_close(one, two, atol=1e-6, rtol=1e-5)


def test_uneven_parts_of_a_short_batch_equal_the_whole():
    smooth = ("optimizer.eps=1.0e-3", "batch_size=150", "max_steps=2")  # 196 pictures: 150, then 46
    whole, _ = fit(*smooth)
    thirds, trainer = fit(*smooth, "micro_batch_size=50")  # 15, 15 and 16 of them
    assert trainer.global_step == 2
    for one, two in zip(whole.parameters(), thirds.parameters(), strict=True):
        torch.testing.assert_close(one, two, atol=1e-6, rtol=1e-5)


def test_only_the_network_is_trained_and_the_average_follows_it():
    module, _ = fit("ema.decay=0.5")
    trained = {id(p) for group in module.trainer.optimizers[0].param_groups for p in group["params"]}
    assert trained == {id(p) for p in module.denoiser.network.parameters()}
    pairs = list(zip(module.denoiser.network.parameters(), module.ema.network.parameters(), strict=True))
    assert any(not torch.equal(a, b) for a, b in pairs)
    assert module.stage.denoiser.network is module.ema.network


def test_adafactor_trains():
    module, trainer = fit("optimizer=adafactor", "max_steps=2")
    assert isinstance(trainer.optimizers[0], Adafactor)
    before = build.build_network(compose("train", TOY))
    pairs = list(zip(module.denoiser.network.parameters(), before.parameters(), strict=True))
    assert all(after.isfinite().all() for after, _ in pairs)
    assert any(not torch.equal(after, initial) for after, initial in pairs)


def test_weight_decay_pulls_at_the_network_alone_and_not_at_what_the_loss_learns():
    module = build.build_module(
        compose("train", [*TOY, "weighting=uncertainty", "optimizer=adamw", "optimizer.weight_decay=0.5"])
    )
    optimizer = module.configure_optimizers()["optimizer"]
    network, learned = optimizer.param_groups
    assert [group["weight_decay"] for group in (network, learned)] == [0.5, 0.0]
    for parameter in [*module.denoiser.network.parameters(), *module.loss.parameters()]:
        parameter.data.fill_(1.0)
        parameter.grad = torch.zeros_like(parameter)
    for group in optimizer.param_groups:
        group["lr"] = 0.1  # the warm-up begins with none
    optimizer.step()
    assert all((parameter == 1.0).all() for parameter in module.loss.parameters())
    assert all((parameter < 1.0).all() for parameter in module.denoiser.network.parameters())


def test_export_is_the_average_on_the_cpu():
    module = build.build_module(compose("train", TOY))
    state = module.state_to_export()
    assert set(state) == set(module.denoiser.network.state_dict())
    assert all(value.device.type == "cpu" and value.is_contiguous() for value in state.values())


def test_initial_weights_are_a_function_of_the_seed():
    cfg = compose("train", TOY)
    torch.manual_seed(1)
    one = build.build_network(cfg)
    torch.manual_seed(2)
    before = torch.get_rng_state()
    two = build.build_network(cfg)
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))
