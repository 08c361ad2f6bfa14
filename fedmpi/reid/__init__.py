"""Person re-identification without MPI: data, embedding network, pseudo-identities, losses and retrieval scores.

Import the modules themselves (``from fedmpi.reid import losses``): collecting their names here would load torchvision
and scikit-learn for a caller that only lists client folders.
"""
