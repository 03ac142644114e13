"""RunSpec: what the user asked for, from `cloudtrain.toml` and the command line, validated once and then frozen."""
