"""Small transformers in PyTorch: attention written in the ways that networks in use write it."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional


class Attention(nn.Module):
    """Attention from one product for queries, keys and values; `fused` leaves it to PyTorch's own operator."""

    def __init__(self, width: int, heads: int, *, fused: bool) -> None:
        super().__init__()
        self.heads, self.fused, self.can_fuse = heads, fused, fused
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        batch, length, width = x.shape
        qkv = self.qkv(x).reshape(batch, length, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)
        if self.fused:
            y = functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        else:
            scores = (q * (width // self.heads) ** -0.5) @ k.transpose(-2, -1)
            y = self.masked(scores, mask).softmax(-1) @ v
        return self.out(y.transpose(1, 2).reshape(batch, length, width))

    def masked(self, scores: Tensor, mask: Tensor | None) -> Tensor:
        return scores if mask is None else scores + mask


class EinsumAttention(Attention):
    """The same, written with einsum."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__(width, heads, fused=False)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        batch, length, width = x.shape
        weight = self.qkv.weight.view(3, self.heads, width // self.heads, width)
        bias = self.qkv.bias.view(3, self.heads, 1, -1)
        q, k, v = (torch.einsum("bld,hkd->bhlk", x, weight[i]) + bias[i] for i in range(3))
        weights = (torch.einsum("bhqd,bhkd->bhqk", q, k) / q.shape[-1] ** 0.5).softmax(-1)
        return self.out(torch.einsum("bhqk,bhkd->bqhd", weights, v).reshape(batch, length, width))


class WindowAttention(Attention):
    """Attention in windows, with a bias for each head and a mask for each window of an image."""

    def __init__(self, width: int, heads: int, window: int, regions: Tensor | None) -> None:
        super().__init__(width, heads, fused=False)
        self.table = nn.Parameter(torch.randn((2 * window - 1) ** 2, heads) * 0.3)
        grid = torch.stack(torch.meshgrid(torch.arange(window), torch.arange(window), indexing="ij")).flatten(1)
        apart = grid[:, :, None] - grid[:, None, :] + window - 1
        self.register_buffer("relative_index", apart[0] * (2 * window - 1) + apart[1])
        self.register_buffer("mask", regions)

    def masked(self, scores: Tensor, mask: Tensor | None) -> Tensor:
        count, heads, length, _ = scores.shape
        bias = self.table[self.relative_index.view(-1)].view(length, length, -1).permute(2, 0, 1)
        scores = scores + bias[None]
        if self.mask is None:
            return scores
        windows = self.mask.shape[0]
        scores = scores.view(count // windows, windows, heads, length, length) + self.mask[None, :, None]
        return scores.view(-1, heads, length, length)


class Block(nn.Module):
    """A transformer block with the norms first."""

    def __init__(self, width: int, heads: int, *, fused: bool = True, act: nn.Module | None = None) -> None:
        super().__init__()
        self.attend = Attention(width, heads, fused=fused)
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), act or nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        x = x + self.attend(self.norm1(x), mask)
        return x + self.mlp(self.norm2(x))


class ViT(nn.Module):
    """A class token that is expanded to the batch and concatenated, and one token that is read at the end."""

    def __init__(self) -> None:
        super().__init__()
        width = 64
        self.patch = nn.Conv2d(3, width, 8, 8)
        self.token = nn.Parameter(torch.randn(1, 1, width))
        self.position = nn.Parameter(torch.randn(1, 17, width) * 0.5)
        self.blocks = nn.ModuleList([Block(width, 2), Block(width, 2, fused=False)])
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 20)

    def forward(self, image: Tensor) -> Tensor:
        x = self.patch(image).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1) + self.position
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x)[:, 0])


class Swin(nn.Module):
    """Attention in windows, one layer of them shifted, with a bias of relative positions and a constant mask."""

    SIZE, WINDOW, HEADS = 8, 4, 2

    def __init__(self) -> None:
        super().__init__()
        width, window = 32, self.WINDOW
        self.patch, self.patch_norm = nn.Conv2d(3, width, 4, 4), nn.LayerNorm(width)
        self.blocks = nn.ModuleList([Block(width, self.HEADS), Block(width, self.HEADS)])
        self.last = Block(2 * width, self.HEADS)
        self.blocks[0].attend = WindowAttention(width, self.HEADS, window, None)
        self.blocks[1].attend = WindowAttention(width, self.HEADS, window, self._regions())
        self.last.attend = WindowAttention(2 * width, self.HEADS, window, None)
        self.merge_norm, self.merge = nn.LayerNorm(4 * width), nn.Linear(4 * width, 2 * width, bias=False)
        self.norm, self.head = nn.LayerNorm(2 * width), nn.Linear(2 * width, 20)

    def _regions(self) -> Tensor:
        regions = torch.zeros(1, self.SIZE, self.SIZE, 1)
        cuts = (slice(0, -self.WINDOW), slice(-self.WINDOW, -self.WINDOW // 2), slice(-self.WINDOW // 2, None))
        for number, (rows, columns) in enumerate((a, b) for a in cuts for b in cuts):
            regions[:, rows, columns] = number
        windows = self._windows(regions).squeeze(-1)
        return torch.where(windows[:, None, :] == windows[:, :, None], 0.0, -100.0)

    def _windows(self, x: Tensor) -> Tensor:
        _, height, width, channels = x.shape
        x = x.view(-1, height // self.WINDOW, self.WINDOW, width // self.WINDOW, self.WINDOW, channels)
        return x.permute(0, 1, 3, 2, 4, 5).reshape(-1, self.WINDOW**2, channels)

    def _attend(self, block: Block, x: Tensor, shift: int) -> Tensor:
        batch, height, width, channels = x.shape
        y = torch.roll(block.norm1(x), (-shift, -shift), (1, 2)) if shift else block.norm1(x)
        y = block.attend(self._windows(y))
        y = y.view(-1, height // self.WINDOW, width // self.WINDOW, self.WINDOW, self.WINDOW, channels)
        y = y.permute(0, 1, 3, 2, 4, 5).reshape(batch, height, width, channels)
        x = x + (torch.roll(y, (shift, shift), (1, 2)) if shift else y)
        return x + block.mlp(block.norm2(x))

    def forward(self, image: Tensor) -> Tensor:
        x = self.patch_norm(self.patch(image).permute(0, 2, 3, 1))
        x = self._attend(self.blocks[0], x, 0)
        x = self._attend(self.blocks[1], x, self.WINDOW // 2)
        corners = [x[:, 0::2, 0::2], x[:, 1::2, 0::2], x[:, 0::2, 1::2], x[:, 1::2, 1::2]]
        x = self.merge(self.merge_norm(torch.cat(corners, -1)))
        x = self._attend(self.last, x, 0)
        return self.head(self.norm(x).mean((1, 2)))


class Decoder(nn.Module):
    """A decoder layer of DETR: attention among the queries, then from the queries to the image."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.fused = self.can_fuse = True
        self.own = nn.MultiheadAttention(width, heads, batch_first=True)
        self.cross = nn.MultiheadAttention(width, heads, batch_first=True)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(3))
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x: Tensor, queries: Tensor, memory: Tensor, position: Tensor) -> Tensor:
        q = x + queries
        x = self.norms[0](x + self.own(q, q, x, need_weights=not self.fused)[0])
        found = self.cross(x + queries, memory + position, memory, need_weights=not self.fused)[0]
        x = self.norms[1](x + found)
        return self.norms[2](x + self.down(functional.relu(self.up(x))))


