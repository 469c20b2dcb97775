import dataclasses
import json
import subprocess
import sys
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import DictConfig
from torch import nn
from torch.utils._pytree import tree_leaves
from torch.utils.checkpoint import checkpoint

from imagen import build, recompute
from imagen.activations import FusedAttention
from imagen.cli import CONF, compose
from imagen.data.tokens import dump_tokens
from imagen.errors import UserError
from imagen.network.layers import layers_of
from imagen.plan.__main__ import BEGIN, END, SCALING, assume, main, plan, split
from imagen.plan.counts import Counts, count
from imagen.plan.estimate import GPU, RECOMPUTE, WAYS, Run, Way, describe, estimate, network_bytes, state_bytes
from imagen.plan.measured import utilisation
from imagen.summary import example

DDP, SELECTIVE, FULL, FSDP, *_ = WAYS
TOY = Counts(
    parameters=1000,
    block_parameters=100,
    root_parameters=50,
    optimizer_bytes=8000,
    ema_bytes=4000,
    forward_flops=10**9,
    step_flops=3 * 10**9,
    kept_bytes={"none": 1000, "selective": 500, "full": 100},
    repeated_bytes=3000,
)
RUN = Run("toy", TOY, batch_size=64, steps=86400, picture_bytes=1000, text_bytes=500)


def assumed(**changed) -> DictConfig:
    cfg = compose("plan", [])
    cfg.update(changed)
    return cfg


def small_gpu(memory: int) -> GPU:
    return GPU("small", memory, peak=1e12, bandwidth=1e9)


def planned(*words: str, markdown: bool = False) -> str:
    mine, others = split(list(words))
    return plan(assume(mine), others, markdown=markdown)


@pytest.fixture(scope="module")
def toy() -> Counts:
    return count(compose("train", ["experiment=toy"]))


def test_states_have_their_closed_form():
    weights_gradients_optimizer_average = 4000 + 4000 + 8000 + 4000
    assert state_bytes(TOY, DDP, 8) == weights_gradients_optimizer_average + 2000
    gathered = 4 * (50 + 100 + 100) + 4 * 100  # the root and two blocks; a gradient
    assert state_bytes(TOY, FSDP, 8) == weights_gradients_optimizer_average // 8 + 2000 + gathered


def test_ring_traffic_has_its_closed_form():
    assert network_bytes(TOY, DDP, 8, 4, assumed()) == 2 * 7 / 8 * 1000 * 4
    assert network_bytes(TOY, DDP, 8, 4, assumed(gradient_bytes=2)) == 2 * 7 / 8 * 1000 * 2
    assert network_bytes(TOY, FSDP, 8, 4, assumed()) == 4 * 7 / 8 * 1000 * (4 + 4 + 4)
    assert network_bytes(TOY, DDP, 1, 1, assumed()) == 0


