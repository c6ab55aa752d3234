"""Files of autoencoders: one module for each library whose files are read and written.

Lives here: ``saelens``, ``dictionary_learning``, ``sparsify``, ``gemma_scope`` and ``openai``, each with ``load(path)``
and ``save(sae, path)``; ``plain`` (what all of them can say of an autoencoder), ``parts`` (frozen values as JSON) and
``files`` (reading with errors that name the file). Does not live here: our own folder, and which module is asked
(``ellzero.autoencoder.storage``).
"""
