"""Your own code: models, losses, callbacks and data sources, named in conf/ by `_target_: project...`."""
