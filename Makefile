# `make demo` and `make test` need Python 3.11 or newer and a package index, nothing else.
PYTHON ?= python3
VENV ?= .venv
RUNS ?= runs
DATA ?= $(RUNS)/data
# Minutes for runs of the paper's experiments that have no result yet.
BUDGET ?= 0

BIN := $(VENV)/bin
MAIN := $(BIN)/python -m i3d_jax.main
SHAPES := --config=moving_shapes

PREDICT := $(BIN)/python -m i3d_jax.predict
EVALUATE := $(BIN)/python -m i3d_jax.evaluate
RELEASE := $(I3D_JAX_TEST_DATA)/kinetics-i3d
OTHERS := i3d_flow two_stream fused_two_stream convnet_lstm c3d

PYTEST := $(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist worksteal

.PHONY: demo zoo experiments test test-all lint docs pictures clean
.DELETE_ON_ERROR:

# Trains an image network on shapes, inflates it, trains I3D on moving shapes; then the image network on single frames.
demo: $(VENV)/installed
	$(MAIN) $(SHAPES) --workdir=$(RUNS)/i3d \
	  --config.dataset.data_dir=$(DATA) --config.pretrain.dataset.data_dir=$(DATA)
	$(MAIN) $(SHAPES):frames --workdir=$(RUNS)/frames \
	  --config.dataset.data_dir=$(DATA) --config.init_from=$(RUNS)/i3d/pretrain/weights.safetensors

# The other networks, from the same weights of images, and the test of all: about an hour on two cores.
zoo: demo $(OTHERS:%=$(RUNS)/%/weights.safetensors)
	for run in i3d frames $(OTHERS); do \
	  $(EVALUATE) --weights $(RUNS)/$$run/weights.safetensors --dataset moving_shapes/videos --data-dir $(DATA) \
	    --out $(RUNS)/results/$$run || exit; \
	done
	$(EVALUATE) --fuse $(RUNS)/results/i3d $(RUNS)/results/i3d_flow --out $(RUNS)/results/two_stream_i3d

$(RUNS)/%/weights.safetensors: demo
	$(MAIN) $(SHAPES):$* --workdir=$(RUNS)/$* --config.dataset.data_dir=$(DATA) \
	  $(if $(filter c3d,$*),,--config.init_from=$(RUNS)/i3d/pretrain/weights.safetensors)

# The paper's tables in miniature: experiments/REPORT.md and its pictures, from the results that there are.
# `make experiments BUDGET=60` also makes runs that have none, for an hour; the next call goes on.
experiments: $(VENV)/installed
	-$(BIN)/python experiments/run_all.py --budget-minutes $(BUDGET) --work $(RUNS)/paper --data-dir $(DATA)
	$(BIN)/python experiments/report.py

# Ten minutes on two cores.
test: $(VENV)/installed
	$(PYTEST) -m "not slow"

# Everything: also real weights at full size, processes that are killed, whole networks compiled.
test-all: $(VENV)/installed
	$(PYTEST)

lint: $(VENV)/installed
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/pyright --pythonpath $(BIN)/python

# The site, docs/_build/html; a warning is an error.
docs: $(VENV)/installed
	$(BIN)/python -m pip install --quiet --editable ".[docs]"
	$(BIN)/python -m sphinx -W --keep-going -b html docs docs/_build/html

# The pictures of README and the site, of real clips by the release's weights (see CONTRIBUTING.md); three minutes.
# That of the web page needs Chromium.
pictures: $(VENV)/installed
	test -d "$(RELEASE)" || { echo "I3D_JAX_TEST_DATA must name the folder that CONTRIBUTING.md describes"; exit 2; }
	mkdir -p $(RUNS)
	$(PREDICT) --weights $(RELEASE)/checkpoints/rgb_scratch --explain --show-flow \
	  --picture docs/images/overview.png --video $(RUNS)/annotated.mp4 $(RELEASE)/v_CricketShot_g04_c01_rgb.gif
	$(BIN)/python -c 'from PIL import Image; from i3d_jax import video; \
	  Image.fromarray(video.decode("$(RUNS)/annotated.mp4", start=20, frames=1)[0]).save("docs/images/annotated.png")'
	$(BIN)/python docs/demo_picture.py "$(I3D_JAX_TEST_DATA)/clips/flipping_a_pancake.mkv" docs/images/demo.png \
	  --weights $(RELEASE)/checkpoints/rgb_scratch

$(VENV)/installed: pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed; say which: make PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable ".[test]"
	touch $@

clean:
	rm -rf $(VENV) $(RUNS)
