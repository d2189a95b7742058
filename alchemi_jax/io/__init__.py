"""Files and streams: sinks, trajectories, sources of structures."""
