"""The torch backend, on cpu, cuda or mps."""
