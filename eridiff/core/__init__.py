"""What every package builds on, without domain or torch: errors, files, configuration, progress."""
