"""What the scripts of ``data_prep/`` do: raw shards in, verified training shards with text embeddings out."""
