"""The networks: what turns a noisy picture, its log-SNR and the conditioning into a prediction."""
