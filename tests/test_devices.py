import pytest
import torch

from imagen.devices import check_precision, machine_name, own_device, peak_flops, peak_memory, pick_device
from imagen.errors import UserError


@pytest.mark.parametrize("device", ["gpuu", "cuda:99"])
def test_a_device_that_is_not_there_is_told_with_those_that_are(device):
    with pytest.raises(UserError, match=f"device={device} is not to be had here: give one of auto, cpu"):
        pick_device(device)


def test_a_device_that_is_there_is_picked():
    assert pick_device("cpu").type == "cpu"
    assert pick_device(None) == pick_device("auto")


def test_bf16_is_refused_where_a_gpu_would_only_imitate_it(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Tesla V100")
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: including_emulation)
    with pytest.raises(UserError, match=r"bf16-mixed, but Tesla V100 has no bf16: set trainer\.precision=32-true"):
        check_precision("bf16-mixed", "cuda")
    check_precision("32-true", "cuda")
    check_precision("bf16-mixed", "cpu")


def test_a_machine_is_named_by_its_model_and_threads(monkeypatch):
    assert machine_name(torch.device("cpu")).endswith(f", {torch.get_num_threads()} threads")
    assert len(machine_name(torch.device("cpu"))) > len(", 1 threads")
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"NVIDIA H200 {device.index}")
    assert machine_name(torch.device("cuda", 1)) == "NVIDIA H200 1"


def test_a_peak_belongs_to_a_gpu_whose_name_is_known():
    assert peak_flops("NVIDIA H200") == peak_flops("NVIDIA H100 80GB HBM3") == 989.4e12
    assert peak_flops("NVIDIA H100 PCIe") == 756e12
    assert peak_flops("NVIDIA A100-SXM4-80GB") == 312e12
    assert peak_flops("NVIDIA L40S") == 362e12
    assert peak_flops("NVIDIA L4") == 121e12
    assert peak_flops("NVIDIA GeForce RTX 4090 D") is None
    assert peak_flops("Some GPU of tomorrow") is None


def test_the_peak_of_memory_takes_in_what_was_held_for_a_moment():
    before = peak_memory(torch.device("cpu"))
    torch.ones(2**26).sum()  # 256 MiB
    assert peak_memory(torch.device("cpu")) >= max(before, 2**28)


def test_a_device_that_is_named_is_taken():
    assert own_device("cpu", 3) == torch.device("cpu")
    with pytest.raises(UserError, match="device=cuda:99"):
        own_device("cuda:99", 0)
