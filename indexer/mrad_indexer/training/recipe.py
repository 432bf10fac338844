"""How a head is trained: the paper's recipe (docs/method.md) as defaults, every value an option."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from mrad.errors import HeadError


class Stage(BaseModel):
    """What both stages share: Adam, its rate, the masks of self-retrieval, the losses' weights."""

    model_config = ConfigDict(extra="forbid")

    epochs: int = Field(default=1, ge=1)
    batch_size: int = Field(default=8, ge=1)
    learning_rate: float = Field(default=4e-4, gt=0)
    schedule: Literal["cosine", "constant"] = "constant"
    """Of the learning rate, by step; `cosine` falls to `final_learning_rate`."""
    final_learning_rate: float = Field(default=1e-6, ge=0)
    beta1: float = Field(default=0.5, ge=0, lt=1)
    beta2: float = Field(default=0.999, ge=0, lt=1)
    image_quantile: float = Field(default=0.95, gt=0, le=1)
    """Keys of larger unprojected cosine are masked out; 1 masks none."""
    patch_quantile: float = Field(default=0.8, gt=0, le=1)
    focal_gamma: float = Field(default=2.0, ge=0)
    focal_weight: float = Field(default=1.0, ge=0)
    dice_weight: float = Field(default=1.0, ge=0)
    image_weight: float = Field(default=1.0, ge=0)
    image_temperature: float = Field(default=0.07, gt=0)
    seed: int = 0


class FTRecipe(Stage):
    """One epoch on both pairs of projections, on a cosine: the paper's stand-alone FT."""

    schedule: Literal["cosine", "constant"] = "cosine"
    start: Literal["linear", "isometry", "whitened"] = "linear"
    """`linear`: torch's own start of a linear layer. Otherwise queries and keys begin with the same
    map. `isometry`: it keeps cosines where the widths allow, so that the untrained head ranks as TF
    does. `whitened`: it centres the training set's features and evens out their variances."""
    sharpness: float = Field(default=1.0, gt=0)
    """Mean |q'|^2 at an `isometry` or `whitened` start; TF's is 1."""
    shrinkage: float = Field(default=0.01, gt=0)
    """`whitened`: what is added to each direction's variance, in mean variances."""


FEW_IMAGES = FTRecipe(
    epochs=5,
    learning_rate=1e-3,
    patch_quantile=1.0,
    start="whitened",
    sharpness=16.0,
    shrinkage=1e-4,
)
"""For some hundred images of one product. The paper's single epoch is 270 steps over 2,162 images
and 25 over 200; from a whitened start a few hundred steps are enough."""
UNDER_CLIP = FTRecipe(schedule="constant")
"""The paper's FT stage of a CLIP training: the release keeps both stages at one rate there."""
FT_RECIPES = {"paper": FTRecipe(), "few-images": FEW_IMAGES}
ENOUGH_STEPS = 200
"""Below these, a training that starts at random has hardly begun: the paper takes 270."""


def ft_recipe(name: str, head: str = "ft") -> FTRecipe:
    """The FT stage of a recipe, by the recipe's name.

    `head`: what is trained in all; below `clip` the paper's FT stage has no cosine. Raises
    `HeadError` naming the recipes that there are.
    """
    if name not in FT_RECIPES:
        raise HeadError(f"there is no recipe {name!r}; there are: {', '.join(FT_RECIPES)}")
    return UNDER_CLIP if (name, head) == ("paper", "clip") else FT_RECIPES[name]


def recipe_for(images: int, head: str = "ft") -> str:
    """The recipe that so many images are enough for."""
    return "paper" if steps_of(ft_recipe("paper", head), images) >= ENOUGH_STEPS else "few-images"


def steps_of(recipe: Stage, images: int) -> int:
    """How often the weights are moved."""
    return recipe.epochs * -(-images // recipe.batch_size)


def check_steps(recipe: FTRecipe, images: int) -> None:
    """Raises `HeadError` for a start at random that so few images do not lead away from."""
    steps = steps_of(recipe, images)
    if recipe.start == "linear" and steps < ENOUGH_STEPS:
        epochs = -(-ENOUGH_STEPS // -(-images // recipe.batch_size))
        raise HeadError(
            f"the paper's recipe takes {steps} steps over these {images} images, and its projections "
            f"begin at random: they would hardly have moved ({ENOUGH_STEPS} are enough). Use --recipe "
            f"few-images, or --set epochs={epochs}"
        )


class CLIPRecipe(Stage):
    """Five epochs at one rate on context, deep prompts and `prompt_proj`, on top of a trained FT."""

    epochs: int = Field(default=5, ge=1)
    n_ctx: int = Field(default=12, ge=1)
    """Learned context tokens of each prompt."""
    depth: int = Field(default=9, ge=1)
    """Text blocks with deep prompts, the first counted though it has none; at most all blocks."""
    n_deep: int = Field(default=4, ge=1)
    """Tokens of each deep prompt."""
    normal_dice_weight: float = Field(default=1.0, ge=0)
    prompt_std: float = Field(default=0.02, gt=0)
    """Standard deviation of the prompts' start."""
