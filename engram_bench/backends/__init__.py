"""Where models run. `base` is the protocol; each other module is one implementation, imported only when chosen."""