class Encoder(nn.Module):
    """An encoder layer of DETR: positions are added to queries and keys, not to values."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.attend = nn.MultiheadAttention(width, heads, batch_first=True)
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x: Tensor, position: Tensor) -> Tensor:
        q = x + position
        x = self.norm1(x + self.attend(q, q, x)[0])  # with attention weights, which nothing reads
        return self.norm2(x + self.down(functional.relu(self.up(x))))


class DETR(nn.Module):
    """A convolutional backbone, an encoder and a decoder by PyTorch's own attention, two outputs."""

    def __init__(self) -> None:
        super().__init__()
        width, heads = 64, 4
        self.backbone = nn.Sequential(
            nn.Conv2d(3, 32, 3, 2, 1), nn.BatchNorm2d(32), nn.ReLU(),
            nn.Conv2d(32, 64, 3, 4, 1), nn.BatchNorm2d(64), nn.ReLU(), nn.Conv2d(64, width, 1),
        )  # fmt: skip
        self.row, self.column = nn.Parameter(torch.rand(4, width // 2)), nn.Parameter(torch.rand(4, width // 2))
        self.queries = nn.Embedding(20, width)
        self.encoder, self.decoder = Encoder(width, heads), Decoder(width, heads)
        self.classes = nn.Linear(width, 20)
        self.boxes = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 4))

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        features = self.backbone(image)
        height, width = features.shape[-2:]
        position = torch.cat([
            self.column[None, :width].expand(height, -1, -1), self.row[:height, None].expand(-1, width, -1),
        ], -1).flatten(0, 1)[None]  # fmt: skip
        memory = self.encoder(features.flatten(2).permute(0, 2, 1), position)
        queries = self.queries.weight[None].expand(image.shape[0], -1, -1)
        x = self.decoder(torch.zeros_like(queries), queries, memory, position)
        return self.classes(x), self.boxes(x).sigmoid()


class BertLayer(nn.Module):
    def __init__(self, width: int, heads: int, *, fused: bool) -> None:
        super().__init__()
        self.fused = self.can_fuse = fused
        self.heads, self.size = heads, width // heads
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        self.out, self.norm1 = nn.Linear(width, width), nn.LayerNorm(width, eps=1e-12)
        self.up, self.down, self.norm2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width), nn.LayerNorm(width)

    def _split(self, x: Tensor) -> Tensor:
        return x.view(*x.size()[:-1], self.heads, self.size).permute(0, 2, 1, 3)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        q, k, v = self._split(self.query(x)), self._split(self.key(x)), self._split(self.value(x))
        if self.fused:
            y = functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        else:
            y = functional.softmax(q @ k.transpose(-1, -2) / math.sqrt(self.size) + mask, dim=-1) @ v
        y = y.permute(0, 2, 1, 3).contiguous()
        x = self.norm1(x + self.out(y.view(*y.size()[:-2], -1)))
        return self.norm2(x + self.down(functional.gelu(self.up(x))))


