"""Config classes: the fields of a variant's YAML file, for each kind of adapter and for training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any


@dataclass(frozen=True)
class TrainingConfig:
    """How an adapter is trained: AdamW, a linear warm-up, linear decay to zero.

    With `steps`, training ends when the answers are learned (see `backends.training.run`): after the least number of
    steps at the earliest; at the latest after the most steps, or after all `epochs` where these need more. So one
    recipe fits few facts and many. Without `steps`, training makes all `epochs`.
    """

    epochs: int
    batch_size: int
    lr: float
    steps: Sequence[int] = ()  # the least and the most
    table_lr: float = 0.0  # for memory tables; a row is updated rarely, so each update must be large
    beta2: float = 0.99
    clip: float = 0.0  # maximum gradient norm; 0: no clipping
    replay_weight: float = 1.0  # of the divergence from the untouched model, per token of the replay texts

    def __post_init__(self) -> None:
        _at_least_one(self, "epochs", "batch_size")
        if self.steps and not (len(self.steps) == 2 and 1 <= self.steps[0] <= self.steps[1]):
            raise ValueError(f"steps is {list(self.steps)}; give the least and the most, such as [20, 300]")
        if self.replay_weight < 0:
            raise ValueError(f"replay_weight is {self.replay_weight}; it must be 0 or more")

    def budget(self, per_epoch: int) -> tuple[int, int]:
        """The least and the most steps, for data of `per_epoch` steps an epoch."""
        least, most = self.steps or (self.epochs * per_epoch, 1)
        return least, max(most, self.epochs * per_epoch)


@dataclass(frozen=True)
class Config:
    """Base class of every kind's config: a dataclass of the kind's own fields in a variant's YAML file."""

    def check(self, depth: int) -> None:
        """Raise ValueError if the config does not fit a model of `depth` layers."""

    @property
    def keyed(self) -> bool:
        """Whether it acts only on texts that hold a known key."""
        return False

    @property
    def needs_key(self) -> bool:
        """Whether only examples that hold the key of one item, to the letter, can train it."""
        return False


@dataclass(frozen=True)
class UpperLayersConfig(Config):
    """Base class of configs that adapt the layers from `first_layer` on."""

    first_layer: int | float = field(default=0, kw_only=True)  # a layer's number, or its place as a share of the depth

    def __post_init__(self) -> None:
        _place(self.first_layer, "first_layer")

    def check(self, depth: int) -> None:
        self.layers(depth)

    def layers(self, depth: int) -> range:
        """Numbers of the adapted layers in a model of `depth` layers.

        Raises:
            ValueError: the model has no such layer.
        """
        return range(_layer(self.first_layer, depth), depth)


@dataclass(frozen=True)
class LoraConfig(UpperLayersConfig):
    """Low-rank adaptation of every linear layer but the head (arXiv:2106.09685), by peft, Unsloth or mlx-lm."""

    rank: int
    alpha: float
    four_bit: bool = False  # train against a 4-bit backbone (Unsloth only); the unquantized one answers

    def __post_init__(self) -> None:
        super().__post_init__()
        _at_least_one(self, "rank")


@dataclass(frozen=True)
class PeftMethodConfig(UpperLayersConfig):
    """Any method of peft that changes layers in place, by its name there: IA3, VERA, LOHA, OFT, ..."""

    method: str
    options: Mapping[str, Any] = field(default_factory=dict)  # fields of the method's own config class


