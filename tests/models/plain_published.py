"""The published networks once more, as plainly as they can be written: no fused kernel, no shortcut.

Written from the facts alone and independent of the networks; the transformer lies in
``ctflow.bench.plain``. ``test_plain_published`` first holds these functions to the recorded
fixtures, then the package to them at other shapes.
"""

import math

import torch
import torch.nn.functional as F

from ctflow.bench.plain import linear, norm, silu, softmax_attention


def affine_norm(s, name, x, eps=1e-5, gain="weight", shift="bias"):
    return norm(x, eps) * s[f"{name}.{gain}"] + s[f"{name}.{shift}"]


def exact_gelu(x):
    return 0.5 * x * (1 + torch.erf(x / math.sqrt(2)))


class SingleFile:
    """FLUX's autoencoder from the single file's tensors."""

    def __init__(self, state, groups):
        self.s, self.groups = state, groups
        self.levels = 1 + max(int(key.split(".")[2]) for key in state if key.startswith("encoder.down."))
        self.resnets = len({k.split(".")[4] for k in state if k.startswith("encoder.down.0.block.")})

    def encode(self, x):
        h = self._conv("encoder.conv_in", x)
        for level in range(self.levels):
            for i in range(self.resnets):
                h = self._resnet(f"encoder.down.{level}.block.{i}", h)
            if level < self.levels - 1:
                h = self._conv(f"encoder.down.{level}.downsample.conv", F.pad(h, (0, 1, 0, 1)), 0, 2)
        return self._out("encoder", self._middle("encoder", h)).chunk(2, 1)

    def decode(self, z):
        h = self._middle("decoder", self._conv("decoder.conv_in", z))
        for level in reversed(range(self.levels)):
            for i in range(self.resnets + 1):
                h = self._resnet(f"decoder.up.{level}.block.{i}", h)
            if level:
                h = h.repeat_interleave(2, 2).repeat_interleave(2, 3)
                h = self._conv(f"decoder.up.{level}.upsample.conv", h)
        return self._out("decoder", h)

    def _conv(self, name, x, padding=1, stride=1):
        return F.conv2d(x, self.s[f"{name}.weight"], self.s[f"{name}.bias"], stride, padding)

    def _norm(self, name, x):
        n, c, h, w = x.shape
        x = norm(x.reshape(n, self.groups, -1)).reshape(n, c, h, w)
        return x * self.s[f"{name}.weight"][:, None, None] + self.s[f"{name}.bias"][:, None, None]

    def _resnet(self, name, x):
        h = self._conv(f"{name}.conv1", silu(self._norm(f"{name}.norm1", x)))
        h = self._conv(f"{name}.conv2", silu(self._norm(f"{name}.norm2", h)))
        short = f"{name}.nin_shortcut"
        return h + (self._conv(short, x, 0) if f"{short}.weight" in self.s else x)

    def _middle(self, half, x):
        x = self._resnet(f"{half}.mid.block_1", x)
        name, (n, c, h, w) = f"{half}.mid.attn_1", x.shape
        y = self._norm(f"{name}.norm", x)
        q, k, v = (self._conv(f"{name}.{part}", y, 0).flatten(2).transpose(1, 2) for part in "qkv")
        y = softmax_attention(q, k, v, c**-0.5).transpose(1, 2).reshape(n, c, h, w)
        return self._resnet(f"{half}.mid.block_2", x + self._conv(f"{name}.proj_out", y, 0))

    def _out(self, half, x):
        return self._conv(f"{half}.conv_out", silu(self._norm(f"{half}.norm_out", x)))