class BERT(nn.Module):
    """An attention mask from an input, norms after the sums, a pooled output and one per token."""

    def __init__(self) -> None:
        super().__init__()
        width = 64
        self.words, self.positions = nn.Embedding(100, width), nn.Embedding(64, width)
        self.kinds, self.norm = nn.Embedding(2, width), nn.LayerNorm(width, eps=1e-12)
        self.layers = nn.ModuleList([BertLayer(width, 2, fused=False), BertLayer(width, 2, fused=True)])
        self.pool = nn.Linear(width, width)
        self.register_buffer("ids", torch.arange(64)[None])

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, Tensor]:
        x = self.words(input_ids) + self.positions(self.ids[:, : input_ids.size(1)])
        x = self.norm(x + self.kinds(torch.zeros_like(input_ids)))
        mask = (1.0 - attention_mask[:, None, None, :].to(x.dtype)) * torch.finfo(x.dtype).min
        for layer in self.layers:
            x = layer(x, mask)
        return x, torch.tanh(self.pool(x[:, 0]))


class GPTLayer(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads, self.size = heads, width // heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        # GPT-2's layers are products with a weight of the other orientation.
        self.qkv, self.qkv_bias = (
            nn.Parameter(torch.randn(width, 3 * width) * width**-0.5),
            nn.Parameter(torch.zeros(3 * width)),
        )
        self.out, self.up, self.down = nn.Linear(width, width), nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor, past: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        batch, length, width = x.shape
        h = torch.addmm(self.qkv_bias, self.norm1(x).view(-1, width), self.qkv).view(batch, length, 3 * width)
        q, k, v = (part.view(batch, length, self.heads, self.size).transpose(1, 2) for part in h.split(width, 2))
        k, v = torch.cat([past[0], k], 2), torch.cat([past[1], v], 2)
        scores = q @ k.transpose(-1, -2) / self.size**0.5
        total = k.shape[2]
        causal = torch.arange(total)[None, :] <= torch.arange(total - length, total)[:, None]
        scores = torch.where(causal, scores, torch.full([], torch.finfo(scores.dtype).min))
        y = (scores.softmax(-1) @ v).transpose(1, 2).reshape(batch, length, width)
        x = x + self.out(y)
        h = self.up(self.norm2(x))
        h = 0.5 * h * (1.0 + torch.tanh(math.sqrt(2.0 / math.pi) * (h + 0.044715 * torch.pow(h, 3.0))))
        return x + self.down(h), k, v


class GPT(nn.Module):
    """Keys and values of the past as inputs and outputs, a causal mask, the tanh form of GELU, tied embeddings."""

    def __init__(self) -> None:
        super().__init__()
        width = 64
        self.words, self.positions = nn.Embedding(100, width), nn.Embedding(128, width)
        self.layers = nn.ModuleList([GPTLayer(width, 2) for _ in range(2)])
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 100, bias=False)
        self.head.weight = self.words.weight

    def forward(
        self, input_ids: Tensor, key_0: Tensor, value_0: Tensor, key_1: Tensor, value_1: Tensor
    ) -> tuple[Tensor, ...]:
        start = key_0.shape[2]
        x = self.words(input_ids) + self.positions(torch.arange(start, start + input_ids.shape[1]))
        x, *first = self.layers[0](x, (key_0, value_0))
        x, *second = self.layers[1](x, (key_1, value_1))
        return (self.head(self.norm(x)) * 64**-0.5, *first, *second)


class Whisper(nn.Module):
    """Convolutions over a spectrogram, positions cut to its length, keys without a bias."""

    def __init__(self) -> None:
        super().__init__()
        width = 64
        self.conv1, self.conv2 = nn.Conv1d(40, width, 3, padding=1), nn.Conv1d(width, width, 3, stride=2, padding=1)
        angles = torch.arange(64)[:, None] * torch.exp(-torch.arange(width // 2) * math.log(10000) / (width // 2 - 1))
        self.register_buffer("positions", torch.cat([angles.sin(), angles.cos()], 1))
        self.blocks = nn.ModuleList([Block(width, 2), Block(width, 2)])
        self.blocks[1].attend = EinsumAttention(width, 2)
        self.norm = nn.LayerNorm(width)

    def forward(self, mel: Tensor) -> Tensor:
        x = functional.gelu(self.conv2(functional.gelu(self.conv1(mel)))).permute(0, 2, 1)
        x = x + self.positions[: x.shape[1]]
        for block in self.blocks:
            x = block(x)
        return self.norm(x)
