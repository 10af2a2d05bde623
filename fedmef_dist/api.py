"""What authors of methods, models, data sets, trackers and callbacks subclass or call; docs/extending.md shows how.

Runs: :class:`Config`, :func:`load_config`, :func:`run`, :class:`Summary`, :class:`UserError`.

Methods: subclass :class:`Method`, or one that is there (:class:`RandomStart`, :class:`FedAvg`, :class:`FedMef`, ...),
with keys in a subclass of :class:`Settings`, and :class:`Preferences`. It sees a :class:`ParameterSpace` and its
:class:`Mask`, a :class:`MethodContext`, before round 1 a :class:`Preparation`, and says in a :class:`RoundPlan` what
the clients do (:class:`LocalWork`, told of the :class:`LocalClient`), what goes down (:class:`Broadcast`) and what
comes up (:class:`Collection`, :class:`Upload`), which it gets as :class:`Sums`, and the states as :class:`Received`.
Both range over :func:`prunable` positions, all :func:`parameters`, :func:`statistics` or a :func:`small` tensor, and
travel in an :class:`Encoding`: :class:`Sparse`, :class:`Positions`, :class:`WithMask`, :class:`Signs`, :class:`Whole`.
:func:`at_positions` and :func:`whole` make the usual collections. :class:`KeptTensor` stays with a client.

Masks: :func:`layer_counts`, :func:`random_mask`, :func:`swap_counts`, :func:`spare_counts`, :func:`weakest`,
:func:`strongest_inactive` and its :class:`GrowthOrder`, :func:`prunable_magnitude`, :class:`AdjustmentSchedule`.

Random draws, each with a generator of its own: :func:`torch_generator`, :func:`numpy_generator`, :func:`torch_seed`.

Data sets: :func:`image_dataset`, :func:`text_dataset`, :class:`Dataset`, :class:`TextDataset`.

Trackers and callbacks: subclass :class:`Tracker`, or :class:`Callback`, which is given a :class:`Control`;
:data:`Metrics` is what they see of a round. :class:`EarlyStopping` is there.
"""

from fedmef_dist.base.errors import UserError
from fedmef_dist.base.randomness import numpy_generator, torch_generator, torch_seed
from fedmef_dist.base.settings import Settings
from fedmef_dist.clients.kept_state import KeptTensor
from fedmef_dist.clients.plan import LocalClient, LocalWork, RoundPlan
from fedmef_dist.config import Config, load_config
from fedmef_dist.data.dataset import Dataset, Split
from fedmef_dist.data.from_arrays import image_dataset
from fedmef_dist.data.text import TextDataset, TextSplit, text_dataset
from fedmef_dist.methods.base import Method, MethodContext, Preferences, Received
from fedmef_dist.methods.fedavg import FedAvg, FedAvgSettings
from fedmef_dist.methods.feddst import FedDst, FedDstSettings
from fedmef_dist.methods.fedmef import FedMef, FedMefSettings
from fedmef_dist.methods.fedrts import FedRts, FedRtsSettings
from fedmef_dist.methods.fedsgc import FedSgc, FedSgcSettings
from fedmef_dist.methods.fedtiny import FedTiny, FedTinySettings
from fedmef_dist.methods.flash import Flash, FlashSettings
from fedmef_dist.methods.preparation import Preparation
from fedmef_dist.methods.prunefl import PruneFl, PruneFlSettings
from fedmef_dist.methods.sparsyfed import SparsyFed, SparsyFedSettings
from fedmef_dist.methods.static import Static, StaticSettings
from fedmef_dist.methods.swapping import (
    RandomStart,
    RandomStartSettings,
    SparseSettings,
    SwappingSettings,
    TopGradients,
)
from fedmef_dist.session.session import Summary, run
from fedmef_dist.sparsity import Mask, ParameterSpace, Slice
from fedmef_dist.sparsity.allocation import layer_counts, random_mask
from fedmef_dist.sparsity.growth import GrowthOrder
from fedmef_dist.sparsity.schedule import AdjustmentSchedule
from fedmef_dist.sparsity.swaps import prunable_magnitude, spare_counts, strongest_inactive, swap_counts, weakest
from fedmef_dist.sums.position_sum import Sums
from fedmef_dist.tracking.early_stopping import EarlyStopping
from fedmef_dist.tracking.hooks import Callback, Control
from fedmef_dist.tracking.tracker import Metrics, Tracker
from fedmef_dist.wire.encodings import Encoding, Positions, Signs, Sparse, Whole, WithMask
from fedmef_dist.wire.ranges import Range, parameters, prunable, small, statistics
from fedmef_dist.wire.traffic import Broadcast, Collection, Upload, at_positions, whole

__all__ = [
    "AdjustmentSchedule",
    "Broadcast",
    "Callback",
    "Collection",
    "Config",
    "Control",
    "Dataset",
    "EarlyStopping",
    "Encoding",
    "FedAvg",
    "FedAvgSettings",
    "FedDst",
    "FedDstSettings",
    "FedMef",
    "FedMefSettings",
    "FedRts",
    "FedRtsSettings",
    "FedSgc",
    "FedSgcSettings",
    "FedTiny",
    "FedTinySettings",
    "Flash",
    "FlashSettings",
    "GrowthOrder",
    "KeptTensor",
    "LocalClient",
    "LocalWork",
    "Mask",
    "Method",
    "MethodContext",
    "Metrics",
    "ParameterSpace",
    "Positions",
    "Preferences",
    "Preparation",
    "PruneFl",
    "PruneFlSettings",
    "RandomStart",
    "RandomStartSettings",
    "Range",
    "Received",
    "RoundPlan",
    "Settings",
    "Signs",
    "Slice",
    "Sparse",
    "SparseSettings",
    "SparsyFed",
    "SparsyFedSettings",
    "Split",
    "Static",
    "StaticSettings",
    "Summary",
    "Sums",
    "SwappingSettings",
    "TextDataset",
    "TextSplit",
    "TopGradients",
    "Tracker",
    "Upload",
    "UserError",
    "Whole",
    "WithMask",
    "at_positions",
    "image_dataset",
    "layer_counts",
    "load_config",
    "numpy_generator",
    "parameters",
    "prunable",
    "prunable_magnitude",
    "random_mask",
    "run",
    "small",
    "spare_counts",
    "statistics",
    "strongest_inactive",
    "swap_counts",
    "text_dataset",
    "torch_generator",
    "torch_seed",
    "weakest",
    "whole",
]
