"""Scores and pages: metrics with intervals, pictures, HTML.

In: predictions and the truth. Out: tables, a curve's picture, one self-contained page. Open `metrics` first.
"""
