"""Imagen Lab: cascaded text-to-image diffusion, open to ablation by one Hydra override."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from imagen.build import load_cascade

__all__ = ["load_cascade"]


def __getattr__(name: str) -> Any:
    # loaded on first use, so that `import imagen` costs nothing
    if name == "load_cascade":
        from imagen.build import load_cascade

        return load_cascade
    raise AttributeError(f"module 'imagen' has no attribute '{name}'")
