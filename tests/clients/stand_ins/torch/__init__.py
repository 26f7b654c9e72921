"""As much of PyTorch as guidellm needs to iterate over prompts: half a gigabyte is not installed for that."""

from torch import utils

__all__ = ["Generator", "utils"]
# Older than any version that other packages would use.
__version__ = "0.0.0"


class Generator:
    """Decides the order of what is shuffled, and nothing is."""

    def manual_seed(self, seed):
        self.seed = seed
        return self