def bert_states(config, s, ids, mask):
    """Last hidden states of CT-CLIP's text tower."""
    root, eps = "text_transformer", config["layer_norm_eps"]
    words = s[f"{root}.embeddings.word_embeddings.weight"][ids]
    h = words + s[f"{root}.embeddings.position_embeddings.weight"][: ids.shape[1]]
    h = h + s[f"{root}.embeddings.token_type_embeddings.weight"][0]
    h = affine_norm(s, f"{root}.embeddings.LayerNorm", h, eps)
    bias = torch.where(mask[:, None, None] != 0, 0.0, -torch.inf)
    for i in range(config["num_hidden_layers"]):
        layer = f"{root}.encoder.layer.{i}"
        q, k, v = (
            linear(s, f"{layer}.attention.self.{part}", h).unflatten(2, (config["num_attention_heads"], -1))
            for part in ("query", "key", "value")
        )
        q, k, v = (y.transpose(1, 2) for y in (q, k, v))
        a = softmax_attention(q, k, v, q.shape[-1] ** -0.5, bias).transpose(1, 2).flatten(2)
        a = linear(s, f"{layer}.attention.output.dense", a) + h
        h = affine_norm(s, f"{layer}.attention.output.LayerNorm", a, eps)
        a = linear(s, f"{layer}.output.dense", exact_gelu(linear(s, f"{layer}.intermediate.dense", h)))
        h = affine_norm(s, f"{layer}.output.LayerNorm", a + h, eps)
    return h


def unit(x):
    return x / x.norm(dim=-1, keepdim=True)


def volume_latent(config, s, volume):
    """Latent of CT-CLIP's volume tower for ``[B, 1, slices, rows, columns]``."""
    root, heads, width = "visual_transformer", config["heads"], config["dim"]
    p, q = config["temporal_patch_size"], config["patch_size"]
    batch, t, h, w = len(volume), volume.shape[2] // p, volume.shape[3] // q, volume.shape[4] // q
    x = volume.reshape(batch, t, p, h, q, w, q).permute(0, 1, 3, 5, 2, 4, 6).reshape(batch, t, h, w, -1)
    x = linear(s, f"{root}.to_patch_emb.2", affine_norm(s, f"{root}.to_patch_emb.1", x))
    x = affine_norm(s, f"{root}.to_patch_emb.3", x)
    places = torch.stack(torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij"), -1).reshape(-1, 2)
    bias = (places[:, None] - places).float()
    bias = bias.sign() * (bias.abs() + 1).log()
    for i in range(2):
        bias = F.leaky_relu(linear(s, f"{root}.spatial_rel_pos_bias.net.{i}.0", bias), 0.1)
    bias = linear(s, f"{root}.spatial_rel_pos_bias.net.2", bias).permute(2, 0, 1)

    def layers(x, kind, bias):
        for i in range(config[f"{kind}_depth"]):
            layer = f"{root}.enc_{kind}_transformer.layers.{i}"
            grid = F.pad(x.reshape(batch, t, h, w, width).permute(0, 4, 1, 2, 3), (1, 1, 1, 1, 2, 0))
            conv = s[f"{layer}.0.dsconv.weight"], s[f"{layer}.0.dsconv.bias"]
            x = x + F.conv3d(grid, *conv, groups=width).permute(0, 2, 3, 4, 1).reshape(x.shape)
            q = linear(s, f"{layer}.1.to_q", affine_norm(s, f"{layer}.1.norm", x, 1e-5, "gamma", "beta"))
            k, v = linear(s, f"{layer}.1.to_kv", x).chunk(2, -1)
            q, k, v = (y.unflatten(2, (heads, -1)).transpose(1, 2) for y in (q, k, v))
            q, k = unit(q) * s[f"{layer}.1.q_scale"], unit(k) * s[f"{layer}.1.k_scale"]
            a = softmax_attention(q, k, v, 8.0, bias).transpose(1, 2).flatten(2)
            x = x + linear(s, f"{layer}.1.to_out", a)
            value, gate = linear(s, f"{layer}.3.1", affine_norm(s, f"{layer}.3.0", x)).chunk(2, -1)
            x = x + linear(s, f"{layer}.3.4", exact_gelu(gate) * value)
        return affine_norm(s, f"{root}.enc_{kind}_transformer.norm_out", x, 1e-5, "gamma", "beta")

    x = layers(x.reshape(batch * t, h * w, width), "spatial", bias)
    x = x.reshape(batch, t, h * w, width).transpose(1, 2).reshape(-1, t, width)
    x = layers(x, "temporal", 0.0).reshape(batch, h * w, t, width).transpose(1, 2)
    codes = s[f"{root}.vq._codebook.embed"][0]
    x = codes[(unit(x) @ codes.T).argmax(-1)]
    return unit(linear(s, "to_visual_latent", x.mean(1).flatten(1)))
