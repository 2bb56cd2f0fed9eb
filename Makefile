# Every target sets itself up from nothing but python3. VENV=path uses (or makes) another environment.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.trtopt-installed

.PHONY: help demo test lint bench clean

help:
	@echo "make demo   convert the digits network to FP16 and INT8 engines and judge them"
	@echo "make test   run the tests"
	@echo "make lint   ruff and mypy"
	@echo "make bench  calibration and quality, side by side with onnxruntime"

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade pip
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[cpu,rtx,text,dev]'
	touch $@

demo: $(STAMP)
	@for precision in int8 fp16; do \
	  echo; echo "== trtopt convert samples/digits/model.onnx --precision $$precision =="; \
	  $(BIN)/trtopt convert samples/digits/model.onnx --precision $$precision \
	    --calib calibration/digits --data samples/digits/eval.npz || exit 1; \
	done

test: $(STAMP)
	$(BIN)/python -m pytest -q

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(STAMP)
	$(BIN)/python bench/calibration.py
	$(BIN)/python bench/digits.py

clean:
	rm -rf $(VENV) trtopt-out
