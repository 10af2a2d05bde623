"""A batch's forward and backward pass, replayed as a CUDA graph once it has been seen often enough."""

import logging
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from fedmef_dist.data.batches import Batch
from fedmef_dist.layers.random import RandomLayer, Tape
from fedmef_dist.layers.recompute import recomputed_blocks
from fedmef_dist.sparsity import Mask, ParameterSpace

_LOG = logging.getLogger(__name__)
WARM_UPS = 3
"""Passes of a shape that are computed; behind the last one it is recorded."""
MOST_GRAPHS = 64


class Recorder(Protocol):
    """Records what is launched, to be launched again as a whole."""

    def record(self, function: Callable[[], Tensor]) -> tuple[Callable[[], None], Tensor]:
        """Calls ``function`` and carries none of its launches out; returns what does, and the place of the result.

        Raises:
            RuntimeError: it cannot be recorded.
        """
        ...


class CudaRecorder:
    """Records CUDA graphs, which share their memory: they are replayed one after another and keep nothing in it.

    Those of two recorders share none and may be replayed beside each other: the scratch memory that cuBLAS keeps for
    the stream of a recording is a recorder's own, too.
    """

    def __init__(self) -> None:
        self._pool, self._stream = torch.cuda.graph_pool_handle(), torch.cuda.Stream()

    def record(self, function: Callable[[], Tensor]) -> tuple[Callable[[], None], Tensor]:
        """See :class:`Recorder`."""
        graph, stream = torch.cuda.CUDAGraph(), torch.cuda.current_stream()
        try:
            # Other threads, which encode messages, may go on with what a capture forbids.
            with torch.cuda.graph(graph, self._pool, self._stream, capture_error_mode="thread_local"):
                result = function()
        except BaseException:
            torch.cuda.set_stream(stream)  # one that breaks off leaves its own
            torch.cuda.synchronize()
            raise
        return graph.replay, result


@dataclass(frozen=True)
class _Recorded:
    """A recorded pass: where inputs, draws and loss lie, what carries it out, and memory that it goes on using."""

    batch: Batch
    tape: Tape
    replay: Callable[[], None]
    loss: Tensor
    mask: Mask
    tensors: tuple[Tensor, ...]


class Passes:
    """Computes loss and gradient of batches on one model.

    With a recorder a pass is recorded when some batches of its shape have come under the same mask, and replayed from
    then on: the same kernels on the same shapes, so the same bits. Each shape has its own record, a smaller last batch
    too; there is room for 64, of which those of other masks leave first and none of the same mask. What layers draw at
    random is drawn before a replay. Blocks that are computed again and draw, which they have to do twice, are never
    recorded; nothing is, once that has failed.

    Args:
        model: its parameters live in ``space``.
        space: the flat vector.
        loss: mean loss of a batch, 0-dim.
        recorder: None: nothing is recorded.
    """

    def __init__(
        self, model: nn.Module, space: ParameterSpace, loss: Callable[[Batch], Tensor], recorder: Recorder | None
    ) -> None:
        self.model, self.space, self.loss = model, space, loss
        self._recorder = recorder
        self._recorded: dict[tuple[object, ...], _Recorded] = {}
        self._seen: Counter[tuple[object, ...]] = Counter()
        self._mask = space.mask

    @property
    def records(self) -> bool:
        """Whether passes are recorded at all."""
        return self._recorder is not None

    @contextmanager
    def nothing_recorded(self) -> Iterator[None]:
        """Inside, all is computed, and behind it recorded anew: what layers know of their inputs may have changed."""
        self._forget()
        recorder, self._recorder = self._recorder, None
        try:
            yield
        finally:
            self._recorder = recorder

    def _forget(self) -> None:
        self._recorded.clear()
        self._seen.clear()

    def run(self, batch: Batch) -> Tensor:
        """Sets ``space.gradient`` to the gradient of the loss on ``batch``.

        Returns:
            The loss, 0-dim, without a gradient; the next call may change it.
        """
        if self._recorder is None:
            return self._compute_anew(batch)
        key = (
            id(self.space.mask),
            self.space.gradient.data_ptr(),
            *((tensor.shape, tensor.stride(), tensor.dtype) for tensor in batch),
        )
        found = self._recorded.get(key)
        if found is None:
            if not self._is_due(key) or self._draws_twice():
                return self._compute_anew(batch)
            tape = Tape()
            with tape.noting():
                loss = self._compute_anew(batch)
            found = self._record(batch, tape, self._recorder)
            if found is not None:
                # Its mask lives as long, so that no other can take its identity.
                self._recorded[key] = found
            return loss
        found.tape.redraw()
        for place, tensor in zip(found.batch, batch, strict=True):
            place.copy_(tensor)
        found.replay()
        return found.loss

    def _is_due(self, key: tuple[object, ...]) -> bool:
        """Whether the pass has been seen often enough, and there is room for its record."""
        if self._mask is not self.space.mask:
            self._mask = self.space.mask
            self._seen.clear()
        self._seen[key] += 1
        if self._seen[key] < WARM_UPS:
            return False
        others = [other for other, recorded in self._recorded.items() if recorded.mask is not self.space.mask]
        if len(self._recorded) == MOST_GRAPHS and others:
            del self._recorded[others[0]]
        return len(self._recorded) < MOST_GRAPHS

    def _draws_twice(self) -> bool:
        """Whether a block that is computed again draws random numbers."""
        again = (block for block in recomputed_blocks(self.model).values() if block.recomputes)
        inside = (module for block in again for module in block.modules())
        return any(isinstance(module, RandomLayer) and module.draws for module in inside)

    def compute(self, batch: Batch) -> Tensor:
        """Adds the gradient of the loss on ``batch`` to what the parameters have; returns the loss, 0-dim."""
        loss = self.loss(batch)
        loss.backward()
        return loss.detach()

    def _compute_anew(self, batch: Batch) -> Tensor:
        self.space.begin_backward()
        loss = self.compute(batch)
        self.space.end_backward()
        return loss

    def _record(self, batch: Batch, tape: Tape, recorder: Recorder) -> _Recorded | None:
        inputs, labels = (tensor.clone() for tensor in batch)

        def play() -> Tensor:
            with tape.playing():
                return self._compute_anew((inputs, labels))

        try:
            replay, loss = recorder.record(play)
        except RuntimeError as error:  # what is really wrong shows again when the pass is computed
            _LOG.warning("steps are not recorded as CUDA graphs: %s", error)
            self._recorder = None
            self._forget()
            return None
        # The layers may be given other tensors, of the same numbers, when a mask comes back.
        held = [value for module in self.model.modules() for value in vars(module).values()]
        tensors = tuple(value for value in held if isinstance(value, Tensor))
        return _Recorded((inputs, labels), tape, replay, loss, self.space.mask, (self.space.gradient, *tensors))
