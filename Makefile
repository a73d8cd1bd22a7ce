# Every target sets up what it needs in .venv; only Python 3.10 to 3.13 and make have to be there.
PYTHON ?= python3
BIN := .venv/bin
# The tests that meet numpy in ways that differ between its versions; `make test` runs these on numpy 2 as well, but for
# the long series of draws (test_..._follow_...): pinned sequences show that the draws are the same.
NUMERICAL := tests/curriculum tests/viewer/test_measures.py tests/client/test_protocol.py tests/client/test_trainer.py tests/serving/test_golden_over_the_wire.py

# An environment each, for they cannot live together: RLlib holds Gymnasium at 1.2.2, DI-engine numpy below 2, numba what
# it was built for.
TORCH := cleanrl dashboards level_replay pettingzoo sb3 syllabus
RLLIB := ray rllib
# RLlib's environment has the oldest Gymnasium that is served, 1.2.2.
OLDEST_GYMNASIUM := tests/wrappers/test_vector.py tests/wrappers/test_env.py tests/test_check_env.py
DI_ENGINE := di_engine
LEARNING := learning

.PHONY: demo test test-explore test-slow soak fuzz simulate mutants test-browser test-integrations docs docs-picture lint types
.PHONY: bench bench-overhead bench-peers bench-viewing clean
.PHONY: bench-learning bench-learning-tables bench-learning-quick bench-learning-equal bench-learning-lockstep bench-learning-cost

demo: .venv/demo
	$(BIN)/python examples/minigrid_demo.py

test: .venv/dev .venv-numpy2/dev
	.venv-numpy2/bin/python -m pytest --quiet -k 'not follow' $(NUMERICAL)
	$(BIN)/python -m pytest

# Fresh examples for the property tests, again and again: the time a `make test` does not have.
MINUTES := 60
test-explore: .venv/dev
	end=$$(( $$(date +%s) + 60 * $(MINUTES) )); while [ $$(date +%s) -lt $$end ]; do \
		$(BIN)/python -m pytest --quiet --exitfirst --hypothesis-profile=fresh -m hypothesis --durations=0 \
			--durations-min=60 || exit 1; done

test-slow: .venv/dev
	$(BIN)/python -m pytest -m slow

# The live page in a real browser: the system's chromium (apt-get install chromium fonts-dejavu-core).
test-browser: .venv-browser/dev
	.venv-browser/bin/python -m pytest -rs tests/viewer/test_page.py tests/viewer/test_wheel.py

# A hundred kill -9 of a server under load, three times; a thousand older state directories; 100 000 commands through a proxy
# that cuts, and one that shuffles; a kill at each system call that changes a state directory (strace); and at last half an
# hour with everything on.
SOAK_MINUTES := 30
soak: .venv/dev
	$(BIN)/python -m pytest -s -m slow tests/serving/test_restart.py tests/serving/test_proxied.py tests/serving/test_system_calls.py
	$(BIN)/python benchmarks/soak.py --minutes $(SOAK_MINUTES)

# Simulated schedules of clients, server, network and disk; go on with BEGIN where the last ones got to.
SCHEDULES := 1000000
BEGIN := 0
simulate: .venv/dev
	$(BIN)/python tests/simulation/simulate.py --begin $(BEGIN) --schedules $(SCHEDULES)

# Does the simulator find bugs? Puts some in, one at a time, and writes down when each is found.
mutants: .venv/dev
	$(BIN)/python tests/simulation/mutants.py --write docs/mutants.md

# Malformed messages against a real server; another SEED, other messages. What libc keeps for each thread is no leak.
MESSAGES := 1000000
SEED := 1
fuzz: .venv/dev
	MALLOC_ARENA_MAX=1 $(BIN)/python tests/fuzz.py --messages $(MESSAGES) --seed $(SEED)

# The real trainers; Python 3.11 or 3.12.
test-integrations: .venv-torch/dev .venv-rllib/dev .venv-di_engine/dev .venv-learning/dev
	.venv-torch/bin/python -m pytest $(TORCH:%=tests/integrations/test_%_trains.py) wrappers/sb3.py
	.venv-rllib/bin/python -m pytest $(RLLIB:%=tests/integrations/test_%_trains.py)
	.venv-rllib/bin/python -m pytest $(OLDEST_GYMNASIUM)
	.venv-di_engine/bin/python -m pytest $(DI_ENGINE:%=tests/integrations/test_%_trains.py)
	OPENBLAS_NUM_THREADS=1 .venv-learning/bin/python -m pytest $(LEARNING:%=tests/integrations/test_%_trains.py)

