# Every target sets up .venv by itself; nothing is installed again while pyproject.toml and constraints.txt stay.
#   make reproduce   the whole method on the real model, notebooks in order, into runs/
#   make test        both tiers of tests and the notebooks
#   make lab         JupyterLab on the notebooks
#   make student     copies of the notebooks without the solutions, into runs/student
#   make bench       speed ratios into figures/data/bench.csv
#   make refresh     re-execute the committed notebooks
#   make site        all pages as one static site, into runs/site
#   make warmup      rebuild the warm-up `default`; the others: hero_mini/adapters/README.md
# PYTHON=python3.12 picks the interpreter. On Linux without a GPU,
# TORCH_INDEX=https://download.pytorch.org/whl/cpu saves gigabytes of download.

PYTHON ?= python3
TORCH_INDEX ?=
PY := .venv/bin/python
READY := .venv/.ready
SITE_READY := .venv/.ready-site

# glibc: large pages for tensors (a fifth faster here); without effect elsewhere
export GLIBC_TUNABLES = glibc.malloc.hugetlb=1

.PHONY: reproduce test lab student bench refresh site warmup
.DEFAULT_GOAL := reproduce

reproduce: $(READY)
	$(PY) -m hero_mini reproduce --preset quick

test: $(READY) $(SITE_READY)
	$(PY) -m ruff check .
	OMP_NUM_THREADS=1 $(PY) -m pytest -q -n 2 --dist worksteal -m "not real"
	OMP_NUM_THREADS=1 $(PY) -m pytest -q -n 2 --dist worksteal -m real --durations=12

lab: $(READY)
	$(PY) -m jupyter lab notebooks

student: $(READY)
	$(PY) -m hero_mini student

bench: $(READY)
	$(PY) -m hero_mini bench

refresh: $(READY)
	$(PY) -m hero_mini refresh

site: $(SITE_READY)
	$(PY) -m hero_mini site

warmup: $(READY)
	$(PY) -m hero_mini warmup

# also where the interpreter behind an old .venv is gone
$(PY):
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "hero_mini needs Python 3.11 or newer; name one that is here, as in: make PYTHON=python3.12" >&2; exit 1; }
	$(PYTHON) -m venv --clear .venv

$(READY): pyproject.toml constraints.txt $(PY)
	$(if $(TORCH_INDEX),$(PY) -m pip install --index-url $(TORCH_INDEX) -c constraints.txt torch)
	$(PY) -m pip install -c constraints.txt -e '.[test]'
	@touch $@

$(SITE_READY): $(READY)
	$(PY) -m pip install -c constraints.txt -e '.[site]'
	@touch $@
