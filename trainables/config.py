"""The configuration of one training run: `TrainConfig`, and the unions that register its parts."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    Field,
    TypeAdapter,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticUndefined

from trainables.base import Frozen, derive_seed
from trainables.data.digits import Digits
from trainables.data.parquet import Parquet
from trainables.data.shifted import ShiftedSet
from trainables.io.faults import Fault, faults_in, nearest
from trainables.models.cnn import EfficientNetConfig, RegNetYConfig, RegNetZConfig, ResNetConfig
from trainables.models.python_model import PythonConfig
from trainables.models.timm_model import TimmConfig
from trainables.models.vit import ViTConfig
from trainables.optim import LAMB, SGD, AdamW, Cosine, Duration, Lion, MuonAdamW, Share
from trainables.presets import RECIPES, SHORT_MODELS, leaves, set_paths
from trainables.transforms.corruptions import KINDS, Corruptions
from trainables.transforms.imagenet import Paper
from trainables.transforms.light import Light
from trainables.transforms.mixup import Mixup

ModelConfig = (
    ViTConfig | RegNetYConfig | RegNetZConfig | EfficientNetConfig | ResNetConfig | TimmConfig | PythonConfig
)
DataConfig = Digits | Parquet
Data = Annotated[DataConfig, Field(discriminator="name")]
Augment = Annotated[Light | Paper, Field(discriminator="name")]
OptimConfig = AdamW | SGD | Lion | LAMB | MuonAdamW
Optim = Annotated[OptimConfig, Field(discriminator="name")]


def _known(model: Any) -> Any:
    if isinstance(model, str):
        close = nearest(model, SHORT_MODELS)
        meant = f"; did you mean `{close}`?" if close else ""
        raise ValueError(f"no model is called {model!r}{meant} (these are: {', '.join(SHORT_MODELS)})")
    return model


Model = Annotated[ModelConfig, Field(discriminator="family"), BeforeValidator(_known)]

#: The whole configuration of every named model.
NAMED_MODELS: dict[str, ModelConfig] = {
    name: TypeAdapter[ModelConfig](Model).validate_python(short) for name, short in SHORT_MODELS.items()
}


class Ema(Frozen):
    """Averages the weights (and BN statistics) over training; the average is evaluated."""

    time_constant: float = Field(
        0.078, gt=0, le=1, description="Share of the run that the average looks back on; the paper's value."
    )
    every_steps: int = Field(
        32,
        gt=0,
        le=1_000_000,
        description="Optimizer steps between two updates; short runs update more often.",
    )

    def interval(self, total_steps: int) -> int:
        """Steps between two updates: `every_steps`, or fewer for at least ten updates per time constant.

        Without this limit, a run of a few hundred steps would be judged by weights of an epoch ago.
        """
        return max(1, min(self.every_steps, int(self.time_constant * total_steps / 10)))

    def decay(self, total_steps: int) -> float:
        """Share of the average that each update keeps.

        The paper's alpha = 1e-5 x batch x 32 / epochs is every_steps / (time_constant x total_steps) with
        a time constant of 7.8 % on ImageNet.
        """
        return max(0.0, 1 - self.interval(total_steps) / (self.time_constant * total_steps))


class Evaluation(Frozen):
    """Further tests of the final weights, besides the final split; the last row holds the errors."""

    corruptions: Corruptions | None = Field(None, description="The final split again, corrupted.")
    shifted: tuple[ShiftedSet, ...] = Field((), description="Other images of the same classes.")

    @model_validator(mode="after")
    def _names_differ(self) -> Self:
        names = [one.name for one in self.shifted]
        taken = {"clean", *KINDS}
        if bad := sorted({name for name in names if name in taken or names.count(name) > 1}):
            raise ValueError(f"names of shifted sets must differ, also from clean and the corruptions: {bad}")
        return self


class Start(Frozen):
    """Another run, written out in full, whose final weights this run starts from.

    The first run is given as a configuration instead of a file. Its content identifies it, as for every
    run, so many second runs can share it.
    """

    run: "TrainConfig" = Field(description="The first run.")
    parts: Literal["all", "stem"] = Field(
        "all",
        description="all: with a new classifier where the classes differ in number. stem: no more.",
    )


class Divergence(Frozen):
    """Rule for when a run counts as diverged. It is fixed before the run and is the same for every arm.

    A non-finite loss ends a run at once. A run ends early if it learns nothing for `window` in a row.
    That means that its error is within `margin_pct` of chance, and its training loss no better than guessing.
    A run whose final error is within `margin_pct` of chance counts as diverged at its end.
    """

    margin_pct: float = Field(
        1.0, ge=0, le=100, description="Percentage points below chance that still are chance."
    )
    window: Duration = Field(Share(share=0.5), description="How long it may stay there: epochs, or as `50%`.")


class Seeds(Frozen):
    """One seed for each stream of random numbers, so that each can be varied alone."""

    init: int = Field(0, ge=0, lt=2**63, description="Initial weights.")
    order: int = Field(0, ge=0, lt=2**63, description="Order of the training images.")
    augment: int = Field(0, ge=0, lt=2**63, description="Crops, mixing and stochastic depth.")

    @classmethod
    def derived(cls, *names: object) -> "Seeds":
        """Derives the seeds of all streams from names."""
        return cls(**{stream: derive_seed(*names, stream) % 2**32 for stream in cls.model_fields})


class TrainConfig(Frozen):
    """The whole configuration of one training run. Equal configurations give equal results."""

    recipe: Literal["light", "paper"] = Field(
        "light", description="light: small images. paper: ImageNet. Both fill only what is not set."
    )
    start: Start | None = Field(None, description="The run whose weights this one starts from, if any.")
    model: Model = Field(description="What is trained: by name, as `vit_c_4gf`, or written out.")
    data: Data = Field(description="What it is trained on: `digits`, or Parquet files by their path.")
    augment: Augment = Field(default_factory=Light, description="What happens to images before the network.")
    mixup: Mixup | None = Field(None, description="Mixup and CutMix; none if left out.")
    optim: Optim = Field(description="The optimizer, with its learning rate and weight decay.")
    schedule: Cosine = Field(description="Length of the run, and the learning rate over it.")
    batch_size: int = Field(
        gt=0, le=1_000_000, description="Images per optimizer step, over all workers of the trial."
    )
    micro_batch: int | None = Field(
        None,
        gt=1,
        le=1_000_000,
        description="Most images that a worker computes at once; gradients of a larger batch are summed over "
        "parts, each of which batch norm normalises by itself. All at once if left out.",
    )
    label_smoothing: float = Field(0.1, ge=0, lt=1, description="Probability given to all classes alike.")
    ema: Ema | None = Field(None, description="Averaging of weights; none if left out.")
    precise_bn_images: int = Field(
        0,
        ge=0,
        le=10**9,
        description="Training images from which BN statistics are computed again before evaluation.",
    )
    sync_batch_norm: bool = Field(False, description="BN statistics over all workers instead of each alone.")
    precision: Literal["auto", "fp32", "bf16", "fp16"] = Field(
        "auto", description="auto: bf16 on a GPU that has it, else fp16 on a GPU, else fp32."
    )
    clip_grad_norm: float | None = Field(None, gt=0, description="Largest gradient norm; the paper: none.")
    evaluate: Evaluation | None = Field(
        None, description="Robustness to corruption and shift after the last epoch; none if left out."
    )
    divergence: Divergence = Field(
        default_factory=Divergence, description="When a run counts as diverged; the same for all arms."
    )
    seeds: Seeds = Field(
        default_factory=Seeds,
        description="One seed per stream; left out, a sweep derives them from the point.",
    )

    @model_validator(mode="before")
    @classmethod
    def _from_shorthands(cls, data: Any) -> Any:
        if not isinstance(data, Mapping):
            return data
        name = data.get("recipe", "light")
        recipe = RECIPES.get(name, {}) if isinstance(name, str) else {}
        tree: dict[str, Any] = {}
        for source in (recipe, data):
            # An augmentation of another name replaces all settings of the recipe's augmentation.
            set_paths(tree, dict(leaves(source)))
        return tree

    @field_validator("data")
    @classmethod
    def _model_answers(cls, data: DataConfig, info: ValidationInfo) -> DataConfig:
        # `info.data` lacks the model if the model itself is faulty.
        model: ModelConfig | None = info.data.get("model")
        if model is not None and data.task.name not in model.tasks:
            raise ValueError(
                f"is for {data.task.name}, and a model of family {model.family} is for "
                f"{' or '.join(sorted(model.tasks))}"
            )
        return data

    @field_validator("optim")
    @classmethod
    def _optimizer_knows_rates(cls, optim: OptimConfig, info: ValidationInfo) -> OptimConfig:
        # Absent if the model itself is faulty.
        model = info.data.get("model")
        if getattr(model, "parametrization", "standard") == "mup" and not isinstance(optim, AdamW | Lion):
            raise ValueError(f"the rates of mup are those of adamw and lion (got {optim.name})")
        if getattr(optim, "independent_decay", False) and getattr(model, "parametrization", "") != "mup":
            raise ValueError("independent_decay is of `model.parametrization: mup` (got true)")
        return optim


Start.model_rebuild()
TrainConfig.model_rebuild()


def faults_of(error: ValidationError) -> list[Fault]:
    """Lists the faults of a run's configuration."""
    return faults_in(error, TrainConfig)


