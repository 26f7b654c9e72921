from torch.utils.data.dataloader import DataLoader
from torch.utils.data.dataset import IterableDataset

__all__ = ["DataLoader", "IterableDataset", "get_worker_info"]


def get_worker_info():
    """None outside of a worker process of a DataLoader, and there are none."""
