"""Models to work on, and the one door to a user's own.

Lives here: reference nets (MLP, CNN, residual net, transformer with tokenizer, WaveRNN), ``attach.attach`` and ``swap``
for any module, ``ActivationStream`` (and ``JointStream`` of several modules), ``load_model`` for Hugging Face folders,
and the language model that ships.
Does not live here: training loops and losses (``training``), or any method that makes something sparse.
Needs the extra ``torch``; ``load_model`` of a Hugging Face folder needs ``hf``.
"""

from ellzero.lazy import lazy

__getattr__, __dir__, __all__ = lazy(
    __name__,
    {
        "ActivationStream": "activations",
        "CNNConfig": "cnn",
        "JointStream": "joint_stream",
        "MLPConfig": "mlp",
        "ResidualConfig": "residual",
        "Tokenizer": "tokenizer",
        "TransformerConfig": "transformer",
        "WaveRNNConfig": "wavernn",
        "finalize": "packing",
        "load": "storage",
        "load_finalized": "packing",
        "load_model": "huggingface",
        "matching": "attach",
        "reference_card": "reference",
        "reference_language_model": "reference",
        "reference_texts": "reference",
        "report": "packing",
        "save": "storage",
        "swap": "attach",
        "train_tokenizer": "tokenizer",
    },
    (
        "activations",
        "attach",
        "cnn",
        "huggingface",
        "initial",
        "joint_stream",
        "layer_report",
        "lens",
        "mlp",
        "packing",
        "reference",
        "residual",
        "sites",
        "storage",
        "tokenizer",
        "transformer",
        "wavernn",
    ),
)
