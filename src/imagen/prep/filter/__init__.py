"""Keep of web-scale shards what is worth training on, put right what can be, and say why the rest went.

In three phases, each known by its files: ``look`` at every sample once and write down what was seen; one pass of
``duplicates`` over what was seen of the whole set; ``write`` what is kept. The ``command`` runs them in turn.
"""
