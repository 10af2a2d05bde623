"""Torchvision's residual networks, block by block."""

from typing import Any

from torch import Tensor, nn


class _BlockByBlock(nn.Module):
    """Calls the blocks itself: torchvision's function holds a stage's input until all blocks of the stage are done."""

    def forward(self: Any, x: Tensor) -> Tensor:
        """Logits (B, classes) of images (B, channels, H, W)."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        for stage in (self.layer1, self.layer2, self.layer3, self.layer4):
            for block in stage:
                x = block(x)
        return self.fc(self.avgpool(x).flatten(1))


def block_by_block(model: nn.Module) -> nn.Module:
    """``model``, a ResNet of torchvision, which from now on gives up each block's input when the block is done."""
    kind = type(model)
    model.__class__ = type(kind.__name__, (_BlockByBlock, kind), {"__module__": kind.__module__})
    return model
