"""How much a representation knows, by k-NN on patients that it is not given.

In: a backbone and labelled crops. Out: balanced accuracies beside baselines, while training and at the end. Open
`knn` first.
"""
