"""What the weights are for: k-NN, linear probe, fine-tuning, embeddings, export."""
