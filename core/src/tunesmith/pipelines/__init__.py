"""What families share whose checkpoints are laid out as diffusers pipelines: settings, facts, model and plugin to build upon."""
