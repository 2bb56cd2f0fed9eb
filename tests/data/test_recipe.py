"""Recipes: steps that are not listed are not done, misspelt keys are refused, and an assumed recipe is reported."""

from pathlib import Path

import pytest

from trtopt.data import load_recipe, recipe_for
from trtopt.data.fitting import fitted
from trtopt.data.recipe import ImageRecipe, Side
from trtopt.errors import DataError, UsageError
from trtopt.types import Dim, TensorSpec


def write(folder: Path, text: str) -> Path:
    path = folder / "r.toml"
    path.write_text(text)
    return path


def inputs(*shape: Dim, dtype: str = "float32") -> tuple[TensorSpec, ...]:
    return (TensorSpec(name="pixels", dtype=dtype, shape=shape),)


def assumed(tmp_path: Path, spec: tuple[TensorSpec, ...]) -> ImageRecipe:
    recipe, _, note = recipe_for(tmp_path, spec)
    image = fitted(recipe, spec[0])
    assert f"{recipe.name} is assumed for images: {image}" in note
    assert f"--recipe {recipe.name}" in note
    assert fitted(load_recipe(recipe.name), spec[0]) == image
    return image


@pytest.mark.parametrize(
    "name", ["imagenet", "imagenet-stretch", "grayscale", "raw", "raw-stretch", "raw-gray", "yolo", "bert"]
)
def test_a_shipped_recipe_is_found_by_name(name: str) -> None:
    assert load_recipe(name).name == name


def test_an_unknown_name_is_refused_with_the_nearest_one() -> None:
    with pytest.raises(UsageError, match="Did you mean imagenet"):
        load_recipe("imagenett")


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"gone\.toml: no such recipe file"):
        load_recipe(tmp_path / "gone.toml")


def test_every_key_of_an_image_recipe_is_read(tmp_path: Path) -> None:
    text = """
    [image]
    resize = [40, 30]
    fit = "letterbox"
    multiple = 8
    pad_value = [1, 2, 3]
    place = "top-left"
    input = "pixels"
    crop = [28, 20]
    interpolation = "bicubic"
    color = "BGR"
    layout = "NHWC"
    scale = 0.5
    mean = [1, 2, 3]
    std = 4.0
    """
    assert load_recipe(write(tmp_path, text)).image == ImageRecipe(
        resize=(40, 30),
        fit="letterbox",
        multiple=8,
        pad_value=(1, 2, 3),
        place="top-left",
        input="pixels",
        crop=(28, 20),
        interpolation="bicubic",
        color="BGR",
        layout="NHWC",
        scale=0.5,
        mean=(1.0, 2.0, 3.0),
        std=(4.0,),
    )


def test_steps_that_a_recipe_does_not_list_are_not_done(tmp_path: Path) -> None:
    image = load_recipe(write(tmp_path, '[image]\nresize = "none"\ncrop = "none"')).image
    assert image == ImageRecipe(resize=None, crop=None, scale=1.0, mean=(), std=())