def test_a_step_has_as_few_micro_batches_as_fit_and_they_are_alike():
    share = 64 // 8
    for room, micro_batch in [(8000, 8), (7999, 4), (3999, 3), (2999, 2), (1000, 1), (999, 0)]:
        one = estimate(RUN, DDP, 8, small_gpu(22000 + room), 0.5, assumed(memory_share=1.0))
        assert one.micro_batch == micro_batch
        assert not micro_batch or one.accumulation == -(-share // micro_batch)
        assert one.memory <= 22000 + room
        assert (one.limit == "memory") == (micro_batch == 0)
    told = dataclasses.replace(RUN, micro_batch_size=3)
    assert estimate(told, DDP, 8, small_gpu(10**6), 0.5, assumed()).accumulation == 3


def test_a_steps_time_is_its_parts():
    wide = small_gpu(10**6)
    one = estimate(RUN, DDP, 8, wide, 0.5, assumed(bandwidth_share=1.0, nvlink_gbytes=1e-9, read_gbytes=1e9))
    assert one.compute == pytest.approx(8 * 3e9 / 0.5e12)
    moved = 3 * 4000 + 2 * 8000 + (4000 + 2 * 4000)  # optimizer: weights twice, gradients, state twice; average
    assert one.update == pytest.approx(moved / 1e9)
    assert one.network == pytest.approx(7000 / 1.0 - one.compute * 2 / 3)  # all but one backward pass
    assert one.limit == "network"
    assert one.step == one.compute + one.update + one.network
    again = estimate(RUN, FULL, 8, wide, 0.5, assumed())
    assert again.compute == pytest.approx(4 / 3 * one.compute)
    selective = estimate(RUN, SELECTIVE, 8, wide, 0.5, assumed(bandwidth_share=1.0))
    assert selective.compute == pytest.approx(one.compute + 8 * 3000 / 1e9)
    slow_disk = estimate(RUN, DDP, 8, wide, 0.5, assumed(read_gbytes=1e-6))
    assert (slow_disk.limit, slow_disk.step) == ("data", pytest.approx(64 * 1500 / 1e3))


def test_across_nodes_a_ring_goes_through_all_of_a_nodes_ports():
    def exposed(gpus: int, **changed) -> float:
        slow = assumed(bandwidth_share=1.0, nvlink_gbytes=1e-9, **changed)
        one = estimate(RUN, DDP, gpus, small_gpu(10**6), 1.0, slow)
        return one.network + one.compute * 2 / 3

    assert exposed(8, network_gbytes=1e-12) == pytest.approx(7000)
    assert exposed(16, network_gbytes=1e-10) == pytest.approx(7500 / 0.1)
    assert exposed(16, network_gbytes=1.0) == pytest.approx(7500)


def test_gpus_need_not_divide_the_batch_and_the_fullest_is_waited_for():
    seven, six = (estimate(RUN, DDP, gpus, small_gpu(10**6), 0.5, assumed()) for gpus in (7, 6))
    assert (seven.micro_batch, six.micro_batch) == (10, 11)
    assert seven.compute == pytest.approx(10 * 3e9 / 0.5e12)
    with pytest.raises(UserError, match="batch_size=64 is the global batch and must be at least 1 picture for each"):
        estimate(RUN, DDP, 65, small_gpu(10**6), 0.5, assumed())


def test_a_toys_counts_are_those_of_the_network(toy):
    network = build.build_network(compose("train", ["experiment=toy"]))
    assert toy.parameters == sum(p.numel() for p in network.parameters())
    assert toy.step_flops == pytest.approx(3 * toy.forward_flops, rel=0.02)
    assert toy.block_parameters < toy.parameters
    assert 0 < toy.root_parameters < toy.parameters


@pytest.mark.parametrize("option", ["selective", "full"])
def test_recomputing_keeps_what_torch_keeps_when_all_blocks_but_one_are_checkpointed(toy, option):
    cfg = compose("train", ["experiment=toy"])
    with torch.device("meta"):
        network, inputs = build.build_network(cfg), example(cfg, cfg.resolution)
    own = {parameter.untyped_storage()._cdata for parameter in network.parameters()}
    blocks = list(layers_of(network))
    kept: dict[int, torch.Tensor] = {}
    whole = blocks[0]
    caches = []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            kept[storage._cdata] = tensor
        return tensor

    def contexts():
        both = recompute._selective()
        caches.append(both[0].storage)  # pyright: ignore[reportAttributeAccessIssue]
        return both

    more: dict[str, Any] = {"context_fn": contexts} if option == "selective" else {}

    def forward(block: nn.Module, x: torch.Tensor, *others):
        for value in (x, *others):  # checkpoint holds them without a hook
            if isinstance(value, torch.Tensor):
                keep(value)
        plain = partial(type(block).forward, block)
        if block is not whole:
            return checkpoint(plain, x, *others, use_reentrant=False, **more)
        with contexts()[0] if more else nullcontext():
            return plain(x, *others)

    sizes = []
    for block in blocks:
        block.forward = partial(forward, block)  # pyright: ignore[reportAttributeAccessIssue]
    for whole in blocks:  # noqa: B007  which forward() reads
        kept.clear()
        caches.clear()
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), FusedAttention():
            network(*inputs)
        for cached in tree_leaves(caches):
            if hasattr(cached, "val"):  # else it is not cached
                keep(cached.val)
        sizes.append(sum(tensor.untyped_storage().nbytes() for tensor in kept.values()))
    assert max(sizes) == pytest.approx(toy.kept_bytes[option], rel=1e-3)
    assert toy.kept_bytes["full"] < toy.kept_bytes["selective"] < toy.kept_bytes["none"]


def test_what_a_sample_takes_is_what_data_prep_writes():
    cfg = compose("train", ["experiment=imagen_sr256"])
    run = describe(cfg, TOY, assumed(caption_tokens=20, storage="bf16"))
    member = dump_tokens(torch.zeros(20, 4096), "a caption", "bf16")
    assert run.text_bytes == pytest.approx(512 + len(member), abs=512)
    assert run.picture_bytes == pytest.approx(256**2 * 0.46 + 80 + 500, abs=3 * 1024)
    assert (run.batch_size, run.steps) == (2048, 2_500_000)


