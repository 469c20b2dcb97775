"""What the points of a sweep need, made once before the first: data, embeddings, the stages below."""

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Sequence

from imagen.ablation.run_lock import run_lock
from imagen.ablation.study import Point, Study
from imagen.cli import CONF, as_overrides, override
from imagen.errors import UserError
from imagen.files import make_folder
from imagen.hold import hold

OF_TORCHRUN = re.compile(r"((LOCAL_|GROUP_|ROLE_)?(RANK|WORLD_SIZE)|ROLE_NAME|MASTER_(ADDR|PORT)|TORCHELASTIC_.*)")
"""Variables that tell a process it is one of several: what is prepared, one alone prepares."""


def prepare(study: Study, points: Sequence[Point]) -> None:
    """Run the scale's commands for all points, each once, and train the stages below, where that is not done yet.

    They run where the sweep was started, so that relative paths are its own. Raises: UserError if one fails.
    """
    first = points[0].cfg
    todo = [_filled(command, point) for point in points for command in study.prepare]
    folder = study.folder(first.output_dir)
    make_folder(folder, "output_dir")
    with hold(folder / ".preparing", wait=True):
        for command in dict.fromkeys(map(tuple, todo)):
            _run(command)
        for below in study.bases(first):
            with run_lock(below):
                if not below.run.done.is_file():
                    _run(("train.py", *study.base(below.variant, first)))


def _run(command: Sequence[str]) -> None:
    """Run one of the project's scripts. Raises: UserError if it ends with another status than 0."""
    script, *arguments = command
    path = os.path.relpath(CONF.parent / script)
    said = shlex.join(["python", path, *arguments])
    print(f"$ {said}", flush=True)
    alone = {key: value for key, value in os.environ.items() if not OF_TORCHRUN.fullmatch(key)}
    status = subprocess.run([sys.executable, path, *arguments], env=alone).returncode
    if status:
        raise UserError(f"`{said}`, which the sweep needs, ended with status {status}: see above")


def _filled(command: str, point: Point) -> list[str]:
    """A command of the scale's with the point's own words in it."""
    own = {
        "{root}": [override("root", point.cfg.data.root)],
        "{text_encoder}": as_overrides("text_encoder", point.cfg.text_encoder),
    }
    return [word for template in shlex.split(command) for word in own.get(template, [template])]
