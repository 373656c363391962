"""Your own code: networks, losses, schedules, data sources, named in conf/ by `_target_: project...`."""
