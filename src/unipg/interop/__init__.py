"""Every objective as a plain function of tensors, and thin adapters that hand them to other frameworks.

Belongs here: translation of another framework's arguments into `Trajectories`. Does not belong here: any mathematics.
"""

from unipg.interop.functions import advantage_function, loss_function, per_token_function

__all__ = ["advantage_function", "loss_function", "per_token_function"]
