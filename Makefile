PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed

.PHONY: demo report browser java explanations test test-slow lint format clean
.PHONY: benchmark benchmark-search benchmark-scarce benchmark-strategies benchmark-selection benchmark-added-task
.PHONY: benchmark-explanations benchmark-alarms benchmark-scoring benchmark-speed benchmark-gpu

demo: $(STAMP)  ## simulate, train, compare, score: the whole way in one go
	$(BIN)/python pipelines/risk_portfolio.py

report: $(STAMP)  ## a validation report of the simulated portfolio; trains what is missing
	$(BIN)/python pipelines/validation_report.py

explanations: $(STAMP)  ## pictures of the demo's explanations, after `make demo`
	$(BIN)/python pipelines/explanations.py

test: $(STAMP)  ## the test suite, under 8 minutes on two cores
	$(BIN)/python -m pytest -q

test-slow: $(STAMP)  ## the checks that take minutes: scale, the wheel, real tables
	$(BIN)/python -m pytest -q -m slow

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

browser:  ## Chromium, in which the tests look at the report
	command -v chromium >/dev/null || (apt-get update -qq && apt-get install -y -qq chromium)

java:  ## Java, with which the tests run Spark
	command -v java >/dev/null || (apt-get update -qq && apt-get install -y -qq openjdk-17-jre-headless)

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

benchmark: $(STAMP)  ## accuracy on the public tables (RISKMTL_DATA says where they are)
	$(BIN)/python pipelines/benchmark.py

benchmark-search: $(STAMP)  ## the choice of the defaults, on validation rows
	$(BIN)/python pipelines/benchmark_search.py

benchmark-scarce: $(STAMP)  ## joint training where one head has few labels
	$(BIN)/python pipelines/scarce_labels.py

benchmark-strategies: $(STAMP)  ## every way of sharing and of training, worth and cost
	$(BIN)/python pipelines/strategies.py

benchmark-selection: $(STAMP)  ## what masks, entire space and propensities know of the declined
	$(BIN)/python pipelines/selection.py

benchmark-added-task: $(STAMP)  ## a head added to a trained network; a network moved to other rows
	$(BIN)/python pipelines/added_task.py

benchmark-explanations: $(STAMP)  ## error and time of explanations beside shap's
	$(BIN)/python pipelines/benchmark_explanations.py

benchmark-alarms: $(STAMP)  ## alarms of the validation report where nothing was broken
	$(BIN)/python pipelines/false_alarms.py

benchmark-scoring: $(STAMP)  ## speed, memory and start of scoring
	$(BIN)/python pipelines/benchmark_scoring.py

benchmark-gpu: $(STAMP)  ## speed of training on a GPU, where there is one
	$(BIN)/python tests/benchmarks/gpu_training.py

benchmark-speed: $(STAMP)  ## speeds as ratios within one run
	$(BIN)/python -m pytest -q -s -m benchmark tests/benchmarks

$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check torch -c constraints.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]' -c constraints.txt
	touch $(STAMP)

clean:
	rm -rf .venv demo dist build .mypy_cache .ruff_cache .pytest_cache .hypothesis

PEERS := .venv-peers/bin

.PHONY: peers mlflow
peers:  ## the environment of the libraries that benchmark-speed compares with
	test -x $(PEERS)/python || $(PYTHON) -m venv .venv-peers
	$(PEERS)/python -m pip install --quiet --disable-pip-version-check -r tests/benchmarks/peers-requirements.txt

MLFLOW := .venv-mlflow/bin

mlflow:  ## the environment in which the tests drive MLflow
	test -x $(MLFLOW)/python || $(PYTHON) -m venv .venv-mlflow
	$(MLFLOW)/python -m pip install --quiet --disable-pip-version-check torch -c constraints.txt
	$(MLFLOW)/python -m pip install --quiet --disable-pip-version-check -e '.[mlflow]' -c constraints.txt
