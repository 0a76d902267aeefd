.DEFAULT_GOAL := help
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DELETE_ON_ERROR:

# The first Python of 3.11 or newer that can make a virtual environment; override with PYTHON=…
PYTHON ?= $(shell for p in python3.12 python3.11 python3; do \
	$$p -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 && echo $$p && break; done)
BIN := .venv/bin
RUN := $(BIN)/python
INSTALLED := .venv/.installed
CONFIG ?=
ARGS ?=

.PHONY: help
help: ## Show this list
	@awk 'BEGIN {FS = ":.*## "} /^[a-z-]+:.*## / {printf "  \033[1m%-16s\033[0m %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: setup
setup: $(INSTALLED) ## Build .venv with the package and its dependencies

$(INSTALLED): setup.cfg pyproject.toml
	@test -n "$(PYTHON)" || { echo "error: no Python 3.11 or newer with venv found; install one or give PYTHON=/path/to/python"; exit 2; }
	test -x $(RUN) || $(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check --editable ".[dev]"
	@touch $@

.PHONY: demo
demo: $(INSTALLED) ## From nothing to a generated chest CT with pictures (runs/demo/index.html)
	$(RUN) -m ctflow.demo $(ARGS)

.PHONY: app
app: $(INSTALLED) ## Reports to chest CTs in the browser, on this machine (Ctrl-C ends it)
	$(RUN) -m ctflow.app $(ARGS)

.PHONY: train-vae
train-vae: $(INSTALLED) ## Train the A-VAE [CONFIG=file.yaml ARGS="key=value …"]
	$(RUN) -m ctflow.train --config $(or $(CONFIG),configs/train/vae.yaml) $(ARGS)

.PHONY: train-clip
train-clip: $(INSTALLED) ## Train the embedded text and image pair [CONFIG=… ARGS=…]
	$(RUN) -m ctflow.train --config $(or $(CONFIG),configs/train/clip.yaml) $(ARGS)

.PHONY: train-flow
train-flow: $(INSTALLED) ## Train the FMvT [CONFIG=… ARGS=…]
	$(RUN) -m ctflow.train --config $(or $(CONFIG),configs/train/flow.yaml) $(ARGS)

# Every stage resumes: run it again after a kill, or with a longer ARGS="loop.max_minutes=…", and it goes on.
EMBEDDED := runs/embedded
EMBEDDED_DATA := data.train=$(EMBEDDED)/slices/train data.valid=$(EMBEDDED)/slices/valid
.PHONY: checkpoints
checkpoints: $(INSTALLED) ## Train the embedded checkpoint again (hours on a CPU; resumes)
	$(RUN) -m data_prep.phantom --output $(EMBEDDED)/phantoms --volumes 1400 --seed 41 pairs=true \
		slice_spacing=4.0 fixed_share=0.5 valid_fraction=0.06
	$(RUN) -m data_prep.ct_rate --source $(EMBEDDED)/phantoms --output $(EMBEDDED)/slices resolution=128 z_spacing=null
	$(RUN) -m ctflow.train --config configs/embedded/vae.yaml runs_dir=$(EMBEDDED) $(EMBEDDED_DATA) $(ARGS)
	$(RUN) -m ctflow.train --config configs/embedded/clip.yaml runs_dir=$(EMBEDDED) $(EMBEDDED_DATA) $(ARGS)
	$(RUN) -m data_prep.encode source=$(EMBEDDED)/slices output=$(EMBEDDED)/latents \
		avae=$(EMBEDDED)/autoencoder/embedded/export clip=$(EMBEDDED)/clip/embedded/export
	$(RUN) -m ctflow.train --config configs/embedded/flow.yaml runs_dir=$(EMBEDDED) \
		data.train=$(EMBEDDED)/latents/train data.valid=$(EMBEDDED)/latents/valid \
		flow.avae=$(EMBEDDED)/autoencoder/embedded/export flow.clip=$(EMBEDDED)/clip/embedded/export $(ARGS)
	$(RUN) -m data_prep.phantom --output $(EMBEDDED)/more/phantoms --volumes 1400 --seed 43 pairs=true \
		"pair_labels=[Pleural effusion,Consolidation,Lung nodule,Pericardial effusion,Cardiomegaly]" \
		slice_spacing=4.0 fixed_share=0.5 valid_fraction=0.06
	$(RUN) -m data_prep.ct_rate --source $(EMBEDDED)/more/phantoms --output $(EMBEDDED)/more/slices resolution=128 z_spacing=null
	$(RUN) -m data_prep.encode source=$(EMBEDDED)/more/slices output=$(EMBEDDED)/more/latents \
		avae=$(EMBEDDED)/autoencoder/embedded/export clip=$(EMBEDDED)/clip/embedded/export
	$(RUN) -m ctflow.train --config configs/embedded/flow_more.yaml runs_dir=$(EMBEDDED) \
		flow.init_from=$(EMBEDDED)/flow/embedded/export \
		data.train=$(EMBEDDED)/more/latents/train data.valid=$(EMBEDDED)/more/latents/valid $(ARGS)
	$(RUN) -m ctflow.pack source=$(EMBEDDED)/flow/more/export mean_with=$(EMBEDDED)/flow/embedded/export output=$(EMBEDDED)/mean \
		--config configs/embedded/pack.yaml
	$(RUN) -m data_prep.merge first=$(EMBEDDED)/latents second=$(EMBEDDED)/more/latents --output $(EMBEDDED)/both/latents
	$(RUN) -m ctflow.train --config configs/embedded/flow_local.yaml runs_dir=$(EMBEDDED) flow.init_from=$(EMBEDDED)/mean \
		data.train=$(EMBEDDED)/both/latents/train data.valid=$(EMBEDDED)/both/latents/valid $(ARGS)
	$(RUN) -m ctflow.train --config configs/embedded/vae_decoder.yaml runs_dir=$(EMBEDDED) $(EMBEDDED_DATA) \
		autoencoder.init_from=$(EMBEDDED)/autoencoder/embedded/export $(ARGS)
	$(RUN) -m ctflow.train --config configs/embedded/vae_decoder_longer.yaml runs_dir=$(EMBEDDED) $(EMBEDDED_DATA) \
		autoencoder.init_from=$(EMBEDDED)/autoencoder/decoder/export $(ARGS)
	$(RUN) -m ctflow.train --config configs/embedded/flow_longer.yaml runs_dir=$(EMBEDDED) flow.init_from=$(EMBEDDED)/flow/local/export \
		data.train=$(EMBEDDED)/both/latents/train data.valid=$(EMBEDDED)/both/latents/valid \
		flow.avae=$(EMBEDDED)/autoencoder/decoder_longer/export flow.clip=$(EMBEDDED)/clip/embedded/export $(ARGS)
	$(RUN) -m ctflow.train --config configs/embedded/flow_start.yaml runs_dir=$(EMBEDDED) flow.init_from=$(EMBEDDED)/flow/longer/export \
		data.train=$(EMBEDDED)/latents/train data.valid=$(EMBEDDED)/latents/valid \
		flow.avae=$(EMBEDDED)/autoencoder/decoder_longer/export flow.clip=$(EMBEDDED)/clip/embedded/export $(ARGS)
	$(RUN) -m ctflow.train --config configs/embedded/flow_start_pairs.yaml runs_dir=$(EMBEDDED) flow.init_from=$(EMBEDDED)/flow/start/export \
		data.train=$(EMBEDDED)/latents/train data.valid=$(EMBEDDED)/latents/valid \
		flow.avae=$(EMBEDDED)/autoencoder/decoder_longer/export flow.clip=$(EMBEDDED)/clip/embedded/export $(ARGS)
	$(RUN) -m ctflow.pack source=$(EMBEDDED)/flow/start_pairs/export output=$(EMBEDDED)/packed --config configs/embedded/pack.yaml
	$(RUN) -m data_prep.redraw checkpoint=$(EMBEDDED)/packed source=$(EMBEDDED)/latents/train output=$(EMBEDDED)/redrawn/train
	$(RUN) -m ctflow.train --config configs/embedded/vae_decoder_redrawn.yaml runs_dir=$(EMBEDDED) $(EMBEDDED_DATA) \
		data.redrawn=$(EMBEDDED)/redrawn/train autoencoder.init_from=$(EMBEDDED)/autoencoder/decoder_longer/export $(ARGS)
	$(RUN) -m ctflow.pack source=$(EMBEDDED)/packed avae=$(EMBEDDED)/autoencoder/decoder_redrawn/export output=$(EMBEDDED)/mended \
		--config configs/embedded/pack.yaml
	$(RUN) -m ctflow.train --config configs/embedded/flow_head.yaml runs_dir=$(EMBEDDED) flow.init_from=$(EMBEDDED)/mended \
		data.train=$(EMBEDDED)/latents/train data.valid=$(EMBEDDED)/latents/valid $(ARGS)
	$(RUN) -m ctflow.pack source=$(EMBEDDED)/flow/head/export output=checkpoints --config configs/embedded/pack.yaml

.PHONY: test
test: $(INSTALLED) ## Run the fast tests
	$(RUN) -m pytest -m "not slow and not gpu" $(ARGS)

.PHONY: test-slow
test-slow: $(INSTALLED) ## Run the slow tests
	$(RUN) -m pytest -m "slow and not gpu" $(ARGS)

.PHONY: test-gpu
test-gpu: $(INSTALLED) ## Run the tests that need a CUDA device
	$(RUN) -m pytest -m gpu $(ARGS)

.PHONY: lint
lint: $(INSTALLED) ## Check format, style, types and the import contract
	$(BIN)/ruff check ctflow data_prep tests scripts
	$(BIN)/ruff format --check ctflow data_prep tests scripts
	$(BIN)/mypy
	$(BIN)/lint-imports

.PHONY: bench
bench: $(INSTALLED) ## Time the stages on this machine
	$(RUN) -m ctflow.bench $(ARGS)

.PHONY: tensorboard
tensorboard: $(INSTALLED) ## Show the curves and images of all runs (loopback only)
	$(BIN)/tensorboard --logdir runs --host 127.0.0.1

.PHONY: clean
clean: ## Remove the virtual environment and caches (runs/ stays)
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
