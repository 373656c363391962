# Targets of the Makefile that run benchmarks.

.PHONY: bench
bench: $(SETUP) ## benchmark against a plain loop, plain Lightning and hardware limits (a quarter of an hour)
	@python benchmarks/run.py

# Recipes of benchmarks/speedrun.py; seeds, if other than those of the leaderboard's rules: `SEEDS="0 1"`.
RECIPE ?= quick airbench94

.PHONY: speedrun
speedrun: $(SETUP) ## run the best of docs/leaderboard.md and print its row (RECIPE=quick, SEEDS="0 1 2"; half an hour or more for both)
	@python benchmarks/speedrun.py $(RECIPE) $(if $(SEEDS),--seeds $(SEEDS))

# A row of reports/speedrun.json: `make verify ROW=tutorial`.
ROW ?= quick

.PHONY: verify
verify: $(SETUP) ## train the first seed of a published row and compare (ROW=quick; tutorial and lenet_tuned take minutes)
	@python benchmarks/verify.py $(ROW)

# More options of benchmarks/finetuning.py: `OPTIONS="--images 10 100 --methods head"`.
.PHONY: bench-finetuning
bench-finetuning: $(SETUP) ## measure accuracy and time by number of training images (hours; the same command continues)
	@python benchmarks/finetuning.py --append $(OPTIONS)

.PHONY: bench-augmentation
bench-augmentation: $(SETUP) ## time the augmentations, and photo at 224 pixels against torchvision's usual loader
	@python benchmarks/augmentation_speed.py $(OPTIONS)

.PHONY: bench-sweep
bench-sweep: $(SETUP) ## measure what a sweep of a hundred small trials costs beside their training (ten minutes)
	@python benchmarks/sweep_overhead.py $(OPTIONS)