# The documentation as a site: build/docs/index.html. A warning fails it.
docs: .venv-docs/dev
	.venv-docs/bin/python -m sphinx -W --keep-going --quiet -b html -c docs . build/docs

# The pictures of the live page, moving and still, taken anew; with the system's chromium, as test-browser.
docs-picture: .venv-browser/dev .venv/demo
	.venv-browser/bin/python docs/record.py $(BIN)/python

lint: .venv/dev
	$(BIN)/ruff check
	$(BIN)/ruff format --check

types: .venv/dev
	$(BIN)/mypy

bench: .venv/dev
	$(BIN)/python benchmarks/import_cost.py
	$(BIN)/python benchmarks/transport.py
	$(BIN)/python benchmarks/procgen_speed.py
	$(BIN)/python benchmarks/levels.py
	$(BIN)/python benchmarks/resets.py
	$(BIN)/python benchmarks/durability.py
	$(BIN)/python benchmarks/keys.py
	$(BIN)/python benchmarks/clients.py

# What a curriculum costs a trainer; with torch and Stable-Baselines3.
bench-overhead: .venv-torch/dev
	.venv-torch/bin/python benchmarks/overhead.py

# What the live page costs training, and how soon it is there; with the system's chromium, as test-browser.
bench-viewing: .venv-browser/dev
	.venv-browser/bin/python benchmarks/viewing.py

# Beside Syllabus and DI-engine, each in an environment of its own (1.5 GB each).
bench-peers: .venv/dev
	$(BIN)/python benchmarks/levels.py --peers --plot docs/cost.png
	$(BIN)/python benchmarks/resets.py --peers

# Which curriculum makes agents learn: benchmarks/learning/protocol.md. A run has one core, and many wait in a queue; stop
# and start again as you like.
PROCESSES := 2
STUDY := .venv-learning/bin/python benchmarks/learning
bench-learning: .venv-learning/dev
	seq $(PROCESSES) | xargs -P $(PROCESSES) -I _ $(STUDY) work

bench-learning-tables: .venv-learning/dev
	$(STUDY) tables

# The direction alone, in some minutes: one task, three seeds, three arms.
bench-learning-quick: .venv-learning/dev
	seq $(PROCESSES) | xargs -P $(PROCESSES) -I _ $(STUDY) work --quick
	$(STUDY) tables --quick

bench-learning-equal: .venv-learning/dev
	$(STUDY) equal

# Does a server, or one that is killed, change what is learnt? Bit for bit.
bench-learning-lockstep: .venv-learning/dev
	$(STUDY) lockstep

bench-learning-cost: .venv-learning/dev
	$(STUDY) cost

.venv/demo: pyproject.toml constraints.txt | .venv/bin/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[demo]'
	touch $@

.venv/dev: pyproject.toml constraints.txt | .venv/bin/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev,demo,procgen]'
	touch $@

# Procgen holds numpy below 2, so numpy 2 has an environment of its own.
.venv-numpy2/dev: pyproject.toml | .venv-numpy2/bin/python
	.venv-numpy2/bin/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]' 'numpy>=2'
	touch $@

.venv-docs/dev: pyproject.toml constraints.txt | .venv-docs/bin/python
	.venv-docs/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[docs]'
	touch $@

.venv-browser/dev: pyproject.toml | .venv-browser/bin/python
	.venv-browser/bin/python -m pip install --quiet --disable-pip-version-check --editable '.[dev,browser]'
	touch $@

.venv-torch/dev .venv-rllib/dev .venv-di_engine/dev .venv-learning/dev: .venv-%/dev: tests/integrations/%.txt pyproject.toml | .venv-%/bin/python
	.venv-$*/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --requirement $<
	.venv-$*/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --editable .
	touch $@

$(patsubst %,%/bin/python,.venv .venv-numpy2 .venv-browser .venv-docs .venv-torch .venv-rllib .venv-di_engine .venv-learning):
	$(PYTHON) -m venv $(@D:/bin=)

clean:
	rm -rf .venv .venv-* .mypy_cache .ruff_cache .pytest_cache .hypothesis build dist *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