def setting(tree: Mapping[str, Any], path: str) -> Any:
    """Returns the value of a setting, from the tree or by default. The tree may be incomplete.

    Args:
      tree: settings of a `TrainConfig`, as `set_paths` leaves them.
      path: the dotted path of the setting.

    Raises:
      KeyError: the run has no such setting.
    """
    recipe = tree.get("recipe", "light")
    whole: dict[str, Any] = {}
    for source in (RECIPES.get(recipe, {}) if isinstance(recipe, str) else {}, tree):
        set_paths(whole, dict(leaves(source)))
    first, _, rest = path.partition(".")
    field = TrainConfig.model_fields.get(first)
    if field is None:
        raise KeyError(path)
    try:
        # Validated if possible, because a size or a stem's word stands for other fields.
        value = _PARTS[first].validate_python(whole[first])
    except KeyError:
        value = field.get_default(call_default_factory=True)
    except ValidationError:
        value = whole[first]
    for key in rest.split(".") if rest else ():
        if isinstance(value, Mapping) and key in value:
            value = value[key]
        elif isinstance(value, BaseModel) and key in type(value).model_fields:
            value = getattr(value, key)
        else:
            raise KeyError(path)
    if value is PydanticUndefined:
        raise KeyError(path)
    return value


#: A validator for each field of a run alone.
_PARTS: dict[str, TypeAdapter[Any]] = {
    # pydantic keeps a field's rules apart from its type.
    name: TypeAdapter(Annotated[(field.annotation, *field.metadata)] if field.metadata else field.annotation)  # type: ignore[arg-type]
    for name, field in TrainConfig.model_fields.items()
}
