"""As much of PyTorch as guidellm needs to iterate over prompts: half a gigabyte is not installed for that."""

from torch import nn, utils

__all__ = ["Generator", "Tensor", "nn", "utils"]
# Older than any version that other packages would use.
__version__ = "0.0.0"


class Tensor:
    """Nothing is one: datasets asks."""


class Generator:
    """Decides the order of what is shuffled, and nothing is."""

    def manual_seed(self, seed):
        self.seed = seed
        return self
