"""The configuration: sections with every option, presets of defaults, and TOML in and out."""
