"""What is made of layers and knows neither data nor losses: perceptrons, ensembles as one batched product, encoders, denoisers.

Belongs here: modules from tensors to tensors, each initialised from a generator of its own, and what they look like on the host. Does not
belong here: what the numbers mean (`policies/`, `critics/`), how they are trained (`training/`). Imports nothing of the other rooms.
"""

from unipg.networks.denoisers import Denoiser, Process, alpha_bars, ddim, euler, time_features
from unipg.networks.encoders import Channels, Encoder, Observation, Stored, encoder_for, encoder_from
from unipg.networks.perceptron import Activation, Ensemble, Initialisation, Perceptron

__all__ = [
    "Activation",
    "Channels",
    "Denoiser",
    "Encoder",
    "Ensemble",
    "Initialisation",
    "Observation",
    "Perceptron",
    "Process",
    "Stored",
    "alpha_bars",
    "ddim",
    "encoder_for",
    "encoder_from",
    "euler",
    "time_features",
]
