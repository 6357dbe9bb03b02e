# `make demo` and `make test` are all there is to set up; both make .venv first. PYTHON chooses the interpreter (3.11 or newer).
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed

.PHONY: demo kernels test test-all lint docs clean

demo: $(STAMP)
	@rm -rf runs/demo runs/demo-data
	$(BIN)/phalanx sample-data breast_cancer runs/demo-data
	$(BIN)/phalanx train xgboost --train runs/demo-data/train.csv --validation runs/demo-data/validation.csv \
		--set num_round=30 --set objective=binary:logistic --set eval_metric=auc,logloss --workers 2 --output runs --name demo
	tar -tzvf runs/demo/model.tar.gz
	$(BIN)/phalanx predict runs/demo/model.tar.gz --input runs/demo-data/test-features.csv --accept application/jsonlines --output runs/demo/predictions.jsonl
	@head -n 3 runs/demo/predictions.jsonl

kernels: $(STAMP)  # or a test pays for compiling what has changed, within its time limit
	$(BIN)/python -m phalanx.algorithms.kernels

test: kernels lint
	$(BIN)/python -m pytest -q -n 2 -m "not slow"

test-all: kernels lint
	$(BIN)/python -m pytest -q -n 2

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

docs: $(STAMP)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

$(STAMP): setup.py constraints.txt scripts/install_horovod.sh
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet -c constraints.txt torch==2.13.0
	$(BIN)/pip install --quiet -c constraints.txt -e '.[all,test]'
	scripts/install_horovod.sh $(BIN)/python
	$(BIN)/python -m phalanx.algorithms.kernels
	touch $(STAMP)

clean:
	rm -rf .venv build dist *.egg-info runs site
