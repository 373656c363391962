"""Your own data sources, named in conf/ by `_target_: project.data...`."""
