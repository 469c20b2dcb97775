"""Shards of any size, of pictures of any size, into the folders that training reads.

Even shards, small pictures, an index. A picture is decoded once and written at every one of ``sizes`` under the same
key, so that one set of text embeddings serves them all; hence only what is large enough for the largest is in the set.
It is shrunk to the largest size by the arithmetic of ``imagen.data.pixels``, and from there to the others: what a
super-resolution stage is given is exactly the block mean of what it learns to make. Numbers are averaged as they are
stored, without linearising sRGB and without colour profiles, as the loader does too.
"""
