"""ellzero: keep what counts.

One library and one command line for sparsity. This file only hands names out: each is imported on first touch, so
``import ellzero`` loads no NumPy, torch, scikit-learn, plotly or transformers.
"""

from ellzero.lazy import lazy

__version__ = "0.1.0"

__getattr__, __dir__, __all__ = lazy(
    __name__,
    {
        "Budget": "protocol",
        "Data": "protocol",
        "InputError": "errors",
        "Point": "protocol",
        "show_config": "kernels",
    },
    [
        "autoencoder", "compare", "data", "errors", "io", "kernels", "layouts", "linear", "models", "network", "parts",
        "protocol", "recommend", "registry", "rng", "solvers", "training",
    ],
)  # fmt: skip
