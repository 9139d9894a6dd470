"""Settings: files, overrides, terms, and the messages of what is wrong."""

import pytest
import yaml

from densekd.config.load import dump_config, find_config, list_configs, load_config, make_config
from densekd.config.tree import apply_overrides, read_overrides
from densekd.errors import UserError

MINIMAL = {"model": {"name": "espnet_c"}, "data": {"dataset": "scenes"}}


def write(folder, text):
    path = folder / "recipe.yaml"
    path.write_text(text)
    return path


def test_defaults_fill_what_is_not_given():
    config = make_config(MINIMAL, "here")
    assert config.data.batch_size == 8
    assert config.teacher is None


def test_a_key_under_distill_is_a_term_and_its_rest_are_options():
    config = make_config(
        {**MINIMAL, "distill": {"pair_wise": {"weight": 3, "granularity": 4}, "mask": "none"}}, "x"
    )
    term = config.distill.terms["pair_wise"]
    assert (term.weight, term.options) == (3, {"granularity": 4})
    assert config.distill.mask == "none"


def test_dump_and_make_are_inverse():
    config = make_config(
        {
            **MINIMAL,
            "distill": {
                "pixel_wise": {"weight": 1, "temperature": 2.0},
                "holistic": {"weight": 0.1},
            },
        },
        "x",
    )
    assert make_config(yaml.safe_load(dump_config(config)), "y") == config


def test_null_switches_a_term_off():
    config = make_config({**MINIMAL, "distill": {"pixel_wise": None, "holistic": None}}, "x")
    assert config.distill.terms == {}
    assert config.distill.holistic is None


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"data": {"dataset": "scenes", "rooot": 1}}, ["data.rooot", "unknown key", "'root'"]),
        ({"data": {"dataset": "scenes", "height": 1}}, ["data.height", "stands in data.options"]),
        ({"student": {"name": "espnet"}}, ["student: unknown key", "is the section model"]),
        ({"trian": {}}, ["trian", "'train'"]),
        ({"distill": {"holistic": {"wieght": 1}}}, ["distill.holistic.wieght", "'weight'"]),
        ({"data": {"dataset": "scenes", "batch_size": "eight"}}, ["data.batch_size", "'eight'"]),
        ({"data": {}}, ["data.dataset", "missing"]),
        ({"distill": {"pair_wise": 10}}, ["distill.pair_wise", "weight"]),
        ({"distill": {"pair_wise": {"granularity": 2}}}, ["distill.pair_wise.weight", "missing"]),
        ({"train": {"steps": 0}}, ["train.steps", "at least 1", "0"]),
        ({"data": {"dataset": "scenes", "scale": [2, 1]}}, ["data.scale", "low"]),
        ({"optim": {"lr": -1}}, ["optim.lr", "above 0"]),
        ({"train": {"trackers": "wandb"}}, ["train.trackers", "a list, such as [wandb]"]),
    ],
)
def test_a_wrong_setting_names_file_key_and_cure(tmp_path, change, words):
    path = write(tmp_path, yaml.safe_dump({**MINIMAL, **change}))
    with pytest.raises(UserError) as caught:
        load_config(path)
    for word in [str(path), *words]:
        assert word in str(caught.value)


@pytest.mark.parametrize(
    ("key", "value", "rule"),
    [
        ("evaluate.batch_size", 0, "at least 1"),
        ("evaluate.window", [0, 5], "two positive"),
        ("data.short_side", 0, "at least 1"),
        ("distill.holistic.channels", 0, "at least 1"),
        ("model.in_channels", 0, "at least 1"),
        ("seed", -1, r"in \[0, 9223372036854775808\)"),
        ("optim.warmup_steps", -1, "0 or more"),
        ("optim.weight_decay", -0.1, "0 or more"),
        ("optim.groups", [{"prefix": "a", "lr_scale": -1}], "0 or more"),
        ("optim.clip", 0, "above 0"),
        ("optim.betas", [0.9, 1.0], r"\[0, 1\)"),
        ("optim.momentum", 1.0, r"\[0, 1\)"),
        ("distill.pair_wise.weight", -1, "0 or more"),
        ("distill.holistic.weight", -1, "0 or more"),
        ("distill.holistic.penalty", -1, "0 or more"),
        ("distill.holistic.lr", 0, "above 0"),
        ("distill.holistic.betas", [-0.1, 0.9], r"\[0, 1\)"),
        ("data.color_jitter", -0.1, "0 or more"),
        ("data.scales", [], "one or more positive"),
        ("data.scales", [1.0, 0.0], "one or more positive"),
        ("data.cat_max_ratio", 0, r"\(0, 1\]"),
        ("data.hflip", 1.1, r"\[0, 1\]"),
        ("train.ema", 1, "between 0 and 1"),
        ("optim.lr", float("nan"), "finite"),
        ("optim.clip", float("inf"), "finite"),
    ],
)
def test_a_value_out_of_range_names_key_and_rule(key, value, rule):
    tree = {**MINIMAL, "distill": {"pair_wise": {"weight": 1}, "holistic": {}}}
    tree = yaml.safe_load(yaml.safe_dump(tree))
    apply_overrides(tree, {key: value})
    with pytest.raises(UserError, match=rf"^here: {key}.*{rule}.*got") as caught:
        make_config(tree, "here")
    assert len(str(caught.value).splitlines()) == 1


