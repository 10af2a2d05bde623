"""Over which numbers a message ranges, and in which blocks it is encoded."""

from dataclasses import dataclass

from fedmef_dist.sparsity import ParameterSpace


@dataclass(frozen=True)
class Block:
    """A part of a range that is encoded by itself: a prunable layer, or everything else at once.

    Attributes:
        start, stop: its place in the range.
        rows: filters; the size is a multiple of it.
        quantised: whether ``wire.uplink_values`` applies to its numbers on their way up; else they are fp32.
    """

    start: int
    stop: int
    rows: int = 1
    quantised: bool = False

    @property
    def size(self) -> int:
        """Number of elements."""
        return self.stop - self.start


@dataclass(frozen=True)
class Range:
    """The numbers that a message is about; its positions count from 0 within it.

    Attributes:
        blocks: one behind the other, without gaps.
        offset: where its first number lies in the flat vector; 0 for numbers that are not in it.
    """

    blocks: tuple[Block, ...]
    offset: int = 0

    @property
    def size(self) -> int:
        """Number of elements."""
        return self.blocks[-1].stop if self.blocks else 0


def prunable(space: ParameterSpace) -> Range:
    """All prunable positions, a block a layer."""
    return Range(_layers(space))


def parameters(space: ParameterSpace) -> Range:
    """All parameters: the prunable layers, and the others as one block."""
    return Range((*_layers(space), *_rest(space.n_prunable, space.n_parameters)))


def never_pruned(space: ParameterSpace) -> Range:
    """Everything behind the prunable positions: other parameters and running statistics."""
    return Range(_rest(0, space.total - space.n_prunable), space.n_prunable)


def statistics(space: ParameterSpace) -> Range:
    """The running statistics."""
    return Range(_rest(0, space.total - space.n_parameters), space.n_parameters)


def small(size: int) -> Range:
    """Numbers of a method's own, such as a loss for each candidate."""
    return Range(_rest(0, size))


def _layers(space: ParameterSpace) -> tuple[Block, ...]:
    return tuple(Block(layer.start, layer.stop, layer.rows, quantised=True) for layer in space.layers)


def _rest(start: int, stop: int) -> tuple[Block, ...]:
    return (Block(start, stop),) if stop > start else ()
