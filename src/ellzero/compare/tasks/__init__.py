"""The questions: one file per task, each with its data, fidelity, budget unit, methods and its own ``apply``.

Lives here: ``TASKS``, the names that the command line knows, and the tasks. Does not live here: the methods (wings)
or how they are compared (``ellzero.compare.runner``). A task module is imported when it is asked for.
"""

from __future__ import annotations

__all__ = ["TASKS"]

TASKS = {
    "regression": "ellzero.compare.tasks.regression:Regression",
    "recovery": "ellzero.compare.tasks.recovery:Recovery",
    "selection": "ellzero.compare.tasks.selection:Selection",
    "probing": "ellzero.compare.tasks.probing:Probing",
    "network": "ellzero.compare.tasks.network:Network",
    "pruning-at-initialisation": "ellzero.compare.tasks.pruning_at_initialisation:PruningAtInitialisation",
    "n-of-m": "ellzero.compare.tasks.n_of_m:NOfM",
    "unlearning": "ellzero.compare.tasks.unlearning:Unlearning",
    "bayes": "ellzero.compare.tasks.bayes:Bayes",
    "autoencoder": "ellzero.compare.tasks.autoencoder:Autoencoder",
    "retrieval": "ellzero.compare.tasks.retrieval:Retrieval",
}
