"""Predictions over time, for `predict --timeline`, `--video` and `--picture`, and for `live`.

`rows` computes the rows of logits of a video of any length as a stream; `report` writes them as
JSON and as a plot. `heat` computes what a network looks at. `annotated` and `contact_sheet` draw
both over the video's frames; `drawing` checks what is asked of them.
"""
