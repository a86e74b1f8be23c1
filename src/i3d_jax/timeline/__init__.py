"""Predictions over time, for `predict --timeline` and `live`.

`rows` computes the rows of logits of a video of any length as a stream; `report` writes them as
JSON and as a picture.
"""
