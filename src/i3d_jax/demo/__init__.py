"""A web page that shows what a network sees in a video; `python -m i3d_jax.demo` serves it.

`analysis` computes what is shown, and needs no Gradio; `page` is the page; `visits` keeps the files
of its visitors, and removes them.
"""
