"""Drawing: heat maps over images, text, bars and sheets of images; arrays in, arrays out."""
