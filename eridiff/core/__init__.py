"""What every package builds on: errors, files, configuration, progress. No domain, no torch."""
