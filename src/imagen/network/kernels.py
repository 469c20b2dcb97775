"""Normalization, attention and convolution in the form that is fastest on each device.

PyTorch's own kernels are right for GPUs. On CPUs its GroupNorm takes 2 to 7 times longer on channels_last than need be
(and its backward crashes on a channels_last input that needs no gradient), its fused attention, backward above all,
takes 5 times longer than plain matrix products do at the few positions of our layers, and the gradient of a wide
convolution's weight at few pixels takes 3 to 7 times longer than one matrix product does. All forms agree to rounding.
"""

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor
from torch.autograd.function import once_differentiable

EPSILON = 1e-5


def group_norm(
    x: Float[Tensor, "b c h w"], groups: int, gain: Float[Tensor, "b c"], bias: Float[Tensor, "b c"], silu: bool
) -> Float[Tensor, "b c h w"]:
    """GroupNorm with a gain and a bias of each example's own: ``(x - mean) / std * gain + bias``, in x's dtype.

    With ``silu`` that activation follows.
    """
    if x.is_cpu:
        return _GroupNormCPU.apply(x, groups, gain, bias, silu)
    normed = F.group_norm(x, groups, eps=EPSILON)  # float32 under autocast
    out = torch.addcmul(bias[:, :, None, None], normed, gain[:, :, None, None]).to(x.dtype)
    return F.silu(out) if silu else out


def conv3x3(
    x: Float[Tensor, "b c h w"], weight: Float[Tensor, "o c 3 3"], bias: Float[Tensor, " o"]
) -> Float[Tensor, "b o h w"]:
    """A 3x3 convolution with a border of zeros, in autocast's dtype where that is on."""
    b, c, h, w = x.shape
    if x.is_cpu and b * h * w <= c:  # fewer pixels than channels: most of the work is the weight's own
        dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else x.dtype
        if dtype == torch.bfloat16 and torch.is_grad_enabled():
            return _WideConvCPU.apply(x.to(dtype), weight.to(dtype), bias.to(dtype))
    return F.conv2d(x, weight, bias, padding=1)


def attend(
    q: Float[Tensor, "b s k c"],
    k: Float[Tensor, "b j k c"],
    v: Float[Tensor, "b j k c"],
    visible: Bool[Tensor, "b j"] | None,
) -> Float[Tensor, "b s kc"]:
    """Softmax attention of every head over the visible keys; each example must have at least one.

    None says that all are: a mask, even one that hides nothing, would rule out the flash kernel on GPUs.
    """
    q, k, v = (a.transpose(1, 2) for a in (q, k, v))
    if q.is_cpu:
        out = _attend_cpu(q, k, v, visible)
    else:
        mask = None if visible is None else visible[:, None, None, :]
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    return out.transpose(1, 2).flatten(2)


@torch.autocast("cpu", enabled=False)  # it would widen the weights to float32; softmax sums in that in any case
def _attend_cpu(
    q: Float[Tensor, "b k s c"],
    k: Float[Tensor, "b k j c"],
    v: Float[Tensor, "b k j c"],
    visible: Bool[Tensor, "b j"] | None,
) -> Float[Tensor, "b k s c"]:
    heads = q.shape[1]
    hidden = torch.zeros(1, 1, 1, dtype=q.dtype, device=q.device)
    if visible is not None:
        hidden = hidden.expand(len(q), 1, visible.shape[1]).masked_fill(~visible[:, None], float("-inf"))
        hidden = hidden.repeat_interleave(heads, dim=0)
    scale = q.shape[-1] ** -0.5
    weights = torch.baddbmm(hidden, q.flatten(0, 1), k.flatten(0, 1).transpose(1, 2), alpha=scale).softmax(dim=-1)
    return torch.bmm(weights, v.flatten(0, 1)).unflatten(0, (-1, heads))


class _WideConvCPU(torch.autograd.Function):
    """A 3x3 convolution whose weight's gradient is one matrix product: upstream against each pixel's neighbourhood."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return F.conv2d(x, weight, bias, padding=1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:  # pyright: ignore
        x, weight = ctx.saved_tensors
        wants_x, wants_weight, wants_bias = ctx.needs_input_grad
        x_grad, _, _ = torch.ops.aten.convolution_backward(
            *(grad, x, weight, None, [1, 1], [1, 1], [1, 1], False, [0, 0], 1), [wants_x, False, False]
        )
        pixels = grad.permute(0, 2, 3, 1).flatten(0, 2)
        weight_grad = None
        if wants_weight:
            weight_grad = (pixels.t() @ _neighbourhoods(x)).unflatten(1, (3, 3, -1)).permute(0, 3, 1, 2)
        return x_grad, weight_grad, pixels.sum(0) if wants_bias else None


def _neighbourhoods(x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b*h*w 9*c"]:
    """Each pixel's 3x3 neighbourhood, zeros beyond the border; channels last."""
    b, c, h, w = x.shape
    bordered = F.pad(x.permute(0, 2, 3, 1), (0, 0, 1, 1, 1, 1))
    return bordered.unfold(1, 3, 1).unfold(2, 3, 1).permute(0, 1, 2, 4, 5, 3).reshape(b * h * w, 9 * c)


