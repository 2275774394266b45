# One line each; everything here also works without make.
PY := .venv/bin/python

setup: ; ./.ci/setup test dev
run: ; ./.ci/setup && $(PY) -m clead.train clead --resume
test: ; ./.ci/setup test && $(PY) -m pytest
test-slow: ; $(PY) -m pytest -m "slow and not gpu"
check: ; $(PY) -m ruff check . && $(PY) -m ruff format --check . && $(PY) -m mypy
ci: ; ./.ci/run
# The native CPU code with AddressSanitizer and UndefinedBehaviorSanitizer, then its threads with ThreadSanitizer.
sanitize: ; ./.ci/setup test && ./.ci/sanitize address && ./.ci/sanitize thread
# On a machine with a CUDA device, with its own Python: one tar of builds, tests and measurements under gpu-out/.
gpu: ; python3 -m bench.gpu $(ARGS)
gpu-training: ; python3 -m bench.gpu --wheels $(WHEELS) $(ARGS)
.PHONY: setup run test test-slow check ci sanitize gpu gpu-training
