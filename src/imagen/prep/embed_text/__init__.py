"""Captions encoded once and stored beside the pictures, unpadded."""
