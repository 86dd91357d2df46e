"""The networks: released backbones, projection head, student and teacher.

In: the name of a backbone and batches [B, 1, H, W]. Out: features [B, C] and logits [B, K]. Open `backbones` first,
then `student_teacher`.
"""
