"""A kind of adapter in a package of its own: one trained vector, added to the input of one layer at every token."""

from dataclasses import dataclass

import torch
from safetensors.torch import load_file, save_file

from engram_bench.backends.base import WithoutNgrams
from engram_bench.memory.torch import injected
from engram_bench.variants.configs import Config
from engram_bench.variants.kinds import Kind


@dataclass(frozen=True)
class SteeringConfig(Config):
    layer: int  # a field of the variant's YAML file

    def check(self, depth):
        if self.layer >= depth:
            raise ValueError(f"layer {self.layer} does not exist: this model has layers 0 to {depth - 1}")


class SteeringAdapter(WithoutNgrams):
    def __init__(self, layer, vector):
        self.first_layer, self.vector = layer, torch.nn.Parameter(vector)

    @classmethod
    def create(cls, model, config, encoder, pairs):
        return cls(config.layer, torch.zeros(model.config.hidden_size, device=model.device))

    @classmethod
    def load(cls, model, config, encoder, folder):
        return cls(config.layer, load_file(folder / "vector.safetensors")["vector"].to(model.device))

    def save(self, folder):
        save_file({"vector": self.vector.detach()}, folder / "vector.safetensors")

    def on(self, model):
        return injected(model, {self.first_layer: lambda hidden: hidden + self.vector.to(hidden.dtype)})

    def memories(self):
        return ()

    def parameter_groups(self):
        return [{"params": [self.vector], "tables": False}]

    def parameter_count(self):
        return self.vector.numel()


KIND = Kind("steering", SteeringConfig, {"torch": "steering:SteeringAdapter"})
