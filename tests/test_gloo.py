"""Groups of gloo with one thread each: torch's own two damage the heap where sharded tensors are gathered."""

import time
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from processes import on_two_ranks

from imagen.gloo import one_thread_a_group

GATHERS = """
import time, torch
from imagen.gloo import one_thread_a_group
with one_thread_a_group():
    torch.distributed.init_process_group("gloo")
group, more = torch.distributed.group.WORLD, torch.ones(1)
shares, wholes = [torch.ones(8) for _ in range(32)], [torch.empty(16) for _ in range(32)]
end = time.monotonic() + {seconds}
while more.item():
    for _ in range(20):
        pairs = zip(wholes, shares)
        for work in [group.allgather_into_tensor_coalesced([whole], [share]) for whole, share in pairs]:
            work.wait()
        assert all((whole == 1).all() for whole in wholes)
    more.fill_(time.monotonic() < end)
    torch.distributed.broadcast(more, 0)
del group, work
torch.distributed.destroy_process_group()
"""


def threads() -> set[str]:
    tasks = Path("/proc/self/task").iterdir()
    return {task.name for task in tasks if (task / "comm").read_text() == "pt_gloo_runloop\n"}


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="threads are told apart by Linux's names")
@pytest.mark.parametrize(("making", "expected"), [(one_thread_a_group, 1), (nullcontext, 2)])
@pytest.mark.parametrize("interface", [None, "lo"])
def test_a_group_made_within_has_one_thread(tmp_path, monkeypatch, making, expected, interface):
    if interface:
        monkeypatch.setenv("GLOO_SOCKET_IFNAME", interface)
    before, end = threads(), time.monotonic() + 30
    with making():
        torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        torch.distributed.barrier()
        while len(threads() - before) < expected and time.monotonic() < end:  # it takes its name once it runs
            time.sleep(0.01)
        assert len(threads() - before) == expected
        assert torch.distributed.get_backend() == "gloo"
    finally:
        torch.distributed.destroy_process_group()


@pytest.mark.drill
def test_gathering_at_once_for_long_harms_nothing(tmp_path: Path):
    """With torch's own groups one of the two dies within seconds, most of the time."""
    script = tmp_path / "gathers.py"
    script.write_text(GATHERS.format(seconds=20))
    said, statuses = on_two_ranks([[str(script)]] * 2, tmp_path, 120)
    assert statuses == [0, 0], "\n".join(said)
