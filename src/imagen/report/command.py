"""``python -m imagen.report``: gather, draw, judge, write."""

import importlib.util
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from imagen.ablation.asked import OF_THE_REPORT, Asked
from imagen.ablation.table import write_rows
from imagen.errors import UserError
from imagen.files import make_folder, write_json
from imagen.image_grid import save_png
from imagen.report.figure import save_figure
from imagen.report.gather import gather
from imagen.report.page import write_page
from imagen.report.provenance import gaps_of, made_of
from imagen.report.sheet import sheets_of
from imagen.report.tracking import check_mode, log_report
from imagen.report.verdict import judge


def write_report(arguments: Sequence[str]) -> Path:
    """Write ``table.csv``, ``figure.png`` and ``.svg``, ``sheet.png``, ``verdict.json`` and ``report.html``.

    They lie in the sweep's folder, which is returned. ``arguments`` are the sweep's, with ``finished=`` and ``wandb=``.
    Raises: UserError if there is no such sweep, not one finished point, or a package is missing.
    """
    if missing := [name for name in ("matplotlib", "scipy") if importlib.util.find_spec(name) is None]:
        raise UserError(f"the report needs {' and '.join(missing)}: pip install 'imagen-lab[report]'")
    wandb = Asked.of(arguments, OF_THE_REPORT).wandb
    check_mode(wandb)
    sweep = gather(arguments)
    study, folder = sweep.study, sweep.folder
    verdicts = judge(study, sweep.rows, sweep.seeds, sweep.measured)
    make_folder(folder, "output_dir")
    write_rows(study, sweep.rows, folder / "table.csv")
    drawn = save_figure(study, sweep.rows, sweep.measured, folder)
    sheets, unseen = sheets_of(study, sweep.measured)
    if sheets:
        save_png(sheets[0].picture, folder / "sheet.png")
    else:
        (folder / "sheet.png").unlink(missing_ok=True)
    made = made_of(study, sweep.measured)
    told = {
        "ablation": study.name,
        "scale": study.scale,
        "paper": study.paper,
        "claim": study.claim,
        "verdicts": [asdict(one) | {"sentence": one.sentence} for one in verdicts],
        "interval": "95 %, Student's, over seeds",
        "rows": len(sweep.rows),
        "missing": [asdict(one) for one in sweep.missing],
        "notes": sweep.strays,
        "made": asdict(made),
        "command": sweep.command,
    }
    write_json(folder / "verdict.json", told)
    write_page(sweep, verdicts, drawn, sheets, unseen, made, folder / "report.html")
    for one in sweep.missing:
        print(f"missing: {one.name}: {one.why}\n  {one.command}")
    for said in filter(None, (made.unlike, *sweep.strays, *gaps_of(sweep.measured), *unseen)):
        print(f"note: {said}")
    print(f"{study.name} at scale={study.scale}: {study.claim}? {verdicts[0].sentence}")
    for one in verdicts[1:]:
        print(f"also: {one.sentence}")
    there = [name for name in ("table.csv", "figure.png", "sheet.png", "verdict.json") if (folder / name).is_file()]
    print(f"{len(sweep.rows)} rows; {folder}/report.html, {', '.join(there)}")
    if wandb != "null":
        log_report(sweep, verdicts, folder, wandb)
    return folder
