"""Training: a run is a config, a folder and a loop over a pure step."""
