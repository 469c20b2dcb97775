"""The report's table, figure and verdict in Weights & Biases, as a run of the sweep's group."""

from pathlib import Path
from typing import Literal, cast, get_args

from imagen.ablation.table import columns_of
from imagen.cli import CONF
from imagen.config_check import read_yaml
from imagen.errors import UserError
from imagen.report.gather import Sweep
from imagen.report.verdict import Verdict

Mode = Literal["offline", "online"]


def check_mode(wandb: str) -> None:
    """Raises: UserError unless it is offline, online or null."""
    if wandb not in (*get_args(Mode), "null"):
        raise UserError(f"wandb={wandb} must be offline, online or null; `wandb sync` sends later what is offline")


def log_report(sweep: Sweep, verdicts: list[Verdict], folder: Path, mode: str) -> None:
    """One closed run of job type ``report``; offline it lies in ``folder``, for ``wandb sync``.

    Raises: UserError where W&B asks for an account that is not there.
    """
    import wandb
    from wandb.errors import UsageError

    try:
        run = wandb.init(
            project=read_yaml(CONF / "logger" / "wandb.yaml")["project"],
            group=sweep.study.full_name,
            job_type="report",
            name=f"{sweep.study.full_name}-report",
            dir=folder.absolute(),  # W&B's service may have begun in another folder
            mode=cast(Mode, mode),
            config={"command": sweep.command, "paper": sweep.study.paper, "claim": sweep.study.claim},
            tags=sweep.others,
            reinit="create_new",
        )
    except UsageError as error:
        raise UserError(
            f"wandb=online cannot begin ({error}); take wandb=offline, and `wandb sync` once there is an account"
        ) from error
    columns = columns_of(sweep.study, sweep.rows)
    run.log({"table": wandb.Table([*columns], [[row.get(name) for name in columns] for row in sweep.rows])})
    for name in ("figure", "sheet"):
        if (folder / f"{name}.png").is_file():
            run.log({name: wandb.Image(str(folder / f"{name}.png"))})
    for verdict in verdicts:
        run.summary[f"verdict/{verdict.metric}"] = verdict.sentence
    run.summary["missing"] = len(sweep.missing)
    run.finish()
