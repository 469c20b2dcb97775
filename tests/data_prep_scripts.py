"""The scripts of data_prep/ as modules, for the tests that need more than to run them."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

FOLDER = Path(__file__).parents[1] / "data_prep"


def load(name: str) -> ModuleType:
    """Import ``data_prep/<name>.py`` without running it."""
    spec = importlib.util.spec_from_file_location(f"data_prep_{name}", FOLDER / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module