def test_a_key_under_task_is_an_option_and_a_task_may_be_its_name_alone():
    short = make_config({**MINIMAL, "task": "depth"}, "x").task
    assert (short.name, short.options) == ("depth", {})
    long = make_config({**MINIMAL, "task": {"name": "depth", "bins": 32}}, "x")
    assert (long.task.name, long.task.options) == ("depth", {"bins": 32})
    assert yaml.safe_load(dump_config(long))["task"] == {"name": "depth", "bins": 32}
    assert make_config(yaml.safe_load(dump_config(long)), "y") == long
    default = make_config({**MINIMAL, "task": {"loss": "ohem"}}, "x").task
    assert (default.name, default.options) == ("segmentation", {"loss": "ohem"})


def test_an_override_enters_the_short_form_of_a_task():
    tree = {**MINIMAL, "task": "depth"}
    apply_overrides(tree, {"task.min_depth": 1, "task.losses.silog": 2})
    assert tree["task"] == {"name": "depth", "min_depth": 1, "losses": {"silog": 2}}
    apply_overrides(tree, {"task": "detection"})
    assert make_config(tree, "x").task.options == {}


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (
            {"task": "depth", "depth": {"bins": 32}},
            "here: depth.bins: the settings of a task now stand in its own section: write "
            "task: {name: depth, bins: 32}, or --task.bins 32",
        ),
        (
            {"loss": {"name": "ohem", "threshold": 0.6}},
            "here: loss: the settings of a task now stand in its own section: write "
            "task: {name: segmentation, loss: ohem, threshold: 0.6}, or --task.loss ohem --task.threshold 0.6",
        ),
        (
            {"loss": {"class_weights": [1, 2]}},
            "here: loss.class_weights: the settings of a task now stand in its own section: write "
            "task: {name: segmentation, class_weights: [1, 2]}, or --task.class_weights '[1, 2]'",
        ),
        (
            {"task": {"name": "depth", "bins": 8}, "detection": {"nms_threshold": 0.3}},
            "here: detection.nms_threshold: the section detection is of the task detection; the task here is depth: "
            "leave it out",
        ),
        (
            {"task": "detection", "detection": {}},
            "here: detection: there is no such section; the settings of a task stand in its own, as in "
            "task: {name: detection}: leave it out",
        ),
    ],
)
def test_an_old_section_is_answered_with_the_new_spelling(given, said):
    with pytest.raises(UserError) as caught:
        make_config({**MINIMAL, **given}, "here")
    assert str(caught.value) == said


@pytest.mark.parametrize(
    ("key", "value", "kind"),
    [
        ("train.steps", True, "a whole number"),
        ("seed", False, "a whole number"),
        ("optim.lr", True, "a number"),
        ("train.ema", True, "a number"),
        ("data.crop", [True, 5], "a whole number"),
        ("data.scale", [True, 2], "a number"),
        ("distill.pair_wise.weight", True, "a number"),
        ("optim.groups", [{"prefix": "a", "lr_scale": True}], "a number"),
        ("train.steps", 2.5, "a whole number"),
    ],
)
def test_true_is_no_number_and_a_half_is_no_whole_one(key, value, kind):
    tree = {**MINIMAL, "distill": {"pair_wise": {"weight": 1}}}
    tree = yaml.safe_load(yaml.safe_dump(tree))
    apply_overrides(tree, {key: value})
    with pytest.raises(UserError, match=rf"^here: {key}.*expected {kind}; got"):
        make_config(tree, "here")


def test_numbers_may_be_written_in_several_ways():
    tree = {
        **MINIMAL,
        "optim": {"lr": "1e-3", "power": 1},
        "train": {"steps": 20.0, "compile": True},
    }
    config = make_config({**tree, "distill": {"x": {"weight": 1, "flag": True}}}, "x")
    assert (config.optim.lr, config.optim.power, config.train.steps) == (1e-3, 1.0, 20)
    assert config.train.compile is True
    assert config.distill.terms["x"].options == {"flag": True}


