"""fedmpi: federated person re-identification with adaptive pruning, as MPI ranks."""

__version__ = "0.1.0"
