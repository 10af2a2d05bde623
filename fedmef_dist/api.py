"""What authors of methods, models, data sets, trackers and callbacks subclass or call; docs/extending.md shows how.

Runs: :class:`Config`, :func:`load_config`, :func:`run`, :class:`Summary`, :class:`UserError`.

Methods: subclass :class:`Method`, or one that is there (:class:`RandomStart`, :class:`FedAvg`, :class:`FedMef`, ...),
with keys in a subclass of :class:`Settings`, and :class:`Preferences`. It sees a :class:`ParameterSpace` and its
:class:`Mask`, a :class:`MethodContext`, before round 1 a :class:`Preparation`, and says in a :class:`RoundPlan` what
the clients do (:class:`LocalWork`) and send (:class:`Collection`, :class:`Upload`), which it gets as :class:`Sums`.

Masks: :func:`layer_counts`, :func:`random_mask`, :func:`swap_counts`, :func:`spare_counts`, :func:`weakest`,
:func:`strongest_inactive`, :func:`prunable_magnitude`, :class:`AdjustmentSchedule`.

Random draws, each with a generator of its own: :func:`torch_generator`, :func:`numpy_generator`, :func:`torch_seed`.

Data sets: :func:`image_dataset`, :func:`text_dataset`, :class:`Dataset`, :class:`TextDataset`.

Trackers and callbacks: subclass :class:`Tracker`, or :class:`Callback`, which is given a :class:`Control`;
:data:`Metrics` is what they see of a round. :class:`EarlyStopping` is there.
"""

from fedmef_dist.base.errors import UserError
from fedmef_dist.base.randomness import numpy_generator, torch_generator, torch_seed
from fedmef_dist.base.settings import Settings
from fedmef_dist.config import Config, load_config
from fedmef_dist.data.dataset import Dataset, Split
from fedmef_dist.data.from_arrays import image_dataset
from fedmef_dist.data.text import TextDataset, TextSplit, text_dataset
from fedmef_dist.methods.base import (
    Collection,
    LocalWork,
    Method,
    MethodContext,
    Preferences,
    RoundPlan,
    Upload,
)
from fedmef_dist.methods.fedavg import FedAvg, FedAvgSettings
from fedmef_dist.methods.feddst import FedDst, FedDstSettings
from fedmef_dist.methods.fedmef import FedMef, FedMefSettings
from fedmef_dist.methods.fedrts import FedRts, FedRtsSettings
from fedmef_dist.methods.fedsgc import FedSgc, FedSgcSettings
from fedmef_dist.methods.fedtiny import FedTiny, FedTinySettings
from fedmef_dist.methods.preparation import Preparation
from fedmef_dist.methods.prunefl import PruneFl, PruneFlSettings
from fedmef_dist.methods.static import Static, StaticSettings
from fedmef_dist.methods.swapping import (
    RandomStart,
    SparseSettings,
    SwappingSettings,
    TopGradients,
    prunable_magnitude,
    spare_counts,
    strongest_inactive,
    swap_counts,
    weakest,
)
from fedmef_dist.session.session import Summary, run
from fedmef_dist.sparsity import Mask, ParameterSpace, Slice
from fedmef_dist.sparsity.allocation import layer_counts, random_mask
from fedmef_dist.sparsity.schedule import AdjustmentSchedule
from fedmef_dist.sums.position_sum import Sums
from fedmef_dist.tracking.early_stopping import EarlyStopping
from fedmef_dist.tracking.hooks import Callback, Control
from fedmef_dist.tracking.tracker import Metrics, Tracker

__all__ = [
    "AdjustmentSchedule",
    "Callback",
    "Collection",
    "Config",
    "Control",
    "Dataset",
    "EarlyStopping",
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
    "LocalWork",
    "Mask",
    "Method",
    "MethodContext",
    "Metrics",
    "ParameterSpace",
    "Preferences",
    "Preparation",
    "PruneFl",
    "PruneFlSettings",
    "RandomStart",
    "RoundPlan",
    "Settings",
    "Slice",
    "SparseSettings",
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
    "image_dataset",
    "layer_counts",
    "load_config",
    "numpy_generator",
    "prunable_magnitude",
    "random_mask",
    "run",
    "spare_counts",
    "strongest_inactive",
    "swap_counts",
    "text_dataset",
    "torch_generator",
    "torch_seed",
    "weakest",
]
