"""GroupNorm, gain and bias, and SiLU in one pass over memory each way: Triton kernels for GPUs.

Sums over a picture's pixels are taken tile by tile, those of the tiles group by group, in float32 throughout: forward
reads the input twice and writes once, backward reads input and gradient twice and writes once. Kept for the backward
pass are the input and each group's mean and deviation; everything else is computed again.
"""
