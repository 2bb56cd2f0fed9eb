"""A small BERT encoder of `transformers` with random weights: `samples.bert_encoder.encoder:encoder`."""

from __future__ import annotations

from torch import Tensor, nn
from transformers import BertConfig, BertModel


class Encoder(nn.Module):
    """An encoder from `input_ids` and `attention_mask`, int64 [batch, sequence], to `hidden`, float32 [..., 128]."""

    def __init__(self) -> None:
        super().__init__()
        config = BertConfig(
            vocab_size=1000,
            hidden_size=128,
            num_hidden_layers=2,
            num_attention_heads=4,
            intermediate_size=512,
            max_position_embeddings=128,
            attn_implementation="eager",
        )
        self.model = BertModel(config, add_pooling_layer=False)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> dict[str, Tensor]:
        """Run the encoder."""
        return {"hidden": self.model(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state}


def encoder() -> nn.Module:
    """Return the module. trtopt seeds torch first, so that the weights are the same each time."""
    return Encoder()
