"""What the weights are for: k-NN, linear probe, fine-tuning, embeddings, export.

In: a combined checkpoint and labelled crops. Out: scores on patients that were not trained on, features, and the
weights in other formats. Open `tasks/finetune.py` first; `__main__` has the commands.
"""