@pytest.mark.parametrize(
    ("text", "side"),
    [
        ("shorter:256", Side("shorter", 256)),
        ("longer:640", Side("longer", 640)),
        ("shorter:256/224", Side("shorter", 256, 224)),
    ],
)
def test_a_side_can_be_stated(tmp_path: Path, text: str, side: Side) -> None:
    image = load_recipe(write(tmp_path, f'[image]\nresize = "{text}"')).image
    assert image is not None
    assert image.resize == side


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "the recipe is empty"),
        ("[image", "cannot be read as TOML"),
        ("image = 3", "image is not a table"),
        ("[images]", "unknown table or key images. Did you mean image"),
        ("[image]\nmeans = [0]", "unknown key means. Did you mean mean"),
        ("[image]\nresize = 256", "resize is 256"),
        ('[image]\nresize = "shorter:x"', "resize is 'shorter:x'"),
        ('[image]\nresize = "shorter:0"', "resize is 'shorter:0'"),
        ('[image]\nresize = "longer:640/0"', "resize is 'longer:640/0'"),
        ('[image]\nresize = "longer:٣"', "resize is"),
        ("[image]\nresize = [224, 1e9]", "resize is"),
        ("[image]\nresize = [224, 99999]", "sizes are from 1 to 32768"),
        ("[image]\nresize = [true, 3]", "resize is"),
        ('[image]\nfit = "letter"', "fit is 'letter': it must be one of stretch, letterbox"),
        ('[image]\nfit = "letterbox"', "a letterbox needs the size to fill"),
        ('[image]\nfit = "letterbox"\nresize = "shorter:9"', "a letterbox needs the size to fill"),
        ('[image]\nresize = "input"\npad_value = 114', "pad_value has no effect without padding"),
        ('[image]\nplace = "top-left"', "place has no effect without padding"),
        ("[image]\nmultiple = 0", "multiple is 0: it must be an integer from 1 to 1024"),
        ("[image]\nmultiple = 8.5", "multiple is 8.5"),
        ("[image]\nmultiple = 8\npad_value = 256", "pad_value is 256: it must be an integer from 0 to 255"),
        ("[image]\nmultiple = 8\npad_value = [1, 2]", "or a list of 3"),
        ('[image]\nmultiple = 8\nplace = "centre"', "place is 'centre': it must be one of center, top-left"),
        ("[image]\npad_valeu = 114", "unknown key pad_valeu. Did you mean pad_value"),
        ("[image]\ninput = 3", "input is 3"),
        ("[inputs.size]\nvalue = 3", r"\[inputs\] without \[image\]"),
        ("inputs = 3\n[image]", "inputs is not a table"),
        ("[image]\n[inputs.size]", r"\[inputs.size\]: 0 keys. Write one of value, file and rows"),
        ("[image]\n[inputs.size]\nvalues = 3", "unknown key values. Did you mean value"),
        ('[image]\n[inputs.size]\nvalue = "x"', "value is 'x': it must be a finite number"),
        ("[image]\n[inputs.size]\nvalue = [[1], [1, 2]]", "lists of them of one length"),
        ('[image]\n[inputs.size]\nfile = "a.npz"', "Write the path of a .npy file"),
        ('[image]\n[inputs.size]\nrows = "gone.npy"', "gone.npy does not exist"),
        ("[image]\ncrop = [224]", r"crop is \[224\]"),
        ("[image]\ncrop = [0, 3]", r"crop is \[0, 3\]"),
        ('[image]\ncolor = "rgb"', "color is 'rgb': it must be one of RGB, BGR, gray"),
        ('[image]\nlayout = "CHW"', "layout is 'CHW'"),
        ('[image]\ninterpolation = "linear"', "interpolation is 'linear'"),
        ('[image]\nscale = "1/255"', "scale is '1/255'"),
        ("[image]\nscale = 0", "must not be 0"),
        ("[image]\nscale = true", "scale is True"),
        ("[image]\nstd = [1, 0, 1]", "must not be 0"),
        ("[image]\nmean = [1, 2]", "one finite number or a list of 3"),
        ("[image]\nmean = [nan, 0, 0]", "mean is"),
        ('[image]\ncolor = "gray"\nmean = [1, 2, 3]', "one finite number"),
        ("[text]\nmax_length = 8", "tokenizer must be"),
        ('[text]\ntokenizer = "t.json"', "max_length must be"),
        ('[text]\ntokenizer = "t.json"\nmax_length = 8\npadding = "left"', "padding is 'left'"),
        ("classes = 3\n[image]", "classes is 3. Write a list of names, or the path of a file of names"),
        ("classes = []\n[image]", "classes of .*: contains no class names"),
        ('classes = ["a", "a"]\n[image]', "a appears twice"),
        ('classes = ["a", 1]\n[image]', "the name of class 1 is 1, which is not text"),
        ('classes = "gone.txt"\n[image]', "gone.txt: cannot be read as class names"),
        ('[image]\nclasses = ["a"]', "unknown key classes. Write it above the first table"),
    ],
)
def test_a_wrong_recipe_is_refused(tmp_path: Path, text: str, reason: str) -> None:
    with pytest.raises(UsageError, match=reason):
        load_recipe(write(tmp_path, text))


def test_a_tokenizer_is_looked_for_beside_the_recipe(tmp_path: Path) -> None:
    text = load_recipe(write(tmp_path, '[text]\ntokenizer = "t.json"\nmax_length = 8')).text
    assert text is not None
    assert text.tokenizer == tmp_path / "t.json"


