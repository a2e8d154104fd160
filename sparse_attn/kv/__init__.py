"""Where keys and values lie: pages, their layouts and lifetimes, int8."""
