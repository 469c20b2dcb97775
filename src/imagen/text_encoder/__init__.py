"""Frozen text encoders: captions in, per-token hidden states and a mask out (paper, sections 2.1 and D.1).

Nothing of transformers is imported, no file read and no network asked until an encoder is first used.
"""

from imagen.text_encoder.base import TextEncoder, fingerprint8
from imagen.text_encoder.families import T5, Bert, Clip, MiniLM
from imagen.text_encoder.hash import Hash
from imagen.text_encoder.pretrained import Pretrained

__all__ = ["T5", "Bert", "Clip", "Hash", "MiniLM", "Pretrained", "TextEncoder", "fingerprint8"]
