"""ERK's counts beside github.com/google-research/jaxpruner, for the layers of a ResNet18 at several densities."""

import numpy as np
from reference import checkout, module, tell

from fedmef_dist.sparsity.allocation import allocate

SHAPES = [
    *[(64, 3, 3, 3), *[(64, 64, 3, 3)] * 4, (128, 64, 3, 3), *[(128, 128, 3, 3)] * 3, (128, 64, 1, 1)],
    *[(256, 128, 3, 3), *[(256, 256, 3, 3)] * 3, (256, 128, 1, 1), (512, 256, 3, 3)],
    *[*[(512, 512, 3, 3)] * 3, (512, 256, 1, 1)],
]


def main() -> None:
    """Weights a layer."""
    path = checkout(__doc__)
    stubs = ["chex", "flax", "flax.traverse_util", "jax"]
    theirs = module(path / "jaxpruner" / "sparsity_distributions.py", "jaxpruner_distributions", stubs)
    for density in (0.01, 0.05, 0.1, 0.2, 0.5):
        found = theirs.get_sparsities_erdos_renyi(
            {(str(place),): shape for place, shape in enumerate(SHAPES)}, 1 - density
        )
        sizes = [int(np.prod(shape)) for shape in SHAPES]
        expected = [(1 - found[(str(place),)]) * size for place, size in enumerate(sizes)]
        ours = allocate(SHAPES, round(density * sum(sizes)), "erk", [0] * len(SHAPES))
        worst = max(abs(one - other) for one, other in zip(ours, expected, strict=True))
        tell(f"density {density:g}", worst, " weights a layer")


if __name__ == "__main__":
    main()
