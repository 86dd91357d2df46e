"""Boxes, labels and patients of radiographs, from the files that lie beside them.

In: the inventory and the texts of the sources. Out: a plan that gives each radiograph its boxes with labels, and
each file that is not used a reason. Open `box_plan` first; `detect` decides which format a file has.
"""
