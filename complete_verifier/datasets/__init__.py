"""Examples of data sets from files of the user or from the user's own loader, as properties (interface 2.3)."""

from complete_verifier.datasets.choosing import chosen_examples
from complete_verifier.datasets.dataset import Dataset, Scaling
from complete_verifier.datasets.named import load_named
from complete_verifier.datasets.results import dataset_from_loader
from complete_verifier.datasets.tables import load_table

__all__ = ["Dataset", "Scaling", "chosen_examples", "dataset_from_loader", "load_named", "load_table"]
