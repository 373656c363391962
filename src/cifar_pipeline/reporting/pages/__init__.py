"""Results as pages: one file each, nothing fetched from anywhere, no script; for a telephone, a screen and paper."""
