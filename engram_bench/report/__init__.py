"""Reports are made from records alone; nothing here runs a model."""