@dataclass(frozen=True)
class EngramConfig(Config):
    """Shape of an n-gram memory; fields have the paper's meaning (section 2) unless a comment differs.

    One class covers the paper's memory, today's, which looks for a trained key, and what lies between them.
    """

    layers: Sequence[int | float]  # numbers of layers, or places as shares of the depth: 0.5 is the middle
    orders: Sequence[int]  # beyond the paper: any n-gram lengths, not only 2..N
    heads: int
    rows: int  # minimum rows per table, one table per layer, order and head; 1: exactly one row
    width: int  # numbers per row
    order_dropout: float = 0.0  # share of (token, order) pairs that a training step drops; beyond the paper
    # What the memory reads: "all", every token, as in the paper; "text", all user text, without the chat template; or
    # "key", a trained key in it. A key is beyond the paper. It is also hashed as a whole, so that keys that end alike
    # are told apart.
    span: str = "key"
    # Where it acts: "everywhere" it reads and where the answer is made, as in the paper; or only at the "answer".
    acts: str = ""  # empty: at the answer with span: key, else everywhere
    gate: bool = True
    bias: bool = False  # of the projections to keys and values; the paper has it
    compression: bool = True  # of the tokenizer: tokens equal up to case, accents and spaces count as one
    kernel: int = 0  # taps of the short convolution, 4 in the paper; 0: none
    dilation: int = 3  # tokens from one tap to the next
    hash_seed: int = 0

    def __post_init__(self) -> None:
        _at_least_one(self, "heads", "rows", "width", "dilation")
        if not (self.layers and self.orders):
            raise ValueError("layers and orders must each hold at least one number")
        if sorted(set(self.orders)) != list(self.orders) or self.orders[0] < 1:
            raise ValueError(f"orders is {self.orders}; n-gram lengths must ascend, starting at 1 or more")
        for layer in self.layers:
            _place(layer, "layers")
        if self.order_dropout >= 1:
            raise ValueError(f"order_dropout is {self.order_dropout}; it must be a share below 1")
        if self.span not in ("all", "text", "key"):
            raise ValueError(f"span is {self.span!r}; use all, text or key")
        if self.kernel == 1:
            raise ValueError("kernel is 1, which joins no tokens; use 2 or more, or 0 for no convolution")
        if not self.acts:
            object.__setattr__(self, "acts", "answer" if self.keyed else "everywhere")
        if self.acts not in ("everywhere", "answer"):
            raise ValueError(f"acts is {self.acts!r}; use everywhere or answer")
        if self.acts == "answer" and not self.keyed:
            raise ValueError(
                f"acts is 'answer' with span: {self.span}; a memory acts at the answer only with span: key"
            )

    def for_depth(self, depth: int) -> EngramConfig:
        """The same shape with the numbers of the layers in a model of `depth` layers, ascending, each once.

        Raises:
            ValueError: the model has no such layer.
        """
        numbers = sorted({_layer(layer, depth) for layer in self.layers})
        return replace(self, layers=numbers)

    def check(self, depth: int) -> None:
        self.for_depth(depth)

    @property
    def layer_ids(self) -> list[int]:
        """Numbers of the layers; places need `for_depth` first."""
        assert all(isinstance(layer, int) for layer in self.layers), "places are shares of a depth; use for_depth"
        return [int(layer) for layer in self.layers]

    @property
    def keyed(self) -> bool:
        """Whether it looks for a trained key, and hashes it as a whole."""
        return self.span == "key"

    @property
    def needs_key(self) -> bool:
        return self.keyed

    @property
    def hashes(self) -> int:
        """Hashes per head and token: one for each order, and one for the whole key."""
        return len(self.orders) + self.keyed

    @property
    def acts_on_text(self) -> bool:
        """Whether it acts on every token it reads, as in the paper, and not only where the answer is made."""
        return self.acts == "everywhere"

    @property
    def acts_on_template(self) -> bool:
        """Whether it reads and acts on the tokens of the chat template, too."""
        return self.span == "all"

    @property
    def acts_without_rows(self) -> bool:
        """Whether it changes the hidden state of a token none of whose n-grams has a row."""
        return self.bias or self.kernel > 0

    @property
    def taps(self) -> list[int]:
        """How many tokens back the convolution reads, farthest first, the current token left out; [] without one."""
        return [back * self.dilation for back in range(self.kernel - 1, 0, -1)]


@dataclass(frozen=True)
class EngramLoraConfig(EngramConfig):
    """An n-gram memory and a LoRA that train together."""

    rank: int = 16
    alpha: int = 32

    def __post_init__(self) -> None:
        super().__post_init__()
        _at_least_one(self, "rank")

    @property
    def memory(self) -> EngramConfig:
        return EngramConfig(**{field.name: getattr(self, field.name) for field in fields(EngramConfig)})

    @property
    def lora(self) -> LoraConfig:
        return LoraConfig(self.rank, self.alpha)


@dataclass(frozen=True)
class HearingConfig(UpperLayersConfig):
    """Facts by name, and a reader of them in the layers from `first_layer` on; beyond the paper."""

    rank: int  # of the reader's LoRA, on all linear layers
    alpha: float
    rows: bool = True  # whether the reader attends to what a fact's statement says; false: a LoRA from each name on
    redraw: bool = True  # whether facts exchange their values in each training step

    def __post_init__(self) -> None:
        super().__post_init__()
        _at_least_one(self, "rank")

    @property
    def keyed(self) -> bool:
        return True


@dataclass(frozen=True)
class UnigramConfig(Config):
    """Shape of engram-poc's published single-token memory, which sits on every layer."""

    slots: int

    def __post_init__(self) -> None:
        _at_least_one(self, "slots")


def _place(layer: int | float, field: str) -> None:
    if isinstance(layer, float) and layer >= 1:
        raise ValueError(f"{field} has {layer}; a place is a share of the depth below 1, a layer a whole number")


def _layer(layer: int | float, depth: int) -> int:
    """The number of a layer that is given by its number, or by its place as a share of the depth."""
    number = int(layer * depth) if isinstance(layer, float) else layer
    if number >= depth:
        raise ValueError(f"layer {number} does not exist: this model has layers 0 to {depth - 1}")
    return number


def _at_least_one(config: object, *fields: str) -> None:
    for name in fields:
        if (value := getattr(config, name)) < 1:
            raise ValueError(f"{name} is {value!r}, expected 1 or more")
