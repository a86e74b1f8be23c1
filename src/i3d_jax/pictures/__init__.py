"""Drawing: arrays in, arrays out. Pictures are uint8 [H, W, 3].

Heat maps over images (`heat`), text (`text`), classes as bars (`bars`) and over time (`strip`),
contact sheets (`sheet`), and where all of these go (`layout`). Text is set in the font that comes
with matplotlib, so no font needs to be installed, and is made to fit into its box.
"""
