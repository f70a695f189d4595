"""The feed-forward part of a transformer layer, and the box regressor built like it."""

from mmcv.cnn import build_activation_layer
from torch import Tensor, nn


class FFN(nn.Module):
    """Linear, activation, dropout, ..., linear, dropout, with a residual connection around it all.

    Parameter names are those of mmcv's FFN: `layers.0.0`, ..., `layers.{num_fcs - 1}`.

    Args:
        embed_dims: of input and output.
        feedforward_channels: of the hidden layers.
        num_fcs: number of linear layers, at least 2.
        act_cfg: mmcv's activation config, ReLU by default.
        ffn_drop: dropout after each linear layer.
        add_identity: whether the input is added to the result.

    Raises:
        ValueError: fewer than two layers.
    """

    def __init__(
        self,
        embed_dims: int = 256,
        feedforward_channels: int = 1024,
        num_fcs: int = 2,
        act_cfg: dict | None = None,
        ffn_drop: float = 0.0,
        add_identity: bool = True,
    ) -> None:
        super().__init__()
        if num_fcs < 2:
            raise ValueError(f'an FFN has at least 2 linear layers, got num_fcs={num_fcs}')
        layers: list[nn.Module] = []
        channels = embed_dims
        for _ in range(num_fcs - 1):
            activation = build_activation_layer(act_cfg or {'type': 'ReLU', 'inplace': True})
            layers.append(
                nn.Sequential(nn.Linear(channels, feedforward_channels), activation, nn.Dropout(ffn_drop))
            )
            channels = feedforward_channels
        self.layers = nn.Sequential(*layers, nn.Linear(channels, embed_dims), nn.Dropout(ffn_drop))
        self.add_identity = add_identity

    def forward(self, x: Tensor) -> Tensor:
        """(..., C) -> (..., C)."""
        return x + self.layers(x) if self.add_identity else self.layers(x)


def build_box_mlp(embed_dims: int, num_hidden: int) -> nn.Sequential:
    """`num_hidden` times linear + ReLU, then a linear layer to 4 box coordinates."""
    layers: list[nn.Module] = []
    for _ in range(num_hidden):
        layers += [nn.Linear(embed_dims, embed_dims), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(embed_dims, 4))
