"""Plans a training run: what it takes of GPUs, network and disks (``python -m imagen.plan``)."""
