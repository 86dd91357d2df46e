"""What is trained and scored: probes, a fine-tuned classifier, a label-efficiency curve.

In: crops, weights and a config. Out: predictions on patients that were not trained on. Open `probe` first, then
`finetune`.
"""
