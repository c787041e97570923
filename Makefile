PYTHON ?= python3
PGOLF = .venv/bin/pgolf
STUDY = demo.toml
RUN = runs/demo
DATA = data/builtin
SUBMISSION = submission

.DEFAULT_GOAL := help
.PHONY: help setup study test clean

help:
	@echo "make setup   .venv with pinned dependencies and the package"
	@echo "make study   corpus, demo study, report page, export, verification: under 10 minutes on 2 cores"
	@echo "make test    ruff, mypy, pytest"
	@echo "make clean   remove what the others made; keeps .venv"

setup: .venv/.ready

.venv/.ready: requirements.lock pyproject.toml
	@echo "setting up .venv from requirements.lock (a minute or two) ..."
	@test -x .venv/bin/python || $(PYTHON) -m venv .venv
	@.venv/bin/python -m pip install --quiet --disable-pip-version-check -r requirements.lock
	@.venv/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

study: setup
	@echo "1/5 corpus"
	@$(PGOLF) data build --builtin --vocab-size 1024 --out $(DATA)
	@echo "2/5 study"
	@$(PGOLF) search $(STUDY)
	@echo "3/5 report"
	@$(PGOLF) pareto $(RUN) >/dev/null
	@echo "4/5 export"
	@$(PGOLF) export $(RUN) --out $(SUBMISSION) >/dev/null
	@echo "5/5 verification"
	@$(PGOLF) verify $(SUBMISSION)
	@echo "report:      $(CURDIR)/$(RUN)/report.html"
	@echo "submission:  $(CURDIR)/$(SUBMISSION)"

test: setup
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy
	.venv/bin/pytest -n 2 --dist worksteal

clean:
	rm -rf $(RUN) $(SUBMISSION) $(DATA) build *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
