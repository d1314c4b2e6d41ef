# The environment is made once, in $(VENV), by whichever target needs it first.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV ?= .venv
PY := $(VENV)/bin/python
INSTALLED := $(VENV)/.installed

DEMO := configs/demo/lors-adamixer_r18_coco-tiny.py
OUT := work_dirs/demo
HELD_OUT := \
	test_dataloader.dataset.ann_file=annotations/instances_val.json \
	test_evaluator.ann_file=demo/coco_tiny/annotations/instances_val.json \
	test_evaluator.prefix=held-out

.PHONY: install style quality test demo soak

install: $(INSTALLED)

$(INSTALLED): requirements.txt requirements/opencv-python/pyproject.toml setup.py
	$(PYTHON) -m venv $(VENV)
	$(PY) -m pip install -r requirements.txt
	$(PY) -m pip install --no-deps -e .
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

demo: $(INSTALLED)
	$(PY) tools/train.py $(DEMO) --work-dir $(OUT) --overwrite
	@echo "== The 19 images it was trained on: what it memorised =="
	$(PY) tools/test.py $(DEMO) $$(cat $(OUT)/last_checkpoint) --work-dir $(OUT)/memorised \
		--show-dir $(OUT)/memorised/images --overwrite
	@echo "== 22 images it has not seen: far too little training for these =="
	$(PY) tools/test.py $(DEMO) $$(cat $(OUT)/last_checkpoint) \
		--work-dir $(OUT)/held-out --show-dir $(OUT)/held-out/images \
		--overwrite --cfg-options $(HELD_OUT)
	$(PY) tools/model_report.py $(DEMO)
	@echo "Pictures: $(OUT)/memorised/images and $(OUT)/held-out/images"

# Under 15 minutes: breaks runs, and prints the table of docs/reliability.md.
soak: $(INSTALLED)
	OMP_NUM_THREADS=1 $(PY) tests/soak.py
