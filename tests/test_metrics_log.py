import json

from imagen.metrics_log import MetricsLog


def test_rows_count_steps_done_and_pictures_seen(tmp_path):
    log = MetricsLog(tmp_path / "metrics.jsonl", global_batch=8, log_every_n_steps=5)
    log.log_metrics({"train/loss": 0.5, "epoch": 0}, step=9)
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert rows == [{"step": 10, "images": 80, "name": "train/loss", "value": 0.5}]


def test_rows_of_training_that_are_not_due_are_left_out(tmp_path):
    log = MetricsLog(tmp_path / "metrics.jsonl", global_batch=8, log_every_n_steps=5)
    log.log_metrics({"train/loss": 0.5, "val/loss": 0.6}, step=6)  # where a run was stopped
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [(row["step"], row["name"]) for row in rows] == [(7, "val/loss")]


def test_a_resumed_run_drops_what_it_will_say_again(tmp_path):
    path = tmp_path / "metrics.jsonl"
    log = MetricsLog(path, global_batch=8, log_every_n_steps=1)
    for step in range(6):
        log.log_metrics({"train/loss": float(step)}, step=step)
    with path.open("a") as file:
        file.write('{"step": 7, "ima')  # the power went
    MetricsLog(path, global_batch=8, log_every_n_steps=1).keep_until(4)
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [1, 2, 3, 4]