def test_all_wrong_settings_are_said_at_once(tmp_path):
    path = write(tmp_path, yaml.safe_dump({**MINIMAL, "trian": 1, "optim": {"lrr": 2}}))
    with pytest.raises(UserError) as caught:
        load_config(path)
    assert len(str(caught.value).splitlines()) == 2


def test_yaml_numbers_in_scientific_form_are_numbers(tmp_path):
    path = write(tmp_path, yaml.safe_dump(MINIMAL) + "optim: {lr: 1e-3}\n")
    assert load_config(path).optim.lr == 1e-3


@pytest.mark.parametrize(
    "text", ["model: [", "a: 1\na: 2\n", "- 1\n", "model: !!python/object:os.X {}"]
)
def test_broken_yaml_is_a_user_error(tmp_path, text):
    with pytest.raises(UserError, match=r"recipe\.yaml"):
        load_config(write(tmp_path, text))


def test_overrides():
    overrides = read_overrides(
        ["--data.root", "a b", "--optim.lr=1e-2", "--data.crop", "[4, 5]", "--x", "-3"]
    )
    assert overrides == {"data.root": "a b", "optim.lr": 0.01, "data.crop": [4, 5], "x": -3}
    tree = {"data": {"root": "old"}, "optim": None}
    apply_overrides(tree, overrides)
    assert tree["data"] == {"root": "a b", "crop": [4, 5]}
    assert tree["optim"] == {"lr": 0.01}


@pytest.mark.parametrize("words", [["--data.root"], ["data.root", "x"], ["--a.b", "--c.d", "1"]])
def test_overrides_without_value_are_errors(words):
    with pytest.raises(UserError):
        read_overrides(words)


def test_an_override_cannot_enter_a_value():
    with pytest.raises(UserError, match="not a section"):
        apply_overrides({"seed": 3}, {"seed.x": 1})


def test_shipped_recipes_are_found_without_a_path():
    assert "camvid/espnet.yaml" in list_configs()
    for name in ("camvid/espnet", "configs/camvid/espnet.yaml", "espnet"):
        assert find_config(name).name == "espnet.yaml"
    with pytest.raises(UserError, match="Did you mean"):
        find_config("camvid/espnett")


@pytest.mark.parametrize("name", list_configs())
def test_every_shipped_recipe_is_valid_and_survives_a_dump(name):
    config = load_config(name)
    assert make_config(yaml.safe_load(dump_config(config)), name) == config


def aliases(levels: int, each: int) -> str:
    lines = ["l0: &l0 [x, x]"]
    for level in range(1, levels):
        lines.append(f"l{level}: &l{level} [{', '.join([f'*l{level - 1}'] * each)}]")
    return "\n".join(lines)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (aliases(9, 9), "values when its aliases are written out"),
        ("a: &a {x: 1}\n" + aliases(30, 2), "values when its aliases are written out"),
        ("a: &a [*a]", "stands within what it is an alias of"),
        ("a: &a {b: *a}", "stands within what it is an alias of"),
        ("x: " + "[" * 5000, "nested too deeply"),
        ("x: " + "[" * 1500 + "]" * 1500, "nested too deeply"),
        ("x: " + "9" * 5000, "not valid YAML"),
        ("? [a, b]\n: 1", "expected a name"),
        ("# " + "x" * 1_000_001, "at most 1,000,000"),
    ],
    ids=["bomb", "long bomb", "loop", "loop of keys", "open", "deep", "digits", "key", "size"],
)
def test_hostile_yaml_ends_at_once(tmp_path, text, words):
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=words) as error:
        load_config(path)
    assert len(str(error.value)) < 500


def test_a_few_aliases_are_fine(tmp_path, tiny_tree):
    tiny_tree["data"]["options"] = {"classes": "CLASSES"}
    text = yaml.safe_dump(tiny_tree).replace("CLASSES", "&c [a, b]")
    path = tmp_path / "recipe.yaml"
    path.write_text(text.replace("train_options: {}", "") + "")
    assert load_config(path).data.options == {"classes": ["a", "b"]}


def test_a_recipe_that_is_no_text(tmp_path):
    (tmp_path / "recipe.yaml").write_bytes(b"\xff\xfe\x00m")
    with pytest.raises(UserError, match=r"recipe\.yaml: cannot be read as a recipe"):
        load_config(tmp_path / "recipe.yaml")
