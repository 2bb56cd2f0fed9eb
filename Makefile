# Every target sets itself up from nothing but python3. VENV=path uses (or makes) another environment.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check
USER := $(VENV)/.trtopt-user
DEVELOPER := $(VENV)/.trtopt-developer
WRITER := $(VENV)/.trtopt-writer

.PHONY: help demo samples check test nightly browser lint docs wheel bench damage operators clean

help:
	@echo "make demo   convert the digits network to FP16 and INT8 engines and judge them"
	@echo "make samples  convert a PyTorch, a TensorFlow and a transformers model to FP16 and INT8 engines"
	@echo "make check  lint and the fast tests, on all cores: for every change"
	@echo "make test   the tests, one after the other, with the 20 slowest"
	@echo "make nightly  the long tests: damaged files by the hundred, random graphs, networks in every form"
	@echo "make browser  install what the tests of report.html open it with (Debian, as root)"
	@echo "make lint   ruff, mypy, and the wording and spelling of all text"
	@echo "make docs   the pages of docs/ as a site, in site/"
	@echo "make wheel  build the package, and check its metadata and contents"
	@echo "make bench  calibration and quality, side by side with onnxruntime"
	@echo "make damage ZOO=FOLDER  damage INT8 graphs and count what compare catches (benchmarks/zoo.py fills FOLDER)"
	@echo "make operators  convert ONNX's own node tests, and write docs/operators.md"

# What a user needs who has ONNX files; the demo shows no more.
$(USER): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) --upgrade pip
	$(PIP) --constraint constraints.txt --editable '.[cpu,rtx]'
	touch $@

# A Triton server that runs without a GPU, and its client. Their own dependencies are older than those of TensorFlow and
# numpy here, with which they work all the same.
TRITON := nvidia-pytriton==0.7.0 tritonclient==2.73.0 python-rapidjson==1.25
# Only the schema of compose.yaml in it is used.
COMPOSE := docker-compose==1.29.2

# And what it takes to test everything: the frameworks, the linters.
$(DEVELOPER): $(USER)
	$(PIP) --constraint constraints.txt --editable '.[cpu,rtx,text,torch,tensorflow-cpu,samples,ray,dev]'
	$(PIP) --no-deps $(TRITON) || echo "Triton's packages cannot be installed: the tests of its servers are skipped"
	$(PIP) --no-deps $(COMPOSE) || echo "docker-compose cannot be installed: the tests of compose.yaml are skipped"
	touch $@

# And what makes a site of the documentation.
$(WRITER): $(USER)
	$(PIP) --constraint constraints.txt --editable '.[docs]'
	touch $@

demo: $(USER)
	@for precision in int8 fp16; do \
	  echo; echo "== trtopt convert samples/digits/model.onnx --precision $$precision =="; \
	  $(BIN)/trtopt convert samples/digits/model.onnx --precision $$precision \
	    --calib calibration/digits --data samples/digits/eval.npz || exit 1; \
	done

IMAGES := --calib samples.data:images --data samples.data:other_images
IMAGES_NHWC := --calib samples.data:images_nhwc --data samples.data:other_images_nhwc
SENTENCES := --calib samples.data:sentences --data samples.data:other_sentences
BERT_SHAPES := $(foreach input,input_ids attention_mask,--shape $(input)=1x8:8x32:32x128 --dtype $(input)=int64)

samples: $(DEVELOPER)
	$(BIN)/python samples/tf_mobilenet/make.py trtopt-out/mobilenet
	@for precision in fp16 int8; do \
	  run() { echo; echo "== trtopt convert $$* =="; $(BIN)/trtopt convert "$$@" --precision $$precision --gate cosine=0.99; }; \
	  run samples.pytorch_resnet.resnet:resnet18 --shape pixels=1x3x96x96:8x3x96x96:32x3x96x96 $(IMAGES) && \
	  run trtopt-out/mobilenet -o trtopt-out/mobilenet-$$precision $(IMAGES_NHWC) && \
	  run samples.bert_encoder.encoder:encoder $(BERT_SHAPES) $(SENTENCES) || exit 1; \
	done

check: lint
	$(BIN)/python -m pytest -q -n auto --dist loadfile -m "not slow and not gpu and not nightly"

test: $(DEVELOPER)
	$(BIN)/python -m pytest -q --durations=20

nightly: $(DEVELOPER)
	$(BIN)/python -m pytest -q -m nightly

# report.html is tested in a real browser. Where there is none these tests are skipped, but with CI set they fail.
browser:
	@command -v chromium >/dev/null && command -v chromedriver >/dev/null || { apt-get update -qq && \
	  DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends \
	    chromium chromium-driver fonts-dejavu-core >/dev/null; }

lint: $(DEVELOPER)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	CODESPELL=$(BIN)/codespell .ci/prose

docs: $(WRITER)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

wheel: $(DEVELOPER)
	rm -rf dist
	$(BIN)/python -m build --no-isolation --outdir dist .
	$(BIN)/twine check --strict dist/*
	$(BIN)/check-wheel-contents dist/*.whl

bench: $(DEVELOPER)
	$(BIN)/python benchmarks/calibration.py
	$(BIN)/python benchmarks/digits.py

damage: $(DEVELOPER)
	$(BIN)/python benchmarks/damage.py $(ZOO)

operators: $(DEVELOPER)
	$(BIN)/python benchmarks/operators.py

clean:
	rm -rf $(VENV) trtopt-out dist site