class _GroupNormCPU(torch.autograd.Function):
    """GroupNorm on ``[b, h*w, c]``, as channels_last lies in memory, with sums over pixels as matrix products.

    The sums are of the input less a rough mean, so that bf16 loses nothing when a channel's mean is far from zero.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, groups: int, gain: Tensor, bias: Tensor, silu: bool) -> Tensor:
        b, c, h, w = x.shape
        pixels = x.permute(0, 2, 3, 1).reshape(b, h * w, c)
        rough = _grouped(_pixel_mean(pixels), groups).mean(2, keepdim=True).expand(b, groups, c // groups)
        centred = pixels - rough.reshape(b, 1, c).to(x.dtype)
        mean = _grouped(_pixel_mean(centred), groups).mean(2, keepdim=True)
        square = _grouped(_pixel_mean(centred * centred), groups).mean(2, keepdim=True)
        rstd = (square - mean * mean).clamp(min=0).add(EPSILON).rsqrt()
        scale = _grouped(gain.float(), groups) * rstd
        shift = bias.float() - (mean * scale).flatten(1)
        ctx.save_for_backward(centred, scale, shift, mean, rstd, gain)
        ctx.groups, ctx.silu = groups, silu
        out = _affine(centred, scale, shift)
        if silu:
            F.silu(out, inplace=True)
        return out.unflatten(1, (h, w)).permute(0, 3, 1, 2)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, Tensor, Tensor, None]:  # pyright: ignore
        centred, scale, shift, mean, rstd, gain = ctx.saved_tensors
        b, c, h, w = grad.shape
        dtype, groups = centred.dtype, ctx.groups
        grad = grad.permute(0, 2, 3, 1).reshape(b, h * w, c)
        if ctx.silu:  # its input is one pass to compute again, and as large as all else that is kept
            grad = torch.ops.aten.silu_backward(grad.to(dtype), _affine(centred, scale, shift))
        # per channel and pixel: the gradients' mean, and their mean product with the normalized input
        bias_grad = _grouped(_pixel_mean(grad), groups)
        gain_grad = (_grouped(_pixel_mean(grad * centred), groups) - mean * bias_grad) * rstd
        gains = _grouped(gain.float(), groups)
        along_one = (gains * bias_grad).mean(2, keepdim=True)
        along_x = (gains * gain_grad).mean(2, keepdim=True)
        # d x = rstd * (gain * grad - along_one - normalized * along_x)
        slope = (-rstd * rstd * along_x).expand_as(scale).reshape(b, 1, c)
        offset = (-rstd * along_one + rstd * rstd * mean * along_x).expand_as(scale).reshape(b, 1, c)
        out = torch.addcmul(offset.to(dtype), centred, slope.to(dtype))
        out.addcmul_(grad.to(dtype), scale.flatten(1)[:, None].to(dtype))
        pixel_count = h * w
        return (
            out.unflatten(1, (h, w)).permute(0, 3, 1, 2),
            None,
            (gain_grad.flatten(1) * pixel_count).to(gain.dtype),
            (bias_grad.flatten(1) * pixel_count).to(gain.dtype),
            None,
        )


def _affine(
    pixels: Float[Tensor, "b s c"], scale: Float[Tensor, "b g c_g"], shift: Float[Tensor, "b c"]
) -> Float[Tensor, "b s c"]:
    return torch.addcmul(shift[:, None].to(pixels.dtype), pixels, scale.flatten(1)[:, None].to(pixels.dtype))


def _pixel_mean(pixels: Float[Tensor, "b s c"]) -> Float[Tensor, "b c"]:
    """The mean over pixels in float32; a matrix product is several times faster here than a sum over that axis."""
    one = pixels.new_full((1, 1, 1), 1.0).expand(len(pixels), 1, pixels.shape[1])
    return torch.bmm(one, pixels).float()[:, 0] / pixels.shape[1]


def _grouped(per_channel: Float[Tensor, "b c"], groups: int) -> Float[Tensor, "b g c_g"]:
    return per_channel.unflatten(1, (groups, -1))
