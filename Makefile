# The environment is made once, in $(VENV), by whichever target needs it first.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV ?= .venv
PY := $(VENV)/bin/python
INSTALLED := $(VENV)/.installed

DEMO := configs/bccd/lors-adamixer_mobilenetv2_bccd.py
OUT := work_dirs/demo
ON_VAL := \
	test_dataloader.dataset.ann_file=annotations/instances_val.json \
	test_evaluator.ann_file=demo/bccd/annotations/instances_val.json

.PHONY: install style quality test docs demo soak

install: $(INSTALLED)

$(INSTALLED): requirements.txt requirements/opencv-python/pyproject.toml setup.py
	@echo "Installing into $(VENV): some minutes"
	$(PYTHON) -m venv $(VENV)
	$(PY) -m pip install -q -r requirements.txt
	$(PY) -m pip install -q --no-deps -e .
	touch $@

style: $(INSTALLED)
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .

quality: $(INSTALLED)
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy

# One thread for each of two test processes: threads that wait for each other
# on busy cores cost more than they bring.
test: quality
	OMP_NUM_THREADS=1 $(PY) -m pytest -n 2 --dist worksteal

# The site, in build/docs; a warning is an error.
docs: $(INSTALLED)
	$(PY) -m sphinx -q -W --keep-going -b html docs build/docs

demo: $(INSTALLED)
	$(PY) tools/train.py $(DEMO) --work-dir $(OUT) --overwrite \
		--cfg-options randomness.seed=0
	@echo "== Validation images: the training never saw them =="
	$(PY) tools/test.py $(DEMO) $$(cat $(OUT)/last_checkpoint) --overwrite \
		--work-dir $(OUT)/val --cfg-options $(ON_VAL)
	@echo "== Test images: nothing was ever chosen by them =="
	$(PY) tools/test.py $(DEMO) $$(cat $(OUT)/last_checkpoint) --overwrite \
		--work-dir $(OUT)/test --out $(OUT)/detections.bbox.json
	$(PY) tools/plot_run.py $(OUT) --out $(OUT)/run.png
	$(PY) tools/analyse.py $(DEMO) $(OUT)/detections.bbox.json --score-thr 0.4 \
		--sheet $(OUT)/test.jpg
	@echo "Pictures: $(OUT)/run.png and $(OUT)/test.jpg"

# Under 15 minutes: breaks runs, and prints the table of docs/reliability.md.
soak: $(INSTALLED)
	OMP_NUM_THREADS=1 $(PY) tests/soak.py
