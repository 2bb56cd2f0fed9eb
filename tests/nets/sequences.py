"""Small networks over time in PyTorch: a recurrent tagger, and convolutions over a waveform."""

from __future__ import annotations

import torch
from nets.attention import Block
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import rnn
from torch.nn.utils.parametrizations import weight_norm


class Tagger(nn.Module):
    """A bidirectional LSTM over packed sequences, and a classifier of each word."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.lstm = nn.Embedding(100, 32), nn.LSTM(32, 32, 2, batch_first=True, bidirectional=True)
        self.hidden, self.head = nn.Linear(64, 64), nn.Linear(64, 20)

    def forward(self, ids: Tensor, lengths: Tensor) -> Tensor:
        packed = rnn.pack_padded_sequence(self.words(ids), lengths, batch_first=True, enforce_sorted=False)
        states, _ = rnn.pad_packed_sequence(self.lstm(packed)[0], batch_first=True, total_length=ids.shape[1])
        return self.head(functional.relu(self.hidden(states)))


class Wave(nn.Module):
    """Wav2vec: strided convolutions with norms over groups or channels, a convolution of positions with weight norm."""

    def __init__(self) -> None:
        super().__init__()
        width = 64
        self.first, self.group = nn.Conv1d(1, 32, 10, 5, bias=False), nn.GroupNorm(32, 32)
        self.second, self.norm2 = nn.Conv1d(32, 32, 3, 2), nn.LayerNorm(32)
        self.third = nn.Conv1d(32, 32, 3, 2)
        self.project_norm, self.project = nn.LayerNorm(32), nn.Linear(32, width)
        self.position = weight_norm(nn.Conv1d(width, width, 8, padding=4, groups=4), dim=2)
        self.block, self.head = Block(width, 2), nn.Linear(width, 30)

    def forward(self, wave: Tensor) -> Tensor:
        wave = (wave - wave.mean(-1, keepdim=True)) / torch.sqrt(wave.var(-1, keepdim=True) + 1e-5)
        x = functional.gelu(self.group(self.first(wave[:, None])))
        x = functional.gelu(self.norm2(self.second(x).transpose(1, 2)).transpose(1, 2))
        x = functional.gelu(self.third(x)).transpose(1, 2)
        x = self.project(self.project_norm(x))
        x = x + functional.gelu(self.position(x.transpose(1, 2))[:, :, :-1]).transpose(1, 2)
        return functional.log_softmax(self.head(self.block(x)), -1)
