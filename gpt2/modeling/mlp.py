"""The feed-forward half of a block."""

from __future__ import annotations

from torch import Tensor, nn

from gpt2.config import GPT2Config
from gpt2.modeling.activations import get_activation
from gpt2.modeling.dropout import Dropout


class GPT2MLP(nn.Module):
    """c_proj(act(c_fc(x))), (B, T, D) -> (B, T, F) -> (B, T, D)."""

    def __init__(self, config: GPT2Config) -> None:
        super().__init__()
        self.c_fc = nn.Linear(config.n_embd, config.inner_dim)
        self.c_proj = nn.Linear(config.inner_dim, config.n_embd)
        self.act = get_activation(config.activation_function)
        self.dropout = Dropout(config.resid_pdrop)

    def forward(self, x: Tensor) -> Tensor:
        return self.dropout(self.c_proj(self.act(self.c_fc(x))))  # type: ignore[no-any-return]