def test_class_names_are_a_list_or_a_file_beside_the_recipe(tmp_path: Path) -> None:
    listed = load_recipe(write(tmp_path, 'classes = ["circle", "ring"]\n[image]'))
    (tmp_path / "shapes.txt").write_text("circle\nring\n")
    read = load_recipe(write(tmp_path, 'classes = "shapes.txt"\n[image]'))
    assert listed.classes is not None
    assert read.classes is not None
    assert listed.classes.index == read.classes.index == {"circle": 0, "ring": 1}
    assert listed.digest == load_recipe(write(tmp_path, "[image]")).digest


def test_the_digest_is_of_the_settings(tmp_path: Path) -> None:
    plain = load_recipe(write(tmp_path, "[image]")).digest
    commented = load_recipe(write(tmp_path, "[image] # the same\nscale = 1")).digest
    other = load_recipe(write(tmp_path, "[image]\nscale = 2")).digest
    assert plain == commented != other


def test_a_recipe_in_the_folder_is_used_and_named(tmp_path: Path) -> None:
    (tmp_path / "recipe.toml").write_text("[image]\nscale = 0.25")
    recipe, note, _ = recipe_for(tmp_path, inputs("n", 3, 8, 8))
    assert recipe.image == ImageRecipe(scale=0.25)
    assert str(tmp_path / "recipe.toml") in note


def test_three_channels_are_assumed_to_be_imagenets(tmp_path: Path) -> None:
    image = assumed(tmp_path, inputs("n", 3, 224, 224))
    assert (image.resize, image.crop, image.layout) == (Side("shorter", 256), (224, 224), "NCHW")


@pytest.mark.parametrize("dtype", ["float32", "uint8"])
@pytest.mark.parametrize(
    "shape", [("n", 3, 96, 96), (1, 96, 96, 3), ("n", 3, 48, 320), ("n", 1, 28, 28), (4, 32, 64, 1)], ids=str
)
def test_the_assumed_recipe_can_be_had_by_its_name(tmp_path: Path, shape: tuple[Dim, ...], dtype: str) -> None:
    assumed(tmp_path, inputs(*shape, dtype=dtype))


def test_a_named_recipe_takes_the_size_of_the_model() -> None:
    image = fitted(load_recipe("imagenet"), inputs("n", 3, 112, 112)[0])
    assert (image.resize, image.crop) == (Side("shorter", 128), (112, 112))


def test_a_named_recipe_says_what_to_write_where_the_size_is_dynamic() -> None:
    with pytest.raises(UsageError, match=r"takes the size of input pixels: .* Write resize = \[height, width\]"):
        fitted(load_recipe("yolo"), inputs("n", 3, "h", "w")[0])


def test_a_recipe_of_another_size_than_the_models_says_what_to_write(tmp_path: Path) -> None:
    recipe = load_recipe(write(tmp_path, '[image]\nresize = "shorter:256"\ncrop = [224, 224]'))
    with pytest.raises(UsageError, match=r'makes images of 224x224: input pixels is .* Write crop = "input"'):
        fitted(recipe, inputs("n", 3, 192, 192)[0])


def test_the_channels_may_come_last(tmp_path: Path) -> None:
    image = assumed(tmp_path, inputs(1, 224, 224, 3))
    assert (image.layout, image.crop) == ("NHWC", (224, 224))


def test_an_oblong_input_is_resized_without_a_crop(tmp_path: Path) -> None:
    image = assumed(tmp_path, inputs("n", 3, 48, 320))
    assert (image.resize, image.crop) == ((48, 320), None)


def test_one_channel_is_assumed_to_be_plain_gray(tmp_path: Path) -> None:
    image = assumed(tmp_path, inputs("n", 1, 28, 28))
    assert image == ImageRecipe(resize=(28, 28), color="gray", scale=0.00392156862745098)


def test_an_input_of_bytes_is_assumed_to_take_untouched_pixels(tmp_path: Path) -> None:
    image = assumed(tmp_path, inputs("n", 3, 224, 224, dtype="uint8"))
    assert (image.scale, image.mean, image.std) == (1.0, (), ())


def test_a_dynamic_size_needs_a_recipe(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"height or width is dynamic\. Give a recipe with a resize"):
        recipe_for(tmp_path, inputs("n", 3, "h", "w"))


@pytest.mark.parametrize("shape", [("n", 10), ("n", 4, 8, 8)])
def test_an_input_that_is_not_image_shaped_is_refused(tmp_path: Path, shape: tuple[Dim, ...]) -> None:
    with pytest.raises(DataError, match="images do not fit the model"):
        recipe_for(tmp_path, inputs(*shape))
