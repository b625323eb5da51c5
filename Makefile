# The words of eridiff/words.py. TORCH=cpu|cuda chooses the build of torch (auto: cuda where an NVIDIA driver is found).
PYTHON ?= $(shell command -v python3.11 || command -v python3)
TORCH ?= auto
ARGS ?=

.PHONY: setup check test repro flow serve
setup check test repro flow serve:
	@ERIDIFF_MAKE=$$PPID exec $(PYTHON) -m eridiff $@ --torch $(TORCH) $(ARGS)
