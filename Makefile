# make demo and make test set up what they need: a virtual environment in .venv, Debian packages where missing.
.DEFAULT_GOAL := help
.PHONY: help demo test check bench fleet remedies upstream generate format clean venv venv-oldest

BIN := .venv/bin
DATABASE := mariadb-server-core mariadb-client-core
# More than there are cores here: tests wait for servers more than they compute.
PARALLEL := -q --numprocesses 3 --dist loadfile

help: ## show this list
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /	/' | expand -t 12

venv:
	@.ci/venv .venv --editable '.[demo]' --group lint

venv-oldest:
	@.ci/venv .venv-oldest --constraint constraints-oldest.txt --editable '.[demo]' --group test

demo: venv ## a bare and a guarded pool on a throw-away MariaDB; Ctrl-C ends it
	@.ci/debian $(DATABASE)
	@$(BIN)/python -m poolwatch.demo

test: venv venv-oldest ## the suite on the oldest dependencies allowed, then the whole of it on the newest
	@.ci/debian $(DATABASE) postgresql pgbouncer prometheus
	.venv-oldest/bin/python -m pytest $(PARALLEL) -m 'not tooling and not once'
	$(BIN)/python -m pytest $(PARALLEL)

check: venv ## lint, types, import directions, generated files
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -q tests/test_architecture.py
	$(BIN)/python dashboards/generate.py --check

bench: venv ## what watching and the guard cost, side by side with doing without, and with pings
	@.ci/debian $(DATABASE) valgrind
	$(BIN)/python tests/bench/checkout.py
	$(BIN)/python tests/bench/guard.py
	$(BIN)/python tests/bench/bare_requests.py

fleet: venv ## how long the dashboard takes for 1,000 processes, from raw series and from recorded ones
	@.ci/debian prometheus
	$(BIN)/python tests/bench/fleet.py

remedies: venv ## users' errors after all connections have ended, with each remedy, on every driver: 10 to 15 minutes
	@.ci/debian $(DATABASE) postgresql
	$(BIN)/python tests/bench/remedies.py

upstream: venv venv-oldest ## SQLAlchemy's own tests, with every engine watched as without
	@.ci/debian $(DATABASE)
	$(BIN)/python tests/upstream/run.py
	.venv-oldest/bin/python tests/upstream/run.py

generate: venv ## write the dashboard, the rules and the README's metric reference
	$(BIN)/python dashboards/generate.py

format: venv ## format the code
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean: ## remove the environments and caches
	rm -rf .venv .venv-oldest .mypy_cache .pytest_cache .ruff_cache dist
