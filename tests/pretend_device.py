"""A simulated accelerator: its tensors compute on the CPU, and it counts every copy to and from the host.

Like a real accelerator, it raises on an operation that mixes host tensors with its own.
"""

import torch
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves, tree_map

NAME = "meta"  # the only torch device that needs no library
aten = torch.ops.aten


class OnDevice(torch.Tensor):
    """A tensor that says it is on the device, and holds its numbers in `host`."""

    @staticmethod
    def __new__(cls, host):
        layout = {"strides": host.stride(), "storage_offset": host.storage_offset(), "dtype": host.dtype}
        with torch.inference_mode(host.is_inference()):  # what is a view stays one
            return torch.Tensor._make_wrapper_subclass(cls, host.shape, device=NAME, **layout)

    def __init__(self, host):
        self.host = host

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        raise AssertionError(f"{func} outside of a PretendDevice")


class PretendDevice(TorchDispatchMode):
    """While it is on, tensors can be moved to the device and back.

    Attributes:
        up: tensors copied to the device.
        down: tensors copied back; a number that Python reads counts as one.
    """

    def __init__(self):
        super().__init__()
        self.up = self.down = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        if func._can_decompose():  # inference mode hands over what autograd would have taken apart
            with self:
                parts = func.decompose(*args, **kwargs)
            if parts is not NotImplemented:
                return parts
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        wanted = kwargs.pop("device", None)
        if wanted is not None:
            kwargs["device"] = torch.device("cpu")
        result = func(*tree_map(_host, args), **tree_map(_host, kwargs))
        if not self._lands(func, tensors, wanted):
            return result
        held = {id(tensor.host): tensor for tensor in tensors if isinstance(tensor, OnDevice)}

        def on_device(value):  # what is written in place stays itself
            return (held.get(id(value)) if id(value) in held else OnDevice(value)) if torch.is_tensor(value) else value

        return tree_map(on_device, result)

    def _lands(self, func, tensors, wanted):
        """Whether the result is on the device; counts what is copied, refuses what is mixed."""
        there = [tensor.device.type == NAME for tensor in tensors]
        if func is aten._to_copy.default:
            to = torch.device(wanted).type == NAME if wanted is not None else there[0]
            self.up, self.down = self.up + (to and not there[0]), self.down + (there[0] and not to)
            return to
        if func is aten.copy_.default:
            self.up, self.down = self.up + (there[0] > there[1]), self.down + (there[1] > there[0])
            return there[0]
        if func is aten._local_scalar_dense.default:
            self.down += there[0]
            return False
        if any(there):
            strangers = [tensor for tensor in tensors if tensor.device.type != NAME and tensor.dim()]
            assert not strangers, f"{func} mixes tensors of the host and the device"
        return any(there) if wanted is None else torch.device(wanted).type == NAME


def _host(value):
    if isinstance(value, OnDevice):
        return value.host
    if torch.is_tensor(value) and value.device.type == NAME:  # torch.tensor(..., device=NAME) goes by no dispatch
        assert not value.numel(), "numbers that were made on the device outside of dispatch are lost"
        return torch.empty_like(value, device="cpu")
    return value


def without_device(function):
    """The function, with a PretendDevice looking away: loading a model uses the device's name for its own ends."""

    def call(*args, **kwargs):
        with _disable_current_modes():
            return function(*args, **kwargs)

    return call