def test_utilisation_is_as_told_or_as_measured_on_that_gpu_or_a_target(tmp_path):
    step = {"utilisation": 0.37, "date": "2026-01-02", "batch_size": 32}
    steps = {"imagen_sr256": step, "imagen_base64": {"error": "out of memory"}}
    result = {"device": "NVIDIA H200", "kind": "cuda", "benchmarks": {"train_step": steps}}
    (tmp_path / "nvidia-h200.json").write_text(json.dumps(result))
    (tmp_path / "nvidia-x.json").write_text(json.dumps({**result, "device": "NVIDIA X"}))
    (tmp_path / "cpu.json").write_text(json.dumps({"device": "a CPU", "kind": "cpu", "benchmarks": {}}))

    def found(name: str, device: str, **changed) -> tuple[float, str]:
        return utilisation(name, device, assumed(**changed), tmp_path)

    assert found("imagen_sr256", "NVIDIA H200", utilisation=0.3) == (0.3, "as given")
    assert found("imagen_sr256", "NVIDIA H200") == (0.37, "measured on 2026-01-02 at 32 pictures")
    steps["imagen_sr256 compiled"] = {**step, "utilisation": 0.41}
    (tmp_path / "nvidia-h200.json").write_text(json.dumps(result))
    assert found("imagen_sr256", "NVIDIA H200") == (0.41, "measured on 2026-01-02 at 32 pictures compiled")
    assert found("imagen_sr256", "NVIDIA H100 80GB HBM3") == (0.4, "a target, not measured")
    assert found("imagen_base64", "NVIDIA H200") == (0.5, "a target, not measured")
    assert found("toy", "NVIDIA H200") == (0.4, "a target, not measured")


def test_the_plan_of_a_toy_says_what_was_asked(toy, monkeypatch):
    monkeypatch.setattr("imagen.plan.__main__.count", lambda cfg: toy)
    words = ["experiment=toy", "gpu=h200", "gpus=[1,8]", "batch_size=64", "max_steps=100", "utilisation=0.25"]
    text = planned(*words, markdown=True)
    assert "100 steps of 64 pictures. H200 at 25.0% of its peak, as given." in text
    assert "| GPU | way | 1 | 8 |" in text
    assert "| utilisation | 0.25 |" in text
    assert "H100" not in text
    assert all(f"| H200 | {way.name} |" in text for way in WAYS)
    alone = planned(*words, "recompute=selective")
    assert "DDP, selective" in alone
    assert "DDP, full" not in alone
    assert "|" not in alone


@pytest.mark.parametrize(
    ("word", "complaint"),
    [
        ("gpu=h20", "gpu=h20 is not known: the nearest is h200; there are h100, h200, all"),
        ("gpsu=[8]", "unknown config key 'gpsu': the nearest keys are gpu, gpus"),
        ("bacth_size=8", "unknown config key 'bacth_size': the nearest keys are batch_size"),
        ("targets.toy=0.5", "unknown config key 'targets.toy'"),
        ("recompute=ful", "recompute=ful is not an option of recompute: the nearest is full"),
        ("gpus=[]", "must be numbers of GPUs"),
        ("targets.imagen_sr256=1.5", "targets.imagen_sr256=1.5 must be at most 1"),
        ("utilisation=1.5", "utilisation=1.5 must be at most 1"),
        ("utilisation=high", "utilisation=high must be a number or null"),
        ("read_gbytes=0", "read_gbytes=0 must be more than 0"),
        ("gpus=8", "gpus=8 must be a list"),
        ("storage=fp8", "storage=fp8 is not a code"),
    ],
)
def test_what_cannot_be_assumed_is_refused(word, complaint, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["plan", "experiment=toy", word])
    with pytest.raises(SystemExit) as ended:
        main()
    assert complaint in str(ended.value.code)
    assert not capsys.readouterr().out


def test_the_page_has_the_plan_of_the_64_to_256_stage():
    printed = planned("experiment=imagen_sr256", markdown=True)
    section = printed[: printed.index("### Storage")]
    assert section in SCALING.read_text(encoding="utf-8")
    assert printed[printed.index("### Assumptions") :] in SCALING.read_text(encoding="utf-8")


@pytest.mark.drill
def test_the_page_is_what_the_command_prints():
    command = [sys.executable, "-m", "imagen.plan", "--markdown"]
    printed = subprocess.run(command, cwd=Path(__file__).parents[1], capture_output=True, text=True, check=True).stdout
    page = SCALING.read_text(encoding="utf-8")
    assert page.partition(BEGIN)[2].partition(END)[0].strip() == printed.strip()


def test_ways_are_all_there_are():
    assert {path.stem for path in (CONF / "recompute").glob("*.yaml")} == set(RECOMPUTE)
    assert len({dataclasses.astuple(way) for way in WAYS}) == 2 * len(RECOMPUTE)
    assert (Way(True, "none").name, Way(False, "full").name) == ("FSDP2", "DDP, full")
